// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the dirty log, on a mock domain that notes how it is called
 */
#include <kunit/test.h>
#include <linux/iommu.h>
#include <linux/iommu-dirty-log.h>
#include <linux/sizes.h>

/* The topmost @size bytes of the address space */
#define TOP(size) (-(unsigned long)(size))

struct mock_domain {
	struct iommu_domain domain;
	struct kunit *test;
	unsigned int calls;
	/* What the calls asked for, one after another */
	unsigned long iova, last;
	unsigned long flags;
	struct iommu_dirty_bitmap dirty;
	/* The call that fails, counted from 1 */
	unsigned int fail_at;
	bool enabled;
};

static struct mock_domain *to_mock(struct iommu_domain *domain)
{
	return container_of(domain, struct mock_domain, domain);
}

static int mock_set_dirty_tracking(struct iommu_domain *domain, bool enabled)
{
	struct mock_domain *mock = to_mock(domain);

	mock->enabled = enabled;
	return ++mock->calls == mock->fail_at ? -EIO : 0;
}

static int mock_read_and_clear_dirty(struct iommu_domain *domain,
				     unsigned long iova, size_t size,
				     unsigned long flags,
				     struct iommu_dirty_bitmap *dirty)
{
	struct mock_domain *mock = to_mock(domain);

	if (mock->calls++)
		KUNIT_EXPECT_EQ(mock->test, iova, mock->last + 1);
	else
		mock->iova = iova;
	mock->last = iova + (size - 1);
	mock->flags = flags;
	mock->dirty = *dirty;
	return mock->calls == mock->fail_at ? -EIO : 0;
}

static const struct iommu_dirty_ops mock_dirty_ops = {
	.set_dirty_tracking = mock_set_dirty_tracking,
	.read_and_clear_dirty = mock_read_and_clear_dirty,
};

static int dirty_log_init(struct kunit *test)
{
	struct mock_domain *mock;

	mock = kunit_kzalloc(test, sizeof(*mock), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, mock);
	mock->domain.dirty_ops = &mock_dirty_ops;
	mock->domain.pgsize_bitmap = SZ_4K | SZ_2M | SZ_1G;
	mock->test = test;
	test->priv = mock;
	return 0;
}

/* What is asked for, in @calls steps, and what the IOMMU driver is asked for */
static const struct walk_case {
	const char *name;
	unsigned long iova;
	size_t size;
	unsigned long first, last;
	unsigned int calls;
	unsigned int fail_at;
	int ret;
} walk_cases[] = {
	{ "page", SZ_1M, SZ_4K, SZ_1M, SZ_1M + SZ_4K - 1, 1 },
	{ "less than a page", SZ_1M - 1, 2, SZ_1M - SZ_4K, SZ_1M + SZ_4K - 1,
	  1 },
	{ "step", SZ_64M, SZ_64M, SZ_64M, SZ_128M - 1, 1 },
	{ "end of a step", SZ_64M - SZ_4K, SZ_8K, SZ_64M - SZ_4K,
	  SZ_64M + SZ_4K - 1, 2 },
	{ "many steps", SZ_1G, SZ_1G, SZ_1G, SZ_2G - 1, 16 },
	{ "top", TOP(SZ_64M + SZ_4K), SZ_64M + SZ_4K, TOP(SZ_64M + SZ_4K),
	  ULONG_MAX, 2 },
	{ "error", SZ_1G, SZ_1G, SZ_1G, SZ_1G + SZ_128M - 1, 2, .fail_at = 2,
	  .ret = -EIO },
	{ "error at the end", SZ_1M, SZ_4K, SZ_1M, SZ_1M + SZ_4K - 1, 1,
	  .fail_at = 1, .ret = -EIO },
	{ "empty", SZ_1M, 0, .ret = -EINVAL },
	{ "over the top", TOP(SZ_4K), SZ_8K, .ret = -EINVAL },
};

KUNIT_ARRAY_PARAM_DESC(walk, walk_cases, name);

