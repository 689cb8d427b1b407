// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the dirty log, on a domain that is an array of leaves
 *
 * The domain has an IOTLB that remembers that a leaf was dirty: a write that
 * hits it is not seen in the leaf. So a flush that is missing shows as a write
 * that is missing from the log.
 */
#include <kunit/test.h>
#include <linux/bitmap.h>
#include <linux/iommu.h>
#include <linux/iommu-dirty-log.h>
#include <linux/iova_bitmap.h>
#include <linux/sizes.h>
#include <linux/slab.h>

/* The topmost @size bytes of the address space */
#define TOP(size) (-(unsigned long)(size))

struct fake_leaf {
	unsigned long iova;
	size_t size;
	bool dirty;
	/* the IOTLB has cached the leaf as dirty */
	bool cached;
};

struct fake_domain {
	struct iommu_domain domain;
	struct fake_leaf leaf[64];
	unsigned int nleaves;

	/* what the driver does wrong: fail at this leaf */
	unsigned long fail_at;
	/* fail at holes, instead of ignoring them */
	bool fail_holes;
	/* record that much before and after each leaf */
	size_t spill;
	/* fail to start and stop */
	int set_error;

	/* what was called */
	bool logging;
	unsigned int sets;
	unsigned int reads;
	unsigned int flushes;
	/* what was read last */
	unsigned long seen;
	size_t seen_size;
};

static struct fake_domain *to_fake(struct iommu_domain *domain)
{
	return container_of(domain, struct fake_domain, domain);
}

static unsigned long leaf_last(const struct fake_leaf *leaf)
{
	return leaf->iova + (leaf->size - 1);
}

static int fake_set_dirty_tracking(struct iommu_domain *domain, bool enabled)
{
	struct fake_domain *fake = to_fake(domain);

	fake->sets++;
	if (!fake->set_error)
		fake->logging = enabled;
	return fake->set_error;
}

static int fake_read_and_clear_dirty(struct iommu_domain *domain,
				     unsigned long iova, size_t size,
				     unsigned long flags,
				     struct iommu_dirty_bitmap *dirty)
{
	struct fake_domain *fake = to_fake(domain);
	unsigned long last = iova + (size - 1);
	unsigned long next = iova;
	unsigned int i;

	fake->reads++;
	fake->seen = iova;
	fake->seen_size = size;
	for (i = 0; i < fake->nleaves; i++) {
		struct fake_leaf *leaf = &fake->leaf[i];

		if (leaf_last(leaf) < iova || leaf->iova > last)
			continue;
		if (fake->fail_holes && leaf->iova > next)
			return -EINVAL;
		next = leaf_last(leaf) + 1;
		if (leaf->iova == fake->fail_at)
			return -EIO;
		if (!leaf->dirty)
			continue;
		iommu_dirty_bitmap_record(dirty, leaf->iova - fake->spill,
					  leaf->size + 2 * fake->spill);
		if (!(flags & IOMMU_DIRTY_NO_CLEAR))
			leaf->dirty = false;
	}
	return 0;
}

static void fake_iotlb_sync(struct iommu_domain *domain,
			    struct iommu_iotlb_gather *gather)
{
	struct fake_domain *fake = to_fake(domain);
	unsigned int i;

	fake->flushes++;
	for (i = 0; i < fake->nleaves; i++)
		if (leaf_last(&fake->leaf[i]) >= gather->start &&
		    fake->leaf[i].iova <= gather->end)
			fake->leaf[i].cached = false;
}

static const struct iommu_domain_ops fake_ops = {
	.iotlb_sync = fake_iotlb_sync,
};

static const struct iommu_dirty_ops fake_dirty_ops = {
	.set_dirty_tracking = fake_set_dirty_tracking,
	.read_and_clear_dirty = fake_read_and_clear_dirty,
};

