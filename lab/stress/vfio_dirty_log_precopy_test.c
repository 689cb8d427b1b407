// SPDX-License-Identifier: GPL-2.0-only
/*
 * How many pages a migration sends for nothing, by how it asks the dirty log.
 *
 * A copier goes through a region of memory again and again, and sends what the log
 * says is dirty, while a device writes to the region by DMA:
 *
 *  get     GET_BITMAP at the start of a round: the log is cleared as it is read. A
 *          page that is written between that and its copy is sent, and is still
 *          dirty in the next round: it is sent again although nothing has changed.
 *  manual  GET_BITMAP_NOCLEAR at the start of a round, and CLEAR_BITMAP for each
 *          chunk of pages just before they are sent: what is written before that
 *          costs nothing. Only writes that come between the CLEAR of a chunk and
 *          the copy of their page, in the same chunk, are for nothing.
 *  split   the same, and CLEAR_BITMAP splits large leaves of the IOMMU's page table
 *          (the module parameter split_on_clear, which "manual" has switched off)
 *
 * With -l the leaves have 2 MiB or 1 GiB: one write makes all of a leaf dirty. Of a
 * mapping of 1 GiB only the first -m MiB are copied.
 *
 * The log and the DMA are real, time is not. Sending one page takes one tick. After
 * each tick the device makes its writes, and it makes none at any other time: -W
 * writes for -B pages sent, at places that follow from the seed. So a run always
 * comes out the same, on a machine as fast or as busy as it may be.
 *
 * Writers:
 *
 *  hot      nine of ten writes go to 64 pages here and there, the others anywhere
 *  uniform  anywhere
 *  sweep    one page after the other, round and round
 *
 * First everything is sent. Once the log names no more than 64 pages, or after 30
 * rounds, the device stops, and what the log names then is sent: "dirty_at_stop" is
 * how long a guest would have to stand still. In the end both memories have to be
 * equal in every run.
 *
 * "oracle" is what a copier would have sent that comes to the same pages at the same
 * moments, knows of every write so far, and skips a page that was not written since
 * it sent it last. It is a lower bound for all who send a page that they know to be
 * dirty when they come by: what it sends has changed, and what is sent beyond that,
 * "redundant", is already there.
 */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest.h"

#define TEST_IOVA	(16UL * SZ_1G)
#define PAGE		SZ_4K

/* QEMU's granularity of a CLEAR, and that of the bitmap's words */
#define MIN_CHUNK	64

#define HOT_PAGES	64
#define STOP_PAGES	64
#define MAX_ROUNDS	30

/* Bytes of one DMA write. Some devices cannot do less than 60. */
#define DMA_SIZE	64

enum writers {
	HOT,
	UNIFORM,
	SWEEP,
	NR_WRITERS,
};

static const char * const writer_names[] = { "hot", "uniform", "sweep" };

enum modes {
	GET,
	MANUAL,
	SPLIT,
};

static const char * const mode_names[] = { "get", "manual", "split" };

struct sim {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct dma_region src;
	struct dma_region mem;
	u64 npages, leaf;
	/* What is mapped, "mem" and perhaps more */
	u64 map_size;
	u8 *copy;
	u64 *bitmap;

	/* Writes for so many pages sent */
	u64 writes, sends;

	/* This run */
	enum writers writer;
	u64 rng, credit, serial, sweep;
	u64 hot[HOT_PAGES];
	bool running;

	/* The truth: pages written since they were last sent */
	bool *changed;

	u64 sent, redundant;
};

static u64 rng_next(struct sim *s)
{
	u64 z = s->rng += 0x9e3779b97f4a7c15UL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9UL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebUL;

	return z ^ (z >> 31);
}

static u64 next_page(struct sim *s)
{
	switch (s->writer) {
	case HOT:
		if (rng_next(s) % 10)
			return s->hot[rng_next(s) % HOT_PAGES];
		break;
	case SWEEP:
		return s->sweep++ % s->npages;
	default:
		break;
	}

	return rng_next(s) % s->npages;
}

static void device_write(struct sim *s)
{
	u64 *words = s->src.vaddr;
	u64 page = next_page(s);
	iova_t iova;

	/* Something new each time. The first words look like a frame's header. */
	words[0] = 0x0202020202020202;
	words[1] = 0x0808020202020202;
	words[2] = ++s->serial;

	iova = s->mem.iova + page * PAGE + s->serial % (PAGE / DMA_SIZE) * DMA_SIZE;
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(s->device, s->src.iova, iova, DMA_SIZE), 0);
	s->changed[page] = true;
}

static void tick(struct sim *s)
{
	if (!s->running)
		return;

	for (s->credit += s->writes; s->credit >= s->sends; s->credit -= s->sends)
		device_write(s);
}

static void send_page(struct sim *s, u64 page)
{
	memcpy(s->copy + page * PAGE, s->mem.vaddr + page * PAGE, PAGE);
	s->sent++;
	s->redundant += !s->changed[page];
	s->changed[page] = false;
	tick(s);
}

