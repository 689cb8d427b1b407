// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dirty log of a type1 container in a race, and very large. A dirty page is
 * never forgotten all the same. What the log says is looked at during the race
 * by "migration", and by "all" only after it.
 *
 * Environment:
 *  VFIO_DIRTY_LOG_RACE_SECONDS=N		how long each race takes (10)
 *  VFIO_DIRTY_LOG_LARGE_GIB=N			how large is large (32)
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"


/* Seconds, on an emulated machine and a kernel full of checks. */
#define TIMEOUT		7200

static char **bdfs;
static int nr_bdfs;

static void dma_write(struct dirty_log *log, iova_t iova)
{
	memset(log->src->dma.vaddr, ++log->seq, DIRTY_LOG_DMA_SIZE);
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(log->device, log->src->dma.iova, iova,
					      DIRTY_LOG_DMA_SIZE), 0,
		       "DMA to iova 0x%lx failed\n", iova);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* The second group, or -1 */
static int open_group2(void)
{
	if (nr_bdfs < 2 || sysfs_iommu_group_get(bdfs[0]) == sysfs_iommu_group_get(bdfs[1]))
		return -1;

	return vfio_group_open(bdfs[1]);
}

/* ---- Races ---- */

#define RACE_PAGES	700
#define RACE_OTHER	(DIRTY_LOG_IOVA + SZ_1G)

/* The device writes into so many of them. */
#define RACE_WRITTEN	500

struct racing {
	struct dirty_log env;
	struct dma_region region;
	void *other;
	int group2_fd;
};

FIXTURE(race) {
	struct racing state;
};

FIXTURE_SETUP(race)
{
	struct racing *s = &self->state;
	struct dirty_log *e = &s->env;
	const char *skip = dirty_log_setup(e, bdfs[0]);

	if (skip)
		SKIP(return, "%s", skip);

	/* An odd page: small leaves */
	s->region.iova = DIRTY_LOG_IOVA + 13 * e->info.pgsize;
	s->region.size = RACE_PAGES * e->info.pgsize;
	s->region.vaddr = dirty_log_alloc(s->region.size, 0);
	s->other = dirty_log_alloc(256 * e->info.pgsize, 0);
	ASSERT_NE(MAP_FAILED, s->other);
	iommu_map(e->iommu, &s->region);

	s->group2_fd = open_group2();
	if (s->group2_fd < 0)
		TH_LOG("without a second group");
}

FIXTURE_TEARDOWN(race)
{
	struct racing *s = &self->state;

	if (s->group2_fd >= 0)
		close(s->group2_fd);
	dirty_log_teardown(&s->env);
}

struct racer {
	struct racing *s;
	const char *name;
	void (*step)(struct racer *r);
	pthread_t thread;
	unsigned int seed;
	u64 steps, good, errors;

	/* Leave the log of the pages at DIRTY_LOG_IOVA as it is. */
	bool spare;
};

static bool race_over;

static u64 race_rnd(struct racer *r, u64 n)
{
	return (u64)rand_r(&r->seed) % n;
}

/* Calls that meet each other may find the log stopped or a mapping cut in two. */
static void race_allow(struct racer *r, int ret)
{
	if (!ret) {
		r->good++;
	} else if (ret != -EINVAL) {
		fprintf(stderr, "%s returned %d\n", r->name, ret);
		r->errors++;
	}
}

static void race_dma(struct racer *r)
{
	struct racing *s = r->s;

	dma_write(&s->env, s->region.iova + race_rnd(r, RACE_WRITTEN) * s->env.info.pgsize);
	race_allow(r, 0);
}

static void race_switch(struct racer *r)
{
	race_allow(r, __iommu_dirty_log_start(r->s->env.iommu));
	/* Often enough for the others to find it started */
	if (!race_rnd(r, 4))
		usleep(race_rnd(r, 3000));
	if (!r->spare && race_rnd(r, 3))
		race_allow(r, __iommu_dirty_log_stop(r->s->env.iommu));
}