static void fake_map(struct kunit *test, unsigned long iova, size_t size,
		     unsigned int n)
{
	struct fake_domain *fake = test->priv;

	for (; n; n--, iova += size) {
		KUNIT_ASSERT_LT(test, fake->nleaves, ARRAY_SIZE(fake->leaf));
		fake->leaf[fake->nleaves].iova = iova;
		fake->leaf[fake->nleaves++].size = size;
	}
}

/* A device writes to @iova */
static void fake_write(struct kunit *test, unsigned long iova)
{
	struct fake_domain *fake = test->priv;
	unsigned int i;

	for (i = 0; i < fake->nleaves; i++) {
		struct fake_leaf *leaf = &fake->leaf[i];

		if (iova < leaf->iova || iova > leaf_last(leaf))
			continue;
		if (!leaf->cached)
			leaf->dirty = true;
		leaf->cached = true;
		return;
	}
	KUNIT_FAIL_AND_ABORT(test, "write to %lx, which is not mapped", iova);
}

/* One clearing walk, with a flush of its own */
static int fake_clear_and_flush(struct iommu_domain *domain,
				unsigned long iova, size_t size,
				struct iova_bitmap *bitmap)
{
	struct iommu_iotlb_gather gather;
	int ret;

	iommu_iotlb_gather_init(&gather);
	ret = iommu_dirty_log_clear(domain, iova, size, bitmap, &gather);
	iommu_iotlb_sync(domain, &gather);

	return ret;
}

/* The mapping that most tests use. It begins with a leaf of 1G. */
#define MAP_IOVA	((unsigned long)SZ_1G)
#define MAP_2M		(MAP_IOVA + SZ_1G)	/* two leaves */
#define MAP_64K		(MAP_2M + 2 * SZ_2M)	/* two leaves */
#define MAP_4K		(MAP_64K + 2 * SZ_64K)	/* 32 leaves */
#define MAP_SIZE	(MAP_4K + 32 * SZ_4K - MAP_IOVA)

static int dirty_log_init(struct kunit *test)
{
	struct fake_domain *fake;

	fake = kunit_kzalloc(test, sizeof(*fake), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, fake);
	fake->domain.type = IOMMU_DOMAIN_UNMANAGED;
	fake->domain.ops = &fake_ops;
	fake->domain.dirty_ops = &fake_dirty_ops;
	/* 4K, 64K, 2M, 1G */
	fake->domain.pgsize_bitmap = BIT(12) | BIT(16) | BIT(21) | BIT(30);
	fake->fail_at = 1;
	test->priv = fake;

	fake_map(test, MAP_IOVA, SZ_1G, 1);
	fake_map(test, MAP_2M, SZ_2M, 2);
	fake_map(test, MAP_64K, SZ_64K, 2);
	fake_map(test, MAP_4K, SZ_4K, 32);
	return 0;
}

/* A bitmap with a margin on each side, in which no bit may be set */
struct log {
	struct iova_bitmap *bitmap;
	unsigned long *data;
	unsigned long iova;
	unsigned int total;
};

#define LOG_MARGIN (16 * BITS_PER_LONG)

static void free_iova_bitmap(void *bitmap)
{
	iova_bitmap_free(bitmap);
}

static void log_init(struct kunit *test, struct log *log, unsigned long iova,
		     size_t size)
{
	unsigned int nbits = size / SZ_4K;

	log->iova = iova;
	log->total = nbits + 2 * LOG_MARGIN;
	log->data = kunit_kcalloc(test, BITS_TO_LONGS(log->total), sizeof(long),
				  GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, log->data);
	log->bitmap = iova_bitmap_alloc_kernel(iova, size, SZ_4K, log->data +
					       LOG_MARGIN / BITS_PER_LONG);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, log->bitmap);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, free_iova_bitmap,
						  log->bitmap));
}