static bool is_dirty(struct sim *s, u64 page)
{
	return s->bitmap[page / 64] >> page % 64 & 1;
}

static u64 count_dirty(struct sim *s, u64 first, u64 npages)
{
	u64 count = 0;
	u64 i;

	for (i = first; i < first + npages; i++)
		count += is_dirty(s, i);

	return count;
}

/* Send what the bitmap names. @chunk 0: the log is already clean. */
static void send_dirty(struct sim *s, u64 chunk)
{
	u64 first, n, page;

	for (first = 0; first < s->npages; first += n) {
		n = min(chunk ?: s->npages, s->npages - first);
		if (!count_dirty(s, first, n))
			continue;

		if (chunk)
			iommu_dirty_log_clear(s->iommu, s->mem.iova + first * PAGE,
					      n * PAGE, s->bitmap + first / 64);

		for (page = first; page < first + n; page++)
			if (is_dirty(s, page))
				send_page(s, page);
	}
}

static void read_log(struct sim *s, u64 chunk)
{
	u64 page;

	memset(s->bitmap, 0, DIRTY_LOG_BITMAP_BYTES(s->map_size / PAGE));
	if (chunk)
		iommu_dirty_log_get_noclear(s->iommu, s->mem.iova, s->mem.size, s->bitmap);
	else
		iommu_dirty_log_get(s->iommu, s->mem.iova, s->map_size, s->bitmap);

	/* At this moment there is no DMA: what has changed is dirty. */
	for (page = 0; page < s->npages; page++)
		VFIO_ASSERT_TRUE(is_dirty(s, page) || !s->changed[page],
				 "page %lu is not in the log\n", page);
}

static void split_on_clear(bool on)
{
	int fd = open("/sys/module/vfio_iommu_type1/parameters/split_on_clear", O_WRONLY);

	VFIO_ASSERT_EQ(write(fd, on ? "Y" : "N", 1), 1);
	close(fd);
}

/* @chunk: with GET_BITMAP, 0 */
static void migrate(struct sim *s, enum writers writer, enum modes mode, u64 chunk, u64 seed)
{
	u64 rounds, dirty;
	u64 i;

	split_on_clear(mode == SPLIT);

	s->writer = writer;
	s->rng = seed;
	s->credit = 0;
	s->sent = 0;
	s->redundant = 0;
	s->sweep = rng_next(s) % s->npages;
	for (i = 0; i < HOT_PAGES; i++)
		s->hot[i] = rng_next(s) % s->npages;

	memset(s->copy, 0xd5, s->mem.size);
	memset(s->changed, true, s->npages);
	iommu_dirty_log_start(s->iommu);
	s->running = true;

	/* The first round sends everything, whatever the log says. */
	memset(s->bitmap, 0xff, DIRTY_LOG_BITMAP_BYTES(s->npages));
	send_dirty(s, chunk);

	for (rounds = 1; ; rounds++) {
		read_log(s, chunk);
		dirty = count_dirty(s, 0, s->npages);
		if (dirty <= STOP_PAGES || rounds == MAX_ROUNDS)
			break;
		send_dirty(s, chunk);
	}

	s->running = false;
	send_dirty(s, chunk);

	VFIO_ASSERT_EQ(memcmp(s->copy, s->mem.vaddr, s->mem.size), 0,
		       "%s, chunks of %lu, seed %lu: the copy differs\n",
		       writer_names[writer], chunk, seed);
	read_log(s, 0);
	VFIO_ASSERT_EQ(count_dirty(s, 0, s->npages), 0);
	iommu_dirty_log_stop(s->iommu);

	printf("%s\t%s\t%lu\t%lu\t%lu\t%lu\t%lu\t%lu\t%lu\t%lu\n", writer_names[writer],
	       mode_names[mode], chunk ?: s->npages, seed, s->sent,
	       s->sent - s->redundant, s->redundant, rounds, dirty, s->leaf / SZ_1K);
	fflush(stdout);
}

static void migrate_manual(struct sim *s, enum writers writer, u64 chunk, u64 seed)
{
	migrate(s, writer, MANUAL, chunk, seed);
	if (s->leaf > PAGE)
		migrate(s, writer, SPLIT, chunk, seed);
}

static void map_region(struct sim *s, struct dma_region *region, iova_t iova,
		       u64 size, int flags)
{
	region->vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE | flags, -1, 0);
	if (region->vaddr == MAP_FAILED)
		ksft_exit_skip("huge pages of 2 MiB needed, %lu of them, or one of 1 GiB\n",
			       size / SZ_2M);

	region->iova = iova;
	region->size = size;
	iommu_map(s->iommu, region);
}

