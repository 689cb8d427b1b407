// SPDX-License-Identifier: GPL-2.0-only
/*
 * What splitting large leaves costs: CLEAR_BITMAP of one page in each dirty leaf of a
 * mapping of 1 GiB, with and without split_on_clear; reading the log of leaves of which
 * a hundredth is split, beside whole ones and leaves of 4 KiB; memory of page tables.
 *
 * Prints figures, a line each, with times in nanoseconds: those are instructions under
 * QEMU's "-icount shift=0,sleep=off". Each read is compared with the model of the log.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/memfd.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/time64.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest.h"

#define SIZE	((u64)SZ_1G)
#define MEMORY	((u64)SZ_64M)
#define PAGES	(SIZE / SZ_4K)

static struct dirty_log log_;
static u8 mask[PAGES / 8], bitmap[PAGES / 8];

static s64 now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);

	return ts.tv_nsec + NSEC_PER_SEC * ts.tv_sec;
}

static void figure(const char *name, u64 leaf, double value)
{
	printf("split\t%s\t%lu\t%.2f\n", name, leaf / SZ_1K, value);
	fflush(stdout);
}

static void split_on_clear(bool on)
{
	int fd = open("/sys/module/vfio_iommu_type1/parameters/split_on_clear", O_WRONLY);

	VFIO_ASSERT_EQ(write(fd, on ? "Y" : "N", 1), 1);
	close(fd);
	log_.split_on_clear = on;
}

/* KiB of page tables that are not the CPU's */
static long tables(void)
{
	char line[128];
	long pages = -1;
	FILE *f;

	f = fopen("/proc/vmstat", "r");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "nr_sec_page_table_pages %ld", &pages);
	fclose(f);

	return pages * (getpagesize() / SZ_1K);
}

/* The same memory again and again, or one page of 1 GiB */
static void *memory(u64 leaf)
{
	void *vaddr, *at;
	int fd;

	if (leaf == SZ_1G)
		return dirty_log_alloc(SIZE, MAP_HUGETLB | MAP_HUGE_1GB | MAP_POPULATE);

	fd = memfd_create("dirty_log_split", MFD_HUGETLB | MFD_HUGE_2MB);
	VFIO_ASSERT_EQ(ftruncate(fd, MEMORY), 0);
	vaddr = mmap_reserve(SIZE, SZ_2M, 0);
	for (at = vaddr; at < vaddr + SIZE; at += MEMORY)
		if (mmap(at, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			return MAP_FAILED;
	close(fd);

	return vaddr;
}

/* Write the first page of every n-th leaf, and clear it: the time of CLEAR */
static s64 clear(struct dirty_log_mapping *m, u64 leaf, u64 n, bool all)
{
	u64 page;
	s64 ns;

	memset(mask, all ? 0xff : 0, sizeof(mask));
	for (page = 0; page < PAGES; page += n * leaf / SZ_4K) {
		dirty_log_write(&log_, m, page);
		bit_set(mask, page);
	}
	ns = now();
	iommu_dirty_log_clear(log_.iommu, m->dma.iova, SIZE, mask);
	ns = now() - ns;
	dirty_log_model_clear(&log_, m->dma.iova, PAGES, mask);

	return ns;
}

/* The time of NOCLEAR */
static s64 noclear(struct dirty_log_mapping *m)
{
	s64 ns, best = INT64_MAX;
	const char *error;
	int i;

	for (i = 0; i < 3; i++) {
		memset(bitmap, 0, sizeof(bitmap));
		ns = now();
		iommu_dirty_log_get_noclear(log_.iommu, m->dma.iova, SIZE, bitmap);
		best = min(best, now() - ns);
		error = dirty_log_model_compare(&log_, m->dma.iova, PAGES, bitmap, 0);
		VFIO_ASSERT_NULL(error, "%s\n", error);
	}

	return best;
}

static void measure(u64 leaf)
{
	u64 entries = PAGES + (leaf == SZ_1G ? 512 : 0);
	struct dirty_log_mapping *m;
	s64 ns[2][2], whole;
	void *vaddr;
	long before;
	int on, all;

	vaddr = memory(leaf);
	if (vaddr == MAP_FAILED) {
		printf("# no memory of pages of %lu KiB\n", leaf / SZ_1K);
		return;
	}

	/* Off by a page no larger leaf fits. */
	m = dirty_log_map(&log_, vaddr, DIRTY_LOG_IOVA + (leaf == SZ_4K ? SZ_4K : 0), SIZE, leaf);
	before = tables();
	dirty_log_start(&log_);
	whole = noclear(m);
	figure("NOCLEAR, clean", leaf, whole);
	dirty_log_stop(&log_);

	for (on = 0; on < 2 && leaf > SZ_4K; on++) {
		for (all = 0; all < 2; all++) {
			split_on_clear(on);
			dirty_log_start(&log_);
			ns[on][all] = clear(m, leaf, 1, all);
			if (on)
				figure(all ? "KiB of tables, all leaves cleared" :
				       "KiB of tables, a page of each leaf cleared", leaf, tables() - before);
			dirty_log_stop(&log_);
			if (on)
				figure("KiB of tables after STOP", leaf, tables() - before);
			m->min_leaf = leaf / SZ_4K;
		}
	}

	if (leaf > SZ_4K) {
		figure("CLEAR of a page of each leaf", leaf, ns[0][0]);
		figure("CLEAR of a page of each leaf, split", leaf, ns[1][0]);
		figure("CLEAR of all", leaf, ns[0][1]);
		figure("CLEAR of all, split", leaf, ns[1][1]);
		/* Of 1 GiB it would be lost in what it costs to record all of that. */
		if (leaf == SZ_2M)
			figure("split, by new entry", leaf, (double)(ns[1][0] - ns[0][0]) / entries);
		figure("split and clean, by new entry", leaf, (double)(ns[1][1] - ns[0][1]) / entries);
	}

	if (leaf == SZ_2M) {
		dirty_log_start(&log_);
		clear(m, leaf, 100, true);
		figure("NOCLEAR, clean, 6 of 512 leaves split", leaf, noclear(m));
		dirty_log_stop(&log_);
	}

	dirty_log_unmap(&log_, m);
	VFIO_ASSERT_EQ(munmap(vaddr, SIZE), 0);
}

int main(int argc, char *argv[])
{
	static const u64 leaves[] = { SZ_4K, SZ_2M, SZ_1G };
	const char *bdf = vfio_selftests_get_bdf(&argc, argv);
	const char *skip;
	int i;

	skip = dirty_log_setup(&log_, bdf);
	if (skip || !log_.info.hw || log_.info.pgsize != SZ_4K || !log_.split_on_clear)
		ksft_exit_skip("%s\n", skip ?: "no hardware log whose large leaves are split");

	for (i = 0; i < ARRAY_SIZE(leaves); i++)
		measure(leaves[i]);

	dirty_log_teardown(&log_);

	return 0;
}
