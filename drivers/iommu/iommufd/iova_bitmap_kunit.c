// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the IOVA bitmap: a recorded range sets exactly the bits of
 * the pages that it shares with the bitmap, and no other bit in memory.
 */
#include <kunit/test.h>
#include <linux/bitmap.h>
#include <linux/iova_bitmap.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

/* Bytes of one test buffer. The bitmaps are small and begin anywhere in it. */
#define TEST_BUF_SIZE (4 * PAGE_SIZE)

/* The topmost @size bytes of the address space */
#define TOP(size) (-(unsigned long)(size))

struct record_case {
	const char *name;
	/* the bitmap */
	unsigned long iova;
	unsigned long npages;
	unsigned long page_size;
	/* what is recorded */
	unsigned long rec_iova;
	size_t rec_length;
	/* the bits that this has to set */
	unsigned int first_bit;
	unsigned int nbits;
	/* bytes of the buffer, if not TEST_BUF_SIZE */
	unsigned int buf_size;
};

static const struct record_case record_cases[] = {
	{ "first page", SZ_2M, 100, SZ_4K, SZ_2M, SZ_4K, 0, 1 },
	{ "all pages", SZ_2M, 100, SZ_4K, SZ_2M, 100 * SZ_4K, 0, 100 },
	{ "parts of two bits", SZ_2M, 100, SZ_64K, SZ_2M + 4 * SZ_64K - SZ_4K,
	  2 * SZ_4K, 3, 2 },
	{ "nothing", SZ_2M, 100, SZ_4K, SZ_2M + 7 * SZ_4K, 0, 0, 0 },

	/* leaves that are larger than the bitmap */
	{ "tail, odd length", SZ_2M + SZ_4K, 101, SZ_4K, SZ_2M + 100 * SZ_4K,
	  SZ_2M, 99, 2 },
	{ "head and tail", SZ_2M + SZ_4K, 5, SZ_4K, SZ_2M, SZ_2M, 0, 5 },
	{ "head and tail, 64K", SZ_1G + SZ_64K, 67, SZ_64K, SZ_1G, SZ_1G,
	  0, 67 },
	{ "ends before", SZ_4M, 100, SZ_4K, SZ_2M, SZ_2M, 0, 0 },

	/* the top of the address space */
	{ "top, head", TOP(5 * SZ_4K), 5, SZ_4K, TOP(SZ_2M), SZ_2M, 0, 5 },
	{ "top, tail", TOP(SZ_2M), 5, SZ_4K, TOP(SZ_2M), SZ_2M, 0, 5 },
	{ "over the top", TOP(5 * SZ_4K), 5, SZ_4K, TOP(2 * SZ_4K), SZ_2M,
	  3, 2 },
	{ "over the top to 0", 0, 100, SZ_4K, TOP(2 * SZ_4K), SZ_2M, 0, 0 },
};

KUNIT_ARRAY_PARAM_DESC(record, record_cases, name);

/* Expects the case's bits, and no other bit, in the buffer */
static void expect_bits(struct kunit *test, const unsigned long *found,
			unsigned int offset, const struct record_case *rec)
{
	const unsigned int total =
		(rec->buf_size ?: TEST_BUF_SIZE) * BITS_PER_BYTE;
	unsigned int first = offset * BITS_PER_BYTE + rec->first_bit;
	unsigned int last = first + rec->nbits;

	KUNIT_EXPECT_EQ(test, find_first_bit(found, total),
			rec->nbits ? first : total);
	KUNIT_EXPECT_EQ(test, find_next_zero_bit(found, total, first), last);
	KUNIT_EXPECT_EQ(test, find_next_bit(found, total, last), total);
}

static void __user *user_buffer(struct kunit *test, size_t size)
{
	unsigned long addr, offset;

	addr = kunit_vm_mmap(test, NULL, 0, size, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_NE(test, addr, 0);
	/* Every second page first, so that neighbors are not adjacent in memory */
	for (offset = 0; offset < size; offset += 2 * PAGE_SIZE)
		KUNIT_ASSERT_EQ(test, 0,
				clear_user((void __user *)addr + offset, 1));
	return (void __user *)addr;
}

static void record(struct kunit *test)
{
	/* offset of the bitmap in the buffer, in bytes */
	static const unsigned int offsets[] = {
		0, 3, 8, PAGE_SIZE - 8, PAGE_SIZE - 1,
	};
	const struct record_case *rec = test->param_value;
	const size_t length = rec->npages * rec->page_size;
	struct iova_bitmap *bitmap;
	unsigned long *found;
	unsigned int i, pass;
	void __user *buf;

	buf = user_buffer(test, TEST_BUF_SIZE);
	found = kunit_kmalloc(test, TEST_BUF_SIZE, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, found);

	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		bitmap = iova_bitmap_alloc(rec->iova, length, rec->page_size,
					   buf + offsets[i]);
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, bitmap);
		/* The second time with the pages pinned */
		for (pass = 0; pass < 2; pass++) {
			KUNIT_ASSERT_EQ(test, 0,
					clear_user(buf, TEST_BUF_SIZE));
			iova_bitmap_set(bitmap, rec->rec_iova, rec->rec_length);
			KUNIT_ASSERT_EQ(test, 0, copy_from_user(found, buf,
								TEST_BUF_SIZE));
			expect_bits(test, found, offsets[i], rec);
		}
		iova_bitmap_free(bitmap);

		/* Kernel memory is given as whole longs */
		if (offsets[i] % sizeof(long))
			continue;
		memset(found, 0, TEST_BUF_SIZE);
		bitmap = iova_bitmap_alloc_kernel(rec->iova, length,
						  rec->page_size,
						  (void *)found + offsets[i]);
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, bitmap);
		iova_bitmap_set(bitmap, rec->rec_iova, rec->rec_length);
		iova_bitmap_free(bitmap);
		expect_bits(test, found, offsets[i], rec);
	}
}

