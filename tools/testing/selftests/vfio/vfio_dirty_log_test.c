// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dirty log of a type1 container: a dirty page is never forgotten, and
 * where the IOMMU keeps the log, a clean page is not reported either.
 *
 * Whatever is read from the log is compared with a model of it, see
 * libvfio/dirty_log_model.h. A pessimistic log, which says the same whatever is
 * done, is looked at by vfio_dirty_log_pessimistic alone.
 *
 * Environment:
 *  VFIO_DIRTY_LOG_EXPECT=hw|pessimistic	fail, rather than adapt or skip, if
 *						the log is the other one or is missing
 *  VFIO_DIRTY_LOG_VERBOSE=1			let the tests "show" print a table
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

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
}

FIXTURE_TEARDOWN(vfio_dirty_log_modes)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

static bool is_mode(struct iommu *iommu, const char *mode)
{
	return !strcmp(iommu->mode->name, mode);
}

TEST_F_TIMEOUT(vfio_dirty_log_modes, offer, TIMEOUT)
{
	bool v2 = is_mode(self->iommu, MODE_VFIO_TYPE1V2_IOMMU);
	bool v1 = is_mode(self->iommu, MODE_VFIO_TYPE1_IOMMU);
	const char *expect = getenv("VFIO_DIRTY_LOG_EXPECT");
	struct iommu_dirty_log_info info = {};
	struct iommu *fresh;
	int ret;

	if (v2 && !expect && !iommu_check_extension(self->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR))
		SKIP(return, "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR");

	EXPECT_EQ(v2, iommu_check_extension(self->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR));

	/* Nothing is attached to this one, so no IOMMU driver is behind it. */
	fresh = iommu_init(variant->iommu_mode);
	EXPECT_EQ(0, iommu_check_extension(fresh, VFIO_DIRTY_LOG_MANUAL_CLEAR));
	iommu_cleanup(fresh);

	/* A v1 container has the capability, but no log. */
	ret = __iommu_dirty_log_info(self->iommu, &info);
	EXPECT_EQ(v1 || v2 ? 0 : is_mode(self->iommu, MODE_IOMMUFD) ? -ENODEV : -ENOENT, ret);
	if (ret)
		return;

	EXPECT_EQ(info.iova_pgsizes & -info.iova_pgsizes, info.pgsize);
	EXPECT_EQ(SZ_256M, info.max_bitmap_size);
	if (v1 || expect)
		EXPECT_EQ(v2 && !strcmp(expect, "hw"), info.hw);
}

