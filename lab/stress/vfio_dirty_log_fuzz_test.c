// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random sequences of calls against the dirty log of a type1 container, checked
 * against a model.
 *
 * The model has two bits for each page: it must be reported as dirty, and it may
 * be. The first is set by DMA and taken away only by what clears the page. The
 * second is set, by DMA, for all pages that can share an IOPTE with the one that
 * was written. Both become what was reported, whenever something is: from then
 * on a page that was reported is one that must not be forgotten. Where the IOMMU
 * maps nothing larger than a page, the two never differ. With a pessimistic log
 * all that is mapped must be dirty, always.
 *
 * Two more say what is known of the IOPTEs: that of the page is certainly dirty, and
 * it is certainly one of that page alone. CLEAR_BITMAP splits the former, if it can,
 * and STOP makes large ones of them again.
 *
 * A round is some hundred steps on an empty container. A step is made from the
 * seed, its number and the state of the model, and so it does something sensible
 * as well after some of the steps before it were left out. That is how a sequence
 * which fails is made shorter before it is printed.
 *
 * Environment:
 *  VFIO_DIRTY_LOG_EXPECT=hw|pessimistic	fail if the log is the other one
 *  VFIO_DIRTY_LOG_FUZZ_SEED=N		of the first round (1)
 *  VFIO_DIRTY_LOG_FUZZ_CALLS=N			how many ioctls to make (20000)
 *  VFIO_DIRTY_LOG_FUZZ_STEPS=N,N,...		replay these steps of one round, as the
 *						test printed them when it failed
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define UNMAP_DIRTY	VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP

/* Where the mappings are: a multiple of the largest leaf, above 4 GiB. */
#define FUZZ_IOVA	(16UL * SZ_1G)

/* Pages of IOVA: more than the kernel copies of a user's bitmap at once. */
#define FUZZ_PAGES	12288

#define MAX_MAPPINGS	24
#define MAX_STEPS	400

/*
 * Memory of normal pages is this many pages, mapped again and again behind each
 * other: no piece of it is large enough for an IOPTE of 2 MiB.
 */
#define SMALL_RUN	509
#define SMALL_PAGES	(SMALL_RUN * 7)
#define HUGE_PAGES	(3 * 512)

/* Bytes of one DMA write. Some devices cannot do less than 60. */
#define DMA_SIZE	64

/* Bytes before and behind a bitmap that the kernel must leave alone. */
#define CANARY		64

#define BITMAP_BYTES	DIRTY_LOG_BITMAP_BYTES(FUZZ_PAGES)

/* Seconds, for millions of calls on an emulated machine. */
#define TIMEOUT		36000

/* Seconds to spend on making a sequence shorter. */
#define SHRINK_SECONDS	120

static char **bdfs;
static int nr_bdfs;

struct mapping {
	u64 first, npages;
	bool writable;
	bool huge;
};

struct fuzz {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct iommu_dirty_log_info log;
	struct dma_region src;
	int group_fd, group2_fd;

	void *small, *huge;

	/* A bitmap ends where @guard begins, which cannot be accessed, or before. */
	u8 *bitmap, *guard;
	size_t page_size;

	/* The model */
	bool tracking, attached;
	struct mapping maps[MAX_MAPPINGS];
	int nr_maps;
	struct mapping *owner[FUZZ_PAGES];
	bool must[FUZZ_PAGES], may[FUZZ_PAGES];
	bool in_iommu[FUZZ_PAGES], alone[FUZZ_PAGES];
	bool splits;

	u64 rng;
	u8 seq;
	bool trace;
	char error[512];

	u64 calls, writes, refused, faults;
};

/* ---- Random numbers ---- */

static u64 mix(u64 x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;

	return x ^ (x >> 31);
}

/* 0 ... n - 1 */
static u64 rnd(struct fuzz *f, u64 n)
{
	f->rng = mix(f->rng);

	return (f->rng >> 16) % n;
}

static bool one_in(struct fuzz *f, u64 n)
{
	return !rnd(f, n);
}

/* 1 ... max, most of them small */
static u64 rnd_length(struct fuzz *f, u64 max)
{
	static const u64 most[] = { 3, 9, 70, 200, 1100, FUZZ_PAGES };

	return 1 + rnd(f, min(max, most[rnd(f, ARRAY_SIZE(most))]));
}

/* ---- Messages ---- */

static void fail(struct fuzz *f, const char *fmt, ...)
{
	va_list args;

	if (f->error[0])
		return;

	va_start(args, fmt);
	vsnprintf(f->error, sizeof(f->error), fmt, args);
	va_end(args);
}

static void trace(struct fuzz *f, const char *fmt, ...)
{
	va_list args;

	if (!f->trace)
		return;

	va_start(args, fmt);
	printf("#     ");
	vprintf(fmt, args);
	printf("\n");
	va_end(args);
}

static void expect(struct fuzz *f, const char *what, int ret, int want)
{
	if (ret != want)
		fail(f, "%s returned %d, should be %d", what, ret, want);
}

/* ---- Bitmaps ---- */

/* Somewhere for a bitmap of @size bytes: right before the guard, or not aligned. */
static u8 *place_bitmap(struct fuzz *f, size_t size)
{
	if (one_in(f, 2))
		return f->guard - size;

	return f->guard - size - CANARY - rnd(f, 8);
}

