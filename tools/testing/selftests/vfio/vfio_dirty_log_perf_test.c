// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a dirty log costs: the calls of a type1 container (VFIO_IOMMU_DIRTY_PAGES)
 * beside those of iommufd (IOMMU_HWPT_GET_DIRTY_BITMAP), with the same device, the
 * same memory, the same leaves in the IOMMU's page table and the same pages dirty.
 *
 * Prints a line for each call, in columns separated by tabs: the name that was
 * given with -t, the interface, the call, the pattern of dirty leaves, the size of
 * the mapping in MiB (0 for one page), the size of a leaf in KiB, the time per
 * page in nanoseconds, and that of the whole call. Under QEMU's "-icount
 * shift=0,sleep=off" with one CPU an instruction takes one nanosecond: with -u insn
 * the header says so.
 *
 * With -s the sizes are those of containers that are full of mappings of 64 MiB,
 * and the calls those whose cost should not depend on that: CLEAR of one page, by
 * a mask for that page alone ("one") and by a mask for all of the container
 * ("spanned"), and CLEAR of no page by a mask for all of it ("none").
 *
 * The memory is 64 MiB of huge pages, mapped as often as necessary: the log is
 * one of addresses, not of memory. With an IOVA that is off by a small page no
 * larger leaf fits, without it leaves of 2 MiB do.
 *
 * Every bitmap is checked, so a call that is fast because it loses pages fails.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/iommufd.h>
#include <linux/memfd.h>
#include <linux/sizes.h>
#include <linux/time64.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest.h"

#define MEM_SIZE	((u64)SZ_64M)
#define PAGE		SZ_4K
#define DMA_SIZE	DIRTY_LOG_DMA_SIZE

enum { OP_START, OP_NOCLEAR, OP_GET, OP_CLEAR, OP_STOP, NR_OPS };

static const char * const op_names[] = { "start", "noclear", "get", "clear", "stop" };

static const u32 op_flags[] = {
	DIRTY_LOG_START, DIRTY_LOG_NOCLEAR, DIRTY_LOG_GET, DIRTY_LOG_CLEAR, DIRTY_LOG_STOP,
};

/* Out of @every leaves, the first @dirty are written. */
static const struct pattern {
	const char *name;
	u64 every, dirty;
} patterns[] = {
	{ "clean", 1, 0 }, { "every100", 100, 1 }, { "every10", 10, 1 }, { "every2", 2, 1 },
	{ "run64", 128, 64 }, { "all", 1, 1 },
};

struct perf {
	const char *tree;
	bool iommufd;
	int rounds;

	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct dma_region src;
	u32 hwpt;

	/* The type1 container has NOCLEAR and CLEAR */
	bool manual;

	/* What is measured now; in a container full of mappings, all of them */
	iova_t iova;
	u64 size, leaf;
	const struct pattern *pattern;

	/* A bit for each page: what a call says, what it should */
	u64 bitmap_size;
	u8 *bitmap, *expect;

	s64 clock_cost;

	/* The fastest round of each call, negative if it was not made */
	s64 best[NR_OPS];
};

static s64 now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);

	return ts.tv_nsec + NSEC_PER_SEC * ts.tv_sec;
}

static void report(struct perf *p, int op, const char *pattern, s64 ns)
{
	ns = max(ns - p->clock_cost, (s64)0);
	printf("%s\t%s\t%s\t%s\t%lu\t%lu\t%.4f\t%ld\n", p->tree,
	       p->iommufd ? "iommufd" : "type1", op_names[op], pattern,
	       p->size / SZ_1M, p->leaf / SZ_1K, (double)ns * PAGE / p->size, ns);
	fflush(stdout);
}

static bool is_dirty(struct perf *p, u64 leaf)
{
	return leaf % p->pattern->every < p->pattern->dirty;
}

static void dma_write(struct perf *p, iova_t dst, u64 size)
{
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(p->device, p->src.iova, dst, size), 0);
}

