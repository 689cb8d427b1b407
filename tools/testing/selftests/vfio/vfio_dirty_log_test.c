// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dirty log of a type1 container: a dirty page is never forgotten, and
 * where the IOMMU keeps the log, a clean page is not reported either.
 *
 * Whatever is read from the log is compared with a model of it, see
 * libvfio/dirty_log.h. A pessimistic log, which says the same whatever is done,
 * is looked at by "pessimistic" alone.
 *
 * Environment:
 *  VFIO_DIRTY_LOG_EXPECT=hw|pessimistic	fail, rather than adapt or skip, if
 *						the log is the other one or is missing
 *  VFIO_DIRTY_LOG_VERBOSE=1			let the tests "show" print a table
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/iommufd.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

/* Timeout in seconds, for an emulated machine with a debug kernel */
#define TIMEOUT		240

#define UNMAP_DIRTY	VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP

static char **bdfs;
static int nr_bdfs;

/* Set up a container whose log is worth testing */
#define setup_or_skip(_log) do {						\
	const char *__skip = dirty_log_setup(_log, bdfs[0]);			\
										\
	if (!__skip && !(_log)->info.hw)					\
		__skip = "the log is pessimistic: all pages are dirty, always";	\
	if (__skip)								\
		SKIP(return, "%s", __skip);					\
} while (0)

/* Every call that has a bitmap */
static const u32 reading[] = { DIRTY_LOG_GET, DIRTY_LOG_NOCLEAR, DIRTY_LOG_CLEAR, 0 /* UNMAP */ };

static int bitmap_or_unmap(struct dirty_log *log, u32 flag,
			   struct vfio_iommu_type1_dirty_bitmap_get *range)
{
	u32 argsz = sizeof(struct vfio_iommu_type1_dirty_bitmap) + sizeof(*range);

	if (flag)
		return __iommu_dirty_log_ioctl(log->iommu, argsz, flag, range);

	return __iommu_unmap_ioctl(log->iommu, UNMAP_DIRTY, range->iova, range->size,
				   &range->bitmap, NULL);
}

/* ---- Every IOMMU mode: does it offer the log, and if not, how is it refused? ---- */

FIXTURE(vfio_dirty_log_modes) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	bool v1, v2;
};

