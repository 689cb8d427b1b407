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
 * With iommufd, the chunk is cleared by a read that clears; what it reports and is
 * not copied now belongs to the next round.
 *
 * Environment:
 *  VFIO_DIRTY_LOG_MIGRATIONS=N	migrations of each variant
 */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/align.h>
#include <linux/iommufd.h>
#include <linux/mman.h>
#include <linux/prandom.h>
#include <linux/sizes.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define MIGRATIONS	10
#define TIMEOUT		600

#define MIN_ROUNDS	3
#define MAX_ROUNDS	10000
#define MIN_WRITES	40
#define MIN_DIRTIED	8

#define MAX_DEVICES	2
#define NEVER		(~0UL)
#define HOT_PAGES	4

/* Pages to clear and copy at once, a multiple of 64 as with QEMU */
#define CHUNK		64

static char **bdfs;
static int nr_bdfs;

/* A thread that keeps a device writing */
struct writer {
	struct vm *vm;
	pthread_t thread;
	struct rnd_state rnd;
	struct vfio_pci_device *device;
	struct dma_region src;
	u64 index, hot[HOT_PAGES];

	/* Shared with the main thread. Writes before START do not count. */
	bool run, paused, quit;
	u64 writes, before;
};

struct vm {
	struct dirty_log log;
	struct dirty_log_mapping *m;
	struct writer writers[MAX_DEVICES];
	int nr_devices;
	u64 npages, leaf;
	bool get, wrong_order;

	/* The "other machine" */
	u8 *copy, *bitmap, *dirtied;

	/* What clearing reads reported and was not copied then */
	u64 *carried;

	/* Pages that the devices write in this migration */
	u64 first, working_set;
};

/* ---- The devices ---- */

static u64 rnd(struct writer *w, u64 n)
{
	return prandom_u32_state(&w->rnd) % n;
}

static void write_once(struct writer *w)
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

static void *writer_fn(void *arg)
{
	struct writer *w = arg;

	while (!READ_ONCE(w->quit)) {
		if (!__atomic_load_n(&w->run, __ATOMIC_ACQUIRE)) {
			__atomic_store_n(&w->paused, true, __ATOMIC_RELEASE);
			usleep(100);
			continue;
		}

		write_once(w);
		WRITE_ONCE(w->writes, w->writes + 1);
	}

	return NULL;
}

/* All of its writes are done when this returns. */
static void writer_pause(struct writer *w)
{
	__atomic_store_n(&w->paused, false, __ATOMIC_RELEASE);
	__atomic_store_n(&w->run, false, __ATOMIC_RELEASE);

	while (!__atomic_load_n(&w->paused, __ATOMIC_ACQUIRE))
		sched_yield();
}