/* Without START there is no call to succeed but STOP, and elsewhere none at all. */
TEST_F_TIMEOUT(vfio_dirty_log_modes, calls, TIMEOUT)
{
	static const u32 flags[] = {
		DIRTY_LOG_STOP, DIRTY_LOG_GET, DIRTY_LOG_NOCLEAR, DIRTY_LOG_CLEAR, 0,
		DIRTY_LOG_START | DIRTY_LOG_STOP, 1U << 31, DIRTY_LOG_START,
	};
	bool v2 = is_mode(self->iommu, MODE_VFIO_TYPE1V2_IOMMU);
	bool v1 = is_mode(self->iommu, MODE_VFIO_TYPE1_IOMMU);
	const u64 pgsize = getpagesize();
	u64 bits[2] = { 0x55, 0xaa }, unmapped = ~0UL;
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = DIRTY_LOG_IOVA,
		.size = pgsize,
		.bitmap = {
			.pgsize = pgsize,
			.size = 8,
			.data = (__u64 *)bits,
		},
	};
	struct dma_region region = {
		.vaddr = dirty_log_alloc(pgsize, 0),
		.iova = DIRTY_LOG_IOVA,
		.size = pgsize,
	};
	int i, err;

	iommu_map(self->iommu, &region);

	for (i = 0; i < ARRAY_SIZE(flags) - v2; i++) {
		u32 argsz = sizeof(struct vfio_iommu_type1_dirty_bitmap);

		if (flags[i] != DIRTY_LOG_START && flags[i] != DIRTY_LOG_STOP)
			argsz += sizeof(range);

		err = v1 ? -EACCES : !v2 ? -ENOTTY : flags[i] == DIRTY_LOG_STOP ? 0 : -EINVAL;
		EXPECT_EQ(err, __iommu_dirty_log_ioctl(self->iommu, argsz, flags[i], &range)) {
			TH_LOG("flags 0x%x", flags[i]);
		}
	}

	EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(self->iommu, UNMAP_DIRTY, region.iova, region.size,
					       &range.bitmap, NULL));
	EXPECT_EQ(0x55, bits[0]);
	EXPECT_EQ(0xaa, bits[1]);

	/* It was not unmapped. */
	EXPECT_EQ(0, __iommu_unmap(self->iommu, &region, &unmapped));
	EXPECT_EQ(pgsize, unmapped);
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
	bool capable;

	iommu = iommu_init(MODE_IOMMUFD);
	device = vfio_pci_device_alloc(bdfs[0], iommu);
	vfio_pci_cdev_open(device, bdfs[0]);
	bind.iommufd = iommu->iommufd;
	ASSERT_EQ(0, ioctl(device->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	info.dev_id = bind.out_devid;
	ASSERT_EQ(0, ioctl(iommu->iommufd, IOMMU_GET_HW_INFO, &info));
	capable = info.out_capabilities & IOMMU_HW_CAP_DIRTY_TRACKING;
	ASSERT_EQ(0, close(device->fd));
	vfio_pci_device_free(device);
	iommu_cleanup(iommu);

	skip = dirty_log_setup(&log, bdfs[0]);
	if (skip)
		SKIP(return, "%s", skip);

	EXPECT_EQ(capable, log.info.hw);
	TH_LOG("the dirty log is %s", log.info.hw ? "the hardware's" : "pessimistic");
	dirty_log_teardown(&log);
}

/* ---- The pessimistic log ---- */

FIXTURE(vfio_dirty_log_pessimistic) {
	struct dirty_log log;
};

FIXTURE_SETUP(vfio_dirty_log_pessimistic)
{
	const char *skip = dirty_log_setup(&self->log, bdfs[0]);

	if (skip)
		SKIP(return, "%s", skip);
	if (self->log.info.hw)
		SKIP(return, "the log is the hardware's");
}

FIXTURE_TEARDOWN(vfio_dirty_log_pessimistic)
{
	dirty_log_teardown(&self->log);
}

/* Every mapped page, whatever is called: also what was mapped later, or cleared. */
TEST_F_TIMEOUT(vfio_dirty_log_pessimistic, all_dirty, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = dirty_log_map_pages(log, DIRTY_LOG_IOVA, 70);
	u64 pgsize = log->info.pgsize, got[4] = {}, unmapped;

	dirty_log_start(log);
	dirty_log_check_all(log);
	dirty_log_map_pages(log, DIRTY_LOG_IOVA + 75 * pgsize, 130);
	dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA - 3 * pgsize, 208);
	dirty_log_write(log, m, 5);
	dirty_log_clear(log, DIRTY_LOG_IOVA, 100, NULL);
	dirty_log_check_all(log);

	ASSERT_EQ(0, __iommu_unmap_get_dirty(log->iommu, &m->dma, got, &unmapped));
	EXPECT_EQ(70 * pgsize, unmapped);
	EXPECT_EQ(~0UL, got[0]);
	EXPECT_EQ(0x3f, got[1]);
	dirty_log_model_forget(m);
	dirty_log_stop(log);
	dirty_log_start(log);
	dirty_log_check_all(log);
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

/*
 * What a migration does, told as a table: START, NOCLEAR, CLEAR of all pages but
 * one, NOCLEAR, and once more after the next writes, STOP.
 */
TEST_F_TIMEOUT(vfio_dirty_log, show, TIMEOUT)
{
	enum { WRITTEN, READ, CLEARED, LEFT, AGAIN, READ_AGAIN, COLUMNS };
	static const char * const words[] = { "DMA", "dirty", "clean", "dirty", "DMA", "dirty" };
	bool verbose = getenv("VFIO_DIRTY_LOG_VERBOSE");
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	const u64 pages[] = { self->spots[0], self->spots[1], self->spots[1] + 1, self->spots[2] };
	u64 leaf = m->min_leaf, page, first, count[COLUMNS] = {};
	u8 *bits[COLUMNS];
	int i, j;

	for (i = 0; i < COLUMNS; i++)
		bits[i] = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(m->npages));

	dirty_log_start(log);

	for (i = 0; i < COLUMNS; i++) {
		switch (i) {
		case WRITTEN:
		case AGAIN:
			for (j = 0; j < ARRAY_SIZE(pages); j++) {
				dirty_log_write(log, m, pages[j]);
				bit_set(bits[i], pages[j]);
			}
			break;
		case CLEARED:
			memcpy(bits[i], bits[READ], DIRTY_LOG_BITMAP_BYTES(m->npages));
			bit_put(bits[i], pages[2], false);
			dirty_log_clear(log, m->dma.iova, m->npages, bits[i]);
			break;
		default:
			iommu_dirty_log_get_noclear(log->iommu, m->dma.iova, m->dma.size, bits[i]);
			EXPECT_EQ(NULL, dirty_log_model_compare(log, m->dma.iova, m->npages,
								bits[i], 0));
		}
		for (page = 0; page < m->npages; page++)
			count[i] += bit_get(bits[i], page);
	}

	if (verbose)
		printf("# %lu pages of %lu bytes, in leaves of %lu%s\n"
		       "# pages            written  NOCLEAR  CLEAR    NOCLEAR  written  NOCLEAR\n",
		       m->npages, log->info.pgsize, leaf, leaf == 1 ? "" :
		       log->split_on_clear ? ", which CLEAR splits" : ", which CLEAR does not split");

	for (page = first = 0; page < m->npages && verbose; page++) {
		bool same = page + 1 < m->npages;

		/* One line for consecutive pages with the same results */
		for (i = 0; i < COLUMNS && same; i++)
			same = bit_get(bits[i], page) == bit_get(bits[i], page + 1);
		if (same)
			continue;

		printf("# %6lu - %6lu", first, page);
		for (i = 0; i < COLUMNS; i++)
			printf("  %-*s", i + 1 < COLUMNS ? 7 : 0,
			       bit_get(bits[i], page) ? words[i] : "-");
		printf("\n");
		first = page + 1;
	}

	if (verbose)
		printf("# in all           %-7lu  %-7lu  %-7lu  %-7lu  %-7lu  %lu\n#\n",
		       count[WRITTEN], count[READ], count[CLEARED], count[LEFT], count[AGAIN],
		       count[READ_AGAIN]);
	fflush(stdout);

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
	int i;

	dirty_log_start(log);

	for (i = 0; i < ARRAY_SIZE(self->spots); i++)
		dirty_log_write(log, m, self->spots[i]);

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

	for (i = 0; i < ARRAY_SIZE(self->spots); i++)
		dirty_log_write(log, m, self->spots[i]);
	dirty_log_check_all(log);
}