FIXTURE_VARIANT(vfio_dirty_log_modes) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode)		\
FIXTURE_VARIANT_ADD(vfio_dirty_log_modes, _iommu_mode) {	\
	.iommu_mode = #_iommu_mode,				\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

#undef FIXTURE_VARIANT_ADD_IOMMU_MODE

FIXTURE_SETUP(vfio_dirty_log_modes)
{
	self->iommu = iommu_init(variant->iommu_mode);
	self->device = vfio_pci_device_init(bdfs[0], self->iommu);
	self->v1 = !strcmp(variant->iommu_mode, MODE_VFIO_TYPE1_IOMMU);
	self->v2 = !strcmp(variant->iommu_mode, MODE_VFIO_TYPE1V2_IOMMU);
}

FIXTURE_TEARDOWN(vfio_dirty_log_modes)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

TEST_F_TIMEOUT(vfio_dirty_log_modes, offer, TIMEOUT)
{
	const char *expect = getenv("VFIO_DIRTY_LOG_EXPECT");
	struct iommu_dirty_log_info info = {};
	struct iommu *fresh;
	int ret;

	if (self->v2 && !expect && !iommu_check_extension(self->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR))
		SKIP(return, "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR");

	EXPECT_EQ(self->v2, iommu_check_extension(self->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR));

	/* Nothing is attached to this one, so no IOMMU driver is behind it. */
	fresh = iommu_init(variant->iommu_mode);
	EXPECT_EQ(0, iommu_check_extension(fresh, VFIO_DIRTY_LOG_MANUAL_CLEAR));
	iommu_cleanup(fresh);

	/* A v1 container has the capability, but no log. */
	ret = __iommu_dirty_log_info(self->iommu, &info);
	EXPECT_EQ(self->v1 || self->v2 ? 0 :
		  strcmp(variant->iommu_mode, MODE_IOMMUFD) ? -ENOENT : -ENODEV, ret);
	if (ret)
		return;

	EXPECT_EQ(info.iova_pgsizes & -info.iova_pgsizes, info.pgsize);
	EXPECT_EQ(SZ_256M, info.max_bitmap_size);
	if (self->v1 || expect)
		EXPECT_EQ(self->v2 && !strcmp(expect, "hw"), info.hw);
}

/* Without START there is no call to succeed but STOP, and elsewhere none at all. */
TEST_F_TIMEOUT(vfio_dirty_log_modes, calls, TIMEOUT)
{
	static const u32 flags[] = {
		DIRTY_LOG_STOP, DIRTY_LOG_GET, DIRTY_LOG_NOCLEAR, DIRTY_LOG_CLEAR, 0,
		DIRTY_LOG_START | DIRTY_LOG_STOP, 1U << 31, DIRTY_LOG_START,
	};
	u64 bits[2] = { 0x55, 0xaa }, unmapped = ~0UL;
	struct dma_region region = {
		.vaddr = dirty_log_alloc(getpagesize(), 0),
		.iova = DIRTY_LOG_IOVA,
		.size = getpagesize(),
	};
	int i, err;

	iommu_map(self->iommu, &region);

	for (i = 0; i < ARRAY_SIZE(flags) - self->v2; i++) {
		err = self->v1 ? -EACCES : !self->v2 ? -ENOTTY :
		      flags[i] == DIRTY_LOG_STOP ? 0 : -EINVAL;
		EXPECT_EQ(err, __iommu_dirty_log_bitmap(self->iommu, flags[i], region.iova,
							region.size, bits)) {
			TH_LOG("flags 0x%x", flags[i]);
		}
	}

	EXPECT_EQ(-EINVAL, __iommu_unmap_get_dirty(self->iommu, &region, bits, NULL));
	EXPECT_EQ(0x55, bits[0]);
	EXPECT_EQ(0xaa, bits[1]);

	/* It was not unmapped. */
	EXPECT_EQ(0, __iommu_unmap(self->iommu, &region, &unmapped));
	EXPECT_EQ(region.size, unmapped);
}

/*
 * The capability against an independent witness: what iommufd says about the
 * same IOMMU. Catches a log that is pessimistic though it need not be, and one
 * that calls itself the hardware's without any.
 */
TEST(capability_is_true)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
	};
	struct iommu_hw_info info = {
		.size = sizeof(info),
	};
	struct vfio_pci_device *device;
	struct dirty_log log;
	struct iommu *iommu;
	const char *skip;

	iommu = iommu_init(MODE_IOMMUFD);
	device = vfio_pci_device_alloc(bdfs[0], iommu);
	vfio_pci_cdev_open(device, bdfs[0]);
	bind.iommufd = iommu->iommufd;
	ASSERT_EQ(0, ioctl(device->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	info.dev_id = bind.out_devid;
	ASSERT_EQ(0, ioctl(iommu->iommufd, IOMMU_GET_HW_INFO, &info));
	ASSERT_EQ(0, close(device->fd));
	vfio_pci_device_free(device);
	iommu_cleanup(iommu);

	skip = dirty_log_setup(&log, bdfs[0]);
	if (skip)
		SKIP(return, "%s", skip);

	EXPECT_EQ(!!(info.out_capabilities & IOMMU_HW_CAP_DIRTY_TRACKING), log.info.hw);
	TH_LOG("the dirty log is %s", log.info.hw ? "the hardware's" : "pessimistic");
	dirty_log_teardown(&log);
}

/* ---- What the log says ---- */

/* Unmap a range of whole mappings, and compare what is reported of their pages */
static void unmap_get_dirty(struct dirty_log *log, iova_t iova, u64 npages, u8 poison)
{
	u64 size = npages * log->info.pgsize, mapped = 0, unmapped;
	struct vfio_bitmap bitmap = {
		.pgsize = log->info.pgsize,
		.size = DIRTY_LOG_BITMAP_BYTES(npages),
		.data = malloc_assert(DIRTY_LOG_BITMAP_BYTES(npages) + 8),
	};
	struct dirty_log_mapping *m, *next;
	const char *error;

	memset(bitmap.data, poison, bitmap.size + 8);
	VFIO_ASSERT_EQ(__iommu_unmap_ioctl(log->iommu, UNMAP_DIRTY, iova, size, &bitmap,
					   &unmapped), 0);
	error = dirty_log_model_compare(log, iova, npages, bitmap.data, poison);
	VFIO_ASSERT_NULL(error, "UNMAP of %lu pages at iova 0x%lx: %s\n", npages, iova, error);
	VFIO_ASSERT_EQ(((u8 *)bitmap.data)[bitmap.size], poison);
	free(bitmap.data);

	list_for_each_entry_safe(m, next, &log->mappings, link) {
		if (m->dma.iova - iova >= size)
			continue;
		mapped += m->dma.size;
		list_del_init(&m->dma.link);
		dirty_log_model_forget(m);
	}
	VFIO_ASSERT_EQ(unmapped, mapped);
}

/* Every mapped page, whatever is called: also what was mapped later, or cleared. */
TEST(pessimistic)
{
	struct dirty_log_mapping *m;
	struct dirty_log log;
	const char *skip = dirty_log_setup(&log, bdfs[0]);

	if (!skip && log.info.hw)
		skip = "the log is the hardware's";
	if (skip)
		SKIP(return, "%s", skip);

	m = dirty_log_map_pages(&log, DIRTY_LOG_IOVA, 70);
	dirty_log_start(&log);
	dirty_log_check_all(&log);
	dirty_log_map_pages(&log, DIRTY_LOG_IOVA + 75 * log.info.pgsize, 130);
	dirty_log_check(&log, DIRTY_LOG_GET, DIRTY_LOG_IOVA - 3 * log.info.pgsize, 208);
	dirty_log_write(&log, m, 5);
	dirty_log_clear(&log, DIRTY_LOG_IOVA, 100, NULL);
	dirty_log_check_all(&log);
	unmap_get_dirty(&log, DIRTY_LOG_IOVA, 70, 0);
	dirty_log_stop(&log);
	dirty_log_start(&log);
	dirty_log_check_all(&log);
	dirty_log_teardown(&log);
}

/* ---- One mapping, of pages of several sizes ---- */

FIXTURE(vfio_dirty_log) {
	struct dirty_log log;
	struct dirty_log_mapping *m;
	/* Pages to write: at both ends and between, in different leaves if there are. */
	u64 spots[3];
};

FIXTURE_VARIANT(vfio_dirty_log) {
	/* 0: 256 pages, too few for larger leaves */
	u64 size;
	u64 page_size;
	int mmap_flags;
};

FIXTURE_VARIANT_ADD(vfio_dirty_log, anonymous) {
};

FIXTURE_VARIANT_ADD(vfio_dirty_log, anonymous_hugetlb_2mb) {
	.size = SZ_8M,
	.page_size = SZ_2M,
	.mmap_flags = MAP_HUGETLB | MAP_HUGE_2MB,
};

FIXTURE_VARIANT_ADD(vfio_dirty_log, anonymous_hugetlb_1gb) {
	.size = SZ_1G,
	.page_size = SZ_1G,
	.mmap_flags = MAP_HUGETLB | MAP_HUGE_1GB,
};

FIXTURE_SETUP(vfio_dirty_log)
{
	u64 size = variant->size ?: 256 * getpagesize();
	void *vaddr = dirty_log_alloc(size, variant->mmap_flags);

	if (vaddr == MAP_FAILED)
		SKIP(return, "no memory of pages of 0x%lx bytes: %s",
		     variant->page_size, strerror(errno));

	setup_or_skip(&self->log);
	self->m = dirty_log_map(&self->log, vaddr, DIRTY_LOG_IOVA, size,
				variant->page_size ?: getpagesize());
	self->spots[0] = 5;
	self->spots[1] = self->m->npages / 3;
	self->spots[2] = self->m->npages - 1;
}

FIXTURE_TEARDOWN(vfio_dirty_log)
{
	dirty_log_teardown(&self->log);
}

static void write_spots(struct dirty_log *log, struct dirty_log_mapping *m, const u64 spots[3])
{
	int i;

	for (i = 0; i < 3; i++)
		dirty_log_write(log, m, spots[i]);
}

enum { WRITTEN, READ, CLEARED, LEFT, AGAIN, READ_AGAIN, COLUMNS };

/* @seen has a bit for each column. Consecutive pages that saw the same share a line. */
static void print_table(struct dirty_log *log, u64 npages, u64 leaf, const u8 *seen, u64 *count)
{
	static const char * const words[] = { "DMA", "dirty", "clean", "dirty", "DMA", "dirty" };
	u64 page, first = 0;
	int i;

	printf("# %lu pages of %lu bytes, in leaves of %lu%s\n"
	       "# pages            written  NOCLEAR  CLEAR    NOCLEAR  written  NOCLEAR\n",
	       npages, log->info.pgsize, leaf, leaf == 1 ? "" :
	       log->split_on_clear ? ", which CLEAR splits" : ", which CLEAR does not split");

	for (page = 0; page < npages; page++) {
		if (page + 1 < npages && seen[page] == seen[page + 1])
			continue;

		printf("# %6lu - %6lu", first, page);
		for (i = 0; i < COLUMNS; i++)
			printf("  %-*s", i + 1 < COLUMNS ? 7 : 0,
			       seen[page] & 1 << i ? words[i] : "-");
		printf("\n");
		first = page + 1;
	}

	printf("# in all         ");
	for (i = 0; i < COLUMNS; i++)
		printf("  %-*lu", i + 1 < COLUMNS ? 7 : 0, count[i]);
	printf("\n#\n");
	fflush(stdout);
}

/*
 * What a migration does, told as a table: START, NOCLEAR, CLEAR of all pages but
 * one, NOCLEAR, and once more after the next writes, STOP.
 */
TEST_F_TIMEOUT(vfio_dirty_log, show, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	const u64 pages[] = { self->spots[0], self->spots[1], self->spots[1] + 1, self->spots[2] };
	u8 *bits = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(m->npages));
	u8 *seen = calloc_assert(1, m->npages);
	u64 leaf = m->min_leaf, page, count[COLUMNS] = {};
	int i, j;

	dirty_log_start(log);

	for (i = 0; i < COLUMNS; i++) {
		switch (i) {
		case WRITTEN:
		case AGAIN:
			memset(bits, 0, DIRTY_LOG_BITMAP_BYTES(m->npages));
			for (j = 0; j < ARRAY_SIZE(pages); j++) {
				dirty_log_write(log, m, pages[j]);
				bit_set(bits, pages[j]);
			}
			break;
		case CLEARED:
			bit_put(bits, pages[2], false);
			dirty_log_clear(log, m->dma.iova, m->npages, bits);
			break;
		default:
			iommu_dirty_log_get_noclear(log->iommu, m->dma.iova, m->dma.size, bits);
			EXPECT_EQ(NULL, dirty_log_model_compare(log, m->dma.iova, m->npages,
								bits, 0));
		}
		for (page = 0; page < m->npages; page++) {
			seen[page] |= bit_get(bits, page) << i;
			count[i] += bit_get(bits, page);
		}
	}

	if (getenv("VFIO_DIRTY_LOG_VERBOSE"))
		print_table(log, m->npages, leaf, seen, count);

	/* Leaves that were split are logged by page, the others as before. */
	EXPECT_EQ(1, count[LEFT]);
	EXPECT_EQ(log->split_on_clear ? ARRAY_SIZE(pages) : count[READ], count[READ_AGAIN]);
	dirty_log_stop(log);
}