/* One write across the end of a leaf makes two leaves dirty */
static void dirty_pattern(struct perf *p)
{
	u64 nr = p->size / p->leaf, leaf;

	for (leaf = 0; leaf < nr; leaf++) {
		iova_t iova = p->iova + leaf * p->leaf;

		if (!is_dirty(p, leaf))
			continue;

		if (leaf + 1 < nr && is_dirty(p, leaf + 1)) {
			dma_write(p, iova + p->leaf - DMA_SIZE, 2 * DMA_SIZE);
			leaf++;
		} else {
			dma_write(p, iova, DMA_SIZE);
		}
	}
}

static void call_iommufd(struct perf *p, int op)
{
	struct iommu_hwpt_set_dirty_tracking set = {
		.size = sizeof(set),
		.flags = op == OP_START ? IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0,
		.hwpt_id = p->hwpt,
	};
	struct iommu_hwpt_get_dirty_bitmap get = {
		.size = sizeof(get),
		.hwpt_id = p->hwpt,
		.flags = op == OP_NOCLEAR ? IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR : 0,
		.iova = p->iova,
		.length = p->size,
		.page_size = PAGE,
		.data = (u64)p->bitmap,
	};

	if (op == OP_START || op == OP_STOP)
		ioctl_assert(p->iommu->iommufd, IOMMU_HWPT_SET_DIRTY_TRACKING, &set);
	else
		ioctl_assert(p->iommu->iommufd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get);
}

static void call_type1(struct perf *p, int op, iova_t iova, u64 size, u8 *bitmap)
{
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = iova,
		.size = size,
		.bitmap = {
			.pgsize = PAGE,
			.size = DIRTY_LOG_BITMAP_BYTES(size / PAGE),
			.data = (__u64 *)bitmap,
		},
	};

	VFIO_ASSERT_EQ(__iommu_dirty_log_ioctl(p->iommu, sizeof(range) +
					       sizeof(struct vfio_iommu_type1_dirty_bitmap),
					       op_flags[op], &range), 0);
}

static void call(struct perf *p, int op)
{
	if (p->iommufd)
		call_iommufd(p, op);
	else
		call_type1(p, op, p->iova, p->size, op == OP_CLEAR ? p->expect : p->bitmap);
}

/* Time a call. If it reads the log, that has to be the pattern, or nothing. */
static s64 call_and_check(struct perf *p, int op, bool clean)
{
	u64 page;
	s64 ns;

	memset(p->bitmap, 0, p->bitmap_size);
	ns = now();
	call(p, op);
	ns = now() - ns;

	for (page = 0; page < p->size / PAGE && (op == OP_NOCLEAR || op == OP_GET); page++)
		VFIO_ASSERT_EQ(bit_get(p->bitmap, page), !clean && bit_get(p->expect, page),
			       "pattern %s, page %lu\n", p->pattern->name, page);

	return ns;
}

static void measure(struct perf *p, int op)
{
	s64 ns = call_and_check(p, op, false);

	if (p->best[op] < 0 || ns < p->best[op])
		p->best[op] = ns;
}

static void measure_pattern(struct perf *p, const struct pattern *pattern, int rounds)
{
	u64 page;
	int op;

	p->pattern = pattern;
	memset(p->best, 0xff, sizeof(p->best));
	memset(p->expect, 0, p->bitmap_size);
	for (page = 0; page < p->size / PAGE; page++)
		bit_put(p->expect, page, is_dirty(p, page / (p->leaf / PAGE)));

	while (rounds--) {
		call(p, OP_START);
		dirty_pattern(p);

		if (p->iommufd || p->manual)
			measure(p, OP_NOCLEAR);

		if (p->manual) {
			measure(p, OP_CLEAR);
			call_and_check(p, OP_GET, true);
			/* CLEAR may have split large leaves until STOP */
			call(p, OP_STOP);
			call(p, OP_START);
			dirty_pattern(p);
		}

		measure(p, OP_GET);
		call_and_check(p, OP_GET, true);

		/* What is dirty when the log stops is what the next start has to clean */
		dirty_pattern(p);
		measure(p, OP_STOP);
		measure(p, OP_START);
		call_and_check(p, OP_GET, true);
		call(p, OP_STOP);
	}

	for (op = 0; op < NR_OPS; op++)
		if (p->best[op] >= 0)
			report(p, op, pattern->name, p->best[op]);
}

