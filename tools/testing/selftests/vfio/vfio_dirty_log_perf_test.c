// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a dirty log costs: the calls of a type1 container (VFIO_IOMMU_DIRTY_PAGES)
 * beside those of iommufd (IOMMU_HWPT_GET_DIRTY_BITMAP), with the same device, the
 * same memory, the same leaves in the IOMMU's page table and the same pages dirty.
 *
 * Prints a line for each call, in columns separated by tabs: the name that was
 * given with -t, the interface, the call, the pattern of dirty leaves, the size of
 * the mapping in MiB (0 for one page), the size of a leaf in KiB, the time by 4 KiB
 * page in nanoseconds, and that of the whole call. Under QEMU's "-icount
 * shift=0,sleep=off" with one CPU an instruction takes one nanosecond: with -u insn
 * the header says so. Where the IOMMU has no log of its own, all pages are dirty,
 * and so say the bitmaps.
 *
 * With -s the sizes are those of containers that are full of mappings of 64 MiB,
 * and the calls those whose cost should not depend on that: CLEAR of one page, by
 * a mask for that page alone ("one") and by a mask for all of the container
 * ("spanned"), and CLEAR of no page by a mask for all of it ("none").
 *
 * The memory is 64 MiB of huge pages, mapped as often as it takes: the log is one
 * of addresses, not of memory. With an IOVA that is off by a small page no
 * larger leaf fits, without it leaves of 2 MiB do.
 *
 * Every bitmap is checked, so a call that is fast because it forgets fails.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* Above 4 GiB, out of the way of the driver */
#define TEST_IOVA	(16UL * SZ_1G)
#define MEM_SIZE	((u64)SZ_64M)
#define PAGE		SZ_4K

/* Bytes of one DMA write. Some devices cannot do less than 60. */
#define DMA_SIZE	64

enum {
	OP_START,
	OP_NOCLEAR,
	OP_GET,
	OP_CLEAR,
	OP_STOP,
	NR_OPS,
};

static const char * const op_names[] = { "start", "noclear", "get", "clear", "stop" };

/* Out of @every leaves, the first @dirty are written. */
static const struct pattern {
	const char *name;
	u64 every;
	u64 dirty;
} patterns[] = {
	{ "clean", 1, 0 },
	{ "every100", 100, 1 },
	{ "every10", 10, 1 },
	{ "every2", 2, 1 },
	{ "run64", 128, 64 },
	{ "all", 1, 1 },
};

struct perf {
	const char *tree;
	bool iommufd;
	int rounds;

	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct dma_region src;
	u32 hwpt;

	/* The IOMMU keeps the log */
	bool hw;

	/* The type1 container has NOCLEAR and CLEAR */
	bool manual;

	/* The IOMMU makes leaves of 4 MiB of two of 2 MiB, if they are adjacent */
	bool large;

	/* What is measured now; in a container full of mappings, all of them */
	struct dma_region mem;
	u64 leaf;
	const struct pattern *pattern;

	/* A bit for each page: what a call says, what it should, what if clean */
	u64 bitmap_size;
	u8 *bitmap;
	u8 *expect;
	u8 *clean;

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

static void measure_clock(struct perf *p)
{
	int i;

	p->clock_cost = INT64_MAX;
	for (i = 0; i < 100; i++) {
		s64 start = now();

		p->clock_cost = min(p->clock_cost, now() - start);
	}
}

static void report(struct perf *p, int op, const char *pattern, s64 ns)
{
	u64 pages = p->mem.size / PAGE;

	ns = max(ns - p->clock_cost, (s64)0);
	printf("%s\t%s\t%s\t%s\t%lu\t%lu\t%.4f\t%ld\n", p->tree,
	       p->iommufd ? "iommufd" : "type1", op_names[op], pattern,
	       p->mem.size / SZ_1M, p->leaf / SZ_1K, (double)ns / pages, ns);
	fflush(stdout);
}

static bool is_dirty(struct perf *p, u64 leaf)
{
	return leaf % p->pattern->every < p->pattern->dirty;
}

/* What a log of the pattern, and one of nothing, should say. */
static void expect_pattern(struct perf *p)
{
	u64 pages_per_leaf = p->leaf / PAGE;
	u64 page;

	memset(p->expect, 0, p->bitmap_size);
	memset(p->clean, 0, p->bitmap_size);

	for (page = 0; page < p->mem.size / PAGE; page++) {
		u8 bit = 1 << page % 8;

		if (!p->hw)
			p->clean[page / 8] |= bit;
		if (!p->hw || is_dirty(p, page / pages_per_leaf))
			p->expect[page / 8] |= bit;
	}
}

static void dma_write(struct perf *p, iova_t dst, u64 size)
{
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(p->device, p->src.iova, dst, size), 0);
}