static void kernel_invalid(struct kunit *test)
{
	static const struct {
		unsigned long iova, length, page_size;
	} cases[] = {
		{ 0, 0, SZ_4K },
		{ 0, SZ_4K, 0 },
		{ 0, SZ_8K, 3 * SZ_4K },
		{ TOP(SZ_4K), SZ_8K, SZ_4K },
		{ 0, ULONG_MAX, 1 },
	};
	unsigned long data;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++)
		KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-EINVAL),
				    iova_bitmap_alloc_kernel(cases[i].iova,
							     cases[i].length,
							     cases[i].page_size,
							     &data));
}

/*
 * The pages of a user's bitmap are pinned one window at a time. What is
 * recorded may lie in any window, or in two.
 */
static void user_windows(struct kunit *test)
{
	const unsigned long window_bits =
		PAGE_SIZE / sizeof(struct page *) * PAGE_SIZE * BITS_PER_BYTE;
	const unsigned long total = window_bits + PAGE_SIZE * BITS_PER_BYTE;
	const unsigned long size = total / BITS_PER_BYTE + PAGE_SIZE;
	const unsigned long iova = SZ_1M;
	const struct record_case recs[] = {
		{ "last pages, and beyond", iova, total - 10, SZ_4K,
		  iova + (total - 20) * SZ_4K, 100 * SZ_4K, total - 20, 10,
		  size },
		{ "before, and first pages", iova, total - 10, SZ_4K,
		  0, iova + 2 * SZ_4K, 0, 2, size },
		{ "from the first window into the second", iova, total - 10,
		  SZ_4K, iova + (window_bits - 30) * SZ_4K, 50 * SZ_4K,
		  window_bits - 30, 50, size },
	};
	struct iova_bitmap *bitmap;
	unsigned long *found;
	void __user *buf;
	unsigned int i;

	if (BITS_PER_LONG < 64 || PAGE_SIZE > SZ_16K)
		kunit_skip(test, "a window is too large for this machine");

	buf = user_buffer(test, size);
	found = kunit_kmalloc(test, size, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, found);

	bitmap = iova_bitmap_alloc(iova, (total - 10) * SZ_4K, SZ_4K, buf);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, bitmap);
	for (i = 0; i < ARRAY_SIZE(recs); i++) {
		KUNIT_ASSERT_EQ(test, 0, clear_user(buf, size));
		iova_bitmap_set(bitmap, recs[i].rec_iova, recs[i].rec_length);
		KUNIT_ASSERT_EQ(test, 0, copy_from_user(found, buf, size));
		expect_bits(test, found, 0, &recs[i]);
	}
	iova_bitmap_free(bitmap);
}

static int record_first_and_last(struct iova_bitmap *bitmap,
				 unsigned long iova, size_t length,
				 void *opaque)
{
	iova_bitmap_set(bitmap, iova, SZ_4K);
	iova_bitmap_set(bitmap, iova + length - SZ_4K, SZ_4K);
	return 0;
}

/* What cannot be recorded because the bitmap's page is gone is an error. */
static void user_fault(struct kunit *test)
{
	const size_t length = 2 * PAGE_SIZE * BITS_PER_BYTE * SZ_4K;
	struct iova_bitmap *bitmap;
	void __user *buf;
	unsigned int i;

	buf = user_buffer(test, 2 * PAGE_SIZE);
	for (i = 0; i < 2; i++) {
		bitmap = iova_bitmap_alloc(SZ_1M, length, SZ_4K, buf);
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, bitmap);
		KUNIT_EXPECT_EQ(test, i ? -EFAULT : 0,
				iova_bitmap_for_each(bitmap, NULL,
						     record_first_and_last));
		KUNIT_EXPECT_EQ(test, i ? -EFAULT : 0,
				iova_bitmap_fault_in(bitmap));
		iova_bitmap_free(bitmap);
		vm_munmap((unsigned long)buf + PAGE_SIZE, PAGE_SIZE);
	}
}

static struct kunit_case iova_bitmap_cases[] = {
	KUNIT_CASE_PARAM(record, record_gen_params),
	KUNIT_CASE(user_windows),
	KUNIT_CASE(user_fault),
	KUNIT_CASE(kernel_invalid),
	{}
};

static struct kunit_suite iova_bitmap_suite = {
	.name = "iova_bitmap",
	.test_cases = iova_bitmap_cases,
};

kunit_test_suite(iova_bitmap_suite);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("KUnit tests for the IOVA bitmap");
MODULE_IMPORT_NS("IOMMUFD");