/* Expects [iova, iova + size) to be all dirty, and forgets it */
static void log_expect(struct kunit *test, struct log *log, unsigned long iova,
		       size_t size)
{
	unsigned int first = LOG_MARGIN + (iova - log->iova) / SZ_4K;
	unsigned int nbits = size / SZ_4K;

	KUNIT_EXPECT_EQ_MSG(test,
			    find_next_zero_bit(log->data, first + nbits, first),
			    first + nbits, "%lx + %zx is not all dirty", iova,
			    size);
	bitmap_clear(log->data, first, nbits);
}

/* Expects nothing more to be dirty, nor anything in the margins */
static void log_expect_end(struct kunit *test, struct log *log)
{
	unsigned int bit = find_first_bit(log->data, log->total);

	KUNIT_EXPECT_EQ_MSG(test, bit, log->total, "bit %d",
			    (int)bit - LOG_MARGIN);
	bitmap_zero(log->data, log->total);
}

static void test_capable(struct kunit *test)
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

	KUNIT_EXPECT_TRUE(test, iommu_dirty_log_capable(domain));

	iommu_iotlb_gather_init(&gather);
	for (i = 0; i < ARRAY_SIZE(incapable); i++) {
		domain->dirty_ops = incapable[i];
		KUNIT_EXPECT_FALSE(test, iommu_dirty_log_capable(domain));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
				iommu_dirty_log_start(domain));
		iommu_dirty_log_stop(domain);
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
				iommu_dirty_log_read(domain, MAP_4K, SZ_4K,
						     NULL));
		KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
				iommu_dirty_log_clear(domain, MAP_4K, SZ_4K,
						      NULL, &gather));
	}
	KUNIT_EXPECT_EQ(test, fake->sets, 0);
	KUNIT_EXPECT_EQ(test, fake->reads, 0);
}

static void test_start_stop(struct kunit *test)
{
	struct fake_domain *fake = test->priv;

	KUNIT_EXPECT_EQ(test, 0, iommu_dirty_log_start(&fake->domain));
	KUNIT_EXPECT_TRUE(test, fake->logging);
	KUNIT_EXPECT_EQ(test, fake->sets, 1);
	iommu_dirty_log_stop(&fake->domain);
	KUNIT_EXPECT_FALSE(test, fake->logging);
	KUNIT_EXPECT_EQ(test, fake->sets, 2);

	/* neither looks at the log */
	KUNIT_EXPECT_EQ(test, fake->reads, 0);

	fake->set_error = -EIO;
	KUNIT_EXPECT_EQ(test, -EIO, iommu_dirty_log_start(&fake->domain));
	KUNIT_EXPECT_EQ(test, fake->sets, 3);
	iommu_dirty_log_stop(&fake->domain);
	KUNIT_EXPECT_EQ(test, fake->sets, 4);
}

static void test_invalid(struct kunit *test)
{
	static const struct {
		unsigned long iova;
		size_t size;
	} ranges[] = {
		{ 0, 0 },
		{ MAP_4K, 0 },
		{ TOP(SZ_4K), SZ_8K },
		{ SZ_4K * 2, TOP(SZ_4K) },
	};
	struct fake_domain *fake = test->priv;
	struct iommu_iotlb_gather gather;
	unsigned int i;

	iommu_iotlb_gather_init(&gather);
	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		unsigned long iova = ranges[i].iova;
		size_t size = ranges[i].size;

		KUNIT_EXPECT_EQ_MSG(test, -EINVAL,
				    iommu_dirty_log_read(&fake->domain, iova,
							 size, NULL),
				    "range %u", i);
		KUNIT_EXPECT_EQ_MSG(test, -EINVAL,
				    iommu_dirty_log_clear(&fake->domain, iova,
							  size, NULL, &gather),
				    "range %u", i);
	}
	KUNIT_EXPECT_EQ(test, fake->reads, 0);
	KUNIT_EXPECT_EQ(test, fake->flushes, 0);
}