static void poison_bitmap(struct fuzz *f, u8 poison)
{
	memset(f->bitmap, poison, f->guard - f->bitmap);
}

/* ---- The model ---- */

static u64 map_end(struct mapping *m)
{
	return m->first + m->npages;
}

/* What is reported of a page that was mapped now, or was cleared. */
static void model_clean(struct fuzz *f, u64 page)
{
	f->in_iommu[page] = false;
	f->must[page] = !f->log.hw;
	f->may[page] = !f->log.hw;
}

/* A mapping that is made while the log runs is dirty, all of it, once. */
static void model_fresh(struct fuzz *f, struct mapping *m)
{
	memset(f->must + m->first, true, m->npages);
	memset(f->may + m->first, true, m->npages);
}

/* What fails may leave pages dirty that were clean. */
static void model_after_error(struct fuzz *f, u64 first, u64 npages)
{
	u64 page;

	memset(f->in_iommu, false, sizeof(f->in_iommu));
	for (page = first; page < first + npages; page++)
		f->may[page] |= !!f->owner[page];
}

/* The page table may be another one, or have been put together again. */
static void model_whole(struct fuzz *f)
{
	memset(f->in_iommu, false, sizeof(f->in_iommu));
	memset(f->alone, false, sizeof(f->alone));
}

static void model_write(struct fuzz *f, u64 page)
{
	struct mapping *m = f->owner[page];
	u64 pgsize = f->log.pgsize;
	u64 size, first;

	if (!f->tracking)
		return;

	f->must[page] = true;
	f->may[page] = true;
	f->in_iommu[page] = true;

	/* All IOPTEs that @page can be in */
	for (size = pgsize; size <= HUGE_PAGES * pgsize; size <<= 1) {
		if (!(f->log.iova_pgsizes & size) || (size >= SZ_2M && !m->huge))
			continue;

		first = page & ~(size / pgsize - 1);
		if (first < m->first || first + size / pgsize > map_end(m) ||
		    memchr(f->alone + first, true, size / pgsize))
			continue;

		memset(f->may + first, true, size / pgsize);
	}
}

static void model_forget(struct fuzz *f, struct mapping *m)
{
	struct mapping *last = &f->maps[--f->nr_maps];
	u64 page;

	for (page = m->first; page < map_end(m); page++) {
		f->owner[page] = NULL;
		f->must[page] = false;
		f->may[page] = false;
		f->in_iommu[page] = false;
		f->alone[page] = false;
	}

	if (m == last)
		return;

	*m = *last;
	for (page = m->first; page < map_end(m); page++)
		f->owner[page] = m;
}

/*
 * Compare what was reported of [first, first + npages) with the model. The
 * bitmap was full of @poison before.
 */
static void model_check(struct fuzz *f, const char *what, u64 first, u64 npages,
			const u8 *bits, u8 poison)
{
	u64 i, page;
	bool bit;
	u8 *p;

	for (i = 0; i < npages; i++) {
		page = first + i;
		bit = bit_get(bits, i);

		if (!f->owner[page]) {
			if (bit != bit_get(&poison, i % 8))
				fail(f, "%s %lu+%lu: page %lu is not mapped, its bit became %d",
				     what, first, npages, page, bit);
			continue;
		}

		if (f->must[page] && !bit)
			fail(f, "%s %lu+%lu: page %lu is dirty and was FORGOTTEN",
			     what, first, npages, page);
		if (!f->may[page] && bit)
			fail(f, "%s %lu+%lu: page %lu is clean and was reported",
			     what, first, npages, page);

		f->must[page] = bit;
		f->may[page] = bit;
	}

	for (; i < DIRTY_LOG_BITMAP_BYTES(npages) * 8; i++) {
		if (bit_get(bits, i) != bit_get(&poison, i % 8))
			fail(f, "%s %lu+%lu: bit %lu behind the range was changed",
			     what, first, npages, i);
	}

	for (p = f->bitmap; p < f->guard; p++) {
		if (p >= bits && p < bits + DIRTY_LOG_BITMAP_BYTES(npages))
			continue;
		if (*p != poison)
			fail(f, "%s %lu+%lu: byte %ld of a bitmap of %lu was changed",
			     what, first, npages, p - bits, DIRTY_LOG_BITMAP_BYTES(npages));
	}
}

/* ---- Calls ---- */

static u64 iova_of(struct fuzz *f, u64 page)
{
	return FUZZ_IOVA + page * f->log.pgsize;
}

static struct vfio_iommu_type1_dirty_bitmap_get range_of(struct fuzz *f, u64 first,
							 u64 npages, u8 *bits)
{
	return (struct vfio_iommu_type1_dirty_bitmap_get) {
		.iova = iova_of(f, first),
		.size = npages * f->log.pgsize,
		.bitmap = {
			.pgsize = f->log.pgsize,
			.size = DIRTY_LOG_BITMAP_BYTES(npages),
			.data = (__u64 *)bits,
		},
	};
}

static int log_ioctl(struct fuzz *f, u32 flags, struct vfio_iommu_type1_dirty_bitmap_get *range)
{
	f->calls++;

	return __iommu_dirty_log_ioctl(f->iommu, sizeof(struct vfio_iommu_type1_dirty_bitmap) +
				       sizeof(*range), flags, range);
}