static void race_log(struct racer *r)
{
	static const u32 flags[] = { DIRTY_LOG_GET, DIRTY_LOG_NOCLEAR, DIRTY_LOG_CLEAR };
	u8 bitmap[DIRTY_LOG_BITMAP_BYTES(1024)];
	struct dirty_log *e = &r->s->env;
	iova_t iova = race_rnd(r, 2) ? DIRTY_LOG_IOVA : RACE_OTHER;
	u64 first = race_rnd(r, 400);
	u64 size = (1 + race_rnd(r, 1024)) * e->info.pgsize;
	u32 flag = flags[race_rnd(r, 3)];

	if (r->spare && flag != DIRTY_LOG_NOCLEAR)
		iova = RACE_OTHER;

	memset(bitmap, race_rnd(r, 256), sizeof(bitmap));

	switch (flag) {
	case DIRTY_LOG_GET:
		race_allow(r, __iommu_dirty_log_bitmap(e->iommu, DIRTY_LOG_GET, iova, 1024 * e->info.pgsize, bitmap));
		break;
	case DIRTY_LOG_NOCLEAR:
		iova += first * e->info.pgsize;
		race_allow(r, __iommu_dirty_log_bitmap(e->iommu, DIRTY_LOG_NOCLEAR, iova, size, bitmap));
		break;
	case DIRTY_LOG_CLEAR:
		iova += first * e->info.pgsize;
		race_allow(r, __iommu_dirty_log_bitmap(e->iommu, DIRTY_LOG_CLEAR, iova, size, bitmap));
		break;
	}
}

/* Raw ioctls: libvfio's list of regions is not for more than one thread. */
static void race_map(struct racer *r)
{
	u8 data[DIRTY_LOG_BITMAP_BYTES(1024)];
	struct dirty_log *e = &r->s->env;
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (u64)r->s->other,
		.iova = RACE_OTHER + race_rnd(r, 700) * e->info.pgsize,
		.size = (1 + race_rnd(r, 256)) * e->info.pgsize,
	};
	struct vfio_bitmap bitmap = {
		.pgsize = e->info.pgsize,
		.size = sizeof(data),
		.data = (__u64 *)data,
	};
	int ret;

	ret = ioctl(e->iommu->container_fd, VFIO_IOMMU_MAP_DMA, &map) ? -errno : 0;
	if (ret != -EEXIST)
		race_allow(r, ret);
	if (race_rnd(r, 2))
		return;

	if (race_rnd(r, 2))
		race_allow(r, __iommu_unmap_ioctl(e->iommu, 0, RACE_OTHER, 1024 * e->info.pgsize,
						  NULL, NULL));
	else
		race_allow(r, __iommu_unmap_ioctl(e->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
						  RACE_OTHER, 1024 * e->info.pgsize, &bitmap, NULL));
}

static void *close_caller(void *arg)
{
	int fd = *(int *)arg;
	u64 bitmap[4] = { ~0UL, ~0UL, ~0UL, ~0UL };
	struct {
		struct vfio_iommu_type1_dirty_bitmap dirty;
		struct vfio_iommu_type1_dirty_bitmap_get range;
	} args = {
		.dirty = {
			.argsz = sizeof(args),
		},
		.range = {
			.iova = DIRTY_LOG_IOVA,
			.size = 256 * getpagesize(),
			.bitmap = {
				.pgsize = getpagesize(),
				.size = sizeof(bitmap),
				.data = (__u64 *)bitmap,
			},
		},
	};
	int i;

	/* Until the container is gone, or its group and thereby its IOMMU */
	for (i = 0; i < 1000; i++) {
		args.dirty.flags = i % 2 ? DIRTY_LOG_NOCLEAR : DIRTY_LOG_CLEAR;
		if (ioctl(fd, VFIO_IOMMU_DIRTY_PAGES, &args))
			break;
	}

	return NULL;
}

/* A container of its own, closed with its log running and calls under way */
static void race_close(struct racer *r)
{
	struct racing *s = r->s;
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (u64)s->other,
		.iova = DIRTY_LOG_IOVA,
		.size = 256 * s->env.info.pgsize,
	};
	struct vfio_iommu_type1_dirty_bitmap start = {
		.argsz = sizeof(start),
		.flags = DIRTY_LOG_START,
	};
	bool group_first = race_rnd(r, 2);
	pthread_t thread;
	int fd;

	fd = open("/dev/vfio/vfio", O_RDWR);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(ioctl(s->group2_fd, VFIO_GROUP_SET_CONTAINER, &fd), 0);
	VFIO_ASSERT_EQ(ioctl(fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), 0);
	VFIO_ASSERT_EQ(ioctl(fd, VFIO_IOMMU_MAP_DMA, &map), 0);
	VFIO_ASSERT_EQ(ioctl(fd, VFIO_IOMMU_DIRTY_PAGES, &start), 0);

	VFIO_ASSERT_EQ(pthread_create(&thread, NULL, close_caller, &fd), 0);
	usleep(race_rnd(r, 3000));

	/* Nobody else opens files: the number does not come back meanwhile. */
	if (!group_first)
		close(fd);
	race_allow(r, ioctl(s->group2_fd, VFIO_GROUP_UNSET_CONTAINER) ? -errno : 0);
	VFIO_ASSERT_EQ(pthread_join(thread, NULL), 0);
	if (group_first)
		close(fd);
}