/* The driver sees whole pages of the domain, in steps of 4M */
static void test_steps(struct kunit *test)
{
	struct fake_domain *fake = test->priv;
	struct log log;

	log_init(test, &log, MAP_IOVA, MAP_SIZE);
	fake_write(test, MAP_IOVA);
	fake_write(test, MAP_64K);
	fake_write(test, MAP_4K + 31 * SZ_4K);

	KUNIT_EXPECT_EQ(test, 0,
			iommu_dirty_log_read(&fake->domain, MAP_IOVA, MAP_SIZE,
					     log.bitmap));
	KUNIT_EXPECT_EQ(test, fake->reads, DIV_ROUND_UP(MAP_SIZE, SZ_4M));
	log_expect(test, &log, MAP_IOVA, SZ_1G);
	log_expect(test, &log, MAP_64K, SZ_64K);
	log_expect(test, &log, MAP_4K + 31 * SZ_4K, SZ_4K);
	log_expect_end(test, &log);

	/* 64K, 2M */
	fake->domain.pgsize_bitmap = BIT(16) | BIT(21);
	KUNIT_EXPECT_EQ(test, 0,
			fake_clear_and_flush(&fake->domain,
					     MAP_64K + SZ_64K - 1, 1,
					     log.bitmap));
	KUNIT_EXPECT_EQ(test, fake->seen, MAP_64K);
	KUNIT_EXPECT_EQ(test, fake->seen_size, SZ_64K);
	log_expect(test, &log, MAP_64K, SZ_64K);
	log_expect_end(test, &log);

	/* pages that are larger than a step are not cut */
	fake->domain.pgsize_bitmap = SZ_1G;
	fake->reads = 0;
	KUNIT_EXPECT_EQ(test, 0,
			iommu_dirty_log_read(&fake->domain, MAP_IOVA + SZ_2M,
					     SZ_4K, log.bitmap));
	KUNIT_EXPECT_EQ(test, fake->reads, 1);
	KUNIT_EXPECT_EQ(test, fake->seen, MAP_IOVA);
	KUNIT_EXPECT_EQ(test, fake->seen_size, SZ_1G);
	log_expect(test, &log, MAP_IOVA, SZ_1G);
	log_expect_end(test, &log);
}

/* Reading changes nothing, however often */
static void test_sync(struct kunit *test)
{
	struct fake_domain *fake = test->priv;
	struct log log;
	unsigned int i;

	log_init(test, &log, MAP_IOVA, MAP_SIZE);
	fake_write(test, MAP_2M + SZ_2M + 5);
	fake_write(test, MAP_64K + SZ_32K);
	fake_write(test, MAP_4K + 3 * SZ_4K);

	for (i = 0; i < 3; i++) {
		KUNIT_EXPECT_EQ(test, 0,
				iommu_dirty_log_read(&fake->domain, MAP_IOVA,
						     MAP_SIZE, log.bitmap));
		log_expect(test, &log, MAP_2M + SZ_2M, SZ_2M);
		log_expect(test, &log, MAP_64K, SZ_64K);
		log_expect(test, &log, MAP_4K + 3 * SZ_4K, SZ_4K);
		log_expect_end(test, &log);
	}
	KUNIT_EXPECT_EQ(test, fake->flushes, 0);

	/* what is outside the range is not read */
	KUNIT_EXPECT_EQ(test, 0,
			iommu_dirty_log_read(&fake->domain, MAP_4K, 3 * SZ_4K,
					     log.bitmap));
	log_expect_end(test, &log);
}