static void test_walk(struct kunit *test)
{
	const struct walk_case *c = test->param_value;
	struct mock_domain *mock = test->priv;
	/* Nobody looks into it */
	struct iova_bitmap *bitmap = test->priv;
	struct iommu_iotlb_gather gather;
	const struct {
		unsigned long flags;
		struct iova_bitmap *bitmap;
	} walks[] = {
		{ IOMMU_DIRTY_NO_CLEAR, bitmap },
		{ 0, bitmap },
		{ 0, NULL },
		{ IOMMU_DIRTY_SPLIT, bitmap },
	};
	unsigned int i;
	int ret;

	mock->fail_at = c->fail_at;
	for (i = 0; i < ARRAY_SIZE(walks); i++) {
		bool read = walks[i].flags == IOMMU_DIRTY_NO_CLEAR;

		mock->calls = 0;
		if (read)
			ret = iommu_dirty_log_read(&mock->domain, c->iova,
						   c->size, bitmap);
		else
			ret = iommu_dirty_log_clear(&mock->domain, c->iova,
						    c->size, walks[i].flags,
						    walks[i].bitmap, &gather);
		KUNIT_EXPECT_EQ(test, ret, c->ret);
		KUNIT_EXPECT_EQ(test, mock->calls, c->calls);
		if (!c->calls)
			continue;
		KUNIT_EXPECT_EQ(test, mock->iova, c->first);
		KUNIT_EXPECT_EQ(test, mock->last, c->last);
		KUNIT_EXPECT_EQ(test, mock->flags, walks[i].flags);
		KUNIT_EXPECT_PTR_EQ(test, mock->dirty.bitmap, walks[i].bitmap);
		/* The flush is the caller's */
		KUNIT_EXPECT_PTR_EQ(test, mock->dirty.gather,
				    read ? NULL : &gather);
	}
}

static int (*const start_stop[])(struct iommu_domain *domain) = {
	iommu_dirty_log_start, iommu_dirty_log_stop,
};

static void test_start_stop(struct kunit *test)
{
	struct mock_domain *mock = test->priv;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(start_stop); i++) {
		KUNIT_EXPECT_EQ(test, 0, start_stop[i](&mock->domain));
		KUNIT_EXPECT_EQ(test, mock->enabled, !i);
		mock->fail_at = mock->calls + 1;
		KUNIT_EXPECT_EQ(test, -EIO, start_stop[i](&mock->domain));
	}
	/* neither looks at the log */
	KUNIT_EXPECT_EQ(test, mock->calls, 4);
}

static void test_refused(struct kunit *test)
{
	static const struct iommu_dirty_ops no_set = {
		.read_and_clear_dirty = mock_read_and_clear_dirty,
	};
	static const struct iommu_dirty_ops no_read = {
		.set_dirty_tracking = mock_set_dirty_tracking,
	};
	static const struct iommu_dirty_ops *const incapable[] = {
		NULL, &no_set, &no_read,
	};
	struct mock_domain *mock = test->priv;
	struct iommu_domain *domain = &mock->domain;
	struct iommu_iotlb_gather gather;
	unsigned int i;

	KUNIT_EXPECT_TRUE(test, iommu_dirty_log_capable(domain));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_dirty_log_clear(domain, SZ_1M, SZ_4K, BIT(31),
					      NULL, &gather));
	for (i = 0; i < ARRAY_SIZE(incapable); i++) {
		domain->dirty_ops = incapable[i];
		KUNIT_EXPECT_FALSE(test, iommu_dirty_log_capable(domain));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, start_stop[0](domain));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, start_stop[1](domain));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
				iommu_dirty_log_read(domain, SZ_1M, SZ_4K,
						     NULL));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
				iommu_dirty_log_clear(domain, SZ_1M, SZ_4K, 0,
						      NULL, &gather));
	}
	KUNIT_EXPECT_EQ(test, mock->calls, 0);
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
