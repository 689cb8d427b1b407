// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the dirty log, on a mock domain that is a row of leaves
 */
#include <kunit/test.h>
#include <linux/bitmap.h>
#include <linux/iommu.h>
#include <linux/iommu-dirty-log.h>
#include <linux/iova_bitmap.h>
#include <linux/sizes.h>

/* The topmost @size bytes of the address space */
#define TOP(size)	(-(unsigned long)(size))
#define PAGE(n)		((unsigned long)SZ_2G + SZ_4M + (n) * SZ_4K)

static const struct {
	unsigned long iova;
	size_t size;
} leaves[] = {
	{ SZ_1G, SZ_1G },
	{ SZ_2G, SZ_2M },
	{ SZ_2G + SZ_2M, SZ_2M },
	{ PAGE(0), SZ_4K },
	{ PAGE(1), SZ_4K },
	{ PAGE(2), SZ_4K },
	/* PAGE(3) is not mapped */
	{ PAGE(4), SZ_4K },
	{ TOP(SZ_4M), SZ_2M },
	{ TOP(SZ_4K), SZ_4K },
};

#define NR_LEAVES	ARRAY_SIZE(leaves)
#define ALL_IOVA	((unsigned long)SZ_1G)
#define ALL_SIZE	(PAGE(5) - ALL_IOVA)

struct fake_domain {
	struct iommu_domain domain;
	/* a bit for each leaf */
	unsigned long dirty;
	/* the driver fails at these leaves; it fails to start and stop */
	unsigned long fail_at;
	int set_error;
	unsigned int calls;
	bool enabled;
};

static struct fake_domain *to_fake(struct iommu_domain *domain)
{
	return container_of(domain, struct fake_domain, domain);
}

static unsigned long leaf_last(unsigned int i)
{
	return leaves[i].iova + (leaves[i].size - 1);
}

static int fake_set_dirty_tracking(struct iommu_domain *domain, bool enabled)
{
	struct fake_domain *fake = to_fake(domain);

	fake->calls++;
	fake->enabled = enabled;
	return fake->set_error;
}

static int fake_read_and_clear_dirty(struct iommu_domain *domain,
				     unsigned long iova, size_t size,
				     unsigned long flags,
				     struct iommu_dirty_bitmap *dirty)
{
	struct fake_domain *fake = to_fake(domain);
	unsigned long last = iova + (size - 1);
	unsigned int i;

	fake->calls++;
	for (i = 0; i < NR_LEAVES; i++) {
		unsigned long from = max(iova, leaves[i].iova);
		unsigned long to = min(last, leaf_last(i));

		if (from > to)
			continue;
		if (fake->fail_at & BIT(i))
			return -EIO;
		if (!(fake->dirty & BIT(i)))
			continue;
		if (!(flags & IOMMU_DIRTY_NO_CLEAR) &&
		    iommu_dirty_bitmap_covers(dirty, leaves[i].iova,
					      leaves[i].size)) {
			fake->dirty &= ~BIT(i);
			iommu_dirty_bitmap_record(dirty, leaves[i].iova,
						  leaves[i].size);
		} else {
			iova_bitmap_set(dirty->bitmap, from, to - from + 1);
		}
	}
	return 0;
}

static const struct iommu_dirty_ops fake_dirty_ops = {
	.set_dirty_tracking = fake_set_dirty_tracking,
	.read_and_clear_dirty = fake_read_and_clear_dirty,
};

static int dirty_log_init(struct kunit *test)
{
	struct fake_domain *fake;

	fake = kunit_kzalloc(test, sizeof(*fake), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, fake);
	fake->domain.dirty_ops = &fake_dirty_ops;
	fake->domain.pgsize_bitmap = SZ_4K | SZ_2M | SZ_1G;
	test->priv = fake;
	return 0;
}

