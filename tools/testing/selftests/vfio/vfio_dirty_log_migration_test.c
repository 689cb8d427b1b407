// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the dirty log is for, from end to end: devices write by DMA into a region
 * while it is "migrated", that is, copied to a second buffer as a VMM does it:
 * in rounds of reading the log, clearing a chunk of it and copying the chunk.
 * The devices stop in the middle of a round, a last round follows, and both
 * buffers must be equal, byte by byte.
 *
 * The test does not rely on the log being right: a page that the log
 * forgets is a difference between the two buffers. So that the copier cannot win
 * by luck,
 *  - the devices do not pause before that, and each chunk is cleared and copied
 *    while they go on: the copier waits for further writes before and during the
 *    copy;
 *  - they keep coming back to a few pages, whose translations are hot;
 *  - every migration has a floor under the DMA writes and the pages they dirtied;
 *  - one variant also clears after copying, and pages have to be missing.
 * And it cannot win by copying everything: with a log kept by the IOMMU, pages in
 * which no device writes must never be reported.
 *
 * In the variant "race" other threads call whatever they can meanwhile that does
 * not take pages from the migration.
 *
 * Environment:
 *  VFIO_DIRTY_LOG_MIGRATIONS=N	migrations of each variant
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/mman.h>
#include <linux/prandom.h>
#include <linux/align.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define MIGRATIONS	10
#define TIMEOUT		600

#define MIN_ROUNDS	3
#define MAX_ROUNDS	10000
#define MIN_WRITES	40
#define MIN_DIRTIED	8

#define MAX_DEVICES	2
#define MAX_RACERS	4
#define NEVER		(~0UL)
#define HOT_PAGES	4

/* Pages to clear and copy at once, a multiple of 64 as with QEMU */
#define CHUNK		64

/* Where the racers map, read and clear */
#define RACE_IOVA	(DIRTY_LOG_IOVA + SZ_1G)
#define RACE_PAGES	1024

static char **bdfs;
static int nr_bdfs;

/* A thread that keeps a device writing, or that calls at random */
struct worker {
	struct vm *vm;
	pthread_t thread;
	struct rnd_state rnd;
	void (*step)(struct worker *w);
	struct vfio_pci_device *device;
	struct dma_region src;
	u64 index, hot[HOT_PAGES];

	/* Shared with the main thread. Steps before START do not count. */
	bool run, paused, quit;
	u64 steps, before, good;
};

struct vm {
	struct dirty_log log;
	struct dirty_log_mapping *m;
	struct worker writers[MAX_DEVICES], racers[MAX_RACERS];
	int nr_devices, nr_racers, group;
	u64 npages, leaf, nr_migrations;
	bool get, wrong_order;

	/* Racers map this */
	void *other;

	/* The "other machine" */
	u8 *copy, *bitmap, *dirtied;

	/* Pages that the devices write in this migration */
	u64 first, working_set;
};

static u64 rnd(struct worker *w, u64 n)
{
	return prandom_u32_state(&w->rnd) % n;
}

/* ---- The devices ---- */

static void write_once(struct worker *w)
{
	struct vm *vm = w->vm;
	u64 pgsize = vm->log.info.pgsize, page, offset, size, i;
	u8 *bytes = w->src.vaddr;

	/* Three of four writes go to pages that were written a moment ago. */
	if (rnd(w, 4))
		page = w->hot[rnd(w, HOT_PAGES)];
	else
		page = vm->first + rnd(w, vm->working_set);

	/* Each device has its own part of every page, to know what is in there. */
	size = 64 + 64 * rnd(w, 4);
	offset = rnd(w, pgsize / MAX_DEVICES - size) / 8 * 8;
	offset += page * pgsize + w->index * (pgsize / MAX_DEVICES);

	/* The first bytes are what a network card takes for a header. */
	for (i = 16; i < size; i++)
		bytes[i] = prandom_u32_state(&w->rnd);

	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(w->device, w->src.iova, vm->m->dma.iova + offset,
					      size), 0);
	VFIO_ASSERT_EQ(memcmp(vm->m->dma.vaddr + offset, bytes, size), 0);
}

