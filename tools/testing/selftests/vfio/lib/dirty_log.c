// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>

#include <linux/log2.h>
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
	int ret = ioctl(container_fd(iommu), VFIO_CHECK_EXTENSION, extension);

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

static struct vfio_bitmap dirty_log_bitmap(struct iommu *iommu, u64 size, const void *data)
{
	struct iommu_dirty_log_info info;

	/* Outside of MODE_VFIO_TYPE1V2_IOMMU any page size does: the call is refused. */
	if (__iommu_dirty_log_info(iommu, &info))
		info.pgsize = getpagesize();

	return (struct vfio_bitmap) {
		.pgsize = info.pgsize,
		.size = DIRTY_LOG_BITMAP_BYTES(size / info.pgsize),
		.data = (void *)data,
	};
}

int __iommu_dirty_log_bitmap(struct iommu *iommu, u32 flag, iova_t iova, u64 size,
			     const void *data)
{
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = iova,
		.size = size,
		.bitmap = dirty_log_bitmap(iommu, size, data),
	};

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
	struct vfio_bitmap bitmap = dirty_log_bitmap(iommu, region->size, data);
	int ret;

	ret = __iommu_unmap_ioctl(iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
				  region->iova, region->size, &bitmap, unmapped);
	if (ret)
		return ret;

	list_del_init(&region->link);

	return 0;
}