static int log_call(struct fuzz *f, u32 flags, u64 first, u64 npages, u8 *bits)
{
	struct vfio_iommu_type1_dirty_bitmap_get range = range_of(f, first, npages, bits);

	return log_ioctl(f, flags, &range);
}

static int map_ioctl(struct fuzz *f, u32 flags, u64 iova, void *vaddr, u64 size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = flags,
		.vaddr = (u64)vaddr,
		.iova = iova,
		.size = size,
	};

	f->calls++;

	return ioctl(f->iommu->container_fd, VFIO_IOMMU_MAP_DMA, &map) ? -errno : 0;
}

static int unmap_ioctl(struct fuzz *f, u32 flags, u64 first, u64 npages,
		       struct vfio_bitmap *bitmap, u64 *unmapped)
{
	f->calls++;

	return __iommu_unmap_ioctl(f->iommu, flags, iova_of(f, first),
				   npages * f->log.pgsize, bitmap, unmapped);
}

/* ---- Ranges ---- */

static struct mapping *any_mapping(struct fuzz *f)
{
	return f->nr_maps ? &f->maps[rnd(f, f->nr_maps)] : NULL;
}

/* Any range at all, though most of the time one that has to do with a mapping. */
static void any_range(struct fuzz *f, u64 *first, u64 *npages)
{
	struct mapping *m = any_mapping(f);

	if (one_in(f, 12)) {
		*first = 0;
		*npages = FUZZ_PAGES;
	} else if (!m || one_in(f, 4)) {
		*first = rnd(f, FUZZ_PAGES);
		*npages = rnd_length(f, FUZZ_PAGES - *first);
	} else {
		*first = m->first + rnd(f, m->npages);
		*first -= min(*first, one_in(f, 3) ? rnd(f, 80) : 0);
		*npages = rnd_length(f, FUZZ_PAGES - *first);
	}
}

static bool bisects(struct fuzz *f, u64 first, u64 npages)
{
	u64 last = first + npages - 1;

	return (f->owner[first] && f->owner[first]->first != first) ||
	       (f->owner[last] && map_end(f->owner[last]) != last + 1);
}

/* A range that has mappings as a whole or not at all. */
static void whole_range(struct fuzz *f, u64 *first, u64 *npages)
{
	u64 last;

	any_range(f, first, npages);
	last = *first + *npages - 1;

	if (f->owner[*first])
		*first = f->owner[*first]->first;
	if (f->owner[last])
		last = map_end(f->owner[last]) - 1;

	*npages = last - *first + 1;
}

static u64 bytes_mapped(struct fuzz *f, u64 first, u64 npages)
{
	u64 page, n = 0;

	for (page = first; page < first + npages; page++)
		n += !!f->owner[page];

	return n * f->log.pgsize;
}

/* ---- Steps ---- */

static void step_map(struct fuzz *f)
{
	u32 flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
	struct mapping m = { .writable = true };
	u64 page, max, offset;
	void *vaddr;
	int ret;

	if (f->nr_maps == MAX_MAPPINGS)
		return;

	m.first = rnd(f, FUZZ_PAGES);
	m.huge = f->huge && one_in(f, 4);
	max = m.huge ? HUGE_PAGES : SMALL_PAGES;

	/* Sometimes right behind another one */
	if (f->nr_maps && one_in(f, 3))
		m.first = min(map_end(any_mapping(f)), FUZZ_PAGES - 1UL);
	if (f->owner[m.first])
		return;

	if (m.huge) {
		/* The same place in a large page as in an IOPTE of that size */
		offset = m.first % 512;
		if (one_in(f, 2) && !f->owner[m.first - offset]) {
			m.first -= offset;
			offset = 0;
		}
		max -= offset;
		m.npages = one_in(f, 2) ? 512 * (1 + rnd(f, 2)) + rnd(f, 40) : max;
		m.npages = min(m.npages, max);
		vaddr = f->huge + offset * f->log.pgsize;
	} else {
		m.npages = rnd_length(f, max);
		offset = rnd(f, SMALL_PAGES - m.npages + 1);
		vaddr = f->small + offset * f->log.pgsize;
	}

	for (page = m.first; page < min(m.first + m.npages, (u64)FUZZ_PAGES); page++) {
		if (f->owner[page])
			break;
	}
	m.npages = page - m.first;

	if (one_in(f, 12)) {
		m.writable = false;
		flags = VFIO_DMA_MAP_FLAG_READ;
	}

	trace(f, "MAP %lu+%lu%s%s", m.first, m.npages, m.huge ? " of large pages" : "",
	      m.writable ? "" : " read-only");

	ret = map_ioctl(f, flags, iova_of(f, m.first), vaddr, m.npages * f->log.pgsize);
	expect(f, "MAP", ret, 0);
	if (ret)
		return;

	f->maps[f->nr_maps] = m;
	for (page = m.first; page < map_end(&m); page++)
		f->owner[page] = &f->maps[f->nr_maps];
	f->nr_maps++;

	if (f->tracking)
		model_fresh(f, &m);
}

static void forget_range(struct fuzz *f, u64 first, u64 npages)
{
	int i;

	for (i = f->nr_maps - 1; i >= 0; i--) {
		if (f->maps[i].first >= first && f->maps[i].first < first + npages)
			model_forget(f, &f->maps[i]);
	}
}