static void *worker_fn(void *arg)
{
	struct worker *w = arg;

	while (!READ_ONCE(w->quit)) {
		if (!__atomic_load_n(&w->run, __ATOMIC_ACQUIRE)) {
			__atomic_store_n(&w->paused, true, __ATOMIC_RELEASE);
			usleep(100);
			continue;
		}

		w->step(w);
		WRITE_ONCE(w->steps, w->steps + 1);
	}

	return NULL;
}

static void worker_start(struct vm *vm, struct worker *w, void (*step)(struct worker *w), int index)
{
	w->vm = vm;
	w->step = step;
	w->index = index;
	prandom_seed_state(&w->rnd, 0x5eed0000 + index);
	VFIO_ASSERT_EQ(pthread_create(&w->thread, NULL, worker_fn, w), 0);
}

/* All of its writes are done when this returns. */
static void worker_pause(struct worker *w)
{
	__atomic_store_n(&w->paused, false, __ATOMIC_RELEASE);
	__atomic_store_n(&w->run, false, __ATOMIC_RELEASE);

	while (!__atomic_load_n(&w->paused, __ATOMIC_ACQUIRE))
		sched_yield();
}

static void worker_run(struct worker *w)
{
	__atomic_store_n(&w->run, true, __ATOMIC_RELEASE);
}

static void worker_end(struct worker *w)
{
	WRITE_ONCE(w->quit, true);
	VFIO_ASSERT_EQ(pthread_join(w->thread, NULL), 0);
}

/* ---- The racers ---- */

/* Concurrent calls may find a mapping cut in two, or one there already. */
static void race_result(struct worker *w, int ret)
{
	VFIO_ASSERT_TRUE(!ret || ret == -EINVAL || ret == -EEXIST,
			 "racer %lu: %d\n", w->index, ret);
	w->good += !ret;
}

static void race_start(struct worker *w)
{
	struct iommu_dirty_log_info info;

	race_result(w, __iommu_dirty_log_start(w->vm->log.iommu));
	race_result(w, __iommu_dirty_log_info(w->vm->log.iommu, &info));
}

/* Read all, clear elsewhere only. */
static void race_log(struct worker *w)
{
	static const u32 flags[] = { DIRTY_LOG_GET, DIRTY_LOG_CLEAR, DIRTY_LOG_NOCLEAR };
	u8 bitmap[DIRTY_LOG_BITMAP_BYTES(RACE_PAGES)];
	struct dirty_log *log = &w->vm->log;
	u32 flag = flags[rnd(w, 3)];
	u64 first = flag == DIRTY_LOG_GET ? 0 : rnd(w, RACE_PAGES / 2);
	iova_t iova = flag == DIRTY_LOG_NOCLEAR && rnd(w, 2) ? DIRTY_LOG_IOVA : RACE_IOVA;

	memset(bitmap, rnd(w, 256), sizeof(bitmap));
	race_result(w, dirty_log_call(log, flag, iova + first * log->info.pgsize,
				      flag == DIRTY_LOG_GET ? RACE_PAGES :
				      1 + rnd(w, RACE_PAGES - first), bitmap));
}

/* Raw ioctls: libvfio's list of regions is not for more than one thread. */
static void race_map(struct worker *w)
{
	struct dirty_log *log = &w->vm->log;
	u64 pgsize = log->info.pgsize;
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (u64)w->vm->other,
		.iova = RACE_IOVA + rnd(w, RACE_PAGES - 256) * pgsize,
		.size = (1 + rnd(w, 256)) * pgsize,
	};
	u8 data[DIRTY_LOG_BITMAP_BYTES(RACE_PAGES)];
	struct vfio_bitmap bitmap = {
		.pgsize = pgsize,
		.size = sizeof(data),
		.data = (__u64 *)data,
	};

	race_result(w, ioctl(log->iommu->container_fd, VFIO_IOMMU_MAP_DMA, &map) ? -errno : 0);
	if (rnd(w, 2))
		race_result(w, __iommu_unmap_ioctl(log->iommu, rnd(w, 2) ?
						   VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP : 0,
						   RACE_IOVA, RACE_PAGES * pgsize, &bitmap, NULL));
}

static void race_group(struct worker *w)
{
	race_result(w, ioctl(w->vm->group, VFIO_GROUP_SET_CONTAINER,
			     &w->vm->log.iommu->container_fd) ? -errno : 0);
	usleep(rnd(w, 3000));
	race_result(w, ioctl(w->vm->group, VFIO_GROUP_UNSET_CONTAINER) ? -errno : 0);
	usleep(rnd(w, 3000));
}