/* @size bytes of address space that map the same memory repeatedly */
static void *map_memory(u64 size)
{
	u64 chunk = min(size, MEM_SIZE), offset;
	void *vaddr, *map;
	int fd;

	fd = memfd_create("dirty_log_perf", MFD_HUGETLB | MFD_HUGE_2MB);
	if (fd < 0 || ftruncate(fd, MEM_SIZE))
		ksft_exit_skip("no huge pages\n");

	vaddr = mmap_reserve(size, SZ_2M, 0);
	for (offset = 0; offset < size; offset += chunk) {
		map = mmap(vaddr + offset, chunk, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0);
		if (map == MAP_FAILED)
			ksft_exit_skip("%lu free huge pages of 2 MiB needed\n", MEM_SIZE / SZ_2M);
	}

	VFIO_ASSERT_EQ(close(fd), 0);

	return vaddr;
}

/* CLEAR one page, or none, by @mask, which is for @size bytes from @iova. */
static void measure_clear(struct perf *p, const char *name, iova_t page,
			  iova_t iova, u64 size, u8 *mask)
{
	s64 best = INT64_MAX, ns;
	int i;

	for (i = 0; i < p->rounds; i++) {
		memset(p->expect, 0, p->bitmap_size);
		if (page) {
			dma_write(p, page, DMA_SIZE);
			bit_set(p->expect, (page - p->iova) / PAGE);
		}
		call_and_check(p, OP_NOCLEAR, false);

		ns = now();
		call_type1(p, OP_CLEAR, iova, size, mask);
		best = min(best, now() - ns);
		call_and_check(p, OP_NOCLEAR, true);
	}

	report(p, OP_CLEAR, name, best);
}

/* @size 0: one page, which is clean or dirty. @scale: a container of mappings. */
static void measure_size(struct perf *p, u64 size, bool scale)
{
	u64 map_size = scale ? MEM_SIZE : size ?: SZ_2M, nr = scale ? size / MEM_SIZE : 1, i;
	struct dma_region *regions = calloc_assert(nr, sizeof(*regions));
	void *vaddr = map_memory(map_size);
	u8 one[8] = { 1 };
	iova_t page;

	p->size = size ?: PAGE;
	for (i = 0; i < nr; i++) {
		regions[i].vaddr = vaddr;
		regions[i].iova = p->iova + i * map_size;
		regions[i].size = min(p->size, map_size);
		iommu_map(p->iommu, &regions[i]);
	}

	for (i = 0; i < (scale ? 1 : ARRAY_SIZE(patterns)); i++)
		if (size || patterns[i].every == 1)
			measure_pattern(p, &patterns[i], scale ? 1 : p->rounds);

	if (scale) {
		/* In the middle of the container and of a mapping */
		page = p->iova + nr / 2 * MEM_SIZE + SZ_32M;
		call(p, OP_START);
		measure_clear(p, "one", page, page, PAGE, one);
		measure_clear(p, "spanned", page, p->iova, size, p->expect);
		measure_clear(p, "none", 0, p->iova, size, p->expect);
		call(p, OP_STOP);
	}

	for (i = 0; i < nr; i++)
		iommu_unmap(p->iommu, &regions[i]);
	VFIO_ASSERT_EQ(munmap(vaddr, map_size), 0);
	free(regions);
}

