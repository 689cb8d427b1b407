// SPDX-License-Identifier: GPL-2.0
/*
 * Dirty log of an IOMMU domain: the rules for calling struct iommu_dirty_ops
 *
 * The IOMMU keeps in each leaf of its page table whether a device has written
 * through it. The leaf is the unit: it is dirty or clean as a whole, however
 * few of its pages were written to or are asked for. For example, with a leaf
 * of 2M at IOVA 4M that is dirty, and a bitmap for 4M..6M-1:
 *
 *   iommu_dirty_log_read(domain, 5M, 4K, bitmap)               sets one bit,
 *   iommu_dirty_log_clear(domain, 5M, 4K, 0, bitmap, gather)   sets all 512,
 *   iommu_dirty_log_read(domain, 4M, 4K, bitmap)               sets none.
 *
 * After the second call the leaf is clean, and only the bitmap tells that its
 * pages were written to. With a bitmap for 5M..5M+4K-1, the second call sets one
 * bit and leaves the leaf dirty, as the dirty state of the rest would be lost.
 * So a user that cleans single pages has a bitmap for the whole mapping,
 * clears the log into it, and takes these pages out of the bitmap afterwards.
 * Mappings of different iommu_map() calls never share a leaf.
 *
 * The IOTLB may have cached that a leaf is dirty, and then a write does not set
 * the dirty state in the leaf again. So a leaf that was cleaned counts as clean
 * only after an IOTLB flush.
 */
#include <linux/bitops.h>
#include <linux/bug.h>
#include <linux/export.h>
#include <linux/generic_pt/iommu.h>
#include <linux/iommu.h>
#include <linux/iommu-dirty-log.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>

/*
 * Bytes that are walked without a chance to reschedule or to be killed: with 4K
 * leaves up to a million instructions, if every second one is dirty. Where a
 * step ends inside a leaf, the next one meets that leaf again.
 */
#define IOMMU_DIRTY_LOG_STEP SZ_64M

static int iommu_dirty_log_walk(struct iommu_domain *domain,
				unsigned long iova, size_t size,
				unsigned long flags,
				struct iommu_dirty_bitmap *dirty)
{
	unsigned long last, end, pgmask, step;
	int ret;

	if (!iommu_dirty_log_capable(domain))
		return -EOPNOTSUPP;

	if (WARN_ON_ONCE(!domain->pgsize_bitmap))
		return -EINVAL;

	if (!size || check_add_overflow(iova, size - 1, &last))
		return -EINVAL;

	/* Extend the range to whole pages of the domain */
	pgmask = (1UL << __ffs(domain->pgsize_bitmap)) - 1;
	step = max(pgmask, IOMMU_DIRTY_LOG_STEP - 1UL);
	iova &= ~pgmask;
	last |= pgmask;

	for (;;) {
		end = min(last, iova | step);
		ret = domain->dirty_ops->read_and_clear_dirty(domain, iova,
							      end - iova + 1,
							      flags, dirty);
		if (ret || end == last)
			return ret;

		if (fatal_signal_pending(current))
			return -EINTR;

		iova = end + 1;
		cond_resched();
	}
}

/**
 * iommu_dirty_log_capable() - Whether a domain can log what devices write to
 * @domain: Domain to ask
 *
 * A domain can if it was allocated with IOMMU_HWPT_ALLOC_DIRTY_TRACKING on an
 * IOMMU that has IOMMU_CAP_DIRTY_TRACKING. It does not change while the domain
 * exists.
 *
 * Context: Any context.
 * Return: true if the other functions work on @domain.
 */
bool iommu_dirty_log_capable(struct iommu_domain *domain)
{
	const struct iommu_dirty_ops *ops = domain->dirty_ops;

	return ops && ops->set_dirty_tracking && ops->read_and_clear_dirty;
}
EXPORT_SYMBOL_GPL(iommu_dirty_log_capable);

/**
 * iommu_dirty_log_start() - Start logging what devices write to
 * @domain: Domain that shall log
 *
 * Leaves may be dirty from before. For a clean slate, the caller first discards
 * that with iommu_dirty_log_clear() and a NULL bitmap.
 *
 * Context: May sleep. The caller serializes this with iommu_dirty_log_stop().
 * Return: 0 on success, -EOPNOTSUPP if @domain cannot log, or the error of the
 * IOMMU driver. On an error @domain is not logging.
 */
int iommu_dirty_log_start(struct iommu_domain *domain)
{
	if (!iommu_dirty_log_capable(domain))
		return -EOPNOTSUPP;

	return domain->dirty_ops->set_dirty_tracking(domain, true);
}
EXPORT_SYMBOL_GPL(iommu_dirty_log_start);

/**
 * iommu_dirty_log_stop() - Stop logging what devices write to
 * @domain: Domain that logs
 *
 * What is in the log stays there until it is cleared or the mapping goes.
 *
 * Context: May sleep. The caller serializes this with iommu_dirty_log_start().
 * Return: 0 on success, -EOPNOTSUPP if @domain cannot log, or the error of the
 * IOMMU driver. A domain that continues logging costs time, but nothing is lost.
 */