/* ---- The migration ---- */

/* Since START */
static u64 writes_of(struct worker *w)
{
	return READ_ONCE(w->steps) - w->before;
}

static u64 writes(struct vm *vm)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < vm->nr_devices; i++)
		sum += writes_of(&vm->writers[i]);

	return sum;
}

/* Let DMA happen here and now, unless the devices are already stopped. */
static void let_devices_write(struct vm *vm)
{
	u64 before = writes(vm);

	while (READ_ONCE(vm->writers[0].run) && writes(vm) == before)
		usleep(20);
}

static void copy_chunk(struct vm *vm, u64 first)
{
	u64 pgsize = vm->log.info.pgsize;
	u64 page;

	for (page = first; page < first + CHUNK; page++) {
		u8 *from = vm->m->dma.vaddr + page * pgsize;
		u8 *to = vm->copy + page * pgsize;

		if (!bit_get(vm->bitmap, page))
			continue;

		memcpy(to, from, pgsize / 2);

		/* In the middle of a page, too */
		if (page == first + 17)
			let_devices_write(vm);

		memcpy(to + pgsize / 2, from + pgsize / 2, pgsize / 2);
	}
}

static void clear_chunk(struct vm *vm, u64 first)
{
	u64 pgsize = vm->log.info.pgsize;

	if (!vm->get)
		iommu_dirty_log_clear(vm->log.iommu, vm->m->dma.iova + first * pgsize,
				      CHUNK * pgsize, vm->bitmap + first / 8);
}

static void stop_devices(struct vm *vm)
{
	int i;

	for (i = 0; i < vm->nr_devices; i++)
		worker_pause(&vm->writers[i]);
}

/* Copy the pages in the bitmap. The devices stop after page @stop. */
static void copy_round(struct vm *vm, u64 stop)
{
	u64 first, page;

	for (first = 0; first < vm->npages; first += CHUNK) {
		for (page = first; page < first + CHUNK && !bit_get(vm->bitmap, page); page++)
			continue;

		if (page < first + CHUNK) {
			let_devices_write(vm);
			if (!vm->wrong_order)
				clear_chunk(vm, first);
			copy_chunk(vm, first);
			if (vm->wrong_order) {
				let_devices_write(vm);
				clear_chunk(vm, first);
			}
		}

		if (first <= stop && stop < first + CHUNK) {
			let_devices_write(vm);
			stop_devices(vm);
		}
	}
}