/*
 * Exactly what was written between START and STOP. Catches dirty bits that
 * survive from before START, a log that START does not turn on, an IOTLB entry
 * from before START that hides writes, bits at wrong offsets.
 */
TEST_F_TIMEOUT(vfio_dirty_log, start_and_stop, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	u64 bitmap[8];
	int cycle;

	for (cycle = 0; cycle < 3; cycle++) {
		dirty_log_write(log, m, self->spots[0]);
		dirty_log_write(log, m, self->spots[2]);

		dirty_log_start(log);
		dirty_log_check_all(log);
		dirty_log_write(log, m, self->spots[0]);
		dirty_log_write(log, m, self->spots[1]);
		dirty_log_check_all(log);

		/* Nothing changes: neither the log's pages nor that it runs. */
		dirty_log_start(log);
		dirty_log_check_all(log);
		dirty_log_write(log, m, self->spots[2]);
		dirty_log_check_all(log);

		dirty_log_stop(log);
		dirty_log_stop(log);
		EXPECT_EQ(-EINVAL, dirty_log_call(log, DIRTY_LOG_NOCLEAR, m->dma.iova, 1, bitmap));
	}
}

/*
 * Catches a NOCLEAR that clears, in the container or in the IOMMU, a GET that
 * leaves pages dirty, or a stale IOTLB entry, or does not look at the IOMMU.
 */