int iommu_dirty_log_stop(struct iommu_domain *domain)
{
	if (!iommu_dirty_log_capable(domain))
		return -EOPNOTSUPP;

	return domain->dirty_ops->set_dirty_tracking(domain, false);
}
EXPORT_SYMBOL_GPL(iommu_dirty_log_stop);

/**
 * iommu_dirty_log_read() - Read the dirty log and leave it as it is
 * @domain: Domain to read
 * @iova: Start of the range, in bytes
 * @size: Length of the range, in bytes
 * @bitmap: Where the pages of dirty leaves are recorded
 *
 * Sets in @bitmap the bits of all pages in the range whose leaves are dirty. The
 * leaves stay dirty. What @bitmap does not cover is ignored.
 *
 * Context: May sleep. The caller keeps the range mapped during the call.
 * Return: 0 on success, -EOPNOTSUPP if @domain cannot log, -EINVAL if the range
 * is empty or wraps, -EINTR if the task is being killed, or the error of the
 * IOMMU driver. On an error @bitmap is incomplete.
 */
int iommu_dirty_log_read(struct iommu_domain *domain, unsigned long iova,
			 size_t size, struct iova_bitmap *bitmap)
{
	/* Nothing is cleaned, so there is nothing to flush and to gather */
	struct iommu_dirty_bitmap dirty = { .bitmap = bitmap };

	return iommu_dirty_log_walk(domain, iova, size, IOMMU_DIRTY_NO_CLEAR,
				    &dirty);
}
EXPORT_SYMBOL_GPL(iommu_dirty_log_read);

/**
 * iommu_dirty_log_clear() - Read the dirty log and leave it clean
 * @domain: Domain to read and clean
 * @iova: Start of the range, in bytes
 * @size: Length of the range, in bytes
 * @flags: 0 or IOMMU_DIRTY_SPLIT
 * @bitmap: Where the pages of dirty leaves are recorded, or NULL to discard them
 * @gather: Collects what has to be flushed
 *
 * Like iommu_dirty_log_read(), but the leaves are clean afterwards. A leaf of
 * which only a part is in the range is cleaned, and recorded as a whole, if
 * @bitmap covers all of it. Otherwise it stays dirty.
 *
 * With IOMMU_DIRTY_SPLIT a dirty leaf is first replaced by leaves of the smallest
 * size as far as it lies in the range, and the rest of it stays dirty. So what
 * is written from then on is logged by these. Where that is not possible, the
 * leaf is treated as without the flag. See iommu_dirty_log_merge().
 *
 * The flush is the caller's, as with iommu_unmap_fast(), so that several ranges
 * of a domain cost one: initialize @gather with iommu_iotlb_gather_init(), call
 * this for each range, then iommu_iotlb_sync(). Until that has returned, what a
 * device writes may go unnoticed. So it comes before anything that relies on
 * @bitmap, and it comes after an error too.
 *
 * Context: May sleep. The caller keeps the range mapped until the flush. With
 * IOMMU_DIRTY_SPLIT it also excludes other calls for the range until then: they
 * would find small leaves clean that an IOTLB has as part of a dirty large one.
 * Return: As iommu_dirty_log_read(), and -EINVAL for unknown @flags. On an error
 * some leaves may have been cleaned, and these have been recorded in @bitmap.
 */
int iommu_dirty_log_clear(struct iommu_domain *domain, unsigned long iova,
			  size_t size, unsigned long flags,
			  struct iova_bitmap *bitmap,
			  struct iommu_iotlb_gather *gather)
{
	struct iommu_dirty_bitmap dirty = {
		.bitmap = bitmap,
		.gather = gather,
	};

	if (flags & ~IOMMU_DIRTY_SPLIT)
		return -EINVAL;

	return iommu_dirty_log_walk(domain, iova, size, flags, &dirty);
}
EXPORT_SYMBOL_GPL(iommu_dirty_log_clear);

/**
 * iommu_dirty_log_merge() - Undo IOMMU_DIRTY_SPLIT
 * @domain: Domain whose leaves were split
 * @iova: Start of the range, in bytes
 * @size: Length of the range, in bytes
 * @gather: Collects what has to be flushed
 *
 * Leaves in the range that have been split become what they were, and dirty as a
 * whole; contiguous entries of AMD's v1 format stay split. Only leaves that lie
 * inside the range are merged, so a range of one mapping, or of several, never
 * makes a leaf that extends beyond it. Does nothing if @domain cannot split.
 *
 * Context: May sleep. The caller excludes everything else that uses the range,
 * including iommu_iova_to_phys() and the other functions here: page tables are
 * freed when the caller flushes @gather.
 */
void iommu_dirty_log_merge(struct iommu_domain *domain, unsigned long iova,
			   size_t size, struct iommu_iotlb_gather *gather)
{
	struct pt_iommu *pt = iommupt_from_domain(domain);

	if (pt && pt->ops->merge_range)
		pt->ops->merge_range(pt, iova, size, gather);
}
EXPORT_SYMBOL_GPL(iommu_dirty_log_merge);