/* Since START */
static u64 writes_of(struct writer *w)
{
	return READ_ONCE(w->writes) - w->before;
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

/* ---- The migration ---- */

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

static void iommufd_get(struct vm *vm, u32 flags, u64 first, u64 npages, void *bitmap)
{
	u64 pgsize = vm->log.info.pgsize;
	struct iommu_hwpt_get_dirty_bitmap get = {
		.size = sizeof(get),
		.hwpt_id = vm->log.hwpt,
		.flags = flags,
		.iova = dirty_log_iova(&vm->log, vm->m, first),
		.length = npages * pgsize,
		.page_size = pgsize,
		.data = (u64)bitmap,
	};

	ioctl_assert(vm->log.iommu->iommufd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get);
}

static void iommufd_set_tracking(struct vm *vm, u32 flags)
{
	struct iommu_hwpt_set_dirty_tracking set = {
		.size = sizeof(set),
		.hwpt_id = vm->log.hwpt,
		.flags = flags,
	};

	ioctl_assert(vm->log.iommu->iommufd, IOMMU_HWPT_SET_DIRTY_TRACKING, &set);
}

static void clear_chunk(struct vm *vm, u64 first)
{
	u64 dirty = 0;

	if (vm->log.hwpt) {
		iommufd_get(vm, IOMMU_HWPT_GET_DIRTY_BITMAP_SPLIT, first, CHUNK, &dirty);
		vm->carried[first / CHUNK] |= dirty & ~*(u64 *)(vm->bitmap + first / 8);
	} else if (!vm->get) {
		iommu_dirty_log_clear(vm->log.iommu, dirty_log_iova(&vm->log, vm->m, first),
				      CHUNK * vm->log.info.pgsize, vm->bitmap + first / 8);
	}
}

/* Copy the pages in the bitmap. The devices stop after page @stop. */
static void copy_round(struct vm *vm, u64 stop)
{
	u64 first;
	int i;

	for (first = 0; first < vm->npages; first += CHUNK) {
		if (*(u64 *)(vm->bitmap + first / 8)) {
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
			for (i = 0; i < vm->nr_devices; i++)
				writer_pause(&vm->writers[i]);
		}
	}
}

/* Returns the number of pages that are reported although no device writes near them. */
static u64 read_log(struct vm *vm)
{
	u64 page, strangers = 0;

	/* iommufd only sets bits, a container writes all of them */
	memcpy(vm->bitmap, vm->carried, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	memset(vm->carried, 0, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	if (vm->log.hwpt)
		iommufd_get(vm, IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR, 0, vm->npages, vm->bitmap);
	else
		VFIO_ASSERT_EQ(dirty_log_call(&vm->log,
					      vm->get ? DIRTY_LOG_GET : DIRTY_LOG_NOCLEAR,
					      vm->m->dma.iova, vm->npages, vm->bitmap), 0);

	for (page = 0; page < vm->npages; page++) {
		vm->dirtied[page] |= bit_get(vm->bitmap, page);
		if (page - vm->first >= vm->working_set)
			strangers += bit_get(vm->bitmap, page);
	}

	return strangers;
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
		struct writer *w = &vm->writers[i];

		for (j = 0; j < HOT_PAGES; j++)
			w->hot[j] = vm->first + rnd(w, vm->working_set);
		w->hot[0] = vm->first + (n / 4 % 2 ? 0 : vm->working_set - 1);
		__atomic_store_n(&w->run, true, __ATOMIC_RELEASE);
	}

	memset(vm->carried, 0, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	memset(vm->dirtied, 0, vm->npages);
	memset(vm->copy, 0xd5, vm->m->dma.size);

	/* Translations are hot, from before the log runs. */
	for (i = 0; i < 4; i++)
		let_devices_write(vm);

	if (vm->log.hwpt)
		iommufd_set_tracking(vm, IOMMU_HWPT_DIRTY_TRACKING_ENABLE);
	else
		iommu_dirty_log_start(vm->log.iommu);
	for (i = 0; i < vm->nr_devices; i++)
		vm->writers[i].before = READ_ONCE(vm->writers[i].writes);

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
	if (vm->log.hwpt)
		iommufd_set_tracking(vm, 0);
	else
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
	bool get, large, iommufd;
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
ADD(iommufd_4k, .nr_devices = 1, .iommufd = true, .wrong_order = true);
ADD(iommufd_2m, .nr_devices = 1, .iommufd = true, .large = true);

FIXTURE_SETUP(vfio_dirty_log_migration)
{
	struct vm *vm = &self->vm;
	struct dirty_log *log = &vm->log;
	u64 pgsize = getpagesize();
	u64 size = variant->large ? SZ_4M : 256 * pgsize;
	const char *skip;
	void *vaddr;
	int i;

	if (variant->nr_devices > 1 && (nr_bdfs < 2 || sysfs_iommu_group_get(bdfs[0]) ==
					sysfs_iommu_group_get(bdfs[1])))
		SKIP(return, "needs two devices, in groups of their own");

	/*
	 * A page of a hugepage has a leaf of its own at an odd IOVA. Without
	 * hugepages, adjacent pages may happen to share one.
	 */
	vaddr = dirty_log_alloc(ALIGN(size, SZ_2M), MAP_HUGETLB | MAP_HUGE_2MB);
	if (vaddr == MAP_FAILED && !variant->large)
		vaddr = dirty_log_alloc(size, 0);
	if (vaddr == MAP_FAILED)
		SKIP(return, "no pages of 2 MiB: %s", strerror(errno));

	skip = (variant->iommufd ? dirty_log_setup_iommufd : dirty_log_setup)(log, bdfs[0]);
	if (skip)
		SKIP(return, "%s", skip);

	vm->get = variant->get;
	vm->m = dirty_log_map(log, vaddr, DIRTY_LOG_IOVA + (variant->large ? 0 : pgsize),
			      size, pgsize);
	vm->npages = vm->m->npages / CHUNK * CHUNK;
	vm->leaf = variant->large ? vm->m->max_leaf : 1;
	vm->copy = calloc_assert(1, size);
	vm->bitmap = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	vm->carried = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	vm->dirtied = calloc_assert(1, vm->npages);

	for (i = 0; i < variant->nr_devices; i++) {
		struct writer *w = &vm->writers[i];

		w->device = log->device;
		if (i) {
			w->device = vfio_pci_device_init(bdfs[i], log->iommu);
			if (!w->device->driver.ops)
				SKIP(return, "libvfio has no driver for %s", bdfs[i]);
			dirty_log_start_driver(log, w->device);
		}
		w->vm = vm;
		w->index = i;
		prandom_seed_state(&w->rnd, 0x5eed0000 + i);
		w->src.size = pgsize;
		w->src.vaddr = dirty_log_alloc(pgsize, 0);
		w->src.iova = iova_allocator_alloc(log->iovas, pgsize);
		iommu_map(log->iommu, &w->src);
		memset(w->src.vaddr, 2, 16);
		ASSERT_EQ(0, pthread_create(&w->thread, NULL, writer_fn, w));
		vm->nr_devices++;
	}
}

FIXTURE_TEARDOWN(vfio_dirty_log_migration)
{
	struct vm *vm = &self->vm;
	int i;

	for (i = 0; i < vm->nr_devices; i++) {
		WRITE_ONCE(vm->writers[i].quit, true);
		ASSERT_EQ(0, pthread_join(vm->writers[i].thread, NULL));
	}
	if (vm->nr_devices > 1)
		vfio_pci_device_cleanup(vm->writers[1].device);
	dirty_log_teardown(&vm->log);
}

TEST_F_TIMEOUT(vfio_dirty_log_migration, equal, TIMEOUT)
{
	const char *env = getenv("VFIO_DIRTY_LOG_MIGRATIONS");
	u64 n, migrations = env && *env ? atoi(env) : MIGRATIONS, sum = 0, lost;
	struct vm *vm = &self->vm;

	ASSERT_NE(0, migrations);
	for (n = 0; n < migrations; n++) {
		ASSERT_EQ(0, migrate(_metadata, vm, n));
		sum += writes(vm);
	}
	TH_LOG("%lu migrations, %lu DMA writes", n, sum);

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
