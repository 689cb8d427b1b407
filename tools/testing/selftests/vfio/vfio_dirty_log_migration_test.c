// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the dirty log is for, from end to end: devices write by DMA into a region
 * while it is "migrated", that is, copied to a second buffer in the way of a VMM.
 * Rounds of asking the log, clearing a chunk of it and copying the chunk; the
 * devices stop amid a round, a last one is made, and both must be equal, byte by
 * byte.
 *
 * Nothing here depends on what the log says being right: a page that the log
 * forgets is a difference between the two buffers. So that the copier cannot win
 * by luck,
 *  - the devices do not pause before that, and each chunk is cleared and copied
 *    while they go on: the copier waits for further writes before and amid the
 *    copy;
 *  - they keep coming back to a few pages, whose translations are hot;
 *  - every migration has a floor under the DMA writes and the pages they dirtied;
 *  - the test "wrong_order" clears after copying, and pages have to be missing.
 * And it cannot win by copying everything: with a log kept by the IOMMU, pages in
 * which no device writes must never be reported.
 *
 * Environment:
 *  VFIO_DIRTY_LOG_MIGRATIONS=N	migrations of each variant
 *  VFIO_DIRTY_LOG_SEED=N		where and what the devices write
 *  VFIO_DIRTY_LOG_EXPECT=hw|pessimistic	fail if the log is another one
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

/* Of each variant; eight variants make 240. */
#define MIGRATIONS		30

/* Seconds, for all migrations of one variant on an emulated machine. */
#define TIMEOUT			600

/* Seconds that one migration may take to see as many writes as it needs. */
#define MIGRATION_TIMEOUT	60

#define MIN_ROUNDS		3
#define MIN_WRITES		40
#define MIN_DIRTIED		8

#define MAX_DEVICES		2
#define NEVER			(~0UL)
#define HOT_PAGES		4

#define TEST_IOVA		(16UL * SZ_1G)

static char **bdfs;
static int nr_bdfs;

struct rng {
	u64 state;
};

static u64 rng_next(struct rng *rng)
{
	u64 z = rng->state += 0x9e3779b97f4a7c15UL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9UL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebUL;

	return z ^ (z >> 31);
}

/* One device and the thread that keeps it writing. */
struct writer {
	struct vfio_pci_device *device;
	struct dma_region src;
	pthread_t thread;
	int index;

	/* Where to write: pages [first, first + npages) of the region */
	struct dma_region *dst;
	u64 first, npages, pgsize;
	u64 hot[HOT_PAGES];
	struct rng rng;

	/* Shared with the main thread */
	bool run, paused, quit;
	u64 writes, failures;

	/* How many of them came before START */
	u64 before;
};

/* The machine that is migrated */
struct vm {
	struct iommu *iommu;
	struct iova_allocator *iovas;
	struct iommu_dirty_log_info log;
	struct dma_region region;
	struct writer writers[MAX_DEVICES];
	u64 npages, pages_per_leaf;

	/* The "other machine" */
	u8 *copy;
	u64 *bitmap;
	u8 *dirtied;

	u64 seed, count;
	/* Pages that the devices write in this migration */
	u64 first, working_set;
};

/* What its memory is made of */
static const struct backing {
	u64 size;
	bool large;
	/* Pages to clear and copy at once, a multiple of 64 as with QEMU */
	u64 chunk;
} pages_4k = {
	.size = SZ_1M,
	.chunk = 64,
}, pages_2m = {
	.size = SZ_4M,
	.large = true,
	.chunk = 128,
};

/* And how */
struct how {
	bool get;
	int nr_devices;
	const struct backing *backing;
};

static u64 env_number(const char *name, u64 value)
{
	const char *env = getenv(name);

	return env ? strtoull(env, NULL, 0) : value;
}

static u64 seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);

	return ts.tv_sec;
}

static void *alloc_memory(u64 size, int flags)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);
}

/* ---- The devices ---- */

