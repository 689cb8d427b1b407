/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DIRTY_LOG_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DIRTY_LOG_H

#include <linux/list.h>
#include <linux/sizes.h>
#include <linux/types.h>
#include <linux/vfio.h>

#include <libvfio/assert.h>
#include <libvfio/iommu.h>

struct iova_allocator;
struct vfio_pci_device;

/*
 * The dirty log of a type1 container (VFIO_IOMMU_DIRTY_PAGES). Only
 * MODE_VFIO_TYPE1V2_IOMMU offers it. In every other mode the calls below are
 * made all the same, so that a test can look at how they are refused.
 *
 * iommufd has its own dirty tracking (IOMMU_HWPT_GET_DIRTY_BITMAP), which has no
 * mask to clear and accepts no holes between mappings: the two do not share an
 * interface here.
 *
 * Bitmaps hold one bit for each page of iommu_dirty_log_info.pgsize bytes, bit 0
 * for the page at the iova that was passed with them, in 64-bit words.
 */
#define DIRTY_LOG_BITMAP_BYTES(_nbits)	((((u64)(_nbits) + 63) / 64) * 8)

#define DIRTY_LOG_START		VFIO_IOMMU_DIRTY_PAGES_FLAG_START
#define DIRTY_LOG_STOP		VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP
#define DIRTY_LOG_GET		VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP
#define DIRTY_LOG_NOCLEAR	VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP_NOCLEAR
#define DIRTY_LOG_CLEAR		VFIO_IOMMU_DIRTY_PAGES_FLAG_CLEAR_BITMAP

static inline bool bit_get(const void *bitmap, u64 bit)
{
	return ((const u8 *)bitmap)[bit / 8] & (1 << (bit % 8));
}

static inline void bit_put(void *bitmap, u64 bit, bool value)
{
	u8 *byte = (u8 *)bitmap + bit / 8;

	*byte = value ? *byte | (1 << (bit % 8)) : *byte & ~(1 << (bit % 8));
}

static inline void bit_set(void *bitmap, u64 bit)
{
	bit_put(bitmap, bit, true);
}

struct iommu_dirty_log_info {
	/* True: the IOMMU logs DMA writes. False: all mapped pages are dirty. */
	bool hw;

	/* Bytes of memory that one bit stands for. */
	u64 pgsize;

	/* Bytes, the largest bitmap that one call accepts. */
	u64 max_bitmap_size;

	/* Every page size that all IOMMUs of the container can map. */
	u64 iova_pgsizes;
};

/*
 * What the container says about its dirty log: 0, or -ENOENT if it has no
 * migration capability, or the negated errno of VFIO_IOMMU_GET_INFO.
 */
int __iommu_dirty_log_info(struct iommu *iommu, struct iommu_dirty_log_info *info);

static inline void iommu_dirty_log_info(struct iommu *iommu,
					struct iommu_dirty_log_info *info)
{
	VFIO_ASSERT_EQ(__iommu_dirty_log_info(iommu, info), 0);
}

/* VFIO_CHECK_EXTENSION on the container, also before a device is attached */
int iommu_check_extension(struct iommu *iommu, unsigned long extension);

/*
 * One VFIO_IOMMU_DIRTY_PAGES call, nothing filled in and nothing checked. @argsz
 * is passed on as it is, @range may be NULL.
 */
int __iommu_dirty_log_ioctl(struct iommu *iommu, u32 argsz, u32 flags,
			    const struct vfio_iommu_type1_dirty_bitmap_get *range);

/*
 * Make the call @flag, which is one of
 *
 *  DIRTY_LOG_START: log DMA writes from now on.
 *  DIRTY_LOG_STOP: stop, and forget what was logged.
 *  DIRTY_LOG_GET: read the pages of [@iova, @iova + @size) and make them clean.
 *  DIRTY_LOG_NOCLEAR: read them, and leave every page as dirty as it is.
 *  DIRTY_LOG_CLEAR: make those pages clean whose bits are set in @bitmap.
 *
 * Guarantees:
 *  - START while the log runs, and STOP while it does not, change nothing.
 *  - A call that reads writes the bit of each mapped page of the range, 0 or 1.
 *    Every other bit of @bitmap is left as it was.
 *  - DMA that writes to a page after the call that made it clean makes it dirty
 *    again. So clear a page first and copy it then.
 *  - CLEAR makes no other page clean, not even a neighbour that the IOMMU maps by
 *    the same entry. Bits of pages that are not mapped are ignored.
 *  - On an error every page is at least as dirty as before.
 *  - GET fails with -EINVAL if the range covers only a part of some mapping. The
 *    other two take any range.
 */
