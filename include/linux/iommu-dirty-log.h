/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Dirty log of an IOMMU domain, for users inside the kernel
 */
#ifndef _LINUX_IOMMU_DIRTY_LOG_H
#define _LINUX_IOMMU_DIRTY_LOG_H

#include <linux/types.h>

struct iommu_domain;
struct iommu_iotlb_gather;
struct iova_bitmap;

bool iommu_dirty_log_capable(struct iommu_domain *domain);
int iommu_dirty_log_start(struct iommu_domain *domain);
int iommu_dirty_log_stop(struct iommu_domain *domain);
int iommu_dirty_log_read(struct iommu_domain *domain, unsigned long iova,
			 size_t size, struct iova_bitmap *bitmap);
int iommu_dirty_log_clear(struct iommu_domain *domain, unsigned long iova,
			  size_t size, unsigned long flags,
			  struct iova_bitmap *bitmap,
			  struct iommu_iotlb_gather *gather);
void iommu_dirty_log_merge(struct iommu_domain *domain, unsigned long iova,
			   size_t size, struct iommu_iotlb_gather *gather);

#endif /* _LINUX_IOMMU_DIRTY_LOG_H */