static void race_group(struct racer *r)
{
	struct racing *s = r->s;

	if (!race_rnd(r, 3)) {
		race_close(r);
		return;
	}

	race_allow(r, ioctl(s->group2_fd, VFIO_GROUP_SET_CONTAINER,
			    &s->env.iommu->container_fd) ? -errno : 0);
	usleep(race_rnd(r, 3000));
	race_allow(r, ioctl(s->group2_fd, VFIO_GROUP_UNSET_CONTAINER) ? -errno : 0);
	usleep(race_rnd(r, 3000));
}

static void race_info(struct racer *r)
{
	struct iommu_dirty_log_info info;

	race_allow(r, __iommu_dirty_log_info(r->s->env.iommu, &info));
}

static void *racer_fn(void *arg)
{
	struct racer *r = arg;

	while (!READ_ONCE(race_over)) {
		r->step(r);
		WRITE_ONCE(r->steps, r->steps + 1);
	}

	return NULL;
}

static bool dma_over;

static void *dma_fn(void *arg)
{
	struct racer *r = arg;

	while (!READ_ONCE(dma_over)) {
		race_dma(r);
		WRITE_ONCE(r->steps, r->steps + 1);
	}

	return NULL;
}

static unsigned int race_seconds(void)
{
	const char *seconds = getenv("VFIO_DIRTY_LOG_RACE_SECONDS");

	return seconds && *seconds ? atoi(seconds) : 10;
}

static void race_begin(struct racing *s, struct racer *racers, int nr)
{
	int i;

	WRITE_ONCE(race_over, false);

	for (i = 0; i < nr; i++) {
		racers[i].s = s;
		racers[i].seed += i + 1;
		VFIO_ASSERT_EQ(pthread_create(&racers[i].thread, NULL, racer_fn, &racers[i]), 0);
	}
}

static void race_end(struct __test_metadata *_metadata, struct racer *racers, int nr)
{
	int i;

	WRITE_ONCE(race_over, true);

	for (i = 0; i < nr; i++) {
		ASSERT_EQ(0, pthread_join(racers[i].thread, NULL));
		TH_LOG("%s: %lu times, %lu good calls", racers[i].name, racers[i].steps,
		       racers[i].good);
		EXPECT_EQ(0, racers[i].errors);
		/* Not only calls that found nothing to do */
		EXPECT_LE(racers[i].steps / 10 + 1, racers[i].good);
	}
}

static void race_read(struct racing *s, u8 *bitmap)
{
	memset(bitmap, 0, DIRTY_LOG_BITMAP_BYTES(RACE_PAGES));
	iommu_dirty_log_get_noclear(s->env.iommu, s->region.iova, s->region.size, bitmap);
}

static bool race_dirty(struct racing *s, u64 page)
{
	u8 bitmap[DIRTY_LOG_BITMAP_BYTES(RACE_PAGES)];

	race_read(s, bitmap);

	return bit_get(bitmap, page);
}

static u64 race_count(struct racing *s)
{
	u8 bitmap[DIRTY_LOG_BITMAP_BYTES(RACE_PAGES)];
	u64 page, sum = 0;

	race_read(s, bitmap);
	for (page = 0; page < RACE_PAGES; page++)
		sum += bit_get(bitmap, page);

	return sum;
}