TEST_F_TIMEOUT(vfio_dirty_log, noclear_and_get, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	int i;

	dirty_log_start(log);
	dirty_log_check(log, DIRTY_LOG_GET, m->dma.iova, m->npages);

	for (i = 0; i < ARRAY_SIZE(self->spots); i++) {
		dirty_log_write(log, m, self->spots[i]);
		dirty_log_check_all(log);
		dirty_log_check_all(log);
	}

	for (i = 0; i < ARRAY_SIZE(self->spots); i++) {
		dirty_log_check(log, DIRTY_LOG_GET, m->dma.iova, m->npages);

		/* The translation is hot. */
		dirty_log_write(log, m, self->spots[i]);
		dirty_log_check(log, DIRTY_LOG_GET, m->dma.iova, m->npages);
		dirty_log_write(log, m, self->spots[i]);
		if (i)
			dirty_log_check_all(log);
	}
}

/*
 * Catches a CLEAR that takes the neighbours in the same superpage along (one of
 * 512 leaves 511), that clears beyond its mask, or clears nothing.
 */
TEST_F_TIMEOUT(vfio_dirty_log, clear_some, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	u8 *mask = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(m->npages));

	dirty_log_start(log);
	write_spots(log, m, self->spots);

	/* Unread as yet: the IOMMU's bits go and the container has none. */
	dirty_log_clear_page(log, m, self->spots[0]);
	dirty_log_check_all(log);

	/* Read: the container has them. */
	dirty_log_clear_page(log, m, self->spots[2]);
	dirty_log_check_all(log);

	/* A clean page, in a dirty superpage if there are any, and no page at all */
	dirty_log_clear_page(log, m, self->spots[0]);
	dirty_log_clear(log, m->dma.iova, m->npages, mask);
	dirty_log_check_all(log);

	/* All but one */
	memset(mask, 0xff, DIRTY_LOG_BITMAP_BYTES(m->npages));
	bit_put(mask, self->spots[1], false);
	dirty_log_clear(log, m->dma.iova, m->npages, mask);
	dirty_log_check_all(log);

	dirty_log_clear_page(log, m, self->spots[1]);
	dirty_log_check_all(log);
}

/*
 * One mask with runs and gaps of all kinds of lengths. Catches pages between two
 * runs that are cleared as well, a run that is cut short, or is not cleared.
 */
TEST_F_TIMEOUT(vfio_dirty_log, clear_sparse, TIMEOUT)
{
	/* A word of zeros, which ends a walk, also in the first 256 pages */
	static const u64 runs[] = { 2, 1, 3, 64, 1, 7, 65, 2, 63, 130 };
	static const u64 gaps[] = { 1, 2, 130, 7, 61, 64, 63, 65, 62, 128 };
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	u8 *mask = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(m->npages));
	u64 page, i, round, p;

	/* The second round finds the bits in the container, the first in the IOMMU. */
	for (round = 0; round < 2; round++) {
		dirty_log_start(log);

		for (i = 0, page = 0; i < ARRAY_SIZE(gaps); i++) {
			if (page + runs[i] + 1 >= m->npages)
				break;

			/* Dirty at both ends, and its neighbours with it */
			dirty_log_write(log, m, page);
			dirty_log_write(log, m, page + 1);
			dirty_log_write(log, m, page + runs[i]);
			dirty_log_write(log, m, page + runs[i] + 1);
			for (p = 1; p <= runs[i]; p++)
				bit_set(mask, page + p);
			page += runs[i] + gaps[i];
		}
		if (round)
			dirty_log_check_all(log);

		dirty_log_clear(log, m->dma.iova, m->npages, mask);
		dirty_log_check_all(log);
		dirty_log_stop(log);
	}
}

/*
 * Write, clear, write again at once. Catches a CLEAR that does not flush the
 * IOTLB, that flushes another range than it cleared, or that clears the container
 * only and leaves the IOMMU's bit, which then looks like the second write.
 */
TEST_F_TIMEOUT(vfio_dirty_log, clear_then_write, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	int i;

	dirty_log_start(log);

	for (i = 0; i < 12; i++) {
		u64 page = self->spots[i % ARRAY_SIZE(self->spots)];

		dirty_log_write(log, m, page);
		if (i % 4 < 2)
			dirty_log_clear_page(log, m, page);
		else
			dirty_log_clear(log, dirty_log_iova(log, m, page), 1, NULL);
		if (i % 2)
			dirty_log_check_all(log);

		dirty_log_write(log, m, page);
		dirty_log_check_all(log);
	}

	dirty_log_clear(log, m->dma.iova, m->npages, NULL);
	dirty_log_check_all(log);
	write_spots(log, m, self->spots);
	dirty_log_check_all(log);
}

/*
 * A dirty large leaf that was cleared logs by page from then on, until STOP, and
 * what was not asked for stays dirty. Elsewhere it is logged as a whole. Catches
 * also a leaf that starts before the range and is not recorded.
 */