static void write_once(struct writer *w)
{
	u64 page, offset, size, i;
	u64 *words = w->src.vaddr;
	u64 pgsize = w->pgsize;

	/* Three of four writes go to pages that were written a moment ago. */
	if (rng_next(&w->rng) % 4)
		page = w->hot[rng_next(&w->rng) % HOT_PAGES];
	else
		page = w->first + rng_next(&w->rng) % w->npages;

	/* Each device has its own part of every page, to know what is in there. */
	size = 64 + 64 * (rng_next(&w->rng) % 4);
	offset = rng_next(&w->rng) % (pgsize / MAX_DEVICES - size) / 8 * 8;
	offset += page * pgsize + w->index * (pgsize / MAX_DEVICES);

	/* The first words are what a network card takes for a header. */
	words[0] = 0x0202020202020202;
	words[1] = 0x0808020202020202;
	for (i = 2; i < size / 8; i++)
		words[i] = rng_next(&w->rng);

	if (vfio_pci_driver_memcpy(w->device, w->src.iova, w->dst->iova + offset, size) ||
	    memcmp(w->dst->vaddr + offset, w->src.vaddr, size))
		w->failures++;

	WRITE_ONCE(w->writes, w->writes + 1);
}

static void *writer_fn(void *arg)
{
	struct writer *w = arg;

	while (!READ_ONCE(w->quit)) {
		if (!READ_ONCE(w->run)) {
			__atomic_store_n(&w->paused, true, __ATOMIC_RELEASE);
			usleep(100);
			continue;
		}

		write_once(w);
	}

	return NULL;
}

/* All of the writer's DMA is done when this returns. */
static void writer_pause(struct writer *w)
{
	__atomic_store_n(&w->paused, false, __ATOMIC_RELEASE);
	__atomic_store_n(&w->run, false, __ATOMIC_RELEASE);

	while (!__atomic_load_n(&w->paused, __ATOMIC_ACQUIRE))
		sched_yield();
}

static void writer_run(struct writer *w)
{
	__atomic_store_n(&w->run, true, __ATOMIC_RELEASE);
}

static void map_region(struct iommu *iommu, struct iova_allocator *iovas,
		       struct dma_region *region, u64 size)
{
	region->size = size;
	region->vaddr = alloc_memory(size, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->iova = iova_allocator_alloc(iovas, size);
	iommu_map(iommu, region);
}

static void vm_setup(struct __test_metadata *_metadata, struct vm *vm, const struct how *how)
{
	const char *expect = getenv("VFIO_DIRTY_LOG_EXPECT");
	int i;

	if (nr_bdfs < how->nr_devices)
		SKIP(return, "needs the BDFs of %d devices, got %d", how->nr_devices, nr_bdfs);

	if (how->nr_devices > 1 &&
	    sysfs_iommu_group_get(bdfs[0]) == sysfs_iommu_group_get(bdfs[1]))
		SKIP(return, "%s and %s are in the same IOMMU group", bdfs[0], bdfs[1]);

	if (how->backing->large)
		vm->region.vaddr = alloc_memory(how->backing->size, MAP_HUGETLB | MAP_HUGE_2MB);
	else
		vm->region.vaddr = dirty_log_memory(how->backing->size);
	if (vm->region.vaddr == MAP_FAILED)
		SKIP(return, "no pages of 2 MiB: %s", strerror(errno));

	vm->iommu = iommu_init(MODE_VFIO_TYPE1V2_IOMMU);

	for (i = 0; i < how->nr_devices; i++) {
		struct writer *w = &vm->writers[i];

		w->index = i;
		w->dst = &vm->region;
		w->device = vfio_pci_device_init(bdfs[i], vm->iommu);
		if (!w->device->driver.ops)
			SKIP(return, "libvfio has no driver for %s", bdfs[i]);
	}

	if (iommu_check_extension(vm->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) != 1 && !expect)
		SKIP(return, "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR");

	iommu_dirty_log_info(vm->iommu, &vm->log);
	if (expect)
		ASSERT_EQ(!strcmp(expect, "hw"), vm->log.hw);
	if (vm->log.pgsize != SZ_4K)
		SKIP(return, "the log's pages have %lu bytes", vm->log.pgsize);

	vm->region.iova = TEST_IOVA + (how->backing->large ? 0 : vm->log.pgsize);
	vm->region.size = how->backing->size;
	iommu_map(vm->iommu, &vm->region);
	vm->npages = how->backing->size / vm->log.pgsize;

	vm->pages_per_leaf = 1;
	for (i = 0; how->backing->large && 1UL << i <= how->backing->size; i++) {
		if (vm->log.iova_pgsizes & 1UL << i)
			vm->pages_per_leaf = (1UL << i) / vm->log.pgsize;
	}

	vm->copy = alloc_memory(how->backing->size, 0);
	ASSERT_NE(MAP_FAILED, vm->copy);
	vm->bitmap = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	vm->dirtied = calloc_assert(1, vm->npages);

	vm->iovas = iova_allocator_init(vm->iommu);
	for (i = 0; i < how->nr_devices; i++) {
		struct writer *w = &vm->writers[i];

		map_region(vm->iommu, vm->iovas, &w->device->driver.region, SZ_2M);
		map_region(vm->iommu, vm->iovas, &w->src, getpagesize());
		vfio_pci_driver_init(w->device);
		VFIO_ASSERT_EQ(pthread_create(&w->thread, NULL, writer_fn, w), 0);
	}

	vm->seed = env_number("VFIO_DIRTY_LOG_SEED", time(NULL));
	vm->count = env_number("VFIO_DIRTY_LOG_MIGRATIONS", MIGRATIONS);
}

static void vm_teardown(struct vm *vm, const struct how *how)
{
	int i;

	for (i = 0; i < how->nr_devices; i++) {
		WRITE_ONCE(vm->writers[i].quit, true);
		pthread_join(vm->writers[i].thread, NULL);
		vfio_pci_device_cleanup(vm->writers[i].device);
	}

	iova_allocator_cleanup(vm->iovas);
	iommu_cleanup(vm->iommu);
}

/* ---- The migration ---- */

/* Since START */
static u64 writes_of(struct writer *w)
{
	return READ_ONCE(w->writes) - w->before;
}

static u64 writes(struct vm *vm, const struct how *how)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < how->nr_devices; i++)
		sum += writes_of(&vm->writers[i]);

	return sum;
}