TEST_F_TIMEOUT(race, all, TIMEOUT)
{
	struct racing *s = &self->state;
	struct racer racers[] = {
		{ .name = "DMA", .step = race_dma },
		{ .name = "START/STOP", .step = race_switch },
		{ .name = "GET/NOCLEAR/CLEAR", .step = race_log },
		{ .name = "GET/NOCLEAR/CLEAR", .step = race_log },
		{ .name = "MAP/UNMAP", .step = race_map },
		{ .name = "GET_INFO", .step = race_info },
		{ .name = "attach/detach/close", .step = race_group },
	};
	u8 mask[DIRTY_LOG_BITMAP_BYTES(RACE_PAGES)];
	int nr = ARRAY_SIZE(racers) - (s->group2_fd < 0);
	struct dirty_log *e = &s->env;
	u64 page;
	int i;

	race_begin(s, racers, nr);
	sleep(race_seconds());
	race_end(_metadata, racers, nr);
	TH_LOG("raced for %u s", race_seconds());

	/* Now that it is quiet, the log is as exact as ever. */
	ASSERT_EQ(0, __iommu_unmap_ioctl(e->iommu, 0, RACE_OTHER, SZ_1G, NULL, NULL));
	iommu_dirty_log_stop(e->iommu);
	iommu_dirty_log_start(e->iommu);

	for (page = 0; page < RACE_PAGES; page += 1 + page / 3) {
		/* The second time over an IOTLB that knows the page as dirty */
		for (i = 0; i < 2; i++) {
			dma_write(e, s->region.iova + page * e->info.pgsize);
			ASSERT_TRUE(race_dirty(s, page));
			ASSERT_EQ(e->info.hw ? 1 : RACE_PAGES, race_count(s));

			memset(mask, 0, sizeof(mask));
			bit_set(mask, page);
			iommu_dirty_log_clear(e->iommu, s->region.iova, s->region.size, mask);
			ASSERT_EQ(e->info.hw ? 0 : RACE_PAGES, race_count(s));
		}
	}
}

struct migration {
	struct racing *s;
	u8 *copy;
	u64 copied, unwritten;
};

/* What a VMM does in one round: ask, then clear and copy chunk by chunk. */
static void migration_round(struct migration *m, bool first)
{
	u8 bitmap[DIRTY_LOG_BITMAP_BYTES(RACE_PAGES)], mask[8];
	struct racing *s = m->s;
	u64 pgsize = s->env.info.pgsize, chunk, page, n;

	race_read(s, bitmap);

	for (chunk = 0; chunk < RACE_PAGES; chunk += 64) {
		n = min(64UL, RACE_PAGES - chunk);
		memcpy(mask, bitmap + chunk / 8, sizeof(mask));
		if (first)
			memset(mask, 0xff, sizeof(mask));

		iommu_dirty_log_clear(s->env.iommu, s->region.iova + chunk * pgsize,
				      n * pgsize, mask);

		for (page = chunk; page < chunk + n; page++) {
			if (!bit_get(mask, page - chunk))
				continue;

			memcpy(m->copy + page * pgsize, s->region.vaddr + page * pgsize, pgsize);
			m->copied += !first;
			m->unwritten += !first && page >= RACE_WRITTEN;
		}
	}
}

/*
 * A migration while all the others call. None of them may take a page from it:
 * they neither stop the log nor clear where it copies, everything else they do.
 */
TEST_F_TIMEOUT(race, migration, TIMEOUT)
{
	struct racing *s = &self->state;
	struct racer racers[] = {
		{ .name = "START", .step = race_switch, .spare = true },
		{ .name = "GET/NOCLEAR/CLEAR", .step = race_log, .spare = true },
		{ .name = "GET/NOCLEAR/CLEAR", .step = race_log, .spare = true },
		{ .name = "MAP/UNMAP", .step = race_map },
		{ .name = "GET_INFO", .step = race_info },
		{ .name = "attach/detach/close", .step = race_group },
	};
	int nr = ARRAY_SIZE(racers) - (s->group2_fd < 0);
	struct racer dma = { .name = "DMA", .s = s, .seed = 42 };
	struct migration m = { .s = s };
	double begin = now(), end = begin + race_seconds();
	u64 migrations = 0, writes = 0, steps;
	int i;

	m.copy = dirty_log_alloc(s->region.size, 0);
	ASSERT_NE(MAP_FAILED, m.copy);

	iommu_dirty_log_start(s->env.iommu);
	race_begin(s, racers, nr);

	do {
		dma.steps = 0;
		WRITE_ONCE(dma_over, false);
		ASSERT_EQ(0, pthread_create(&dma.thread, NULL, dma_fn, &dma));

		memset(m.copy, 0, s->region.size);
		migration_round(&m, true);
		for (i = 0; i < 8; i++) {
			steps = READ_ONCE(dma.steps);
			while (READ_ONCE(dma.steps) < steps + 5)
				sched_yield();
			migration_round(&m, false);
		}

		WRITE_ONCE(dma_over, true);
		ASSERT_EQ(0, pthread_join(dma.thread, NULL));
		migration_round(&m, false);

		ASSERT_EQ(0, memcmp(m.copy, s->region.vaddr, s->region.size)) {
			TH_LOG("migration %lu: a page was forgotten", migrations);
		}
		writes += dma.steps;
		migrations++;
	} while (now() < end);

	race_end(_metadata, racers, nr);
	TH_LOG("raced for %.0f s", now() - begin);
	TH_LOG("%lu migrations compared equal: %lu DMA writes, %lu pages copied again",
	       migrations, writes, m.copied);
	if (s->env.info.hw)
		EXPECT_EQ(0, m.unwritten);
}