TEST_F_TIMEOUT(vfio_dirty_log, split, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	u64 leaf = m->min_leaf, page, round, n;
	u8 *bits = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(m->npages));

	if (leaf == 1)
		SKIP(return, "the IOMMU has no leaf larger than a page here");

	for (round = 0; round < 2; round++) {
		dirty_log_start(log);
		dirty_log_write(log, m, 3);
		dirty_log_check(log, DIRTY_LOG_NOCLEAR, dirty_log_iova(log, m, 2), leaf + 64);
		dirty_log_clear(log, dirty_log_iova(log, m, 2), 64, NULL);
		dirty_log_check_all(log);
		dirty_log_clear(log, m->dma.iova, m->npages, NULL);
		dirty_log_check_all(log);

		/* One write, read with its neighbours */
		dirty_log_write(log, m, 5);
		iommu_dirty_log_get_noclear(log->iommu, m->dma.iova, m->dma.size, bits);
		for (page = n = 0; page < leaf; page++)
			n += bit_get(bits, page);
		EXPECT_TRUE(bit_get(bits, 5));
		EXPECT_EQ(log->split_on_clear ? 1 : leaf, n);
		dirty_log_check_all(log);

		/* It is a single leaf again */
		dirty_log_stop(log);
		dirty_log_start(log);
		m->min_leaf = leaf;
		dirty_log_write(log, m, 7);
		dirty_log_check_all(log);
		dirty_log_check(log, DIRTY_LOG_GET, m->dma.iova, m->npages);
		dirty_log_stop(log);
	}
}

/*
 * Catches an UNMAP that does not ask the IOMMU, or forgets what was read before,
 * and a new mapping in the same place that is not dirty, all of it, once: the
 * user may not have read the dirty state of the pages.
 */
TEST_F_TIMEOUT(vfio_dirty_log, unmap_and_map, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	int round;

	for (round = 0; round < 3; round++) {
		dirty_log_start(log);

		/* One read before, one cleared, one only known to the IOMMU */
		dirty_log_write(log, m, self->spots[0]);
		dirty_log_write(log, m, self->spots[1]);
		dirty_log_check_all(log);
		dirty_log_clear_page(log, m, self->spots[1]);
		dirty_log_write(log, m, self->spots[2]);

		if (round < 2) {
			unmap_get_dirty(log, m->dma.iova, m->npages, round ? 0xff : 0);
		} else {
			dirty_log_unmap(log, m);
			dirty_log_check(log, DIRTY_LOG_NOCLEAR, m->dma.iova, m->npages);
		}

		dirty_log_map_again(log, m);
		dirty_log_check_all(log);
		dirty_log_check(log, DIRTY_LOG_GET, m->dma.iova, m->npages);
		dirty_log_write(log, m, self->spots[1]);
		dirty_log_check_all(log);
		dirty_log_stop(log);
	}
}

/* ---- Several mappings and odd ranges ---- */

struct pages {
	u64 first, npages;
};

FIXTURE(vfio_dirty_log_ranges) {
	struct dirty_log log;
	struct dirty_log_mapping *m[8];
	iova_t base;
	int nr;
};

#define G	(SZ_1G / SZ_4K)

/* Pages from the base on: what is mapped, what is read and cleared */
FIXTURE_VARIANT(vfio_dirty_log_ranges) {
	struct pages map[8], ranges[16];
	/* Up to the end of the IOMMU's IOVA space, so many pages */
	u64 top;
};

/*
 * Mappings that begin at all kinds of bit offsets, with and without holes between.
 * Catches bits that move or reach into holes and neighbours, a hole's bits
 * overwritten, offsets that are wrong modulo 8 or 64, and a range that is resolved
 * to whole mappings, or to the first one only. GET refuses to cut one in two.
 */
FIXTURE_VARIANT_ADD(vfio_dirty_log_ranges, offsets) {
	.map = { { 0, 5 }, { 5, 70 }, { 78, 1 }, { 79, 64 }, { 204, 63 }, { 268, 8 }, { 276, 129 },
		 { 405, 2 } },
	.ranges = { { 0, 407 }, { -1, 409 }, { -7, 420 }, { -8, 475 }, { -63, 500 }, { -64, 471 },
		    { -65, 600 }, { 0, 5 }, { 1, 4 }, { 3, 73 }, { 75, 3 }, { 74, 5 }, { 78, 140 },
		    { 150, 50 }, { 80, 200 }, { 405, 1 } },
};

/* Page numbers and offsets in 32 bits: with an int, 2^19 << 12 is negative. */
FIXTURE_VARIANT_ADD(vfio_dirty_log_ranges, above_4g) {
	.map = { { 0, 16 }, { 2 * G - 16, 16 }, { 2 * G + 16, 16 }, { 4 * G, 16 }, { 5 * G, 16 } },
	.ranges = { { 0, 5 * G + 16 }, { 4 * G + 1, G }, { 2 * G - 3, 2 * G + 19 }, { 5 * G, 17 } },
};

/* Sums that overflow, and an end that is taken for an exclusive one */
FIXTURE_VARIANT_ADD(vfio_dirty_log_ranges, top_of_iova_space) {
	.map = { { 0, 3 } },
	.ranges = { { 2, 1 }, { -70, 73 }, { 0, 3 }, { 1, 2 } },
	.top = 3,
};