/*
 * One mask with runs and gaps of all kinds of lengths. Catches pages between two
 * runs that are cleared as well, and a run that is cut short.
 */
TEST_F_TIMEOUT(vfio_dirty_log, clear_sparse, TIMEOUT)
{
	static const u64 runs[] = { 2, 1, 3, 64, 1, 7, 65, 2, 63, 130 };
	static const u64 gaps[] = { 1, 2, 7, 61, 64, 130, 63, 65, 62, 128 };
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

	for (i = 0; i < ARRAY_SIZE(self->spots); i++)
		dirty_log_write(log, m, self->spots[i]);
	dirty_log_check_all(log);
}

/*
 * A dirty large leaf that was cleared logs by page from then on, until STOP, and
 * what was not asked for stays dirty. Elsewhere it is logged as a whole.
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
 * A part of a mapping, cutting superpages at both ends and covering others.
 * Catches bits lost or cleared outside the part, and a leaf that starts before
 * the part and is not recorded.
 */
TEST_F_TIMEOUT(vfio_dirty_log, subrange, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	const u64 first = m->npages / 4 - 13, end = m->npages / 2 + 77;
	const u64 writes[] = {
		0, first - 1, first, (first + end) / 2, end - 1, end, m->npages - 1
	};
	iova_t iova = dirty_log_iova(log, m, first);
	int round, i;

	dirty_log_start(log);

	for (round = 0; round < 2; round++) {
		for (i = 0; i < ARRAY_SIZE(writes); i++)
			dirty_log_write(log, m, writes[i]);

		dirty_log_check(log, DIRTY_LOG_NOCLEAR, iova, end - first);
		if (round)
			dirty_log_check_all(log);

		dirty_log_clear(log, iova, end - first, NULL);
		dirty_log_check(log, DIRTY_LOG_NOCLEAR, iova, end - first);
		dirty_log_check_all(log);
	}

	/* Single pages by ranges of their own, at either side of an edge */
	for (i = 0; i < ARRAY_SIZE(writes); i++)
		dirty_log_clear(log, dirty_log_iova(log, m, writes[i]), 1, NULL);
	dirty_log_check_all(log);
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
	u8 *bits = malloc_assert(DIRTY_LOG_BITMAP_BYTES(m->npages) + 8);
	u64 unmapped = 0;
	int round;

	for (round = 0; round < 3; round++) {
		u8 poison = round ? 0xff : 0;

		dirty_log_start(log);

		/* One read before, one cleared, one only known to the IOMMU */
		dirty_log_write(log, m, self->spots[0]);
		dirty_log_write(log, m, self->spots[1]);
		dirty_log_check_all(log);
		dirty_log_clear_page(log, m, self->spots[1]);
		dirty_log_write(log, m, self->spots[2]);

		if (round == 2) {
			dirty_log_unmap(log, m);
			dirty_log_check(log, DIRTY_LOG_NOCLEAR, m->dma.iova, m->npages);
		} else {
			memset(bits, poison, DIRTY_LOG_BITMAP_BYTES(m->npages) + 8);
			ASSERT_EQ(0, __iommu_unmap_get_dirty(log->iommu, &m->dma, bits, &unmapped));
			EXPECT_EQ(m->dma.size, unmapped);
			EXPECT_EQ(NULL, dirty_log_model_compare(log, m->dma.iova, m->npages,
								bits, poison));
			EXPECT_EQ(poison, bits[DIRTY_LOG_BITMAP_BYTES(m->npages)]);
			dirty_log_model_forget(m);
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

static iova_t last_iova(struct dirty_log *log)
{
	struct iommu_iova_range *ranges;
	iova_t last;
	u32 n;

	ranges = iommu_iova_ranges(log->iommu, &n);
	last = ranges[n - 1].last;
	free(ranges);

	return last;
}

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
	u64 pgsize;

	setup_or_skip(log);
	pgsize = log->info.pgsize;
	self->base = DIRTY_LOG_IOVA;
	if (variant->top)
		self->base = (last_iova(log) & ~(pgsize - 1)) - (variant->top - 1) * pgsize;

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
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.bitmap.pgsize = log->info.pgsize,
	};
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
	j--;
	range.iova = self->m[0]->dma.iova;
	range.size = self->m[j]->dma.iova + self->m[j]->dma.size - range.iova;
	range.bitmap.size = DIRTY_LOG_BITMAP_BYTES(range.size / range.bitmap.pgsize);
	range.bitmap.data = malloc_assert(range.bitmap.size);
	memset(range.bitmap.data, 0xff, range.bitmap.size);
	ASSERT_EQ(0, bitmap_or_unmap(log, 0, &range));
	EXPECT_EQ(NULL, dirty_log_model_compare(log, range.iova, range.size / range.bitmap.pgsize,
						range.bitmap.data, 0xff));

	for (j = 0; j < self->nr; j++) {
		list_del_init(&self->m[j]->dma.link);
		dirty_log_model_forget(self->m[j]);
	}
	for (j = 0; j < self->nr; j++) {
		dirty_log_map_again(log, self->m[j]);
		dirty_log_check_all(log);
	}
}

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

/* The largest bitmap: its memory stays untouched but where something is mapped. */
TEST_F_TIMEOUT(vfio_dirty_log_container, largest_bitmap, TIMEOUT)
{
	static const u32 flags[] = { DIRTY_LOG_NOCLEAR, DIRTY_LOG_CLEAR, DIRTY_LOG_GET };
	struct dirty_log *log = &self->log;
	u64 pgsize = log->info.pgsize, last = log->info.max_bitmap_size * 8 - 1;
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = DIRTY_LOG_IOVA,
		.size = (last + 1) * pgsize,
		.bitmap = {
			.pgsize = pgsize,
			.size = log->info.max_bitmap_size,
		},
	};
	const u32 argsz = sizeof(struct vfio_iommu_type1_dirty_bitmap) + sizeof(range);
	const u64 poison = 0xa55a0ff0c33c9669, untouched[] = { 1, last / 128, last / 64 - 1 };
	struct dirty_log_mapping *a, *b = NULL;
	int i, j;

	range.bitmap.data = mmap(NULL, range.bitmap.size + getpagesize(), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, range.bitmap.data);

	a = dirty_log_map_pages(log, DIRTY_LOG_IOVA + 3 * pgsize, 2);
	if (last_iova(log) / pgsize >= DIRTY_LOG_IOVA / pgsize + last)
		b = dirty_log_map_pages(log, DIRTY_LOG_IOVA + last * pgsize, 1);

	dirty_log_start(log);

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		bool clear = flags[i] == DIRTY_LOG_CLEAR;

		dirty_log_write(log, a, 1);
		if (b)
			dirty_log_write(log, b, 0);

		range.bitmap.data[0] = clear << 4;
		bit_put(range.bitmap.data, last, clear);
		for (j = 0; j < ARRAY_SIZE(untouched); j++)
			range.bitmap.data[untouched[j]] = poison;

		ASSERT_EQ(0, __iommu_dirty_log_ioctl(log->iommu, argsz, flags[i], &range));

		EXPECT_EQ(1UL << 4, range.bitmap.data[0]);
		EXPECT_EQ(clear || b, bit_get(range.bitmap.data, last));
		for (j = 0; j < ARRAY_SIZE(untouched); j++)
			EXPECT_EQ(poison, range.bitmap.data[untouched[j]]);

		if (flags[i] != DIRTY_LOG_NOCLEAR)
			dirty_log_model_clear(log, range.iova, last + 1, NULL);
		dirty_log_check_all(log);

		/* One page more than the largest bitmap has bits for, or a larger bitmap */
		range.size += pgsize;
		EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz, flags[i], &range));
		range.bitmap.size += 8;
		EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz, flags[i], &range));
		range.size -= pgsize;
		EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz, flags[i], &range));
		range.bitmap.size -= 8;
	}
}