/* Returns the sizes that the IOMMU's leaves can have here, or 0 if it does not log. */
static u64 perf_init(struct perf *p, const char *bdf, bool iommufd)
{
	struct iommu_dirty_log_info info;
	struct dirty_log log = {};
	u64 leaves = SZ_4K | SZ_2M;
	s64 start;
	int i;

	p->iommufd = iommufd;
	p->iommu = iommu_init(iommufd ? MODE_IOMMUFD : MODE_VFIO_TYPE1V2_IOMMU);
	p->device = vfio_pci_device_init(bdf, p->iommu);
	p->manual = false;
	if (!p->device->driver.ops)
		ksft_exit_skip("no driver for device %s\n", bdf);

	if (iommufd) {
		p->hwpt = dirty_log_attach_hwpt(p->device);
		if (!p->hwpt)
			return 0;
	} else {
		iommu_dirty_log_info(p->iommu, &info);
		if (!info.hw || info.pgsize != PAGE)
			return 0;
		/* It makes a leaf of 4 MiB of two of 2 MiB, if they are adjacent. */
		if (info.iova_pgsizes & (SZ_1G - SZ_4M))
			leaves = SZ_4K;
		p->manual = iommu_check_extension(p->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) == 1;
	}

	log.iommu = p->iommu;
	log.iovas = iova_allocator_init(p->iommu);
	dirty_log_start_driver(&log, p->device);
	p->src.size = PAGE;
	p->src.vaddr = dirty_log_alloc(PAGE, MAP_POPULATE);
	p->src.iova = iova_allocator_alloc(log.iovas, PAGE);
	iommu_map(p->iommu, &p->src);
	iova_allocator_cleanup(log.iovas);

	p->clock_cost = INT64_MAX;
	for (i = 0; i < 100; i++) {
		start = now();
		p->clock_cost = min(p->clock_cost, now() - start);
	}

	return leaves;
}

int main(int argc, char *argv[])
{
	const char *bdf = vfio_selftests_get_bdf(&argc, argv), *unit = "ns";
	struct perf perf = { .tree = "-", .rounds = 3 };
	char *sizes = "0,16", *list, *mib;
	u64 leaf, leaves, size, any = 0;
	bool scale = false;
	int iommufd, opt;

	while ((opt = getopt(argc, argv, "st:u:m:r:")) != -1) {
		switch (opt) {
		case 's':
			scale = true;
			break;
		case 't':
			perf.tree = optarg;
			break;
		case 'u':
			unit = optarg;
			break;
		case 'm':
			sizes = optarg;
			break;
		case 'r':
			perf.rounds = atoi(optarg);
			break;
		default:
			printf("usage: %s [-s] [-t tree] [-u unit] [-m MiB[,MiB...]] [-r rounds] [bdf]\n"
			       "A size is a multiple of 64 MiB, less than that, or 0 for one page.\n"
			       "The fastest round counts.\n", argv[0]);
			return KSFT_FAIL;
		}
	}

	printf("tree\tinterface\top\tpattern\tmib\tleaf_kib\t%s_per_page\t%s_per_call\n",
	       unit, unit);

	for (iommufd = 0; iommufd < 2 - scale; iommufd++) {
		leaves = perf_init(&perf, bdf, iommufd);
		any |= leaves;

		/* The container of an older kernel has no log to measure. */
		list = strdup(leaves ? sizes : "");
		while ((mib = strtok_r(list, ",", &list))) {
			size = strtoull(mib, NULL, 0) * SZ_1M;
			perf.bitmap_size = DIRTY_LOG_BITMAP_BYTES(max_t(u64, size, PAGE) / PAGE);
			perf.bitmap = calloc_assert(1, perf.bitmap_size);
			perf.expect = calloc_assert(1, perf.bitmap_size);

			/* Large leaves make no difference to a container, or to one page. */
			for (leaf = SZ_4K; leaf <= SZ_2M; leaf *= SZ_2M / SZ_4K) {
				if (!(leaves & leaf) || (leaf == SZ_2M && (scale || !size)))
					continue;

				perf.leaf = leaf;
				perf.iova = DIRTY_LOG_IOVA + (leaf == PAGE ? PAGE : 0);
				measure_size(&perf, size, scale);
			}
			free(perf.bitmap);
			free(perf.expect);
		}

		vfio_pci_device_cleanup(perf.device);
		iommu_cleanup(perf.iommu);
	}

	if (!any)
		ksft_exit_skip("the IOMMU does not log pages of 4 KiB\n");

	return 0;
}