static void step_unmap(struct fuzz *f)
{
	u64 first, npages, want, unmapped;
	int ret;

	whole_range(f, &first, &npages);
	trace(f, "UNMAP %lu+%lu", first, npages);

	want = bytes_mapped(f, first, npages);
	ret = unmap_ioctl(f, 0, first, npages, NULL, &unmapped);
	expect(f, "UNMAP", ret, 0);
	if (unmapped != want)
		fail(f, "UNMAP %lu+%lu: %lu bytes, should be %lu", first, npages, unmapped, want);

	forget_range(f, first, npages);
}

/* The mappings of the device's driver go, too. */
static void step_unmap_all(struct fuzz *f)
{
	u64 want, unmapped;

	trace(f, "UNMAP ALL");

	want = bytes_mapped(f, 0, FUZZ_PAGES) + f->src.size + f->device->driver.region.size;
	f->calls++;
	expect(f, "UNMAP ALL", __iommu_unmap_all(f->iommu, &unmapped), 0);
	if (unmapped != want)
		fail(f, "UNMAP ALL: %lu bytes, should be %lu", unmapped, want);

	forget_range(f, 0, FUZZ_PAGES);
	iommu_map(f->iommu, &f->src);
	iommu_map(f->iommu, &f->device->driver.region);
	f->calls += 2;
}

static void step_start(struct fuzz *f)
{
	u64 page;

	trace(f, "START");
	expect(f, "START", log_ioctl(f, VFIO_IOMMU_DIRTY_PAGES_FLAG_START, NULL), 0);

	for (page = 0; page < FUZZ_PAGES && !f->tracking; page++) {
		if (f->owner[page])
			model_clean(f, page);
	}
	f->tracking = true;
}

static void step_stop(struct fuzz *f)
{
	trace(f, "STOP");
	expect(f, "STOP", log_ioctl(f, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, NULL), 0);
	f->tracking = false;
	model_whole(f);
}

/* Returns whether the log was read. */
static bool read_log(struct fuzz *f, u32 flag, u64 first, u64 npages)
{
	static const u8 poisons[] = { 0x00, 0xff, 0xa5, 0x5a };
	u8 poison = poisons[rnd(f, ARRAY_SIZE(poisons))];
	u8 *bits = place_bitmap(f, DIRTY_LOG_BITMAP_BYTES(npages));
	const char *what = flag == DIRTY_LOG_GET ? "GET" : "NOCLEAR";
	int ret;

	poison_bitmap(f, poison);
	ret = log_call(f, flag, first, npages, bits);

	if (!f->tracking) {
		expect(f, what, ret, -EINVAL);
		return false;
	}

	expect(f, what, ret, 0);
	if (ret)
		return false;

	model_check(f, what, first, npages, bits, poison);

	return true;
}

static void step_noclear(struct fuzz *f)
{
	u64 first, npages;

	any_range(f, &first, &npages);
	trace(f, "NOCLEAR %lu+%lu", first, npages);
	read_log(f, DIRTY_LOG_NOCLEAR, first, npages);
}

static void step_check(struct fuzz *f)
{
	trace(f, "NOCLEAR of all");
	read_log(f, DIRTY_LOG_NOCLEAR, 0, FUZZ_PAGES);
}

static void model_cleared(struct fuzz *f, u64 first, u64 npages, const u8 *mask)
{
	u64 i;

	for (i = 0; i < npages; i++) {
		if (!f->owner[first + i] || (mask && !bit_get(mask, i)))
			continue;

		f->alone[first + i] |= mask && f->splits && f->in_iommu[first + i];
		model_clean(f, first + i);
	}
}

static void step_get(struct fuzz *f)
{
	u64 first, npages;

	whole_range(f, &first, &npages);
	trace(f, "GET %lu+%lu", first, npages);
	if (read_log(f, DIRTY_LOG_GET, first, npages))
		model_cleared(f, first, npages, NULL);
}

static void random_mask(struct fuzz *f, u8 *mask, u64 npages)
{
	u64 i;

	switch (rnd(f, 5)) {
	case 0:
		/* Also the bits behind the range, which must not reach any page */
		memset(mask, 0xff, DIRTY_LOG_BITMAP_BYTES(npages));
		break;
	case 1:
		memset(mask, 0, DIRTY_LOG_BITMAP_BYTES(npages));
		bit_set(mask, rnd(f, npages));
		break;
	case 2:
		memset(mask, 0, DIRTY_LOG_BITMAP_BYTES(npages));
		for (i = rnd(f, 100); i < npages; i += 1 + rnd(f, 200))
			bit_set(mask, i);
		break;
	case 3:
		/* What must be dirty */
		memset(mask, 0, DIRTY_LOG_BITMAP_BYTES(npages));
		break;
	default:
		for (i = 0; i < DIRTY_LOG_BITMAP_BYTES(npages); i++)
			mask[i] = rnd(f, 256);
	}
}