/* The log continues while the container has no mapping. */
TEST_F_TIMEOUT(vfio_dirty_log_container, unmap_all, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = dirty_log_map_pages(log, DIRTY_LOG_IOVA, 70);

	dirty_log_start(log);
	dirty_log_write(log, m, 2);

	iommu_unmap_all(log->iommu);
	dirty_log_model_forget(m);
	dirty_log_model_forget(log->src);
	dirty_log_check(log, DIRTY_LOG_NOCLEAR, DIRTY_LOG_IOVA, 70);
	dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA, 70);
	dirty_log_clear(log, DIRTY_LOG_IOVA, 70, NULL);

	iommu_map(log->iommu, &log->device->driver.region);
	dirty_log_map_again(log, log->src);
	dirty_log_map_again(log, m);
	dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA, 70);
	dirty_log_write(log, m, 3);
	dirty_log_check_all(log);
}

/* DMA goes on while vaddr is away, and so does the log. */
TEST_F_TIMEOUT(vfio_dirty_log_container, vaddr, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m;
	int round;

	if (iommu_check_extension(log->iommu, VFIO_UPDATE_VADDR) != 1)
		SKIP(return, "the container does not offer VFIO_UPDATE_VADDR");

	m = dirty_log_map_pages(log, DIRTY_LOG_IOVA, 70);

	for (round = 0; round < 2; round++) {
		/* Started before, and while vaddr is away */
		if (!round)
			dirty_log_start(log);
		ASSERT_EQ(0, __iommu_vaddr_invalidate(log->iommu, &m->dma));
		dirty_log_start(log);
		dirty_log_write(log, m, 1);
		dirty_log_write(log, m, 2);
		dirty_log_check_all(log);
		dirty_log_clear_page(log, m, 1);
		dirty_log_write(log, m, 3);

		m->dma.vaddr = mremap(m->dma.vaddr, m->dma.size, m->dma.size,
				      MREMAP_MAYMOVE | MREMAP_FIXED,
				      mmap_reserve(m->dma.size, SZ_2M, 0));
		ASSERT_NE(MAP_FAILED, m->dma.vaddr);
		ASSERT_EQ(0, __iommu_vaddr_update(log->iommu, &m->dma));

		dirty_log_check_all(log);
		dirty_log_write(log, m, 4);
		dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA, 70);
		dirty_log_stop(log);
	}
}

