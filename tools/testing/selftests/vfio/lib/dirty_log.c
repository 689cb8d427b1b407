// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/align.h>
#include <linux/log2.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/types.h>
#include <linux/vfio.h>

#include <libvfio.h>

/* Also in MODE_IOMMUFD, where the iommufd itself has to refuse the calls. */
static int container_fd(struct iommu *iommu)
{
	return iommu->iommufd ?: iommu->container_fd;
}

static int container_ioctl(struct iommu *iommu, unsigned long cmd, void *arg)
{
	return ioctl(container_fd(iommu), cmd, arg) ? -errno : 0;
}

int iommu_check_extension(struct iommu *iommu, unsigned long extension)
{
	int ret;

	ret = ioctl(container_fd(iommu), VFIO_CHECK_EXTENSION, extension);

	return ret < 0 ? -errno : ret;
}

int __iommu_dirty_log_info(struct iommu *iommu, struct iommu_dirty_log_info *log)
{
	struct vfio_iommu_type1_info_cap_migration *cap;
	struct vfio_iommu_type1_info probe = {
		.argsz = sizeof(probe),
	};
	struct vfio_iommu_type1_info *info;
	struct vfio_info_cap_header *hdr;
	int ret;

	ret = container_ioctl(iommu, VFIO_IOMMU_GET_INFO, &probe);
	if (ret)
		return ret;

	info = vfio_iommu_get_info(container_fd(iommu));
	hdr = vfio_iommu_info_cap_hdr(info, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION);
	if (!hdr) {
		free(info);
		return -ENOENT;
	}

	cap = container_of(hdr, struct vfio_iommu_type1_info_cap_migration, header);
	VFIO_ASSERT_TRUE(is_power_of_2(cap->pgsize_bitmap));

	*log = (struct iommu_dirty_log_info) {
		.hw = cap->flags & VFIO_IOMMU_INFO_CAP_MIGRATION_HW_DIRTY,
		.pgsize = cap->pgsize_bitmap,
		.max_bitmap_size = cap->max_dirty_bitmap_size,
		.iova_pgsizes = info->iova_pgsizes,
	};

	free(info);
	return 0;
}

int __iommu_dirty_log_ioctl(struct iommu *iommu, u32 argsz, u32 flags,
			    const struct vfio_iommu_type1_dirty_bitmap_get *range)
{
	u64 buf[(sizeof(struct vfio_iommu_type1_dirty_bitmap) + sizeof(*range)) / 8] = {};
	struct vfio_iommu_type1_dirty_bitmap *dirty = (void *)buf;

	dirty->argsz = argsz;
	dirty->flags = flags;

	if (range)
		memcpy(dirty->data, range, sizeof(*range));

	return container_ioctl(iommu, VFIO_IOMMU_DIRTY_PAGES, dirty);
}

int __iommu_dirty_log_start(struct iommu *iommu)
{
	return __iommu_dirty_log_ioctl(iommu, sizeof(struct vfio_iommu_type1_dirty_bitmap),
				       VFIO_IOMMU_DIRTY_PAGES_FLAG_START, NULL);
}

int __iommu_dirty_log_stop(struct iommu *iommu)
{
	return __iommu_dirty_log_ioctl(iommu, sizeof(struct vfio_iommu_type1_dirty_bitmap),
				       VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, NULL);
}

/* Outside of MODE_VFIO_TYPE1V2_IOMMU any page size does: the call is refused. */
static u64 dirty_log_pgsize(struct iommu *iommu)
{
	struct iommu_dirty_log_info info;

	if (__iommu_dirty_log_info(iommu, &info))
		return getpagesize();

	return info.pgsize;
}

static void dirty_log_bitmap_init(struct iommu *iommu, u64 size, const void *data,
				  struct vfio_bitmap *bitmap)
{
	u64 pgsize = dirty_log_pgsize(iommu);

	*bitmap = (struct vfio_bitmap) {
		.pgsize = pgsize,
		.size = DIRTY_LOG_BITMAP_BYTES(size / pgsize),
		.data = (void *)data,
	};
}

int __iommu_dirty_log_bitmap(struct iommu *iommu, u32 flag, iova_t iova, u64 size,
			     const void *data)
{
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = iova,
		.size = size,
	};

	dirty_log_bitmap_init(iommu, size, data, &range.bitmap);

	return __iommu_dirty_log_ioctl(iommu,
				       sizeof(struct vfio_iommu_type1_dirty_bitmap) + sizeof(range),
				       flag, &range);
}

int __iommu_unmap_ioctl(struct iommu *iommu, u32 flags, iova_t iova, u64 size,
			const struct vfio_bitmap *bitmap, u64 *unmapped)
{
	u64 buf[(sizeof(struct vfio_iommu_type1_dma_unmap) + sizeof(*bitmap)) / 8] = {};
	struct vfio_iommu_type1_dma_unmap *unmap = (void *)buf;
	int ret;

	unmap->argsz = sizeof(*unmap);
	unmap->flags = flags;
	unmap->iova = iova;
	unmap->size = size;

	if (bitmap) {
		unmap->argsz += sizeof(*bitmap);
		memcpy(unmap->data, bitmap, sizeof(*bitmap));
	}

	ret = container_ioctl(iommu, VFIO_IOMMU_UNMAP_DMA, unmap);

	if (unmapped)
		*unmapped = unmap->size;

	return ret;
}

int __iommu_unmap_get_dirty(struct iommu *iommu, struct dma_region *region,
			    void *data, u64 *unmapped)
{
	struct vfio_bitmap bitmap;
	int ret;

	dirty_log_bitmap_init(iommu, region->size, data, &bitmap);

	ret = __iommu_unmap_ioctl(iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
				  region->iova, region->size, &bitmap, unmapped);
	if (ret)
		return ret;

	list_del_init(&region->link);

	return 0;
}

int __iommu_vaddr_invalidate(struct iommu *iommu, struct dma_region *region)
{
	return __iommu_unmap_ioctl(iommu, VFIO_DMA_UNMAP_FLAG_VADDR, region->iova,
				   region->size, NULL, NULL);
}

int __iommu_vaddr_update(struct iommu *iommu, struct dma_region *region)
{
	struct vfio_iommu_type1_dma_map args = {
		.argsz = sizeof(args),
		.flags = VFIO_DMA_MAP_FLAG_VADDR,
		.vaddr = (u64)region->vaddr,
		.iova = region->iova,
		.size = region->size,
	};

	return container_ioctl(iommu, VFIO_IOMMU_MAP_DMA, &args);
}