static void step_clear(struct fuzz *f)
{
	static u8 mask[BITMAP_BYTES];
	u64 first, npages, i;
	u8 *bits;
	int ret;

	any_range(f, &first, &npages);
	random_mask(f, mask, npages);
	for (i = 0; i < npages; i++) {
		if (f->must[first + i] && one_in(f, 2))
			bit_set(mask, i);
	}

	bits = place_bitmap(f, DIRTY_LOG_BITMAP_BYTES(npages));
	memcpy(bits, mask, DIRTY_LOG_BITMAP_BYTES(npages));

	trace(f, "CLEAR %lu+%lu, mask %02x%02x%02x%02x%02x%02x%02x%02x...", first, npages,
	      mask[0], mask[1], mask[2], mask[3], mask[4], mask[5], mask[6], mask[7]);

	ret = log_call(f, DIRTY_LOG_CLEAR, first, npages, bits);
	expect(f, "CLEAR", ret, f->tracking ? 0 : -EINVAL);
	if (memcmp(bits, mask, DIRTY_LOG_BITMAP_BYTES(npages)))
		fail(f, "CLEAR %lu+%lu changed the mask", first, npages);
	if (!ret)
		model_cleared(f, first, npages, mask);
}

static void step_unmap_dirty(struct fuzz *f)
{
	u8 poison = one_in(f, 2) ? 0xff : 0;
	u64 first, npages, want, unmapped;
	struct vfio_bitmap bitmap;
	u8 *bits;
	int ret;

	whole_range(f, &first, &npages);
	trace(f, "UNMAP %lu+%lu with bitmap", first, npages);

	bits = place_bitmap(f, DIRTY_LOG_BITMAP_BYTES(npages));
	poison_bitmap(f, poison);
	bitmap = range_of(f, first, npages, bits).bitmap;
	want = f->tracking ? bytes_mapped(f, first, npages) : 0;

	ret = unmap_ioctl(f, UNMAP_DIRTY, first, npages, &bitmap, &unmapped);
	if (!f->tracking) {
		expect(f, "UNMAP with bitmap, without log,", ret, -EINVAL);
		return;
	}

	expect(f, "UNMAP with bitmap", ret, 0);
	if (ret)
		return;
	if (unmapped != want)
		fail(f, "UNMAP %lu+%lu with bitmap: %lu bytes, should be %lu",
		     first, npages, unmapped, want);

	model_check(f, "UNMAP with bitmap", first, npages, bits, poison);
	forget_range(f, first, npages);
}

/* Seen from the device, a write into one page or across the end of one. */
static void step_dma(struct fuzz *f)
{
	struct mapping *m = any_mapping(f);
	u64 page, offset;
	int ret;

	if (!m || !m->writable)
		return;

	/* The first and the last page more often than the others */
	page = m->first + (one_in(f, 4) ? 0 : rnd(f, m->npages));
	if (one_in(f, 4))
		page = map_end(m) - 1;

	offset = rnd(f, (f->log.pgsize - DMA_SIZE) / 8) * 8;
	if (page + 1 < map_end(m) && one_in(f, 3))
		offset = f->log.pgsize - DMA_SIZE / 2;

	trace(f, "DMA to page %lu%s", page,
	      offset + DMA_SIZE > f->log.pgsize ? " and the next" : "");

	memset(f->src.vaddr, ++f->seq, DMA_SIZE);
	ret = vfio_pci_driver_memcpy(f->device, f->src.iova, iova_of(f, page) + offset, DMA_SIZE);
	if (ret) {
		fail(f, "DMA to page %lu failed: %d", page, ret);
		return;
	}
	f->writes++;

	model_write(f, page);
	if (offset + DMA_SIZE > f->log.pgsize)
		model_write(f, page + 1);
}

/* The log may become pessimistic, or precise again with everything dirty once. */
static void group_changed(struct fuzz *f)
{
	bool was_hw = f->log.hw;
	u64 page;

	iommu_dirty_log_info(f->iommu, &f->log);
	model_whole(f);

	for (page = 0; page < FUZZ_PAGES; page++) {
		if (!f->owner[page] || !f->tracking)
			continue;

		if (!was_hw || !f->log.hw)
			f->must[page] = true;
#ifdef __x86_64__
		f->may[page] |= f->must[page];
#else
		f->may[page] = true;
#endif
	}
}

static void step_group(struct fuzz *f)
{
	int ret;

	if (f->group2_fd < 0)
		return;

	trace(f, "%s the second group", f->attached ? "detach" : "attach");
	f->calls++;
	if (f->attached)
		ret = ioctl(f->group2_fd, VFIO_GROUP_UNSET_CONTAINER);
	else
		ret = ioctl(f->group2_fd, VFIO_GROUP_SET_CONTAINER, &f->iommu->container_fd);
	expect(f, f->attached ? "detach" : "attach", ret ? -errno : 0, 0);

	f->attached = !f->attached;
	group_changed(f);
}

/* Whether a page is mapped whose word of the bitmap is not in the first @good bytes. */
static bool needs_beyond(struct fuzz *f, u64 first, u64 npages, size_t good)
{
	u64 i;

	for (i = 0; i < npages; i++) {
		if (f->owner[first + i] && i / 64 * 8 + 8 > good)
			return true;
	}

	return false;
}