static const struct walk_case {
	const char *name;
	/* what is read or cleared, and into which bitmap */
	bool clear;
	unsigned long iova;
	size_t size;
	unsigned long bitmap_iova;
	size_t bitmap_size;
	/* leaves: dirty before, failing, dirty afterwards */
	unsigned long before, fail_at, after;
	/* what this sets in the bitmap, in pages */
	unsigned int first, npages;
	unsigned int calls;
	int ret;
} walk_cases[] = {
#define CLEAR	.clear = true
#define RANGE(i, s) .iova = (i), .size = (s)
#define INTO(i, s) .bitmap_iova = (i), .bitmap_size = (s)
#define LEAVES(b, a) .before = (b), .after = (a)
#define PAGES(f, n) .first = (f), .npages = (n)
	{ "read all", RANGE(ALL_IOVA, ALL_SIZE), INTO(ALL_IOVA, ALL_SIZE),
	  LEAVES(0x14, 0x14), PAGES((SZ_1G + SZ_2M) / SZ_4K, 513),
	  .calls = 17 },
	{ "clear all", CLEAR, RANGE(ALL_IOVA, ALL_SIZE),
	  INTO(ALL_IOVA, ALL_SIZE), LEAVES(0x14, 0),
	  PAGES((SZ_1G + SZ_2M) / SZ_4K, 513), .calls = 17 },
	{ "clear one of two", CLEAR, RANGE(PAGE(1), SZ_4K),
	  INTO(ALL_IOVA, ALL_SIZE), LEAVES(0x18, 0x8),
	  PAGES((SZ_1G + SZ_4M) / SZ_4K + 1, 1), .calls = 1 },
	{ "discard", CLEAR, RANGE(ALL_IOVA, ALL_SIZE), LEAVES(0x7f, 0),
	  .calls = 17 },

	/* steps end inside the leaf */
	{ "clear 1G", CLEAR, RANGE(SZ_1G, SZ_1G), INTO(SZ_1G, SZ_1G),
	  LEAVES(1, 0), PAGES(0, SZ_1G / SZ_4K), .calls = 16 },
	{ "discard 1G", CLEAR, RANGE(SZ_1G, SZ_1G), LEAVES(1, 0), .calls = 16 },

	/* part of a leaf */
	{ "read part", RANGE(SZ_2G + SZ_4K, SZ_4K),
	  INTO(ALL_IOVA, ALL_SIZE), LEAVES(2, 2), PAGES(SZ_1G / SZ_4K + 1, 1),
	  .calls = 1 },
	{ "clear part", CLEAR, RANGE(SZ_2G + SZ_4K, SZ_4K),
	  INTO(ALL_IOVA, ALL_SIZE), LEAVES(2, 0), PAGES(SZ_1G / SZ_4K, 512),
	  .calls = 1 },
	{ "clear part, small bitmap", CLEAR, RANGE(SZ_2G + SZ_4K, SZ_4K),
	  INTO(SZ_2G + SZ_4K, SZ_4K), LEAVES(2, 2), PAGES(0, 1), .calls = 1 },
	{ "less than a page", RANGE(PAGE(1) - 1, 2),
	  INTO(ALL_IOVA, ALL_SIZE), LEAVES(0x3c, 0x3c),
	  PAGES((SZ_1G + SZ_4M) / SZ_4K, 2), .calls = 1 },

	{ "over the hole", CLEAR, RANGE(PAGE(2), 3 * SZ_4K),
	  INTO(PAGE(2), 3 * SZ_4K), LEAVES(0x78, 0x18), PAGES(0, 2),
	  .calls = 1 },
	{ "top", CLEAR, RANGE(TOP(SZ_4M), SZ_4M), INTO(TOP(SZ_4M), SZ_4M),
	  LEAVES(0x180, 0), PAGES(0, 513), .calls = 1 },

	/* what was cleaned before an error has been recorded, and is flushed */
	{ "error", CLEAR, RANGE(ALL_IOVA, ALL_SIZE), INTO(ALL_IOVA, ALL_SIZE),
	  LEAVES(0x2a, 0x20), .fail_at = 0x10, PAGES(SZ_1G / SZ_4K, 513),
	  .calls = 17, .ret = -EIO },

	{ "empty", CLEAR, RANGE(PAGE(0), 0), INTO(ALL_IOVA, ALL_SIZE),
	  .first = ALL_SIZE / SZ_4K, .ret = -EINVAL },
	{ "over the top", RANGE(TOP(SZ_4K), SZ_8K),
	  INTO(ALL_IOVA, ALL_SIZE), LEAVES(0x100, 0x100),
	  .first = ALL_SIZE / SZ_4K, .ret = -EINVAL },
};

KUNIT_ARRAY_PARAM_DESC(walk, walk_cases, name);