FIXTURE_SETUP(vfio_dirty_log_ranges)
{
	struct dirty_log *log = &self->log;
	struct iommu_iova_range *ranges;
	u64 pgsize;
	u32 n;

	setup_or_skip(log);
	pgsize = log->info.pgsize;
	ranges = iommu_iova_ranges(log->iommu, &n);
	self->base = !variant->top ? DIRTY_LOG_IOVA :
		     (ranges[n - 1].last & ~(pgsize - 1)) - (variant->top - 1) * pgsize;

	for (; self->nr < 8 && variant->map[self->nr].npages; self->nr++)
		self->m[self->nr] = dirty_log_map_pages(log, self->base +
							variant->map[self->nr].first * pgsize,
							variant->map[self->nr].npages);
}

FIXTURE_TEARDOWN(vfio_dirty_log_ranges)
{
	dirty_log_teardown(&self->log);
}

static bool cuts(struct dirty_log_mapping *m, iova_t iova)
{
	return iova > m->dma.iova && iova - m->dma.iova < m->dma.size;
}

TEST_F_TIMEOUT(vfio_dirty_log_ranges, read_clear_unmap, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *last = self->m[self->nr - 1];
	u64 bitmap[16];
	int i, j, how;

	dirty_log_start(log);

	for (i = 0; i < 16 && variant->ranges[i].npages; i++) {
		iova_t iova = self->base + variant->ranges[i].first * log->info.pgsize;
		u64 n = variant->ranges[i].npages;
		bool whole = true;

		for (j = 0; j < self->nr; j++)
			whole &= !cuts(self->m[j], iova) &&
				 !cuts(self->m[j], iova + n * log->info.pgsize);

		/* An unaligned bitmap as well */
		log->misalign = i % 9;

		/* CLEAR what the IOMMU has, what was read, and GET */
		for (how = 0; how < 3; how++) {
			for (j = how & i & 1; j < self->nr; j++) {
				dirty_log_write(log, self->m[j], 0);
				dirty_log_write(log, self->m[j], i % self->m[j]->npages);
				dirty_log_write(log, self->m[j], self->m[j]->npages - 1);
			}
			if (how)
				dirty_log_check(log, DIRTY_LOG_NOCLEAR, iova, n);
			if (how < 2)
				dirty_log_clear(log, iova, n, NULL);
			else if (whole)
				dirty_log_check(log, DIRTY_LOG_GET, iova, n);
			else
				EXPECT_EQ(-EINVAL, dirty_log_call(log, DIRTY_LOG_GET, iova, n,
								  bitmap)) {
					TH_LOG("%lu pages at iova 0x%lx", n, iova);
				}
			dirty_log_check(log, DIRTY_LOG_NOCLEAR, iova, n);
			dirty_log_check_all(log);
		}
	}

	/* All of them at once into one bitmap, and anew */
	for (j = 0; j < self->nr; j++)
		dirty_log_write(log, self->m[j], self->m[j]->npages / 2);
	unmap_get_dirty(log, self->base, (last->dma.iova + last->dma.size - self->base) /
			log->info.pgsize, 0xff);
	for (j = 0; j < self->nr; j++) {
		dirty_log_map_again(log, self->m[j]);
		dirty_log_check_all(log);
	}
}

/* ---- Calls that fail ---- */

FIXTURE(vfio_dirty_log_container) {
	struct dirty_log log;
};

FIXTURE_SETUP(vfio_dirty_log_container)
{
	setup_or_skip(&self->log);
}

FIXTURE_TEARDOWN(vfio_dirty_log_container)
{
	dirty_log_teardown(&self->log);
}

#define FIELD(_field)	(offsetof(struct vfio_iommu_type1_dirty_bitmap_get, _field) / 8)

/*
 * Every field at every kind of bad value, and bitmaps that cannot be accessed, at
 * all or from their second page on. None may change the log. Catches a GET that
 * cleared what it could not report, in this or in an earlier mapping, a CLEAR that
 * touches the log before it has read its mask, an UNMAP that has unmapped a part.
 * (All fields are 64 bits wide: the table counts in words.)
 */