/* ---- Large ---- */

#define LARGE_PIECE	(32UL * SZ_1M)

FIXTURE(large) {
	struct dirty_log env;
};

/* Memory and IOVA shifted against each other: no IOPTE maps more than a page. */
FIXTURE_VARIANT(large) {
	bool large_leaves;
};

FIXTURE_VARIANT_ADD(large, leaves_of_2_mib) {
	.large_leaves = true,
};

FIXTURE_VARIANT_ADD(large, leaves_of_4_kib) {
	.large_leaves = false,
};

FIXTURE_SETUP(large)
{
	const char *skip = dirty_log_setup(&self->env, bdfs[0]);

	if (skip)
		SKIP(return, "%s", skip);
}

FIXTURE_TEARDOWN(large)
{
	dirty_log_teardown(&self->env);
}

static u64 count_words(const u8 *bitmap, u64 bytes)
{
	const u64 *words = (const u64 *)bitmap;
	u64 i, sum = 0;

	for (i = 0; i < bytes / 8; i++)
		sum += __builtin_popcountl(words[i]);

	return sum;
}

/*
 * The same memory thousands of times: a call that works on all of it must let
 * others run. Whether it did is for the kernel's soft lockup detector to say.
 */
TEST_F_TIMEOUT(large, same_memory_many_times, TIMEOUT)
{
	const char *gib = getenv("VFIO_DIRTY_LOG_LARGE_GIB");
	u64 size = (gib && *gib ? atoi(gib) : 32) * (u64)SZ_1G;
	struct dirty_log *e = &self->env;
	u64 leaf = variant->large_leaves ? SZ_2M / SZ_4K : 1;
	u64 base = DIRTY_LOG_IOVA + (variant->large_leaves ? 0 : SZ_4K);
	u64 npages = size / SZ_4K;
	u64 bytes = DIRTY_LOG_BITMAP_BYTES(npages);
	const u64 pages[] = { 0, 511, 512, npages / 3, npages - 1 };
	u64 nr_leaves = variant->large_leaves ? 4 : 5;
	/* Some IOMMUs find leaves of 4 MiB and more in memory of 2 MiB pages. */
	bool exact = !variant->large_leaves || !(e->info.iova_pgsizes & (SZ_1G - SZ_4M));
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.size = LARGE_PIECE,
	};
	u8 *bitmap, *mask;
	u64 unmapped, at, sum;
	void *memory;
	double t;
	int i;

	if (e->info.pgsize != SZ_4K || !(e->info.iova_pgsizes & SZ_2M))
		SKIP(return, "the IOMMU does not map pages of 4 KiB and of 2 MiB");

	memory = dirty_log_alloc(LARGE_PIECE, MAP_HUGETLB | MAP_HUGE_2MB);
	if (memory == MAP_FAILED)
		SKIP(return, "needs %lu free pages of 2 MiB", LARGE_PIECE / SZ_2M);

	bitmap = dirty_log_alloc(bytes, 0);
	mask = dirty_log_alloc(bytes, 0);
	ASSERT_NE(MAP_FAILED, bitmap);
	ASSERT_NE(MAP_FAILED, mask);

	t = now();
	map.vaddr = (u64)memory;
	for (at = 0; at < size; at += LARGE_PIECE) {
		map.iova = base + at;
		ASSERT_EQ(0, ioctl(e->iommu->container_fd, VFIO_IOMMU_MAP_DMA, &map)) {
			TH_LOG("MAP at 0x%lx: %s", base + at, strerror(errno));
		}
	}
	TH_LOG("MAP of %lu times 32 MiB: %.2f s", size / LARGE_PIECE, now() - t);

	t = now();
	iommu_dirty_log_start(e->iommu);
	TH_LOG("START: %.2f s", now() - t);

	for (i = 0; i < ARRAY_SIZE(pages); i++)
		dma_write(e, base + pages[i] * SZ_4K);

	t = now();
	iommu_dirty_log_get_noclear(e->iommu, base, size, bitmap);
	TH_LOG("NOCLEAR: %.2f s", now() - t);

	for (i = 0; i < ARRAY_SIZE(pages); i++)
		EXPECT_TRUE(bit_get(bitmap, pages[i]));
	sum = count_words(bitmap, bytes);
	EXPECT_LE(e->info.hw ? nr_leaves * leaf : npages, sum);
	if (exact)
		EXPECT_GE(e->info.hw ? nr_leaves * leaf : npages, sum);

	/* All but the last page: it stays dirty, others of its leaf do not. */
	memset(mask, 0xff, bytes);
	mask[bytes - 1] = 0x7f;
	t = now();
	iommu_dirty_log_clear(e->iommu, base, size, mask);
	TH_LOG("CLEAR: %.2f s", now() - t);

	/* The leaves that were dirty log by page now. */
	if (e->split_on_clear) {
		leaf = 1;
		exact = true;
	}

	dma_write(e, base + pages[3] * SZ_4K);
	memset(bitmap, 0, bytes);
	t = now();
	iommu_dirty_log_get(e->iommu, base, size, bitmap);
	TH_LOG("GET: %.2f s", now() - t);

	EXPECT_TRUE(bit_get(bitmap, pages[3]));
	EXPECT_TRUE(bit_get(bitmap, pages[4]));
	sum = count_words(bitmap, bytes);
	EXPECT_LE(e->info.hw ? leaf + 1 : npages, sum);
	if (exact)
		EXPECT_GE(e->info.hw ? leaf + 1 : npages, sum);

	t = now();
	ASSERT_EQ(0, __iommu_unmap_ioctl(e->iommu, 0, base, size, NULL, &unmapped));
	TH_LOG("UNMAP: %.2f s", now() - t);
	EXPECT_EQ(size, unmapped);
}

