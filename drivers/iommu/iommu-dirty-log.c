// SPDX-License-Identifier: GPL-2.0
/*
 * Dirty log of an IOMMU domain, for users inside the kernel
 *
 * The IOMMU keeps in each leaf of its page table whether a device has written
 * through it. The leaf is the unit: it is dirty or clean as a whole, however
 * few of its pages were written to or are asked for. For example, with a leaf
 * of 2M at IOVA 4M that is dirty, and a bitmap for 4M..6M-1:
 *
 *   iommu_dirty_log_read(domain, 5M, 4K, bitmap)            sets all 512 bits,
 *   iommu_dirty_log_read(domain, 4M, 4K, bitmap)            sets them again,
 *   iommu_dirty_log_clear(domain, 5M, 4K, bitmap, gather)   sets all 512 bits,
 *   iommu_dirty_log_read(domain, 4M, 4K, bitmap)            sets none.
 *
 * After the third call the leaf is clean, and that its pages were written to is
 * known from the bitmap alone. What a smaller bitmap does not cover would be
 * lost. So the log is cleared into a bitmap that covers every leaf touched, and
 * the pages that are to be clean are taken out of that bitmap afterwards. A
 * bitmap for a whole mapping will do: what different iommu_map() calls have
 * mapped never shares a leaf.
 *
 * The IOTLB may have cached that a leaf is dirty, and then a write does not set
 * the dirty state in the leaf again. So a leaf that was cleaned counts as clean
 * only after an IOTLB flush.
 */
#include <linux/bitops.h>
#include <linux/bug.h>
#include <linux/export.h>
#include <linux/iommu.h>
#include <linux/iommu-dirty-log.h>
#include <linux/overflow.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/sizes.h>

/*
 * Bytes that are walked without a chance to reschedule: with 4K leaves less than
 * 100,000 instructions, whatever is dirty. Where a step ends inside a leaf, the
 * next one meets that leaf again. It does no harm, and a leaf of 1G that is
 * recorded 256 times still costs less than as many leaves of 4K.
 */
#define IOMMU_DIRTY_LOG_STEP SZ_4M

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

	/* What is smaller than a page of the domain is read with that page */
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
 * What is in the log stays there until it is cleared or the mapping goes. There
 * is no error to handle: a domain that goes on logging costs time, but nothing
 * is lost.
 *
 * Context: May sleep. The caller serializes this with iommu_dirty_log_start().
 */
void iommu_dirty_log_stop(struct iommu_domain *domain)
{
	int ret;

	if (!iommu_dirty_log_capable(domain))
		return;

	ret = domain->dirty_ops->set_dirty_tracking(domain, false);
	if (ret)
		pr_warn_once("iommu: a domain goes on logging dirty pages: %d\n",
			     ret);
}
EXPORT_SYMBOL_GPL(iommu_dirty_log_stop);

/**
 * iommu_dirty_log_read() - Read the dirty log and leave it as it is
 * @domain: Domain to read
 * @iova: Start of the range, in bytes
 * @size: Length of the range, in bytes
 * @bitmap: Where the pages of dirty leaves are recorded
 *
 * Sets in @bitmap the bits of all dirty leaves that have at least one page in
 * the range. The leaves stay dirty. Of a leaf that lies in the range in part,
 * everything that @bitmap covers is recorded; nothing is recorded outside
 * @bitmap.
 *
 * Context: May sleep. The caller keeps the range mapped during the call.
 * Return: 0 on success, -EOPNOTSUPP if @domain cannot log, -EINVAL if the range
 * is empty or wraps, or the error of the IOMMU driver, in which case @bitmap is
 * incomplete.
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
 * @bitmap: Where the pages of dirty leaves are recorded, or NULL to discard them
 * @gather: Collects what has to be flushed
 *
 * Like iommu_dirty_log_read(), but the leaves are clean afterwards, as a whole
 * also where they lie in the range only in part. So @bitmap must cover all of
 * every leaf that has a page in the range, or what it does not cover is lost.
 * For a range inside a mapping, a @bitmap for that mapping is large enough: no
 * leaf is shared by two mappings.
 *
 * The flush is the caller's, as with iommu_unmap_fast(), so that several ranges
 * of a domain cost one: initialize @gather with iommu_iotlb_gather_init(), call
 * this for each range, then iommu_iotlb_sync(). Until that has returned, what a
 * device writes may go unnoticed. So it comes before anything that relies on
 * @bitmap, and it comes after an error too.
 *
 * Context: May sleep. The caller keeps the range mapped until the flush.
 * Return: As iommu_dirty_log_read(). On an error some leaves may have been
 * cleaned, and these have been recorded in @bitmap.
 */
int iommu_dirty_log_clear(struct iommu_domain *domain, unsigned long iova,
			  size_t size, struct iova_bitmap *bitmap,
			  struct iommu_iotlb_gather *gather)
{
	struct iommu_dirty_bitmap dirty = {
		.bitmap = bitmap,
		.gather = gather,
	};

	return iommu_dirty_log_walk(domain, iova, size, 0, &dirty);
}
EXPORT_SYMBOL_GPL(iommu_dirty_log_clear);