static void test_walk(struct kunit *test)
{
	const struct walk_case *c = test->param_value;
	unsigned int nbits = c->bitmap_size / SZ_4K;
	unsigned long cleaned = c->before & ~c->after;
	struct fake_domain *fake = test->priv;
	struct iova_bitmap *bitmap = NULL;
	struct iommu_iotlb_gather gather;
	unsigned long *found = NULL;
	int ret;

	if (nbits) {
		found = kunit_kcalloc(test, BITS_TO_LONGS(nbits), sizeof(long),
				      GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, found);
		bitmap = iova_bitmap_alloc_kernel(c->bitmap_iova,
						  c->bitmap_size, SZ_4K, found);
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, bitmap);
	}

	fake->dirty = c->before;
	fake->fail_at = c->fail_at;
	iommu_iotlb_gather_init(&gather);
	if (c->clear)
		ret = iommu_dirty_log_clear(&fake->domain, c->iova, c->size, 0,
					    bitmap, &gather);
	else
		ret = iommu_dirty_log_read(&fake->domain, c->iova, c->size,
					   bitmap);
	KUNIT_EXPECT_EQ(test, ret, c->ret);
	KUNIT_EXPECT_EQ(test, fake->calls, c->calls);
	KUNIT_EXPECT_EQ(test, fake->dirty, c->after);
	if (bitmap) {
		KUNIT_EXPECT_EQ(test, find_first_bit(found, nbits), c->first);
		KUNIT_EXPECT_EQ(test, bitmap_weight(found, nbits), c->npages);
		iova_bitmap_free(bitmap);
	}

	/* The flush is the caller's, of what was cleaned and no more */
	if (cleaned) {
		KUNIT_EXPECT_EQ(test, gather.start, leaves[__ffs(cleaned)].iova);
		KUNIT_EXPECT_EQ(test, gather.end, leaf_last(__fls(cleaned)));
	} else {
		KUNIT_EXPECT_EQ(test, gather.end, 0);
	}
}

static void test_start_stop(struct kunit *test)
{
	struct fake_domain *fake = test->priv;

	KUNIT_EXPECT_EQ(test, 0, iommu_dirty_log_start(&fake->domain));
	KUNIT_EXPECT_TRUE(test, fake->enabled);
	KUNIT_EXPECT_EQ(test, 0, iommu_dirty_log_stop(&fake->domain));
	KUNIT_EXPECT_FALSE(test, fake->enabled);
	fake->set_error = -EIO;
	KUNIT_EXPECT_EQ(test, -EIO, iommu_dirty_log_start(&fake->domain));
	KUNIT_EXPECT_EQ(test, -EIO, iommu_dirty_log_stop(&fake->domain));
	/* neither looks at the log */
	KUNIT_EXPECT_EQ(test, fake->calls, 4);
}

static void test_refused(struct kunit *test)
{
	static const struct iommu_dirty_ops no_set = {
		.read_and_clear_dirty = fake_read_and_clear_dirty,
	};
	static const struct iommu_dirty_ops no_read = {
		.set_dirty_tracking = fake_set_dirty_tracking,
	};
	static const struct iommu_dirty_ops *const incapable[] = {
		NULL, &no_set, &no_read,
	};
	struct fake_domain *fake = test->priv;
	struct iommu_domain *domain = &fake->domain;
	struct iommu_iotlb_gather gather;
	unsigned int i;

	iommu_iotlb_gather_init(&gather);
	KUNIT_EXPECT_TRUE(test, iommu_dirty_log_capable(domain));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_dirty_log_clear(domain, PAGE(0), SZ_4K, BIT(31),
					      NULL, &gather));
	for (i = 0; i < ARRAY_SIZE(incapable); i++) {
		domain->dirty_ops = incapable[i];
		KUNIT_EXPECT_FALSE(test, iommu_dirty_log_capable(domain));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
				iommu_dirty_log_start(domain));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
				iommu_dirty_log_stop(domain));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
				iommu_dirty_log_read(domain, PAGE(0), SZ_4K,
						     NULL));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
				iommu_dirty_log_clear(domain, PAGE(0), SZ_4K, 0,
						      NULL, &gather));
	}
	KUNIT_EXPECT_EQ(test, fake->calls, 0);
}

static struct kunit_case dirty_log_cases[] = {
	KUNIT_CASE_PARAM(test_walk, walk_gen_params),
	KUNIT_CASE(test_start_stop),
	KUNIT_CASE(test_refused),
	{}
};

static struct kunit_suite dirty_log_suite = {
	.name = "iommu_dirty_log",
	.init = dirty_log_init,
	.test_cases = dirty_log_cases,
};

kunit_test_suite(dirty_log_suite);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("KUnit tests for the dirty log of an IOMMU domain");
MODULE_IMPORT_NS("IOMMUFD");