/* Let DMA happen here and now, unless the devices are already stopped. */
static void let_devices_write(struct vm *vm, const struct how *how)
{
	u64 before = writes(vm, how);

	while (READ_ONCE(vm->writers[0].run) && writes(vm, how) == before)
		usleep(20);
}

static void copy_chunk(struct vm *vm, const struct how *how, u64 first)
{
	u64 pgsize = vm->log.pgsize;
	u64 page;

	for (page = first; page < first + how->backing->chunk; page++) {
		u8 *from = vm->region.vaddr + page * pgsize;
		u8 *to = vm->copy + page * pgsize;

		if (!bit_get(vm->bitmap, page))
			continue;

		memcpy(to, from, pgsize / 2);

		/* Amid a page, too */
		if (page == first + 17)
			let_devices_write(vm, how);

		memcpy(to + pgsize / 2, from + pgsize / 2, pgsize / 2);
	}
}

static void clear_chunk(struct vm *vm, const struct how *how, u64 first)
{
	if (how->get)
		return;

	iommu_dirty_log_clear(vm->iommu, vm->region.iova + first * vm->log.pgsize,
			      how->backing->chunk * vm->log.pgsize, vm->bitmap + first / 64);
}

static void stop_devices(struct vm *vm, const struct how *how)
{
	int i;

	for (i = 0; i < how->nr_devices; i++) {
		if (vm->writers[i].run)
			writer_pause(&vm->writers[i]);
	}
}

/*
 * Ask the log once and copy what it names. The devices stop when page @stop has
 * been dealt with, if they run. Returns the number of pages that were named
 * although no device writes near them.
 */
static u64 migrate_round(struct vm *vm, const struct how *how, bool wrong_order, u64 stop)
{
	u64 strangers = 0;
	u64 page, first;

	memset(vm->bitmap, 0, DIRTY_LOG_BITMAP_BYTES(vm->npages));
	if (how->get)
		iommu_dirty_log_get(vm->iommu, vm->region.iova, vm->region.size, vm->bitmap);
	else
		iommu_dirty_log_get_noclear(vm->iommu, vm->region.iova, vm->region.size,
					    vm->bitmap);

	for (page = 0; page < vm->npages; page++) {
		if (!bit_get(vm->bitmap, page))
			continue;

		vm->dirtied[page] = 1;
		if (page < vm->first || page >= vm->first + vm->working_set)
			strangers++;
	}

	for (first = 0; first < vm->npages; first += how->backing->chunk) {
		for (page = first; page < first + how->backing->chunk; page++) {
			if (bit_get(vm->bitmap, page))
				break;
		}
		if (page == first + how->backing->chunk)
			continue;

		let_devices_write(vm, how);
		if (!wrong_order)
			clear_chunk(vm, how, first);
		copy_chunk(vm, how, first);
		if (wrong_order) {
			let_devices_write(vm, how);
			clear_chunk(vm, how, first);
		}

		if (first <= stop && stop < first + how->backing->chunk) {
			let_devices_write(vm, how);
			stop_devices(vm, how);
		}
	}

	return strangers;
}

