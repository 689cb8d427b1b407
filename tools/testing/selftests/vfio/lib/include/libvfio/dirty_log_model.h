/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DIRTY_LOG_MODEL_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DIRTY_LOG_MODEL_H

#include <linux/list.h>
#include <linux/sizes.h>
#include <linux/types.h>

#include <libvfio/dirty_log.h>
#include <libvfio/iommu.h>

struct iova_allocator;
struct vfio_pci_device;

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
 * setup() - Open @bdf in a type1v2 container, with a driver that does DMA.
 *
 * Returns the reason why this is not possible, for SKIP(), or NULL.
 * $VFIO_DIRTY_LOG_EXPECT names the log, hw or pessimistic, that the machine has:
 * the other one is a failure.
 */
const char *dirty_log_setup(struct dirty_log *log, const char *bdf);
void dirty_log_teardown(struct dirty_log *log);

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

void dirty_log_model_map(struct dirty_log *log, struct dirty_log_mapping *m);
void dirty_log_model_forget(struct dirty_log_mapping *m);
void dirty_log_model_start(struct dirty_log *log);
void dirty_log_model_stop(struct dirty_log *log);
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

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DIRTY_LOG_MODEL_H */