/* The bitmap runs into memory that is not there: nothing may be lost. */
static void step_fault(struct fuzz *f)
{
	static const u32 flags[] = { DIRTY_LOG_GET, DIRTY_LOG_NOCLEAR, DIRTY_LOG_CLEAR, UNMAP_DIRTY };
	static const char * const names[] = { "GET", "NOCLEAR", "CLEAR", "UNMAP with bitmap" };
	static u8 copy[BITMAP_BYTES];
	int which = rnd(f, ARRAY_SIZE(flags));
	u32 flag = flags[which];
	u64 first, npages, unmapped = 0;
	struct vfio_bitmap bitmap;
	size_t good;
	u8 *bits;
	int ret;

	if (!f->tracking)
		return;

	if (flag == DIRTY_LOG_GET || flag == UNMAP_DIRTY)
		whole_range(f, &first, &npages);
	else
		any_range(f, &first, &npages);

	good = rnd(f, DIRTY_LOG_BITMAP_BYTES(npages));
	bits = f->guard - good;
	poison_bitmap(f, 0xff);
	bitmap = range_of(f, first, npages, bits).bitmap;

	trace(f, "%s %lu+%lu, %lu of %lu bytes there", names[which], first, npages, good,
	      DIRTY_LOG_BITMAP_BYTES(npages));

	if (flag == UNMAP_DIRTY)
		ret = unmap_ioctl(f, flag, first, npages, &bitmap, &unmapped);
	else
		ret = log_call(f, flag, first, npages, bits);

	f->faults += ret == -EFAULT;

	/* With nothing mapped there is nothing to write */
	if (flag == DIRTY_LOG_CLEAR || needs_beyond(f, first, npages, good))
		expect(f, names[which], ret, -EFAULT);
	else if (!bytes_mapped(f, first, npages))
		expect(f, names[which], ret, 0);
	else if (ret != -EFAULT)
		expect(f, names[which], ret, 0);

	if (ret) {
		model_after_error(f, first, flag == DIRTY_LOG_CLEAR ? npages : 0);
		/* 0, or as it was passed: not the size of what is still mapped */
		if (unmapped && unmapped != npages * f->log.pgsize)
			fail(f, "UNMAP with bitmap failed, but unmapped %lu bytes", unmapped);
		return;
	}

	/* All that is mapped has its bit in the good part */
	memset(copy, 0xff, sizeof(copy));
	memcpy(copy, bits, good);
	poison_bitmap(f, 0xff);
	memcpy(f->bitmap, copy, DIRTY_LOG_BITMAP_BYTES(npages));
	model_check(f, names[which], first, npages, f->bitmap, 0xff);
	if (flag == DIRTY_LOG_GET)
		model_cleared(f, first, npages, NULL);
	else if (flag == UNMAP_DIRTY)
		forget_range(f, first, npages);
}

/* Arguments that no state of the log makes right. */
static void step_refused(struct fuzz *f)
{
	static const u32 flags[] = { DIRTY_LOG_GET, DIRTY_LOG_NOCLEAR, DIRTY_LOG_CLEAR };
	const u64 pgsize = f->log.pgsize;
	struct vfio_iommu_type1_dirty_bitmap_get r;
	u32 flag = flags[rnd(f, 3)];
	struct mapping *m = any_mapping(f);
	u64 first, npages, kind;
	int want = -EINVAL, ret;

	any_range(f, &first, &npages);
	r = range_of(f, first, npages, place_bitmap(f, DIRTY_LOG_BITMAP_BYTES(npages)));
	poison_bitmap(f, 0xff);
	kind = rnd(f, 18);

	trace(f, "bad call of kind %lu, flag 0x%x, %lu+%lu", kind, flag, first, npages);
	f->refused++;

	switch (kind) {
	case 0:
		flag |= 1U << rnd(f, 5);
		flag = flag & (flag - 1) ? flag : 0;
		break;
	case 1:
		flag = 1U << (5 + rnd(f, 27)) | (one_in(f, 2) ? flag : 0);
		break;
	case 2:
		r.iova += 1 + rnd(f, pgsize - 1);
		break;
	case 3:
		r.size = one_in(f, 2) ? 0 : r.size - 1 - rnd(f, pgsize - 1);
		break;
	case 4:
		r.bitmap.pgsize = one_in(f, 2) ? pgsize << (1 + rnd(f, 20)) :
						 pgsize >> (1 + rnd(f, 16));
		break;
	case 5:
		r.bitmap.pgsize |= 1 + rnd(f, pgsize - 1);
		break;
	case 6:
		r.bitmap.size = one_in(f, 2) ? 0 : r.bitmap.size - 1 - rnd(f, 8);
		break;
	case 7:
		r.bitmap.size = f->log.max_bitmap_size + 1 + rnd(f, 1UL << 40);
		break;
	case 8:
		r.bitmap.data = (__u64 *)(0xffff888000000000UL + rnd(f, SZ_1G));
		break;
	case 9:
		r.size = -r.iova + pgsize * (1 + rnd(f, 1000));
		want = -EOVERFLOW;
		break;
	case 10:
		f->calls++;
		expect(f, "call with a short argsz",
		       __iommu_dirty_log_ioctl(f->iommu, rnd(f, sizeof(r) + 8), flag, &r), want);
		return;
	case 11:
		if (!m)
			return;
		ret = map_ioctl(f, VFIO_DMA_MAP_FLAG_READ, iova_of(f, m->first + rnd(f, m->npages)),
				f->small, pgsize * (1 + rnd(f, 10)));
		expect(f, "MAP over a mapping", ret, -EEXIST);
		return;
	case 12:
		ret = map_ioctl(f, VFIO_DMA_MAP_FLAG_READ, r.iova + 1 + rnd(f, pgsize - 1),
				f->small, pgsize);
		expect(f, "MAP at a bad address", ret, -EINVAL);
		return;
	case 13:
		ret = map_ioctl(f, 0, iova_of(f, first), f->small, pgsize);
		expect(f, "MAP without a flag", ret, -EINVAL);
		return;
	case 14:
		if (!m || m->npages < 2)
			return;
		ret = unmap_ioctl(f, 0, m->first + 1, m->npages - 1, NULL, NULL);
		expect(f, "UNMAP of a part", ret, -EINVAL);
		return;
	case 15:
		if (!m || m->npages < 2)
			return;
		ret = unmap_ioctl(f, UNMAP_DIRTY, m->first, m->npages - 1, &r.bitmap, NULL);
		expect(f, "UNMAP of a part with bitmap", ret, -EINVAL);
		return;
	case 16:
		ret = unmap_ioctl(f, UNMAP_DIRTY | VFIO_DMA_UNMAP_FLAG_ALL, 0, 0, &r.bitmap, NULL);
		expect(f, "UNMAP ALL with bitmap", ret, -EINVAL);
		return;
	case 17:
		if (!bisects(f, first, npages))
			return;
		flag = DIRTY_LOG_GET;
		break;
	}

	expect(f, "bad call", log_ioctl(f, flag, &r), want);
}