/* Each device has written its share since START. */
static bool all_wrote(struct vm *vm, const struct how *how)
{
	int i;

	for (i = 0; i < how->nr_devices; i++) {
		if (writes_of(&vm->writers[i]) < MIN_WRITES / how->nr_devices)
			return false;
	}

	return true;
}

struct result {
	u64 writes, rounds, dirtied, strangers, differences;
};

/* One migration, from START to the comparison. */
static void migrate(struct __test_metadata *_metadata, struct vm *vm, const struct how *how,
		    u64 migration, bool wrong_order, struct result *result)
{
	struct rng rng = { .state = vm->seed * 1000003 + migration };
	u64 leaves = max(vm->npages / vm->pages_per_leaf, 1UL);
	u64 end = seconds() + MIGRATION_TIMEOUT;
	u64 page;
	int i, j;

	*result = (struct result) {};

	/* The devices keep to one half of the region, the log should see that. */
	if (leaves > 1) {
		vm->working_set = leaves / 2 * vm->pages_per_leaf;
		vm->first = rng_next(&rng) % (leaves - leaves / 2 + 1) * vm->pages_per_leaf;
		/* Often at one of its ends */
		if (migration % 4 == 1)
			vm->first = 0;
		if (migration % 4 == 2)
			vm->first = vm->npages - vm->working_set;
	} else {
		vm->working_set = vm->npages;
		vm->first = 0;
	}

	for (i = 0; i < how->nr_devices; i++) {
		struct writer *w = &vm->writers[i];

		w->rng.state = rng_next(&rng);
		w->first = vm->first;
		w->npages = vm->working_set;
		w->pgsize = vm->log.pgsize;
		for (j = 0; j < HOT_PAGES; j++)
			w->hot[j] = vm->first + rng_next(&rng) % vm->working_set;
		w->hot[0] = vm->first + (migration / 4 % 2 ? 0 : vm->working_set - 1);
		writer_run(w);
	}

	memset(vm->dirtied, 0, vm->npages);
	memset(vm->copy, 0xd5, vm->region.size);

	/* Translations are hot, from before the log runs. */
	for (i = 0; i < 4; i++)
		let_devices_write(vm, how);

	iommu_dirty_log_start(vm->iommu);
	for (i = 0; i < how->nr_devices; i++)
		vm->writers[i].before = READ_ONCE(vm->writers[i].writes);

	/* The first time everything goes. */
	memcpy(vm->copy, vm->region.vaddr, vm->region.size);

	while (result->rounds < MIN_ROUNDS || !all_wrote(vm, how)) {
		result->strangers += migrate_round(vm, how, wrong_order, NEVER);
		result->rounds++;
		let_devices_write(vm, how);
		ASSERT_LT(seconds(), end);
	}

	/*
	 * Stop in the middle of a round: what was written to a chunk after its copy
	 * has to survive that its neighbours are cleared.
	 */
	result->strangers += migrate_round(vm, how, wrong_order,
					   vm->first + rng_next(&rng) % vm->working_set);
	stop_devices(vm, how);

	result->strangers += migrate_round(vm, how, false, NEVER);
	result->writes = writes(vm, how);
	iommu_dirty_log_stop(vm->iommu);

	for (page = 0; page < vm->npages; page++) {
		result->dirtied += vm->dirtied[page];

		if (!memcmp(vm->copy + page * vm->log.pgsize,
			    vm->region.vaddr + page * vm->log.pgsize, vm->log.pgsize))
			continue;

		result->differences++;
		if (!wrong_order)
			TH_LOG("page %lu was lost, %s in the last round; seed %lu, migration %lu",
			       page, bit_get(vm->bitmap, page) ? "dirty" : "clean",
			       vm->seed, migration);
	}
}

FIXTURE(vfio_dirty_log_migration) {
	struct vm vm;
};

FIXTURE_VARIANT(vfio_dirty_log_migration) {
	struct how how;
};

#define NOCLEAR	false
#define GET	true