static void sim_init(struct sim *s, const char *bdf)
{
	struct iommu_dirty_log_info log;
	struct iova_allocator *iovas;
	int manual;

	s->iommu = iommu_init(MODE_VFIO_TYPE1V2_IOMMU);
	s->device = vfio_pci_device_init(bdf, s->iommu);
	if (!s->device->driver.ops)
		ksft_exit_skip("no driver for device %s\n", bdf);

	manual = iommu_check_extension(s->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR);
	iommu_dirty_log_info(s->iommu, &log);
	if (manual != 1 || !log.hw || log.pgsize != PAGE)
		ksft_exit_skip("no hardware log of 4 KiB pages that the user clears\n");

	iovas = iova_allocator_init(s->iommu);
	map_region(s, &s->device->driver.region, iova_allocator_alloc(iovas, SZ_2M),
		   SZ_2M, 0);
	map_region(s, &s->src, iova_allocator_alloc(iovas, PAGE), PAGE, 0);
	iova_allocator_cleanup(iovas);
	vfio_pci_driver_init(s->device);
}

static void sim_map(struct sim *s, u64 size)
{
	/* Where no larger leaf fits, it is off by a small page. */
	iova_t iova = TEST_IOVA + (s->leaf == PAGE ? PAGE : 0);

	s->map_size = max(size, s->leaf);
	map_region(s, &s->mem, iova, s->map_size,
		   MAP_HUGETLB | (s->leaf > SZ_2M ? MAP_HUGE_1GB : MAP_HUGE_2MB));
	s->mem.size = size;
	s->npages = size / PAGE;
	s->copy = calloc_assert(size, 1);
	s->bitmap = calloc_assert(DIRTY_LOG_BITMAP_BYTES(s->map_size / PAGE), 1);
	s->changed = calloc_assert(s->npages, sizeof(*s->changed));
}

static void sim_unmap(struct sim *s)
{
	s->mem.size = s->map_size;
	iommu_unmap(s->iommu, &s->mem);
	VFIO_ASSERT_EQ(munmap(s->mem.vaddr, s->map_size), 0);
	free(s->copy);
	free(s->bitmap);
	free(s->changed);
}

static void help(const char *name)
{
	printf("usage: %s [-m MiB] [-s seeds] [-w writer] [-c chunk_pages]\n"
	       "       [-B pages] [-W writes] [-l KiB[,KiB...]] [bdf]\n"
	       "Memory in multiples of 2 MiB, chunks in powers of 2 from 64 pages on,\n"
	       "leaves of 4, 2048 and 1048576 KiB.\n",
	       name);
	exit(KSFT_FAIL);
}

int main(int argc, char *argv[])
{
	const char *bdf = vfio_selftests_get_bdf(&argc, argv);
	u64 mib = 4, seeds = 1, only_chunk = 0;
	struct sim s = { .writes = 1, .sends = 2 };
	const char *only_writer = NULL;
	char *leaves = "4", *leaf;
	u64 seed, chunk;
	int writer;
	int opt;

	while ((opt = getopt(argc, argv, "m:s:w:c:B:W:l:")) != -1) {
		switch (opt) {
		case 'm':
			mib = atoi(optarg);
			break;
		case 's':
			seeds = atoi(optarg);
			break;
		case 'w':
			only_writer = optarg;
			break;
		case 'c':
			only_chunk = atoi(optarg);
			break;
		case 'B':
			s.sends = atoi(optarg);
			break;
		case 'W':
			s.writes = atoi(optarg);
			break;
		case 'l':
			leaves = optarg;
			break;
		default:
			help(argv[0]);
		}
	}

	for (writer = 0; only_writer && writer < NR_WRITERS; writer++) {
		if (!strcmp(only_writer, writer_names[writer]))
			break;
	}
	if (writer == NR_WRITERS || !seeds || !mib || mib % 2 || !s.sends ||
	    only_chunk % MIN_CHUNK || only_chunk & (only_chunk - 1))
		help(argv[0]);

	sim_init(&s, bdf);

	printf("writer\tmode\tchunk_pages\tseed\tsent\toracle\tredundant\trounds\tdirty_at_stop\tleaf_kib\n");

	leaves = strdup(leaves);
	while ((leaf = strtok_r(leaves, ",", &leaves))) {
		s.leaf = strtoull(leaf, NULL, 0) * SZ_1K;
		if (s.leaf != PAGE && s.leaf != SZ_2M && s.leaf != SZ_1G)
			help(argv[0]);
		sim_map(&s, mib * SZ_1M);
		for (writer = 0; writer < NR_WRITERS; writer++) {
			if (only_writer && strcmp(only_writer, writer_names[writer]))
				continue;

			for (seed = 1; seed <= seeds; seed++) {
				migrate(&s, writer, GET, 0, seed);

				for (chunk = MIN_CHUNK; chunk <= s.npages; chunk *= 2) {
					if (!only_chunk || chunk == only_chunk)
						migrate_manual(&s, writer, chunk, seed);
				}
				/* Everything at once, where that is no power of 2 */
				if (!only_chunk && chunk / 2 != s.npages)
					migrate_manual(&s, writer, s.npages, seed);
			}
		}
		sim_unmap(&s);
	}
	split_on_clear(true);

	vfio_pci_device_cleanup(s.device);
	iommu_cleanup(s.iommu);

	return 0;
}