TEST_F_TIMEOUT(vfio_dirty_log_container, bad_arguments, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	const u64 pgsize = log->info.pgsize;
	const size_t page = getpagesize();
	/* In the first page of the bitmap, in both, in the second */
	const struct pages pages[] = {
		{ 0, 130 }, { 8 * page - 64, 128 }, { 8 * page + 7000, 64 }
	};
	const u64 npages = pages[2].first + pages[2].npages, bytes = DIRTY_LOG_BITMAP_BYTES(npages);
	u8 *bits = dirty_log_alloc(4 * page, 0);
	const struct vfio_iommu_type1_dirty_bitmap_get good = {
		.iova = DIRTY_LOG_IOVA,
		.size = npages * pgsize,
		.bitmap = {
			.pgsize = pgsize,
			.size = bytes,
			.data = (__u64 *)bits,
		},
	};
	const int r = PROT_READ, w = PROT_WRITE;
	const struct {
		const char *name;
		int err, field;
		u64 value;
		/* Rights that the bitmap's pages lack */
		int lack[2];
	} bad[] = {
		{ "size 0", -EINVAL, FIELD(size), 0 },
		{ "size not of whole pages", -EINVAL, FIELD(size), good.size - 1 },
		{ "size of half a page more", -EINVAL, FIELD(size), good.size + pgsize / 2 },
		{ "size of a page too many", -EINVAL, FIELD(size), (8 * bytes + 1) * pgsize },
		{ "size up to the end of 64 bits", -EINVAL, FIELD(size), -good.iova },
		{ "size beyond 64 bits", -EOVERFLOW, FIELD(size), pgsize - good.iova },
		{ "iova + size beyond 64 bits", -EOVERFLOW, FIELD(iova), -pgsize },
		{ "iova not of whole pages", -EINVAL, FIELD(iova), good.iova + pgsize / 2 },
		{ "pgsize 0", -EINVAL, FIELD(bitmap.pgsize), 0 },
		{ "half the pgsize", -EINVAL, FIELD(bitmap.pgsize), pgsize / 2 },
		{ "double the pgsize", -EINVAL, FIELD(bitmap.pgsize), pgsize * 2 },
		{ "pgsize 3", -EINVAL, FIELD(bitmap.pgsize), pgsize * 3 },
		{ "pgsize of 2^63", -EINVAL, FIELD(bitmap.pgsize), 1UL << 63 },
		{ "no bitmap", -EINVAL, FIELD(bitmap.size), 0 },
		{ "bitmap a byte too small", -EINVAL, FIELD(bitmap.size), bytes - 1 },
		{ "bitmap too large", -EINVAL, FIELD(bitmap.size), log->info.max_bitmap_size + 1 },
		{ "bitmap of -1", -EINVAL, FIELD(bitmap.size), ~0UL },
		{ "bitmap in the kernel", -EINVAL, FIELD(bitmap.data), 0xffff888000000000UL },
		{ "bitmap up to the end of 64 bits", -EINVAL, FIELD(bitmap.data), -8UL },
		{ "bitmap at NULL", -EFAULT, FIELD(bitmap.data), 0 },
		{ "no access", -EFAULT, FIELD(iova), good.iova, { r | w, r | w } },
		{ "no access to page 1", -EFAULT, FIELD(iova), good.iova, { 0, r | w } },
		{ "no access to page 0", -EFAULT, FIELD(iova), good.iova, { r | w, 0 } },
		{ "read-only", -EFAULT, FIELD(iova), good.iova, { w, w } },
		{ "read-only page 1", -EFAULT, FIELD(iova), good.iova, { 0, w } },
	};
	const u32 argsz = sizeof(struct vfio_iommu_type1_dirty_bitmap);
	const u32 argszs[] = { 0, argsz - 1, argsz, argsz + sizeof(good) - 1 };
	struct vfio_iommu_type1_dma_unmap *unmap = dirty_log_alloc(page, 0);
	struct vfio_iommu_type1_dirty_bitmap_get range;
	struct dirty_log_mapping *m[3];
	int i, j, f, ret;

	for (j = 0; j < 3; j++)
		m[j] = dirty_log_map_pages(log, DIRTY_LOG_IOVA + pages[j].first * pgsize,
					   pages[j].npages);
	dirty_log_start(log);

	for (f = 0; f < ARRAY_SIZE(reading); f++) {
		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			int err = bad[i].err;

			/* UNMAP looks at the bitmap's size first, which is bad, too. */
			if (!reading[f] && bad[i].field == FIELD(size) && err == -EOVERFLOW)
				continue;

			/* The mask is only read. */
			if (reading[f] == DIRTY_LOG_CLEAR && (bad[i].lack[0] | bad[i].lack[1]) == w)
				err = 0;

			/* Pages that were read before, and some that only the IOMMU knows */
			dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA, npages);
			for (j = 0; j < 3; j++) {
				dirty_log_write(log, m[j], 0);
				dirty_log_write(log, m[j], 63);
				dirty_log_write(log, m[j], i);
			}
			if (i % 2)
				dirty_log_check(log, DIRTY_LOG_NOCLEAR, m[1]->dma.iova, 128);

			memset(bits, 0xff, 4 * page);
			range = good;
			((u64 *)&range)[bad[i].field] = bad[i].value;
			if (bad[i].field == FIELD(bitmap.pgsize) && bad[i].value == pgsize / 2)
				range.bitmap.size = 2 * bytes;
			ASSERT_EQ(0, mprotect(bits, page, (r | w) & ~bad[i].lack[0]));
			ASSERT_EQ(0, mprotect(bits + page, page, (r | w) & ~bad[i].lack[1]));
			ret = bitmap_or_unmap(log, reading[f], &range);
			ASSERT_EQ(0, mprotect(bits, 2 * page, r | w));

			EXPECT_EQ(err, ret) {
				TH_LOG("flag 0x%x, %s", reading[f], bad[i].name);
			}
			if (ret == -EINVAL)
				EXPECT_EQ(0xff, bits[0] & bits[8] & bits[page] & bits[bytes - 1]);
			if (!ret)
				dirty_log_model_clear(log, DIRTY_LOG_IOVA, npages, NULL);

			/* The container may have read the IOMMU's bits. */
			for (j = 0; j < 3; j++)
				memset(m[j]->in_iommu, false, m[j]->npages);
			dirty_log_check_all(log);
		}
	}

	/* argsz, and flags: one of the five is the only right thing. */
	for (f = 0; f < 3; f++) {
		for (i = 0; i < ARRAY_SIZE(argszs); i++)
			EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argszs[i],
								   reading[f], &good)) {
				TH_LOG("flag 0x%x, argsz %u", reading[f], argszs[i]);
			}
	}
	EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz - 1, DIRTY_LOG_STOP, NULL));
	for (f = 1; f < 1 << 5; f++) {
		if (f & (f - 1))
			EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz + sizeof(good),
								   f, &good)) {
				TH_LOG("flags 0x%x", f);
			}
	}

	/* UNMAP takes the bitmap along with no other flag, and only with all of it. */
	EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(log->iommu, UNMAP_DIRTY | VFIO_DMA_UNMAP_FLAG_VADDR,
					       good.iova, good.size, &good.bitmap, NULL));
	EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(log->iommu, UNMAP_DIRTY | VFIO_DMA_UNMAP_FLAG_ALL,
					       0, 0, &good.bitmap, NULL));
	EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(log->iommu, UNMAP_DIRTY, good.iova, good.size,
					       NULL, NULL));

	/* It cannot report how much it has unmapped, so that has to be nothing. */
	unmap->argsz = sizeof(*unmap) + sizeof(good.bitmap);
	unmap->flags = UNMAP_DIRTY;
	unmap->iova = good.iova;
	unmap->size = good.size;
	memcpy(unmap->data, &good.bitmap, sizeof(good.bitmap));
	ASSERT_EQ(0, mprotect(unmap, page, r));
	EXPECT_EQ(-1, ioctl(log->iommu->container_fd, VFIO_IOMMU_UNMAP_DMA, unmap));
	EXPECT_EQ(EFAULT, errno);
	dirty_log_check_all(log);

	/* Odd, but right: a huge argsz, IOVA 0, and a bitmap that is larger */
	range = good;
	range.iova = 0;
	range.size = good.iova + good.size;
	range.bitmap.size = DIRTY_LOG_BITMAP_BYTES(range.size / pgsize) + 8;
	range.bitmap.data = calloc_assert(1, range.bitmap.size);
	EXPECT_EQ(0, __iommu_dirty_log_ioctl(log->iommu, ~0U, DIRTY_LOG_NOCLEAR, &range));
	EXPECT_EQ(NULL, dirty_log_model_compare(log, good.iova, npages, (u8 *)range.bitmap.data +
						good.iova / pgsize / 8, 0));
}