/* ---- Calls that fail ---- */

/*
 * The bitmap cannot be accessed, at all or from its second page on. Catches a GET
 * that cleared what it could not report, in this or in an earlier mapping, a
 * CLEAR that clears before it has read its mask, an UNMAP that has unmapped a part.
 */
TEST_F_TIMEOUT(vfio_dirty_log_container, bad_pointers, TIMEOUT)
{
	static const struct {
		int prot[2];
		bool clear_can;
	} bad[] = {
		{ { PROT_NONE, PROT_NONE } },
		{ { PROT_READ | PROT_WRITE, PROT_NONE } },
		{ { PROT_NONE, PROT_READ | PROT_WRITE } },
		{ { PROT_READ, PROT_READ }, true },
		{ { PROT_READ | PROT_WRITE, PROT_READ }, true },
	};
	struct dirty_log *log = &self->log;
	const size_t page = getpagesize();
	/* In the first page of the bitmap, in both, in the second */
	const struct pages pages[] = {
		{ 0, 130 }, { 8 * page - 64, 128 }, { 8 * page + 7000, 64 }
	};
	u64 npages = pages[2].first + pages[2].npages;
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = DIRTY_LOG_IOVA,
		.size = npages * log->info.pgsize,
		.bitmap = {
			.pgsize = log->info.pgsize,
			.size = DIRTY_LOG_BITMAP_BYTES(npages),
		},
	};
	struct dirty_log_mapping *m[3];
	int i, j, f, ret;
	u8 *bits;

	bits = dirty_log_alloc(2 * page, 0);
	range.bitmap.data = (__u64 *)bits;
	for (j = 0; j < 3; j++)
		m[j] = dirty_log_map_pages(log, DIRTY_LOG_IOVA + pages[j].first * log->info.pgsize,
					   pages[j].npages);
	dirty_log_start(log);

	for (f = 0; f < ARRAY_SIZE(reading); f++) {
		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			bool works = reading[f] == DIRTY_LOG_CLEAR && bad[i].clear_can;

			/* One of them read before, the others only known to the IOMMU */
			for (j = 0; j < 3; j++) {
				dirty_log_write(log, m[j], 0);
				dirty_log_write(log, m[j], 63);
				dirty_log_write(log, m[j], m[j]->npages / 2);
			}
			if (i % 2)
				dirty_log_check(log, DIRTY_LOG_NOCLEAR, m[1]->dma.iova, 128);

			memset(bits, 0xff, 2 * page);
			ASSERT_EQ(0, mprotect(bits, page, bad[i].prot[0]));
			ASSERT_EQ(0, mprotect(bits + page, page, bad[i].prot[1]));
			ret = bitmap_or_unmap(log, reading[f], &range);
			ASSERT_EQ(0, mprotect(bits, 2 * page, PROT_READ | PROT_WRITE));

			EXPECT_EQ(works ? 0 : -EFAULT, ret) {
				TH_LOG("flag 0x%x, pointer %d", reading[f], i);
			}
			if (works)
				dirty_log_model_clear(log, DIRTY_LOG_IOVA, npages, NULL);
			else
				dirty_log_model_error(log);
			dirty_log_check_all(log);
			dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA, npages);
		}
	}

	/* All three are still there. */
	for (j = 0; j < 3; j++) {
		dirty_log_write(log, m[j], 1);
		dirty_log_check_all(log);
		dirty_log_unmap(log, m[j]);
	}
}