int __iommu_dirty_log_bitmap(struct iommu *iommu, u32 flag, iova_t iova, u64 size,
			     const void *bitmap);

static inline int __iommu_dirty_log_start(struct iommu *iommu)
{
	return __iommu_dirty_log_bitmap(iommu, DIRTY_LOG_START, 0, 0, NULL);
}

static inline void iommu_dirty_log_start(struct iommu *iommu)
{
	VFIO_ASSERT_EQ(__iommu_dirty_log_start(iommu), 0);
}

static inline int __iommu_dirty_log_stop(struct iommu *iommu)
{
	return __iommu_dirty_log_bitmap(iommu, DIRTY_LOG_STOP, 0, 0, NULL);
}

static inline void iommu_dirty_log_stop(struct iommu *iommu)
{
	VFIO_ASSERT_EQ(__iommu_dirty_log_stop(iommu), 0);
}

static inline void iommu_dirty_log_get(struct iommu *iommu, iova_t iova,
				       u64 size, void *bitmap)
{
	VFIO_ASSERT_EQ(__iommu_dirty_log_bitmap(iommu, DIRTY_LOG_GET, iova, size, bitmap), 0);
}

static inline void iommu_dirty_log_get_noclear(struct iommu *iommu, iova_t iova,
					       u64 size, void *bitmap)
{
	VFIO_ASSERT_EQ(__iommu_dirty_log_bitmap(iommu, DIRTY_LOG_NOCLEAR, iova, size, bitmap), 0);
}

static inline void iommu_dirty_log_clear(struct iommu *iommu, iova_t iova,
					 u64 size, const void *bitmap)
{
	VFIO_ASSERT_EQ(__iommu_dirty_log_bitmap(iommu, DIRTY_LOG_CLEAR, iova, size, bitmap), 0);
}

/*
 * One VFIO_IOMMU_UNMAP_DMA call. @bitmap goes along with
 * VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP and may be NULL without it. @unmapped may
 * be NULL; if not, it is always what the kernel left in the size field.
 *
 * The caller has to keep iommu->dma_regions up to date.
 */
int __iommu_unmap_ioctl(struct iommu *iommu, u32 flags, iova_t iova, u64 size,
			const struct vfio_bitmap *bitmap, u64 *unmapped);

/*
 * Unmap @region and read which of its pages were dirty. On an error nothing is
 * unmapped and nothing is lost from the log.
 */
int __iommu_unmap_get_dirty(struct iommu *iommu, struct dma_region *region,
			    void *bitmap, u64 *unmapped);

/*
 * A model of the dirty log of a container, kept in step with a real one, and a
 * device whose DMA fills both. Whatever is read from the log is compared with the
 * model bit by bit.
 *
 * The IOMMU logs by leaf of its page table. How large the leaves are is known in
 * part only, so a page next to one that was written may be reported or not; once
 * it was reported, it must be until it is cleared. With a pessimistic log every
 * page is dirty, always.
 */
enum dirty_log_page {
	PAGE_CLEAN,
	PAGE_EITHER,
	PAGE_DIRTY,
};

struct dirty_log_mapping {
	struct list_head link;
	struct dma_region dma;
	u64 npages;

	/* Pages that share a leaf, at least and at most */
	u64 min_leaf, max_leaf;

	/* enum dirty_log_page of each page */
	u8 *state;

	/* Pages that an emulated device has pinned: dirty while that lasts */
	u8 *pinned;

	/* Pages whose leaf is dirty, pages that were split off into a leaf of their own */
	u8 *in_iommu, *alone;
};

struct dirty_log {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct iova_allocator *iovas;
	struct iommu_dirty_log_info info;

	/* The domain that logs, if it is one of iommufd's */
	u32 hwpt;

	struct list_head mappings;
	bool tracking;

	/* A leaf that CLEAR_BITMAP cleans becomes smaller leaves, if it can */
	bool split_on_clear;

	/* The device reads here, which makes nothing dirty */
	struct dirty_log_mapping *src;

	/* Bytes that bitmaps are off their alignment */
	unsigned int misalign;

	u8 seq;
};