FIXTURE_VARIANT_ADD(vfio_dirty_log_migration, noclear_4k_one_device) {
	.how = { NOCLEAR, 1, &pages_4k },
};

FIXTURE_VARIANT_ADD(vfio_dirty_log_migration, noclear_2m_one_device) {
	.how = { NOCLEAR, 1, &pages_2m },
};

FIXTURE_VARIANT_ADD(vfio_dirty_log_migration, noclear_4k_two_devices) {
	.how = { NOCLEAR, 2, &pages_4k },
};

FIXTURE_VARIANT_ADD(vfio_dirty_log_migration, noclear_2m_two_devices) {
	.how = { NOCLEAR, 2, &pages_2m },
};

FIXTURE_VARIANT_ADD(vfio_dirty_log_migration, get_4k_one_device) {
	.how = { GET, 1, &pages_4k },
};

FIXTURE_VARIANT_ADD(vfio_dirty_log_migration, get_2m_one_device) {
	.how = { GET, 1, &pages_2m },
};

FIXTURE_VARIANT_ADD(vfio_dirty_log_migration, get_4k_two_devices) {
	.how = { GET, 2, &pages_4k },
};

FIXTURE_VARIANT_ADD(vfio_dirty_log_migration, get_2m_two_devices) {
	.how = { GET, 2, &pages_2m },
};

FIXTURE_SETUP(vfio_dirty_log_migration)
{
	vm_setup(_metadata, &self->vm, &variant->how);
}

FIXTURE_TEARDOWN(vfio_dirty_log_migration)
{
	vm_teardown(&self->vm, &variant->how);
}

TEST_F_TIMEOUT(vfio_dirty_log_migration, equal, TIMEOUT)
{
	const struct how *how = &variant->how;
	struct vm *vm = &self->vm;
	u64 sum_writes = 0, sum_rounds = 0, sum_dirtied = 0;
	struct result r;
	u64 n, failures;
	int i;

	ASSERT_GT(vm->count, 0);

	for (n = 0; n < vm->count; n++) {
		migrate(_metadata, vm, how, n, false, &r);

		ASSERT_EQ(0, r.differences);

		/* It was a migration at all. */
		ASSERT_GE(r.writes, MIN_WRITES);
		ASSERT_GE(r.dirtied, MIN_DIRTIED);

		/* And not one of everything, always. */
		if (vm->log.hw)
			ASSERT_EQ(0, r.strangers);

		for (i = 0; i < how->nr_devices; i++) {
			failures = vm->writers[i].failures;
			ASSERT_EQ(0, failures);
		}

		sum_writes += r.writes;
		sum_rounds += r.rounds;
		sum_dirtied += r.dirtied;
	}

	TH_LOG("%lu migrations of %lu pages, %s log, seed %lu", n, vm->npages,
	       vm->log.hw ? "the hardware's" : "pessimistic", vm->seed);
	TH_LOG("%lu rounds, %lu DMA writes, %lu pages dirtied", sum_rounds,
	       sum_writes, sum_dirtied);
}

/*
 * In pages of 4 KiB: a superpage takes what was lost along as soon as one of its
 * pages is written again.
 */
static const struct how wrong_order_how = { NOCLEAR, 1, &pages_4k };

FIXTURE(vfio_dirty_log_wrong_order) {
	struct vm vm;
};

FIXTURE_SETUP(vfio_dirty_log_wrong_order)
{
	vm_setup(_metadata, &self->vm, &wrong_order_how);
}

FIXTURE_TEARDOWN(vfio_dirty_log_wrong_order)
{
	vm_teardown(&self->vm, &wrong_order_how);
}

/*
 * The same, but clearing after the copy, as nobody should. If that goes unnoticed
 * then a log that loses pages would as well.
 */
TEST_F_TIMEOUT(vfio_dirty_log_wrong_order, is_caught, TIMEOUT)
{
	struct vm *vm = &self->vm;
	struct result r;
	u64 n;

	if (!vm->log.hw)
		SKIP(return, "the log is pessimistic and forgives the wrong order");

	for (n = 0; n < 4 * vm->count; n++) {
		migrate(_metadata, vm, &wrong_order_how, n, true, &r);
		if (r.differences)
			break;
	}

	ASSERT_GT(r.differences, 0);
	TH_LOG("noticed in migration %lu: %lu pages differ", n, r.differences);
}

int main(int argc, char *argv[])
{
	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	return test_harness_run(argc, argv);
}