#define FIELD(_field)	(offsetof(struct vfio_iommu_type1_dirty_bitmap_get, _field) / 8)

/*
 * Every field at every kind of bad value. None may change the log or the bitmap.
 * (All fields are 64 bits wide: the table counts in words.)
 */
TEST_F_TIMEOUT(vfio_dirty_log_container, bad_arguments, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	const u64 pgsize = log->info.pgsize, npages = 130;
	u64 bitmap[8], end = DIRTY_LOG_IOVA + npages * pgsize;
	const struct vfio_iommu_type1_dirty_bitmap_get good = {
		.iova = DIRTY_LOG_IOVA,
		.size = npages * pgsize,
		.bitmap = {
			.pgsize = pgsize,
			.size = DIRTY_LOG_BITMAP_BYTES(npages),
			.data = (__u64 *)bitmap,
		},
	};
	const struct {
		const char *name;
		int err, field;
		u64 value;
	} bad[] = {
		{ "size 0", -EINVAL, FIELD(size), 0 },
		{ "size 1", -EINVAL, FIELD(size), 1 },
		{ "size not of whole pages", -EINVAL, FIELD(size), good.size - 1 },
		{ "size of half a page more", -EINVAL, FIELD(size), good.size + pgsize / 2 },
		{ "size for more bits than there are", -EINVAL, FIELD(size), 193 * pgsize },
		{ "size up to the end of 64 bits", -EINVAL, FIELD(size), -good.iova },
		{ "size beyond 64 bits", -EOVERFLOW, FIELD(size), pgsize - good.iova },
		{ "size of -1", -EOVERFLOW, FIELD(size), ~0UL },
		{ "iova + size beyond 64 bits", -EOVERFLOW, FIELD(iova), -pgsize },
		{ "iova 1", -EINVAL, FIELD(iova), 1 },
		{ "iova not of whole pages", -EINVAL, FIELD(iova), good.iova + pgsize / 2 },
		{ "pgsize 0", -EINVAL, FIELD(bitmap.pgsize), 0 },
		{ "pgsize 1", -EINVAL, FIELD(bitmap.pgsize), 1 },
		{ "half the pgsize", -EINVAL, FIELD(bitmap.pgsize), pgsize / 2 },
		{ "double the pgsize", -EINVAL, FIELD(bitmap.pgsize), pgsize * 2 },
		{ "pgsize 3", -EINVAL, FIELD(bitmap.pgsize), pgsize * 3 },
		{ "pgsize of 2^63", -EINVAL, FIELD(bitmap.pgsize), 1UL << 63 },
		{ "no bitmap", -EINVAL, FIELD(bitmap.size), 0 },
		{ "bitmap a byte too small", -EINVAL, FIELD(bitmap.size), good.bitmap.size - 1 },
		{ "bitmap a word too small", -EINVAL, FIELD(bitmap.size), good.bitmap.size - 8 },
		{ "bitmap too large", -EINVAL, FIELD(bitmap.size), log->info.max_bitmap_size + 1 },
		{ "bitmap of -1", -EINVAL, FIELD(bitmap.size), ~0UL },
		{ "bitmap in the kernel", -EINVAL, FIELD(bitmap.data), 0xffff888000000000UL },
		{ "bitmap up to the end of 64 bits", -EINVAL, FIELD(bitmap.data), -8UL },
		{ "bitmap at NULL", -EFAULT, FIELD(bitmap.data), 0 },
	};
	const u32 argsz = sizeof(struct vfio_iommu_type1_dirty_bitmap);
	const u32 argszs[] = { 0, 1, argsz - 1, argsz, argsz + sizeof(good) - 1 };
	struct vfio_iommu_type1_dirty_bitmap_get range;
	struct dirty_log_mapping *m;
	u8 *bits;
	int i, f;

	m = dirty_log_map_pages(log, DIRTY_LOG_IOVA, npages);
	dirty_log_start(log);

	for (f = 0; f < ARRAY_SIZE(reading); f++) {
		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			/* UNMAP looks at the bitmap's size first, which is bad, too. */
			if (!reading[f] && bad[i].field == FIELD(size) && bad[i].err == -EOVERFLOW)
				continue;

			dirty_log_write(log, m, i);
			memset(bitmap, 0xff, sizeof(bitmap));
			range = good;
			((u64 *)&range)[bad[i].field] = bad[i].value;
			if (bad[i].field == FIELD(bitmap.pgsize) && bad[i].value == pgsize / 2)
				range.bitmap.size = sizeof(bitmap);

			EXPECT_EQ(bad[i].err, bitmap_or_unmap(log, reading[f], &range)) {
				TH_LOG("flag 0x%x, %s", reading[f], bad[i].name);
			}
			EXPECT_EQ(~0UL, bitmap[0] & bitmap[1] & bitmap[2] & bitmap[3]);
			dirty_log_check_all(log);
		}
		dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA, npages);
	}

	/* argsz, and flags: one of the five is the only right thing. */
	dirty_log_write(log, m, 7);
	for (i = 0; i < ARRAY_SIZE(argszs); i++) {
		for (f = 0; f < 3; f++) {
			EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argszs[i],
								   reading[f], &good)) {
				TH_LOG("flag 0x%x, argsz %u", reading[f], argszs[i]);
			}
		}
	}
	EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz - 1, DIRTY_LOG_STOP, NULL));
	for (i = 0; i < 5; i++) {
		for (f = 0; f < i; f++) {
			EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz + sizeof(good),
								   1U << i | 1U << f, &good)) {
				TH_LOG("flags 0x%x", 1U << i | 1U << f);
			}
		}
	}
	EXPECT_EQ(-1, ioctl(log->iommu->container_fd, VFIO_IOMMU_DIRTY_PAGES, NULL));
	EXPECT_EQ(EFAULT, errno);
	dirty_log_check_all(log);

	/* Odd, but right: a huge argsz, IOVA 0, a bitmap at an odd address, and larger */
	range = good;
	range.iova = 0;
	range.size = end;
	range.bitmap.size = DIRTY_LOG_BITMAP_BYTES(end / pgsize) + 8;
	bits = calloc_assert(1, range.bitmap.size + 1);
	range.bitmap.data = (__u64 *)(bits + 1);
	EXPECT_EQ(0, __iommu_dirty_log_ioctl(log->iommu, ~0U, DIRTY_LOG_NOCLEAR, &range));
	EXPECT_EQ(NULL, dirty_log_model_compare(log, good.iova, npages,
						bits + 1 + good.iova / pgsize / 8, 0));
	EXPECT_EQ(0, __iommu_dirty_log_ioctl(log->iommu, ~0U, DIRTY_LOG_CLEAR, &range));
	dirty_log_model_clear(log, 0, end / pgsize, bits + 1);
	dirty_log_check_all(log);

	/* UNMAP takes the bitmap along with no other flag, and only with all of it. */
	EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(log->iommu, UNMAP_DIRTY | VFIO_DMA_UNMAP_FLAG_VADDR,
					       good.iova, good.size, &good.bitmap, NULL));
	EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(log->iommu, UNMAP_DIRTY | VFIO_DMA_UNMAP_FLAG_ALL,
					       0, 0, &good.bitmap, NULL));
	EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(log->iommu, UNMAP_DIRTY, good.iova, good.size,
					       NULL, NULL));
	dirty_log_write(log, m, 8);
	dirty_log_check_all(log);
	dirty_log_unmap(log, m);
}