struct step {
	void (*run)(struct fuzz *f);
	unsigned int weight;
};

static const struct step steps[] = {
	{ step_map, 10 },
	{ step_unmap, 4 },
	{ step_unmap_dirty, 5 },
	{ step_unmap_all, 1 },
	{ step_start, 6 },
	{ step_stop, 1 },
	{ step_get, 8 },
	{ step_noclear, 12 },
	{ step_check, 6 },
	{ step_clear, 16 },
	{ step_dma, 14 },
	{ step_group, 1 },
	{ step_fault, 8 },
	{ step_refused, 8 },
};

static void one_step(struct fuzz *f, u64 seed, unsigned int number)
{
	unsigned int i, sum = 0, which;

	f->rng = mix(seed) ^ mix(number);

	for (i = 0; i < ARRAY_SIZE(steps); i++)
		sum += steps[i].weight;

	which = rnd(f, sum);
	for (i = 0; which >= steps[i].weight; i++)
		which -= steps[i].weight;

	steps[i].run(f);
}

/* Back to a container that has nothing mapped and does not log. */
static void reset(struct fuzz *f)
{
	f->trace = false;
	f->error[0] = 0;
	if (f->attached)
		step_group(f);
	step_stop(f);
	expect(f, "UNMAP", unmap_ioctl(f, 0, 0, FUZZ_PAGES, NULL, NULL), 0);
	while (f->nr_maps)
		model_forget(f, &f->maps[0]);

	VFIO_ASSERT_EQ(f->error[0], 0, "%s\n", f->error);
}

/* Returns how many steps it took to fail, or 0. */
static unsigned int run_round(struct fuzz *f, u64 seed, const unsigned int *numbers,
			      unsigned int n, bool trace)
{
	unsigned int i;

	reset(f);
	f->trace = trace;

	for (i = 0; i < n && !f->error[0]; i++)
		one_step(f, seed, numbers[i]);

	if (!f->error[0]) {
		step_check(f);
		if (f->error[0])
			return n;
	}

	return f->error[0] ? i : 0;
}

/* Leave out what the failure does not need. Returns the new number of steps. */
static unsigned int shrink(struct fuzz *f, u64 seed, unsigned int *numbers, unsigned int n)
{
	unsigned int without[MAX_STEPS], chunk, at, left, failed, cut;
	time_t end = time(NULL) + SHRINK_SECONDS;

	for (chunk = max(n / 2, 1U); ; chunk = max(chunk / 2, 1U)) {
		cut = 0;

		for (at = 0; at < n && time(NULL) < end;) {
			left = n - min(chunk, n - at);
			memcpy(without, numbers, at * sizeof(*numbers));
			memcpy(without + at, numbers + n - (left - at),
			       (left - at) * sizeof(*numbers));

			failed = run_round(f, seed, without, left, false);
			if (failed) {
				memcpy(numbers, without, failed * sizeof(*numbers));
				n = failed;
				cut++;
			} else {
				at += chunk;
			}
		}

		if (chunk == 1 && (!cut || time(NULL) >= end))
			return n;
	}
}

static void report(struct fuzz *f, u64 seed, unsigned int *numbers, unsigned int n)
{
	unsigned int i, was = n;

	printf("# seed %lu, step %u, %lu calls and %lu DMA writes so far: %s\n", seed,
	       numbers[n - 1], f->calls, f->writes, f->error);
	fflush(stdout);

	if (!run_round(f, seed, numbers, n, false))
		printf("# The same steps once more do not fail: a race, or what was before.\n");
	else
		n = shrink(f, seed, numbers, n);

	printf("# %u of these %u steps are enough. Replay by\n", n, was);
	printf("# VFIO_DIRTY_LOG_FUZZ_SEED=%lu VFIO_DIRTY_LOG_FUZZ_STEPS=", seed);
	for (i = 0; i < n; i++)
		printf("%u%s", numbers[i], i < n - 1 ? "," : "\n");
	run_round(f, seed, numbers, n, true);
	printf("#     %s\n", f->error);
}

static u64 env_number(const char *name, u64 otherwise)
{
	const char *value = getenv(name);

	return value && *value ? strtoull(value, NULL, 0) : otherwise;
}

FIXTURE(vfio_dirty_log_fuzz) {
	struct fuzz *f;
	struct iova_allocator *iovas;
};