/* Clearing reads, leaves clean and flushes, once */
static void test_clear(struct kunit *test)
{
	struct fake_domain *fake = test->priv;
	struct log log;
	unsigned int i;

	log_init(test, &log, MAP_IOVA, MAP_SIZE);

	for (i = 1; i <= 3; i++) {
		fake_write(test, MAP_IOVA + SZ_512M);
		fake_write(test, MAP_2M);
		fake_write(test, MAP_64K + SZ_64K);
		fake_write(test, MAP_4K);
		fake_write(test, MAP_4K + i * SZ_4K);

		KUNIT_EXPECT_EQ(test, 0,
				fake_clear_and_flush(&fake->domain, MAP_IOVA,
						     MAP_SIZE, log.bitmap));
		KUNIT_EXPECT_EQ(test, fake->flushes, i);
		log_expect(test, &log, MAP_IOVA, SZ_1G);
		log_expect(test, &log, MAP_2M, SZ_2M);
		log_expect(test, &log, MAP_64K + SZ_64K, SZ_64K);
		log_expect(test, &log, MAP_4K, SZ_4K);
		log_expect(test, &log, MAP_4K + i * SZ_4K, SZ_4K);
		log_expect_end(test, &log);
	}

	/* nothing is dirty: nothing is recorded and nothing has to be flushed */
	KUNIT_EXPECT_EQ(test, 0,
			fake_clear_and_flush(&fake->domain, MAP_IOVA, MAP_SIZE,
					     log.bitmap));
	log_expect_end(test, &log);
	KUNIT_EXPECT_EQ(test, fake->flushes, 3);
}

/* What is cleared in one part of the range leaves the rest dirty */
static void test_clear_part(struct kunit *test)
{
	struct fake_domain *fake = test->priv;
	struct log log;

	log_init(test, &log, MAP_IOVA, MAP_SIZE);
	fake_write(test, MAP_4K + 4 * SZ_4K);
	fake_write(test, MAP_4K + 5 * SZ_4K);
	fake_write(test, MAP_4K + 6 * SZ_4K);

	KUNIT_EXPECT_EQ(test, 0,
			fake_clear_and_flush(&fake->domain, MAP_4K + 5 * SZ_4K,
					     SZ_4K, log.bitmap));
	log_expect(test, &log, MAP_4K + 5 * SZ_4K, SZ_4K);
	log_expect_end(test, &log);

	KUNIT_EXPECT_EQ(test, 0,
			iommu_dirty_log_read(&fake->domain, MAP_IOVA, MAP_SIZE,
					     log.bitmap));
	log_expect(test, &log, MAP_4K + 4 * SZ_4K, SZ_4K);
	log_expect(test, &log, MAP_4K + 6 * SZ_4K, SZ_4K);
	log_expect_end(test, &log);
}

/* Without a bitmap the log is discarded, and flushed all the same */
static void test_clear_discard(struct kunit *test)
{
	struct fake_domain *fake = test->priv;
	struct log log;

	log_init(test, &log, MAP_IOVA, MAP_SIZE);
	fake_write(test, MAP_2M);
	fake_write(test, MAP_4K);
	KUNIT_EXPECT_EQ(test, 0,
			fake_clear_and_flush(&fake->domain, MAP_IOVA, MAP_SIZE,
					     NULL));
	KUNIT_EXPECT_EQ(test, fake->flushes, 1);
	KUNIT_EXPECT_EQ(test, 0,
			iommu_dirty_log_read(&fake->domain, MAP_IOVA, MAP_SIZE,
					     log.bitmap));
	log_expect_end(test, &log);

	fake_write(test, MAP_2M);
	KUNIT_EXPECT_EQ(test, 0,
			iommu_dirty_log_read(&fake->domain, MAP_IOVA, MAP_SIZE,
					     log.bitmap));
	log_expect(test, &log, MAP_2M, SZ_2M);
	log_expect_end(test, &log);
}