static void write_file(const char *name, const char *text)
{
	int fd = open(name, O_WRONLY);

	VFIO_ASSERT_EQ(write(fd, text, strlen(text)), (ssize_t)strlen(text), "%s\n", name);
	close(fd);
}

/* Leave the memory cgroup @room bytes more than it uses. */
static void limit_memory(u64 room)
{
	int fd = open("memory.current", O_RDONLY);
	char text[32] = {};

	VFIO_ASSERT_GT(read(fd, text, sizeof(text) - 1), 0);
	close(fd);
	snprintf_assert(text, sizeof(text), "%lu", strtoul(text, NULL, 0) + room);
	write_file("memory.max", text);
}

/* START, and MAP while the log runs, where there is no memory for their bitmaps */
static int memory_cgroup_child(void)
{
	struct dma_region regions[48] = {};
	void *vaddr = dirty_log_alloc(SZ_1G, MAP_HUGETLB | MAP_HUGE_1GB);
	u64 *bitmap = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(SZ_1G / getpagesize()));
	struct dirty_log log;
	int i, ret;

	if (vaddr == MAP_FAILED || dirty_log_setup(&log, bdfs[0]))
		return KSFT_SKIP;

	write_file("cgroup.procs", "0");
	for (i = 0; i < ARRAY_SIZE(regions); i++) {
		regions[i].vaddr = vaddr;
		regions[i].iova = DIRTY_LOG_IOVA + (u64)i * SZ_1G;
		regions[i].size = SZ_1G;
		if (i < ARRAY_SIZE(regions) / 2)
			iommu_map(log.iommu, &regions[i]);
	}
	VFIO_ASSERT_EQ(mlockall(MCL_CURRENT), 0);

	limit_memory(SZ_256K);
	VFIO_ASSERT_EQ(__iommu_dirty_log_start(log.iommu), -ENOMEM);
	VFIO_ASSERT_EQ(dirty_log_call(&log, DIRTY_LOG_GET, DIRTY_LOG_IOVA,
				      SZ_1G / log.info.pgsize, bitmap), -EINVAL);

	write_file("memory.max", "max");
	iommu_dirty_log_start(log.iommu);
	limit_memory(SZ_256K);
	for (ret = 0; !ret && i > ARRAY_SIZE(regions) / 2; i--)
		ret = __iommu_map(log.iommu, &regions[i - 1]);
	VFIO_ASSERT_EQ(ret, -ENOMEM);

	return KSFT_PASS;
}