/* Returns the number of pages that are reported although no device writes near them. */
static u64 read_log(struct vm *vm)
{
	u64 page, strangers = 0;

	memset(vm->bitmap, 0, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	VFIO_ASSERT_EQ(dirty_log_call(&vm->log, vm->get ? DIRTY_LOG_GET : DIRTY_LOG_NOCLEAR,
				      vm->m->dma.iova, vm->npages, vm->bitmap), 0);

	for (page = 0; page < vm->npages; page++) {
		if (!bit_get(vm->bitmap, page))
			continue;

		vm->dirtied[page] = 1;
		if (page < vm->first || page >= vm->first + vm->working_set)
			strangers++;
	}

	return strangers;
}

/* Each device has written its share since START. */
static bool all_wrote(struct vm *vm)
{
	int i;

	for (i = 0; i < vm->nr_devices; i++) {
		if (writes_of(&vm->writers[i]) < MIN_WRITES / vm->nr_devices)
			return false;
	}

	return true;
}

/* One migration, from START to the comparison. Returns how many pages are lost. */
static u64 migrate(struct __test_metadata *_metadata, struct vm *vm, u64 n)
{
	u64 leaves = vm->npages / vm->leaf, rounds, page, lost = 0, strangers = 0, dirtied = 0;
	u64 pgsize = vm->log.info.pgsize;
	struct rnd_state seed;
	int i, j;

	prandom_seed_state(&seed, 0x5eed + n);

	/* The devices keep to one half of the region, often at one of its ends. */
	vm->working_set = max(leaves / 2, 1UL) * vm->leaf;
	vm->first = prandom_u32_state(&seed) % (leaves - leaves / 2) * vm->leaf;
	if (n % 4 == 1)
		vm->first = 0;
	if (n % 4 == 2)
		vm->first = vm->npages - vm->working_set;

	for (i = 0; i < vm->nr_devices; i++) {
		struct worker *w = &vm->writers[i];

		for (j = 0; j < HOT_PAGES; j++)
			w->hot[j] = vm->first + rnd(w, vm->working_set);
		w->hot[0] = vm->first + (n / 4 % 2 ? 0 : vm->working_set - 1);
		worker_run(w);
	}

	memset(vm->dirtied, 0, vm->npages);
	memset(vm->copy, 0xd5, vm->m->dma.size);

	/* Translations are hot, from before the log runs. */
	for (i = 0; i < 4; i++)
		let_devices_write(vm);

	iommu_dirty_log_start(vm->log.iommu);
	for (i = 0; i < vm->nr_devices; i++)
		vm->writers[i].before = READ_ONCE(vm->writers[i].steps);
	for (i = 0; i < vm->nr_racers; i++)
		worker_run(&vm->racers[i]);

	/* The first round copies everything. */
	memset(vm->bitmap, 0xff, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	copy_round(vm, NEVER);

	for (rounds = 0; rounds < MIN_ROUNDS || !all_wrote(vm); rounds++) {
		ASSERT_LT(rounds, MAX_ROUNDS);
		strangers += read_log(vm);
		copy_round(vm, NEVER);
		let_devices_write(vm);
	}

	/*
	 * Stop in the middle of a round: what was written to a chunk after its copy
	 * has to survive that its neighbours are cleared.
	 */
	strangers += read_log(vm);
	copy_round(vm, vm->first + prandom_u32_state(&seed) % vm->working_set);
	strangers += read_log(vm);
	copy_round(vm, NEVER);

	for (i = 0; i < vm->nr_racers; i++)
		worker_pause(&vm->racers[i]);
	iommu_dirty_log_stop(vm->log.iommu);

	for (page = 0; page < vm->npages; page++) {
		dirtied += vm->dirtied[page];
		if (!memcmp(vm->copy + page * pgsize, vm->m->dma.vaddr + page * pgsize, pgsize))
			continue;

		if (!lost++ && !vm->wrong_order)
			TH_LOG("migration %lu: page %lu was lost, %s in the last round", n, page,
			       bit_get(vm->bitmap, page) ? "dirty" : "clean");
	}

	/* Enough was written, and no page outside of it was reported. */
	EXPECT_GE(writes(vm), MIN_WRITES);
	EXPECT_GE(dirtied, MIN_DIRTIED);
	if (vm->log.info.hw)
		EXPECT_EQ(0, strangers);

	return lost;
}

FIXTURE(vfio_dirty_log_migration) {
	struct vm vm;
};

FIXTURE_VARIANT(vfio_dirty_log_migration) {
	bool get, large, race;
	int nr_devices;
	/* Not with superpages: their next write reports what was lost as well. */
	bool wrong_order;
};

#define ADD(_name, ...)	FIXTURE_VARIANT_ADD(vfio_dirty_log_migration, _name) { __VA_ARGS__ }

ADD(noclear_4k, .nr_devices = 1, .wrong_order = true);
ADD(noclear_2m, .nr_devices = 1, .large = true);
ADD(noclear_4k_two_devices, .nr_devices = 2);
ADD(noclear_2m_two_devices, .nr_devices = 2, .large = true);
ADD(get_4k, .nr_devices = 1, .get = true);
ADD(get_2m_two_devices, .nr_devices = 2, .get = true, .large = true);
ADD(race, .nr_devices = 1, .race = true);

FIXTURE_SETUP(vfio_dirty_log_migration)
{
	static void (* const steps[])(struct worker *w) = {
		race_start, race_log, race_map, race_group,
	};
	bool two_groups = nr_bdfs > 1 &&
			  sysfs_iommu_group_get(bdfs[0]) != sysfs_iommu_group_get(bdfs[1]);
	const char *env = getenv("VFIO_DIRTY_LOG_MIGRATIONS");
	struct vm *vm = &self->vm;
	struct dirty_log *log = &vm->log;
	u64 pgsize = getpagesize();
	const char *skip;
	void *vaddr;
	int i;

	vm->group = -1;
	if (variant->nr_devices > 1 && !two_groups)
		SKIP(return, "needs two devices, in groups of their own");

	/*
	 * A page of a hugepage has a leaf of its own at an odd IOVA. Without
	 * hugepages, adjacent pages may happen to share one.
	 */
	vaddr = dirty_log_alloc(ALIGN(variant->large ? SZ_4M : 256 * pgsize, SZ_2M),
				MAP_HUGETLB | MAP_HUGE_2MB);
	if (vaddr == MAP_FAILED && !variant->large)
		vaddr = dirty_log_alloc(256 * pgsize, 0);
	if (vaddr == MAP_FAILED)
		SKIP(return, "no pages of 2 MiB: %s", strerror(errno));

	skip = dirty_log_setup(log, bdfs[0]);
	if (skip)
		SKIP(return, "%s", skip);

	vm->get = variant->get;
	vm->m = dirty_log_map(log, vaddr, DIRTY_LOG_IOVA + (variant->large ? 0 : pgsize),
			      variant->large ? SZ_4M : 256 * pgsize, pgsize);
	vm->npages = vm->m->npages / CHUNK * CHUNK;
	vm->leaf = variant->large ? vm->m->max_leaf : 1;
	vm->copy = calloc_assert(1, vm->m->dma.size);
	vm->bitmap = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	vm->dirtied = calloc_assert(1, vm->npages);
	vm->other = dirty_log_alloc(256 * pgsize, 0);
	vm->nr_migrations = env && *env ? atoi(env) : MIGRATIONS;
	ASSERT_NE(0, vm->nr_migrations);

	for (i = 0; i < variant->nr_devices; i++) {
		struct worker *w = &vm->writers[i];

		w->device = log->device;
		if (i) {
			w->device = vfio_pci_device_init(bdfs[i], log->iommu);
			if (!w->device->driver.ops)
				SKIP(return, "libvfio has no driver for %s", bdfs[i]);
			dirty_log_start_driver(log, w->device);
		}
		w->src.size = pgsize;
		w->src.vaddr = dirty_log_alloc(pgsize, 0);
		w->src.iova = iova_allocator_alloc(log->iovas, pgsize);
		iommu_map(log->iommu, &w->src);
		memset(w->src.vaddr, 2, 16);
		worker_start(vm, w, write_once, i);
		vm->nr_devices++;
	}

	if (!variant->race)
		return;

	if (two_groups)
		vm->group = vfio_group_open(bdfs[1]);
	for (i = 0; i < ARRAY_SIZE(steps) - !two_groups; i++)
		worker_start(vm, &vm->racers[vm->nr_racers++], steps[i], 100 + i);
}

FIXTURE_TEARDOWN(vfio_dirty_log_migration)
{
	struct vm *vm = &self->vm;
	int i;

	for (i = 0; i < vm->nr_racers; i++)
		worker_end(&vm->racers[i]);
	for (i = 0; i < vm->nr_devices; i++)
		worker_end(&vm->writers[i]);
	if (vm->nr_devices > 1)
		vfio_pci_device_cleanup(vm->writers[1].device);
	if (vm->group >= 0)
		close(vm->group);
	dirty_log_teardown(&vm->log);
}

TEST_F_TIMEOUT(vfio_dirty_log_migration, equal, TIMEOUT)
{
	struct vm *vm = &self->vm;
	u64 n, sum = 0, lost;
	int i;

	for (n = 0; n < vm->nr_migrations; n++) {
		ASSERT_EQ(0, migrate(_metadata, vm, n));
		sum += writes(vm);
	}
	TH_LOG("%lu migrations, %lu DMA writes", n, sum);

	/* Not only calls that found nothing to do */
	for (i = 0; i < vm->nr_racers; i++)
		EXPECT_LE(vm->racers[i].steps / 10 + 1, vm->racers[i].good);

	/*
	 * Clear after the copy, which is wrong. If that goes unnoticed, so would
	 * a log that loses pages.
	 */
	if (!variant->wrong_order || !vm->log.info.hw)
		return;

	vm->wrong_order = true;
	for (n = lost = 0; n < 4 * MIGRATIONS && !lost; n++)
		lost = migrate(_metadata, vm, n);
	ASSERT_GT(lost, 0);
}

int main(int argc, char *argv[])
{
	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	return test_harness_run(argc, argv);
}
