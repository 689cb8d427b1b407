/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DIRTY_LOG_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DIRTY_LOG_H

#include <linux/types.h>
#include <linux/vfio.h>

#include <libvfio/assert.h>
#include <libvfio/iommu.h>

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
 * __iommu_dirty_log_info() - What the container says about its dirty log.
 *
 * Guarantees:
 *  - Returns -ENOENT if the container has no migration capability, and the
 *    errno of VFIO_IOMMU_GET_INFO, negated, if that fails.
 *  - Asserts that pgsize is a single page size.
 */
int __iommu_dirty_log_info(struct iommu *iommu, struct iommu_dirty_log_info *info);

static inline void iommu_dirty_log_info(struct iommu *iommu,
					struct iommu_dirty_log_info *info)
{
	VFIO_ASSERT_EQ(__iommu_dirty_log_info(iommu, info), 0);
}

/*
 * iommu_check_extension() - VFIO_CHECK_EXTENSION on the container.
 *
 * Guarantees:
 *  - Can be called before a device is attached.
 *  - Returns what the ioctl returned, errors as -errno.
 */
int iommu_check_extension(struct iommu *iommu, unsigned long extension);

/*
 * __iommu_dirty_log_ioctl() - One VFIO_IOMMU_DIRTY_PAGES call, nothing filled
 * in and nothing checked. @argsz is passed on as it is, @range may be NULL.
 */
int __iommu_dirty_log_ioctl(struct iommu *iommu, u32 argsz, u32 flags,
			    const struct vfio_iommu_type1_dirty_bitmap_get *range);

/*
 * start() - Log DMA writes from now on.
 *
 * Guarantees:
 *  - Only pages written after the call are reported (hardware log), apart from
 *    pages that an emulated device has pinned.
 *  - While the log runs, start() succeeds and changes nothing.
 */
int __iommu_dirty_log_start(struct iommu *iommu);

static inline void iommu_dirty_log_start(struct iommu *iommu)
{
	VFIO_ASSERT_EQ(__iommu_dirty_log_start(iommu), 0);
}

/*
 * stop() - Stop logging and forget what was logged.
 *
 * Guarantees:
 *  - While the log does not run, stop() succeeds and changes nothing.
 */
int __iommu_dirty_log_stop(struct iommu *iommu);

static inline void iommu_dirty_log_stop(struct iommu *iommu)
{
	VFIO_ASSERT_EQ(__iommu_dirty_log_stop(iommu), 0);
}

/*
 * bitmap() - Make the call @flag, which is one of
 *
 *  DIRTY_LOG_GET: read the pages of [@iova, @iova + @size) and make them clean.
 *  DIRTY_LOG_NOCLEAR: read them, and leave every page as dirty as it is.
 *  DIRTY_LOG_CLEAR: make those pages clean whose bits are set in @bitmap.
 *
 * Guarantees:
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
 * __iommu_unmap_ioctl() - One VFIO_IOMMU_UNMAP_DMA call for a range of IOVA,
 * which need not be that of one struct dma_region. @bitmap goes along with
 * VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP and may be NULL without it. @unmapped may
 * be NULL; if not, it is always what the kernel left in the size field.
 *
 * The caller has to keep iommu->dma_regions up to date.
 */
int __iommu_unmap_ioctl(struct iommu *iommu, u32 flags, iova_t iova, u64 size,
			const struct vfio_bitmap *bitmap, u64 *unmapped);

/*
 * unmap_get_dirty() - Unmap @region and read which of its pages were dirty.
 *
 * Guarantees:
 *  - What the device wrote before the call is in @bitmap.
 *  - On an error nothing is unmapped and nothing is lost from the log.
 */
int __iommu_unmap_get_dirty(struct iommu *iommu, struct dma_region *region,
			    void *bitmap, u64 *unmapped);

/*
 * vaddr_invalidate() and vaddr_update() - Take the process' virtual address away
 * from @region, which stays mapped, and give it @region->vaddr as the new one.
 * For containers that offer VFIO_UPDATE_VADDR.
 */
int __iommu_vaddr_invalidate(struct iommu *iommu, struct dma_region *region);
int __iommu_vaddr_update(struct iommu *iommu, struct dma_region *region);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DIRTY_LOG_H */