/* SMALL_RUN pages, over and over */
static void *alloc_small(struct fuzz *f)
{
	size_t run = SMALL_RUN * f->log.pgsize, size = SMALL_PAGES * f->log.pgsize, at;
	void *base, *p;
	int fd;

	fd = memfd_create("fuzz", 0);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(ftruncate(fd, run), 0);

	base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(base, MAP_FAILED);

	for (at = 0; at < size; at += run) {
		p = mmap(base + at, run, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
		VFIO_ASSERT_EQ(p, base + at);
	}

	close(fd);
	return base;
}

FIXTURE_SETUP(vfio_dirty_log_fuzz)
{
	const char *want = getenv("VFIO_DIRTY_LOG_EXPECT");
	struct dma_region *region;
	struct fuzz *f;
	size_t size;

	f = calloc_assert(1, sizeof(*f));
	self->f = f;
	f->iommu = iommu_init(MODE_VFIO_TYPE1V2_IOMMU);
	f->device = vfio_pci_device_init(bdfs[0], f->iommu);

	if (!f->device->driver.ops)
		SKIP(return, "libvfio has no driver for the device");

	if (iommu_check_extension(f->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) != 1 && !want)
		SKIP(return, "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR");

	iommu_dirty_log_info(f->iommu, &f->log);
	if (want && *want)
		ASSERT_EQ(!strcmp(want, "hw"), f->log.hw);
	f->splits = dirty_log_splits_on_clear();

	self->iovas = iova_allocator_init(f->iommu);

	region = &f->device->driver.region;
	region->size = SZ_2M;
	region->vaddr = mmap(NULL, region->size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, region->vaddr);
	region->iova = iova_allocator_alloc(self->iovas, region->size);
	ASSERT_LE(region->iova + region->size, FUZZ_IOVA);
	iommu_map(f->iommu, region);
	vfio_pci_driver_init(f->device);

	f->src.size = getpagesize();
	f->src.vaddr = mmap(NULL, f->src.size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, f->src.vaddr);
	f->src.iova = iova_allocator_alloc(self->iovas, f->src.size);
	iommu_map(f->iommu, &f->src);

	f->small = alloc_small(f);
	if (f->log.pgsize == SZ_4K) {
		f->huge = mmap(NULL, HUGE_PAGES * f->log.pgsize, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
		if (f->huge == MAP_FAILED)
			f->huge = NULL;
	}
	if (!f->huge)
		printf("# Without large pages: there are no free ones of 2 MiB\n");

	/* The bitmap's pages, then one that is not there */
	size = (BITMAP_BYTES + 4 * CANARY + getpagesize()) & ~(getpagesize() - 1UL);
	f->bitmap = mmap(NULL, size + getpagesize(), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, f->bitmap);
	f->guard = f->bitmap + size;
	ASSERT_EQ(0, munmap(f->guard, getpagesize()));

	f->group2_fd = -1;
	if (nr_bdfs > 1 && sysfs_iommu_group_get(bdfs[0]) != sysfs_iommu_group_get(bdfs[1]))
		f->group2_fd = vfio_group_open(bdfs[1]);
	if (f->group2_fd < 0)
		printf("# Without a second group\n");
}

FIXTURE_TEARDOWN(vfio_dirty_log_fuzz)
{
	if (self->f->group2_fd >= 0)
		close(self->f->group2_fd);
	vfio_pci_device_cleanup(self->f->device);
	iova_allocator_cleanup(self->iovas);
	iommu_cleanup(self->f->iommu);
}

TEST_F_TIMEOUT(vfio_dirty_log_fuzz, random, TIMEOUT)
{
	u64 seed = env_number("VFIO_DIRTY_LOG_FUZZ_SEED", 1);
	u64 calls = env_number("VFIO_DIRTY_LOG_FUZZ_CALLS", 20000);
	char *replay = getenv("VFIO_DIRTY_LOG_FUZZ_STEPS");
	unsigned int numbers[MAX_STEPS], n, failed;
	struct fuzz *f = self->f;
	u64 rounds = 0;

	if (replay && *replay) {
		for (n = 0; n < MAX_STEPS && *replay; n++) {
			numbers[n] = strtoul(replay, &replay, 0);
			replay += *replay == ',';
		}
		failed = run_round(f, seed, numbers, n, true);
		EXPECT_EQ(0, failed) {
			TH_LOG("%s", f->error);
		}
		return;
	}

	printf("# seed %lu, %lu calls, %s log\n", seed, calls,
	       f->log.hw ? "hardware" : "pessimistic");

	for (; f->calls < calls; seed++, rounds++) {
		for (n = 0; n < MAX_STEPS; n++)
			numbers[n] = n;

		failed = run_round(f, seed, numbers, n, false);
		if (failed)
			report(f, seed, numbers, failed);
		ASSERT_EQ(0, failed);
	}
	reset(f);

	printf("# %lu calls in %lu rounds, %lu DMA writes, %lu refused, %lu bad bitmaps\n",
	       f->calls, rounds, f->writes, f->refused, f->faults);

	/* Or the test would not have tested much */
	if (calls >= 2000) {
		EXPECT_LT(calls / 50, f->writes);
		EXPECT_LT(calls / 100, f->refused);
		EXPECT_LT(calls / 100, f->faults);
	}
}

int main(int argc, char *argv[])
{
	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	return test_harness_run(argc, argv);
}