/* Several ranges, one flush, which covers all of them */
static void test_clear_fast(struct kunit *test)
{
	static const unsigned long iova[] = {
		MAP_4K + 30 * SZ_4K, MAP_64K, MAP_4K + 2 * SZ_4K,
	};
	static const size_t size[] = { SZ_4K, SZ_64K, SZ_4K };
	struct fake_domain *fake = test->priv;
	struct iommu_iotlb_gather gather;
	unsigned int i, round;
	struct log log;

	log_init(test, &log, MAP_IOVA, MAP_SIZE);

	for (round = 1; round <= 2; round++) {
		for (i = 0; i < ARRAY_SIZE(iova); i++)
			fake_write(test, iova[i]);

		iommu_iotlb_gather_init(&gather);
		for (i = 0; i < ARRAY_SIZE(iova); i++)
			KUNIT_EXPECT_EQ(test, 0,
					iommu_dirty_log_clear(&fake->domain,
							      iova[i], size[i],
							      log.bitmap,
							      &gather));
		KUNIT_EXPECT_EQ(test, fake->flushes, round - 1);
		iommu_iotlb_sync(&fake->domain, &gather);
		KUNIT_EXPECT_EQ(test, fake->flushes, round);

		for (i = 0; i < ARRAY_SIZE(iova); i++)
			log_expect(test, &log, iova[i], size[i]);
		log_expect_end(test, &log);
	}
}

/*
 * The driver fails in the middle. What it cleaned until then has been recorded
 * and flushed, the rest is still dirty.
 */
static void test_clear_error(struct kunit *test)
{
	struct fake_domain *fake = test->priv;
	struct iommu_iotlb_gather gather;
	struct log log;

	log_init(test, &log, MAP_IOVA, MAP_SIZE);
	fake_write(test, MAP_2M);
	fake_write(test, MAP_4K);
	fake_write(test, MAP_4K + 2 * SZ_4K);
	fake->fail_at = MAP_4K + SZ_4K;

	KUNIT_EXPECT_EQ(test, -EIO,
			fake_clear_and_flush(&fake->domain, MAP_IOVA, MAP_SIZE,
					     log.bitmap));
	KUNIT_EXPECT_EQ(test, fake->flushes, 1);
	log_expect(test, &log, MAP_2M, SZ_2M);
	log_expect(test, &log, MAP_4K, SZ_4K);
	log_expect_end(test, &log);

	/* writes to what was cleaned are seen again */
	fake_write(test, MAP_2M);
	fake_write(test, MAP_4K);
	iommu_iotlb_gather_init(&gather);
	KUNIT_EXPECT_EQ(test, -EIO,
			iommu_dirty_log_clear(&fake->domain, MAP_IOVA, MAP_SIZE,
					      log.bitmap, &gather));
	KUNIT_EXPECT_EQ(test, fake->flushes, 1);
	iommu_iotlb_sync(&fake->domain, &gather);
	KUNIT_EXPECT_EQ(test, fake->flushes, 2);
	log_expect(test, &log, MAP_2M, SZ_2M);
	log_expect(test, &log, MAP_4K, SZ_4K);
	log_expect_end(test, &log);

	fake->fail_at = 1;
	fake_write(test, MAP_2M);
	KUNIT_EXPECT_EQ(test, 0,
			fake_clear_and_flush(&fake->domain, MAP_IOVA, MAP_SIZE,
					     log.bitmap));
	log_expect(test, &log, MAP_2M, SZ_2M);
	log_expect(test, &log, MAP_4K + 2 * SZ_4K, SZ_4K);
	log_expect_end(test, &log);

	fake->fail_at = MAP_2M;
	KUNIT_EXPECT_EQ(test, -EIO,
			iommu_dirty_log_read(&fake->domain, MAP_IOVA, MAP_SIZE,
					     log.bitmap));
}