FIXTURE(vfio_dirty_log_memory) {
	char root[32];
};

FIXTURE_SETUP(vfio_dirty_log_memory)
{
	strcpy(self->root, "/tmp/cgroup.XXXXXX");
	ASSERT_NE(NULL, mkdtemp(self->root));
	if (mount("none", self->root, "cgroup2", 0, NULL)) {
		rmdir(self->root);
		SKIP(return, "no cgroup2: %s", strerror(errno));
	}
	ASSERT_EQ(0, chdir(self->root));
	write_file("cgroup.subtree_control", "+memory");
	ASSERT_EQ(0, mkdir("vfio_dirty_log_test", 0700));
	ASSERT_EQ(0, chdir("vfio_dirty_log_test"));
}

FIXTURE_TEARDOWN(vfio_dirty_log_memory)
{
	EXPECT_EQ(0, chdir(self->root));
	EXPECT_EQ(0, rmdir("vfio_dirty_log_test"));
	EXPECT_EQ(0, chdir("/"));
	EXPECT_EQ(0, umount(self->root));
	EXPECT_EQ(0, rmdir(self->root));
}

/*
 * What grows with the mappings is charged to the user's memory cgroup. Catches a
 * user that is killed where a call can fail.
 */
TEST_F_TIMEOUT(vfio_dirty_log_memory, limited, TIMEOUT)
{
	pid_t pid = fork();
	int status;

	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(memory_cgroup_child());
	ASSERT_EQ(pid, waitpid(pid, &status, 0));

	ASSERT_TRUE(WIFEXITED(status)) {
		TH_LOG("killed by signal %d", WTERMSIG(status));
	}
	if (WEXITSTATUS(status) == KSFT_SKIP)
		SKIP(return, "needs a free page of 1 GiB and a device with a driver in libvfio");
	EXPECT_EQ(KSFT_PASS, WEXITSTATUS(status));
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
 * Catches a domain that is not started on attach, dirty pages lost at the attach,
 * and a CLEAR that flushes only one device's IOTLB.
 */
TEST_F_TIMEOUT(vfio_dirty_log_two_devices, attach_while_tracking, TIMEOUT)
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
	dirty_log_write_at(log, self->second, m, 3 * pgsize);
	dirty_log_write(log, m, 4);
	dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA, m->npages);
	dirty_log_check_all(log);
}

/* Catches a detach that loses dirty pages, or stops the others' log. */
TEST_F_TIMEOUT(vfio_dirty_log_two_devices, detach_while_tracking, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct dirty_log_mapping *m = self->m;
	u64 pgsize = log->info.pgsize;
	const char *skip;

	skip = attach(log, bdfs[1], &self->second);
	if (skip)
		SKIP(return, "%s", skip);

	dirty_log_start(log);
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