/* ---- Two devices ---- */

FIXTURE(vfio_dirty_log_two_devices) {
	struct dirty_log log;
	struct dirty_log_mapping *m;
	struct vfio_pci_device *second;
};

FIXTURE_SETUP(vfio_dirty_log_two_devices)
{
	if (nr_bdfs < 2)
		SKIP(return, "needs the BDFs of two devices, got one");

	if (sysfs_iommu_group_get(bdfs[0]) == sysfs_iommu_group_get(bdfs[1]))
		SKIP(return, "%s and %s are in the same IOMMU group", bdfs[0], bdfs[1]);

	setup_or_skip(&self->log);
	self->m = dirty_log_map_pages(&self->log, DIRTY_LOG_IOVA, 200);
}

FIXTURE_TEARDOWN(vfio_dirty_log_two_devices)
{
	if (self->second)
		vfio_pci_device_cleanup(self->second);
	dirty_log_teardown(&self->log);
}

/* Returns why the second device cannot be used, or NULL. */
static const char *attach(struct dirty_log *log, const char *bdf, struct vfio_pci_device **device)
{
	struct iommu_dirty_log_info info;

	*device = vfio_pci_device_init(bdf, log->iommu);
	if (!(*device)->driver.ops)
		return "libvfio has no driver for the second device";

	/* A new kind of IOMMU would change what kind of log it is. */
	iommu_dirty_log_info(log->iommu, &info);
	if (!info.hw || info.pgsize != log->info.pgsize)
		return "the devices are behind IOMMUs of different kinds";

	dirty_log_model_attach(log);
	dirty_log_start_driver(log, *device);

	return NULL;
}

/*
 * Catches a domain that is not started on attach, dirty pages lost at attach or
 * detach, and a CLEAR, START or detach that forgets one of the devices.
 */
TEST_F_TIMEOUT(vfio_dirty_log_two_devices, detach_while_tracking, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	u64 pgsize = log->info.pgsize;
	const char *skip;
	int i;

	dirty_log_start(log);
	dirty_log_write(log, m, 1);

	skip = attach(log, bdfs[1], &self->second);
	if (skip)
		SKIP(return, "%s", skip);

	dirty_log_check_all(log);
	dirty_log_write_at(log, self->second, m, 2 * pgsize);
	dirty_log_check_all(log);

	for (i = 0; i < 8; i++) {
		dirty_log_write(log, m, 100);
		dirty_log_write_at(log, self->second, m, (100 + i % 2) * pgsize);
		dirty_log_clear(log, dirty_log_iova(log, m, 100), 2, NULL);
		dirty_log_check_all(log);
		dirty_log_write_at(log, i % 4 < 2 ? self->second : log->device, m,
				   (100 + i % 2) * pgsize);
		dirty_log_check_all(log);
	}

	dirty_log_stop(log);
	dirty_log_start(log);
	dirty_log_check_all(log);

	/* One read before, two not */
	dirty_log_write(log, m, 1);
	dirty_log_check_all(log);
	dirty_log_write(log, m, 2);
	dirty_log_write_at(log, self->second, m, 3 * pgsize);

	vfio_pci_device_cleanup(log->device);
	log->device = NULL;
	dirty_log_check_all(log);

	dirty_log_write_at(log, self->second, m, 4 * pgsize);
	dirty_log_check_all(log);
	dirty_log_clear(log, dirty_log_iova(log, m, 1), 2, NULL);
	dirty_log_write_at(log, self->second, m, 2 * pgsize);
	dirty_log_check_all(log);

	/* And back again */
	ASSERT_EQ(NULL, attach(log, bdfs[0], &log->device));
	dirty_log_write(log, m, 5);
	dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA, m->npages);
	dirty_log_check_all(log);
}

int main(int argc, char *argv[])
{
	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	return test_harness_run(argc, argv);
}