/* ---- Killed ---- */

/*
 * The process dies with the log running and DMA under way: all of it is torn down
 * by close. Whatever is left must not disturb the next user.
 */
TEST(killed_during_dma)
{
	struct dirty_log_mapping *m;
	u64 *writes, seen;
	struct dirty_log log;
	const char *skip;
	int status, i;
	pid_t pid;

	writes = dirty_log_alloc(getpagesize(), 0);

	for (i = 0; i < 3; i++) {
		*writes = 0;
		pid = fork();
		ASSERT_GE(pid, 0);

		if (!pid) {
			if (dirty_log_setup(&log, bdfs[0]))
				_exit(KSFT_SKIP);
			m = dirty_log_map_pages(&log, DIRTY_LOG_IOVA, 70);
			dirty_log_start(&log);
			for (;; WRITE_ONCE(*writes, *writes + 1))
				dirty_log_write(&log, m, *writes % 70);
		}

		do {
			seen = READ_ONCE(*writes);
			usleep(1000);
		} while (seen < 10 && !waitpid(pid, &status, WNOHANG));
		if (seen < 10) {
			ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == KSFT_SKIP);
			SKIP(return, "the log or a driver for the device is missing");
		}

		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_TRUE(WIFSIGNALED(status));
	}

	skip = dirty_log_setup(&log, bdfs[0]);
	ASSERT_EQ(NULL, skip);
	m = dirty_log_map_pages(&log, DIRTY_LOG_IOVA, 70);
	dirty_log_start(&log);
	dirty_log_check_all(&log);
	dirty_log_write(&log, m, 11);
	dirty_log_check_all(&log);
	dirty_log_teardown(&log);
}

int main(int argc, char *argv[])
{
	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	return test_harness_run(argc, argv);
}