/* One page of a leaf stands for the whole leaf */
static void test_leaf(struct kunit *test)
{
	static const struct {
		unsigned long iova;
		size_t size;
	} leaves[] = {
		{ MAP_IOVA, SZ_1G },
		{ MAP_2M + SZ_2M, SZ_2M },
		{ MAP_64K + SZ_64K, SZ_64K },
		{ MAP_4K + SZ_4K, SZ_4K },
	};
	struct fake_domain *fake = test->priv;
	struct log log;
	unsigned int i, j;

	log_init(test, &log, MAP_IOVA, MAP_SIZE);
	for (i = 0; i < ARRAY_SIZE(leaves); i++) {
		const unsigned long iova = leaves[i].iova;
		const size_t size = leaves[i].size;
		const unsigned long page[] = {
			iova, iova + round_down(size / 2, SZ_4K),
			iova + size - SZ_4K,
		};

		for (j = 0; j < ARRAY_SIZE(page); j++) {
			/* written in one page, asked for in another */
			fake_write(test, page[(j + 1) % ARRAY_SIZE(page)]);
			KUNIT_EXPECT_EQ(test, 0,
					iommu_dirty_log_read(&fake->domain,
							     page[j], SZ_4K,
							     log.bitmap));
			log_expect(test, &log, iova, size);
			log_expect_end(test, &log);
			KUNIT_EXPECT_EQ(test, 0,
					fake_clear_and_flush(&fake->domain,
							     page[j], SZ_4K,
							     log.bitmap));
			log_expect(test, &log, iova, size);
			log_expect_end(test, &log);
			/* the leaf is clean in all its pages */
			KUNIT_EXPECT_EQ(test, 0,
					iommu_dirty_log_read(&fake->domain,
							     MAP_IOVA, MAP_SIZE,
							     log.bitmap));
			log_expect_end(test, &log);
		}
	}
}

/* A bitmap that begins or ends inside a leaf gets its part of it, no more */
static void test_window(struct kunit *test)
{
	static const struct {
		unsigned long iova;
		size_t size;
	} windows[] = {
		{ MAP_2M + SZ_4K, SZ_2M - SZ_4K },
		{ MAP_2M + SZ_1M, SZ_1M },
		{ MAP_2M, SZ_4K },
		{ MAP_2M, SZ_1M },
		{ MAP_2M + SZ_64K, 37 * SZ_4K },
		{ MAP_2M + SZ_2M - SZ_4K, SZ_4K },
		{ MAP_IOVA + SZ_256M, SZ_1M },
		{ MAP_2M - SZ_64K, 2 * SZ_64K },
	};
	struct fake_domain *fake = test->priv;
	struct log log;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(windows); i++) {
		log_init(test, &log, windows[i].iova, windows[i].size);
		fake_write(test, MAP_IOVA);
		fake_write(test, MAP_2M);

		KUNIT_EXPECT_EQ(test, 0,
				iommu_dirty_log_read(&fake->domain,
						     windows[i].iova,
						     windows[i].size,
						     log.bitmap));
		log_expect(test, &log, windows[i].iova, windows[i].size);
		log_expect_end(test, &log);

		/* also when more is read than the bitmap has room for */
		KUNIT_EXPECT_EQ(test, 0,
				fake_clear_and_flush(&fake->domain, MAP_IOVA,
						     MAP_SIZE, log.bitmap));
		log_expect(test, &log, windows[i].iova, windows[i].size);
		log_expect_end(test, &log);
	}
}

/* A driver that records more than its leaves does not get past the bitmap */
static void test_spill(struct kunit *test)
{
	struct fake_domain *fake = test->priv;
	struct log log;

	log_init(test, &log, MAP_4K, 32 * SZ_4K);
	fake->spill = SZ_4M;
	fake_write(test, MAP_4K + 16 * SZ_4K);
	KUNIT_EXPECT_EQ(test, 0,
			iommu_dirty_log_read(&fake->domain, MAP_4K, 32 * SZ_4K,
					     log.bitmap));
	log_expect(test, &log, MAP_4K, 32 * SZ_4K);
	log_expect_end(test, &log);
}