/* A write across the end of a leaf is two for the price of one */
static void dirty_pattern(struct perf *p)
{
	u64 nr = p->mem.size / p->leaf;
	u64 leaf;

	for (leaf = 0; leaf < nr; leaf++) {
		iova_t iova = p->mem.iova + leaf * p->leaf;

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

static void set_tracking(struct perf *p, bool enable)
{
	struct iommu_hwpt_set_dirty_tracking set = {
		.size = sizeof(set),
		.flags = enable ? IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0,
		.hwpt_id = p->hwpt,
	};

	ioctl_assert(p->iommu->iommufd, IOMMU_HWPT_SET_DIRTY_TRACKING, &set);
}

static void get_iommufd(struct perf *p, u64 flags)
{
	struct iommu_hwpt_get_dirty_bitmap get = {
		.size = sizeof(get),
		.hwpt_id = p->hwpt,
		.flags = flags,
		.iova = p->mem.iova,
		.length = p->mem.size,
		.page_size = PAGE,
		.data = (u64)p->bitmap,
	};

	ioctl_assert(p->iommu->iommufd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get);
}

/* Without libvfio's helpers: they ask for the page size each time, and copy. */
static void call_type1(struct perf *p, u32 flag, iova_t iova, u64 size, u8 *bitmap)
{
	u64 buf[(sizeof(struct vfio_iommu_type1_dirty_bitmap) +
		 sizeof(struct vfio_iommu_type1_dirty_bitmap_get)) / 8];
	struct vfio_iommu_type1_dirty_bitmap *dirty = (void *)buf;
	struct vfio_iommu_type1_dirty_bitmap_get *range = (void *)dirty->data;

	dirty->argsz = sizeof(buf);
	dirty->flags = flag;
	range->iova = iova;
	range->size = size;
	range->bitmap.pgsize = PAGE;
	range->bitmap.size = DIRTY_LOG_BITMAP_BYTES(size / PAGE);
	range->bitmap.data = (void *)bitmap;

	ioctl_assert(p->iommu->container_fd, VFIO_IOMMU_DIRTY_PAGES, dirty);
}

static void call(struct perf *p, int op)
{
	iova_t iova = p->mem.iova;
	u64 size = p->mem.size;

	if (p->iommufd) {
		if (op == OP_START || op == OP_STOP)
			set_tracking(p, op == OP_START);
		else
			get_iommufd(p, op == OP_NOCLEAR ?
				       IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR : 0);
		return;
	}

	switch (op) {
	case OP_START:
		iommu_dirty_log_start(p->iommu);
		break;
	case OP_NOCLEAR:
		call_type1(p, VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP_NOCLEAR,
			   iova, size, p->bitmap);
		break;
	case OP_GET:
		call_type1(p, VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
			   iova, size, p->bitmap);
		break;
	case OP_CLEAR:
		call_type1(p, VFIO_IOMMU_DIRTY_PAGES_FLAG_CLEAR_BITMAP,
			   iova, size, p->expect);
		break;
	case OP_STOP:
		iommu_dirty_log_stop(p->iommu);
		break;
	}
}

static void expect_bitmap(struct perf *p, const u8 *expect, const char *what)
{
	u64 i;

	for (i = 0; i < p->bitmap_size; i++)
		VFIO_ASSERT_EQ(p->bitmap[i], expect[i], "%s, pattern %s, byte %lu\n",
			       what, p->pattern->name, i);
}

/* Time a call, and check the bitmap if it reads one. */
static void measure(struct perf *p, int op)
{
	s64 ns;

	memset(p->bitmap, 0, p->bitmap_size);
	ns = now();
	call(p, op);
	ns = now() - ns;
	if (p->best[op] < 0 || ns < p->best[op])
		p->best[op] = ns;

	if (op == OP_NOCLEAR || op == OP_GET)
		expect_bitmap(p, p->expect, op_names[op]);
}

static void measure_begin(struct perf *p)
{
	memset(p->best, 0xff, sizeof(p->best));
}

static void measure_end(struct perf *p)
{
	int op;

	for (op = 0; op < NR_OPS; op++)
		if (p->best[op] >= 0)
			report(p, op, p->pattern->name, p->best[op]);
}

static void check_clean(struct perf *p)
{
	memset(p->bitmap, 0, p->bitmap_size);
	call(p, OP_GET);
	expect_bitmap(p, p->clean, "read again");
}

static void measure_round(struct perf *p)
{
	call(p, OP_START);
	dirty_pattern(p);

	if (p->iommufd || p->manual)
		measure(p, OP_NOCLEAR);

	if (p->manual) {
		measure(p, OP_CLEAR);
		check_clean(p);
		dirty_pattern(p);
	}

	measure(p, OP_GET);
	check_clean(p);

	/* What is dirty when the log stops is what the next start has to clean */
	dirty_pattern(p);
	measure(p, OP_STOP);
	measure(p, OP_START);
	check_clean(p);
	call(p, OP_STOP);
}

static void measure_pattern(struct perf *p, const struct pattern *pattern)
{
	int i;

	p->pattern = pattern;
	expect_pattern(p);

	measure_begin(p);
	for (i = 0; i < p->rounds; i++)
		measure_round(p);
	measure_end(p);
}

/* @size bytes of address space, in which the memory comes again and again */
static void *map_memory(u64 size)
{
	u64 chunk = min(size, MEM_SIZE);
	void *vaddr;
	u64 offset;
	int fd;

	fd = memfd_create("dirty_log_perf", MFD_HUGETLB | MFD_HUGE_2MB);
	if (fd < 0 || ftruncate(fd, MEM_SIZE))
		ksft_exit_skip("no huge pages\n");

	vaddr = mmap_reserve(size, SZ_2M, 0);
	for (offset = 0; offset < size; offset += chunk) {
		void *map = mmap(vaddr + offset, chunk, PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0);

		if (map == MAP_FAILED)
			ksft_exit_skip("%lu free huge pages of 2 MiB needed\n",
				       MEM_SIZE / SZ_2M);
	}

	VFIO_ASSERT_EQ(close(fd), 0);

	return vaddr;
}

static void alloc_bitmaps(struct perf *p)
{
	p->bitmap_size = DIRTY_LOG_BITMAP_BYTES(p->mem.size / PAGE);
	p->bitmap = calloc_assert(p->bitmap_size, 1);
	p->expect = calloc_assert(p->bitmap_size, 1);
	p->clean = calloc_assert(p->bitmap_size, 1);
}

static void free_bitmaps(struct perf *p)
{
	free(p->bitmap);
	free(p->expect);
	free(p->clean);
}

/* @size 0: one page */
static void measure_size(struct perf *p, u64 size, u64 leaf, const char *only)
{
	u64 map_size = size ?: SZ_2M;
	int i;

	size = size ?: PAGE;
	p->leaf = leaf;
	p->mem.size = size;
	p->mem.iova = TEST_IOVA + (leaf == PAGE ? PAGE : 0);
	p->mem.vaddr = map_memory(map_size);
	iommu_map(p->iommu, &p->mem);

	alloc_bitmaps(p);

	for (i = 0; i < ARRAY_SIZE(patterns); i++) {
		if (only && strcmp(only, patterns[i].name))
			continue;
		/* One page is clean or dirty */
		if (size == PAGE && patterns[i].every > 1)
			continue;
		measure_pattern(p, &patterns[i]);
	}

	free_bitmaps(p);
	iommu_unmap(p->iommu, &p->mem);
	VFIO_ASSERT_EQ(munmap(p->mem.vaddr, map_size), 0);
}

/* The same memory again and again, as it is for measure_size() */
static struct dma_region *map_container(struct perf *p, u64 nr)
{
	struct dma_region *regions = calloc_assert(nr, sizeof(*regions));
	void *vaddr = map_memory(MEM_SIZE);
	u64 i;

	for (i = 0; i < nr; i++) {
		regions[i].vaddr = vaddr;
		regions[i].iova = p->mem.iova + i * MEM_SIZE;
		regions[i].size = MEM_SIZE;
		iommu_map(p->iommu, &regions[i]);
	}

	return regions;
}

/* CLEAR one page, or none, by @mask, which is for @size bytes from @iova on. */
static void measure_clear(struct perf *p, const char *name, iova_t page,
			  iova_t iova, u64 size, u8 *mask)
{
	u64 bit = (page - p->mem.iova) / PAGE;
	s64 best = INT64_MAX;
	int i;

	for (i = 0; i < p->rounds; i++) {
		s64 ns;

		memset(p->expect, 0, p->bitmap_size);
		if (page) {
			dma_write(p, page, DMA_SIZE);
			p->expect[bit / 8] = 1 << bit % 8;
		}
		memset(p->bitmap, 0, p->bitmap_size);
		call(p, OP_NOCLEAR);
		expect_bitmap(p, p->expect, name);

		ns = now();
		call_type1(p, VFIO_IOMMU_DIRTY_PAGES_FLAG_CLEAR_BITMAP, iova,
			   size, mask);
		best = min(best, now() - ns);

		memset(p->bitmap, 0, p->bitmap_size);
		call(p, OP_NOCLEAR);
		expect_bitmap(p, p->clean, name);
	}

	report(p, OP_CLEAR, name, best);
}

static void measure_container(struct perf *p, u64 size, u64 leaf)
{
	struct dma_region *regions;
	u64 nr = size / MEM_SIZE;
	u8 one[8] = { 1 };
	iova_t page;
	u64 i;

	p->pattern = &patterns[0];
	p->leaf = leaf;
	p->mem.size = size;
	p->mem.iova = TEST_IOVA + (leaf == PAGE ? PAGE : 0);
	regions = map_container(p, nr);
	alloc_bitmaps(p);

	measure_begin(p);
	measure_round(p);
	measure_end(p);

	/* Amid the container and amid a mapping */
	page = p->mem.iova + nr / 2 * MEM_SIZE + SZ_32M;
	call(p, OP_START);
	measure_clear(p, "one", page, page, PAGE, one);
	measure_clear(p, "spanned", page, p->mem.iova, size, p->expect);
	measure_clear(p, "none", 0, p->mem.iova, size, p->expect);
	call(p, OP_STOP);

	free_bitmaps(p);
	for (i = 0; i < nr; i++)
		iommu_unmap(p->iommu, &regions[i]);
	VFIO_ASSERT_EQ(munmap(regions[0].vaddr, MEM_SIZE), 0);
	free(regions);
}

static void map_region(struct perf *p, struct iova_allocator *iovas,
		       struct dma_region *region, u64 size)
{
	region->vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_SHARED | MAP_POPULATE, -1, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->size = size;
	region->iova = iova_allocator_alloc(iovas, size);
	iommu_map(p->iommu, region);
}

/*
 * Put the device into a domain that can log. The device's ID is not known here,
 * but the IDs of a new iommufd are small numbers and only a device's will do.
 */
static bool attach_hwpt(struct perf *p)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
	};
	u32 id;

	for (id = 1; id < 16; id++) {
		struct iommu_hwpt_alloc alloc = {
			.size = sizeof(alloc),
			.flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
			.dev_id = id,
			.pt_id = p->iommu->ioas_id,
		};

		if (ioctl(p->iommu->iommufd, IOMMU_HWPT_ALLOC, &alloc))
			continue;

		p->hwpt = alloc.out_hwpt_id;
		attach.pt_id = p->hwpt;
		ioctl_assert(p->device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
		return true;
	}

	return false;
}

static bool perf_init(struct perf *p, const char *bdf, bool iommufd)
{
	struct iommu_dirty_log_info log;
	struct iova_allocator *iovas;

	p->iommufd = iommufd;
	p->iommu = iommu_init(iommufd ? MODE_IOMMUFD : MODE_VFIO_TYPE1V2_IOMMU);
	p->device = vfio_pci_device_init(bdf, p->iommu);
	if (!p->device->driver.ops)
		ksft_exit_skip("no driver for device %s\n", bdf);

	if (iommufd) {
		p->hw = true;
		p->manual = false;
		if (!attach_hwpt(p)) {
			printf("# iommufd: the IOMMU cannot log\n");
			return false;
		}
	} else {
		iommu_dirty_log_info(p->iommu, &log);
		if (log.pgsize != PAGE)
			ksft_exit_skip("pages of %lu bytes\n", log.pgsize);
		p->hw = log.hw;
		p->large = log.iova_pgsizes & (SZ_1G - SZ_4M);
		p->manual = iommu_check_extension(p->iommu,
						  VFIO_DIRTY_LOG_MANUAL_CLEAR) == 1;
		printf("# type1: %s log\n", log.hw ? "the hardware's" : "pessimistic");
	}

	iovas = iova_allocator_init(p->iommu);
	map_region(p, iovas, &p->device->driver.region, SZ_2M);
	map_region(p, iovas, &p->src, PAGE);
	iova_allocator_cleanup(iovas);
	vfio_pci_driver_init(p->device);
	measure_clock(p);

	return true;
}

static void perf_cleanup(struct perf *p)
{
	vfio_pci_device_cleanup(p->device);
	iommu_cleanup(p->iommu);
}

static void help(const char *name)
{
	printf("usage: %s [-s] [-t tree] [-u unit] [-i type1|iommufd] [-l 4|2048]\n"
	       "       [-p pattern] [-m MiB[,MiB...]] [-r rounds] [bdf]\n"
	       "A size is a multiple of 64 MiB, less than that, or 0 for one page.\n"
	       "The fastest round counts.\n",
	       name);
	exit(KSFT_FAIL);
}

int main(int argc, char *argv[])
{
	const char *bdf = vfio_selftests_get_bdf(&argc, argv);
	const char *interface = NULL, *pattern = NULL, *unit = "ns";
	struct perf perf = { .tree = "-", .rounds = 3 };
	char *sizes = "0,16";
	bool scale = false;
	u64 leaf = 0;
	int iommufd, i;
	int opt;

	while ((opt = getopt(argc, argv, "st:u:i:l:p:m:r:")) != -1) {
		switch (opt) {
		case 's':
			scale = true;
			interface = "type1";
			break;
		case 'u':
			unit = optarg;
			break;
		case 't':
			perf.tree = optarg;
			break;
		case 'i':
			interface = optarg;
			break;
		case 'l':
			leaf = atoi(optarg) * SZ_1K;
			break;
		case 'p':
			pattern = optarg;
			break;
		case 'm':
			sizes = optarg;
			break;
		case 'r':
			perf.rounds = atoi(optarg);
			break;
		default:
			help(argv[0]);
		}
	}

	for (i = 0; pattern && i < ARRAY_SIZE(patterns); i++) {
		if (!strcmp(pattern, patterns[i].name))
			break;
	}
	if (i == ARRAY_SIZE(patterns) ||
	    (interface && strcmp(interface, "type1") && strcmp(interface, "iommufd")))
		help(argv[0]);

	printf("tree\tinterface\top\tpattern\tmib\tleaf_kib\t%s_per_page\t%s_per_call\n",
	       unit, unit);

	for (iommufd = 0; iommufd < 2; iommufd++) {
		char *list, *mib;

		if (interface && strcmp(interface, iommufd ? "iommufd" : "type1"))
			continue;

		if (perf_init(&perf, bdf, iommufd)) {
			list = strdup(sizes);
			while ((mib = strtok_r(list, ",", &list))) {
				u64 size = strtoull(mib, NULL, 0) * SZ_1M;

				if (scale && perf.hw && perf.manual) {
					measure_container(&perf, size, leaf ?: SZ_4K);
					continue;
				}
				if (!leaf || leaf == SZ_4K)
					measure_size(&perf, size, SZ_4K, pattern);
				if (!size || (leaf && leaf != SZ_2M))
					continue;
				if (perf.large)
					printf("# leaves of 2 MiB would be larger here\n");
				else
					measure_size(&perf, size, SZ_2M, pattern);
			}
		}
		perf_cleanup(&perf);
	}

	return 0;
}