/* Above 4 GiB, out of the way of the drivers: where tests map things */
#define DIRTY_LOG_IOVA		(16UL * SZ_1G)

/* Bytes of one DMA write. Some devices cannot do less than 60. */
#define DIRTY_LOG_DMA_SIZE	64

/*
 * Open @bdf in a type1v2 container, with a driver that does DMA. Returns the
 * reason why this is not possible, for SKIP(), or NULL. $VFIO_DIRTY_LOG_EXPECT
 * names the log, hw or pessimistic, that the machine has: the other one is a
 * failure.
 */
const char *dirty_log_setup(struct dirty_log *log, const char *bdf);

/*
 * The same in an iommufd. @log->hwpt is for the caller's own ioctls, all calls below
 * that read, clear, start or stop are for containers.
 */
const char *dirty_log_setup_iommufd(struct dirty_log *log, const char *bdf);
void dirty_log_teardown(struct dirty_log *log);

/* Put the device into a domain of its iommufd that can log: the domain's ID, or 0 */
u32 dirty_log_attach_hwpt(struct vfio_pci_device *device);

/* Whether CLEAR_BITMAP splits dirty leaves here, see struct dirty_log */
bool dirty_log_splits_on_clear(void);

/* Another device of the container: map what its driver needs and start that */
void dirty_log_start_driver(struct dirty_log *log, struct vfio_pci_device *device);

/* Shared memory, MAP_FAILED if there is none. @flags are those of mmap(). */
void *dirty_log_alloc(u64 size, int flags);

/* Map memory that consists of pages of @page_size at least. */
struct dirty_log_mapping *dirty_log_map(struct dirty_log *log, void *vaddr, iova_t iova,
					u64 size, u64 page_size);
struct dirty_log_mapping *dirty_log_map_pages(struct dirty_log *log, iova_t iova, u64 npages);
void dirty_log_map_again(struct dirty_log *log, struct dirty_log_mapping *m);
void dirty_log_unmap(struct dirty_log *log, struct dirty_log_mapping *m);

void dirty_log_start(struct dirty_log *log);
void dirty_log_stop(struct dirty_log *log);

/* @flag is DIRTY_LOG_GET, DIRTY_LOG_NOCLEAR or DIRTY_LOG_CLEAR. 0 or -errno. */
int dirty_log_call(struct dirty_log *log, u32 flag, iova_t iova, u64 npages, void *bitmap);

/* Read by @flag, and compare also what is around the bitmap. */
void dirty_log_check(struct dirty_log *log, u32 flag, iova_t iova, u64 npages);

/* Check each mapping, and leave the log as it is. */
void dirty_log_check_all(struct dirty_log *log);

/* A NULL mask is one of all ones, beyond the range as well. */
void dirty_log_clear(struct dirty_log *log, iova_t iova, u64 npages, const void *mask);
void dirty_log_clear_page(struct dirty_log *log, struct dirty_log_mapping *m, u64 page);

/* Let @device write DIRTY_LOG_DMA_SIZE bytes at byte @offset of @m. */
void dirty_log_write_at(struct dirty_log *log, struct vfio_pci_device *device,
			struct dirty_log_mapping *m, u64 offset);
void dirty_log_write(struct dirty_log *log, struct dirty_log_mapping *m, u64 page);

static inline iova_t dirty_log_iova(struct dirty_log *log, struct dirty_log_mapping *m, u64 page)
{
	return m->dma.iova + page * log->info.pgsize;
}

/* The model alone, for tests that make their calls themselves */

void dirty_log_model_forget(struct dirty_log_mapping *m);
void dirty_log_model_start(struct dirty_log *log);
void dirty_log_model_write(struct dirty_log *log, struct dirty_log_mapping *m, u64 page);

/* @mask NULL: GET, or a mapping that starts anew */
void dirty_log_model_clear(struct dirty_log *log, iova_t iova, u64 npages, const void *mask);

/* After a call that failed a page may be dirtier than before, never cleaner. */
void dirty_log_model_error(struct dirty_log *log);

/* A group was attached, perhaps with a new IOMMU domain. */
void dirty_log_model_attach(struct dirty_log *log);

/*
 * Compare @bitmap, whose bytes were @poison before it was written, with the model.
 * Returns what is wrong with it, or NULL.
 */
const char *dirty_log_model_compare(struct dirty_log *log, iova_t iova, u64 npages,
				    const void *bitmap, u8 poison);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DIRTY_LOG_H */