static void test_top(struct kunit *test)
{
	struct fake_domain *fake = test->priv;
	struct log log;

	fake_map(test, TOP(SZ_2M + SZ_4K), SZ_4K, 1);
	fake_map(test, TOP(SZ_2M), SZ_2M - SZ_64K, 1);
	fake_map(test, TOP(SZ_64K), SZ_4K, 15);
	fake_map(test, TOP(SZ_4K), SZ_4K, 1);

	log_init(test, &log, TOP(SZ_2M + SZ_4K), SZ_2M + SZ_4K);
	fake_write(test, TOP(SZ_2M));
	fake_write(test, TOP(1));
	KUNIT_EXPECT_EQ(test, 0,
			iommu_dirty_log_read(&fake->domain,
					     TOP(SZ_2M + SZ_4K), SZ_2M + SZ_4K,
					     log.bitmap));
	log_expect(test, &log, TOP(SZ_2M), SZ_2M - SZ_64K);
	log_expect(test, &log, TOP(SZ_4K), SZ_4K);
	log_expect_end(test, &log);

	KUNIT_EXPECT_EQ(test, 0,
			fake_clear_and_flush(&fake->domain, TOP(SZ_4K), SZ_4K,
					     log.bitmap));
	KUNIT_EXPECT_EQ(test, fake->flushes, 1);
	log_expect(test, &log, TOP(SZ_4K), SZ_4K);
	log_expect_end(test, &log);

	fake_write(test, TOP(SZ_4K));
	KUNIT_EXPECT_EQ(test, 0,
			fake_clear_and_flush(&fake->domain,
					     TOP(SZ_2M + SZ_4K), SZ_2M + SZ_4K,
					     log.bitmap));
	log_expect(test, &log, TOP(SZ_2M), SZ_2M - SZ_64K);
	log_expect(test, &log, TOP(SZ_4K), SZ_4K);
	log_expect_end(test, &log);
}

/* Drivers may ignore holes in the range or fail there */
static void test_holes(struct kunit *test)
{
	struct fake_domain *fake = test->priv;
	const unsigned long far = MAP_4K + SZ_2M;
	const size_t size = far + 2 * SZ_4K - MAP_4K;
	struct log log;

	fake_map(test, far, SZ_4K, 2);
	log_init(test, &log, MAP_4K, size);
	fake_write(test, MAP_4K);
	fake_write(test, far + SZ_4K);

	KUNIT_EXPECT_EQ(test, 0,
			iommu_dirty_log_read(&fake->domain, MAP_4K, size,
					     log.bitmap));
	log_expect(test, &log, MAP_4K, SZ_4K);
	log_expect(test, &log, far + SZ_4K, SZ_4K);
	log_expect_end(test, &log);

	fake->fail_holes = true;
	KUNIT_EXPECT_EQ(test, -EINVAL,
			fake_clear_and_flush(&fake->domain, MAP_4K, size,
					     log.bitmap));
	KUNIT_EXPECT_EQ(test, fake->flushes, 1);
	log_expect(test, &log, MAP_4K, SZ_4K);
	log_expect_end(test, &log);

	fake->fail_holes = false;
	fake_write(test, MAP_4K);
	KUNIT_EXPECT_EQ(test, 0,
			fake_clear_and_flush(&fake->domain, MAP_4K, size,
					     log.bitmap));
	log_expect(test, &log, MAP_4K, SZ_4K);
	log_expect(test, &log, far + SZ_4K, SZ_4K);
	log_expect_end(test, &log);
}

static struct kunit_case dirty_log_cases[] = {
	KUNIT_CASE(test_capable),
	KUNIT_CASE(test_start_stop),
	KUNIT_CASE(test_invalid),
	KUNIT_CASE(test_steps),
	KUNIT_CASE(test_sync),
	KUNIT_CASE(test_clear),
	KUNIT_CASE(test_clear_part),
	KUNIT_CASE(test_clear_discard),
	KUNIT_CASE(test_clear_fast),
	KUNIT_CASE(test_clear_error),
	KUNIT_CASE(test_leaf),
	KUNIT_CASE(test_window),
	KUNIT_CASE(test_spill),
	KUNIT_CASE(test_top),
	KUNIT_CASE(test_holes),
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
