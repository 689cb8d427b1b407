// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dirty log of a type1 container under hostile conditions: without memory,
 * in a race, and very large. A dirty page is never forgotten all the same.
 *
 * Environment:
 *  VFIO_DIRTY_LOG_EXPECT=hw|pessimistic	fail if the log is the other one
 *  VFIO_DIRTY_LOG_RACE_SECONDS=N		how long each race takes (10)
 *  VFIO_DIRTY_LOG_LARGE_GIB=N			how large is large (32)
 *
 * The cases of "starve" make the kernel's allocations and its accesses to user
 * memory fail one after the other, which needs CONFIG_FAULT_INJECTION and root.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/compiler.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define FLAG_START	VFIO_IOMMU_DIRTY_PAGES_FLAG_START
#define FLAG_GET	VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP
#define FLAG_NOCLEAR	VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP_NOCLEAR
#define FLAG_CLEAR	VFIO_IOMMU_DIRTY_PAGES_FLAG_CLEAR_BITMAP

/* Where the tests map things: above 4 GiB, out of the way of the drivers. */
#define TEST_IOVA	(16UL * SZ_1G)

/* Bytes of one DMA write. Some devices cannot do less than 60. */
#define DMA_SIZE	64

/* Seconds, on an emulated machine and a kernel full of checks. */
#define TIMEOUT		7200

static char **bdfs;
static int nr_bdfs;

struct env {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct iova_allocator *iovas;
	struct iommu_dirty_log_info log;
	struct dma_region src;
	u8 seq;
};

static void *alloc_memory(u64 size, int flags)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);
}

/* Returns why the test cannot run, or NULL. */
static const char *env_setup(struct env *e)
{
	const char *want = getenv("VFIO_DIRTY_LOG_EXPECT");
	struct dma_region *region;

	memset(e, 0, sizeof(*e));
	e->iommu = iommu_init(MODE_VFIO_TYPE1V2_IOMMU);
	e->device = vfio_pci_device_init(bdfs[0], e->iommu);

	if (!e->device->driver.ops)
		return "libvfio has no driver for the device";

	if (iommu_check_extension(e->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) != 1 && !want)
		return "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR";

	iommu_dirty_log_info(e->iommu, &e->log);
	if (want && *want)
		VFIO_ASSERT_EQ(e->log.hw, !strcmp(want, "hw"));

	e->iovas = iova_allocator_init(e->iommu);

	region = &e->device->driver.region;
	region->size = SZ_2M;
	region->vaddr = alloc_memory(region->size, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->iova = iova_allocator_alloc(e->iovas, region->size);
	iommu_map(e->iommu, region);
	vfio_pci_driver_init(e->device);

	e->src.size = getpagesize();
	e->src.vaddr = alloc_memory(e->src.size, 0);
	VFIO_ASSERT_NE(e->src.vaddr, MAP_FAILED);
	e->src.iova = iova_allocator_alloc(e->iovas, e->src.size);
	iommu_map(e->iommu, &e->src);

	return NULL;
}

static void env_teardown(struct env *e)
{
	vfio_pci_device_cleanup(e->device);
	if (e->iovas)
		iova_allocator_cleanup(e->iovas);
	iommu_cleanup(e->iommu);
}

static void dma_write(struct env *e, iova_t iova)
{
	memset(e->src.vaddr, ++e->seq, DMA_SIZE);
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(e->device, e->src.iova, iova, DMA_SIZE), 0,
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
	char path[32];

	if (nr_bdfs < 2 || sysfs_iommu_group_get(bdfs[0]) == sysfs_iommu_group_get(bdfs[1]))
		return -1;

	snprintf_assert(path, sizeof(path), "/dev/vfio/%u", sysfs_iommu_group_get(bdfs[1]));

	return open(path, O_RDWR);
}

/* ---- Starvation ---- */

/*
 * Mappings further apart than the kernel copies of a bitmap at once, so that one
 * call has many steps which can fail.
 */
#define STARVE_MAPPINGS	130
#define STARVE_PAGES	5
#define STARVE_STRIDE	4200
#define STARVE_RANGE	(STARVE_MAPPINGS * STARVE_STRIDE)

struct starving {
	struct env env;
	int fail_nth, group2_fd;

	/* What one call reads or clears, and what must be dirty */
	u8 *bitmap, *dirty;
	struct dma_region maps[STARVE_MAPPINGS], region;
	void *memory;
	u64 unmapped;

	unsigned int nth, injected, absorbed, writes;
	bool done;
};

FIXTURE(starve) {
	struct starving state;
};

static bool set_attribute(const char *name, const char *value)
{
	char path[80];
	ssize_t n;
	int fd;

	snprintf_assert(path, sizeof(path), "/sys/kernel/debug/%s", name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return false;

	n = write(fd, value, strlen(value));
	close(fd);

	return n > 0;
}

/* So that fail-nth counts everything, and does not print a trace each time. */
static const char *fault_injection_setup(void)
{
	if (!set_attribute("failslab/ignore-gfp-wait", "N") ||
	    !set_attribute("fail_page_alloc/ignore-gfp-wait", "N") ||
	    !set_attribute("fail_page_alloc/min-order", "0") ||
	    !set_attribute("fail_usercopy/probability", "0"))
		return "needs CONFIG_FAULT_INJECTION_DEBUG_FS and failslab, page_alloc, usercopy";

	set_attribute("fail_page_alloc/ignore-gfp-highmem", "N");
	set_attribute("failslab/verbose", "0");
	set_attribute("fail_page_alloc/verbose", "0");
	set_attribute("fail_usercopy/verbose", "0");

	return NULL;
}

/* Let the @n-th of what can fail in this thread fail, from now on. */
static void fail_nth_arm(int fd, unsigned int n)
{
	char buf[16];
	ssize_t ret;

	snprintf_assert(buf, sizeof(buf), "%u", n);
	do
		ret = pwrite(fd, buf, strlen(buf), 0);
	while (ret < 0 && errno == EFAULT);

	VFIO_ASSERT_EQ(ret, (ssize_t)strlen(buf));
}

/*
 * Returns whether something was made to fail. While it is not, what can fail is
 * also the system call which asks for that, and the one which ends it.
 */
static bool fail_nth_disarm(int fd)
{
	char buf[16] = {};
	ssize_t ret;

	ret = pread(fd, buf, sizeof(buf) - 1, 0);
	VFIO_ASSERT_TRUE(ret > 0 || errno == EFAULT);
	fail_nth_arm(fd, 0);

	return ret > 0 && atoi(buf) == 0;
}

static iova_t starve_iova(struct env *e, u64 page)
{
	return TEST_IOVA + page * e->log.pgsize;
}

FIXTURE_SETUP(starve)
{
	const char *skip = fault_injection_setup();
	struct starving *s = &self->state;
	struct env *e = &s->env;
	int i;

	if (skip)
		SKIP(return, "%s", skip);

	s->fail_nth = open("/proc/thread-self/fail-nth", O_RDWR);
	if (s->fail_nth < 0)
		SKIP(return, "needs CONFIG_FAULT_INJECTION");

	skip = env_setup(e);
	if (skip)
		SKIP(return, "%s", skip);

	s->bitmap = alloc_memory(DIRTY_LOG_BITMAP_BYTES(STARVE_RANGE), 0);
	s->dirty = alloc_memory(DIRTY_LOG_BITMAP_BYTES(STARVE_RANGE), 0);
	s->memory = dirty_log_memory(STARVE_PAGES * e->log.pgsize);
	ASSERT_NE(MAP_FAILED, s->bitmap);
	ASSERT_NE(MAP_FAILED, s->dirty);

	/* Touched: what fails shall not be the page fault of the test's own memory */
	memset(s->bitmap, 0, DIRTY_LOG_BITMAP_BYTES(STARVE_RANGE));
	memset(s->dirty, 0, DIRTY_LOG_BITMAP_BYTES(STARVE_RANGE));

	s->group2_fd = open_group2();

	for (i = 0; i < STARVE_MAPPINGS; i++) {
		s->maps[i] = (struct dma_region) {
			.vaddr = s->memory,
			/* At bits of all kinds, but an odd page: small leaves */
			.iova = starve_iova(e, i * STARVE_STRIDE + i % 33 * 2 + 1),
			.size = STARVE_PAGES * e->log.pgsize,
		};
		iommu_map(e->iommu, &s->maps[i]);
	}
}

FIXTURE_TEARDOWN(starve)
{
	struct starving *s = &self->state;

	if (s->group2_fd >= 0)
		close(s->group2_fd);
	env_teardown(&s->env);
}

static u64 starve_page(struct starving *s, int map, int page)
{
	struct dma_region *region = &s->maps[map];

	return (region->iova - TEST_IOVA) / s->env.log.pgsize + page;
}

/* Another page becomes dirty, one that no call has read from the IOMMU yet. */
static void starve_write(struct starving *s)
{
	unsigned int n = s->writes++;
	u64 page = starve_page(s, n * 7 % STARVE_MAPPINGS, n % STARVE_PAGES);

	dma_write(&s->env, starve_iova(&s->env, page));
	bit_set(s->dirty, page);
}

/* Returns how many pages were forgotten; @exact: or reported and clean. */
static int starve_check(struct starving *s, const u8 *bitmap, bool exact)
{
	int i, p, wrong = 0;

	for (i = 0; i < STARVE_MAPPINGS; i++) {
		for (p = 0; p < STARVE_PAGES; p++) {
			u64 page = starve_page(s, i, p);
			bool must = bit_get(s->dirty, page) || !s->env.log.hw;

			wrong += must && !bit_get(bitmap, page);
			wrong += exact && !must && bit_get(bitmap, page);
		}
	}

	return wrong;
}

/* Nothing but the one system call: it is counted what can fail. */
static int starve_call(struct starving *s, u32 flag)
{
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = TEST_IOVA,
		.size = STARVE_RANGE * s->env.log.pgsize,
		.bitmap = {
			.pgsize = s->env.log.pgsize,
			.size = DIRTY_LOG_BITMAP_BYTES(STARVE_RANGE),
			.data = (__u64 *)s->bitmap,
		},
	};

	return __iommu_dirty_log_ioctl(s->env.iommu, sizeof(struct vfio_iommu_type1_dirty_bitmap) +
				       sizeof(range), flag, &range);
}

/* The next good call reports all that is dirty. */
static int starve_recheck(struct starving *s, bool exact)
{
	memset(s->bitmap, 0, DIRTY_LOG_BITMAP_BYTES(STARVE_RANGE));
	VFIO_ASSERT_EQ(starve_call(s, FLAG_NOCLEAR), 0);

	return starve_check(s, s->bitmap, exact);
}

static int call_start(struct starving *s)
{
	return __iommu_dirty_log_start(s->env.iommu);
}

static int call_get(struct starving *s)
{
	return starve_call(s, FLAG_GET);
}

static int call_noclear(struct starving *s)
{
	return starve_call(s, FLAG_NOCLEAR);
}

static int call_clear(struct starving *s)
{
	return starve_call(s, FLAG_CLEAR);
}

static int call_map(struct starving *s)
{
	return __iommu_map(s->env.iommu, &s->region);
}

static int call_unmap(struct starving *s)
{
	struct iommu_dirty_log_info *log = &s->env.log;
	struct vfio_bitmap bitmap = {
		.pgsize = log->pgsize,
		.size = DIRTY_LOG_BITMAP_BYTES(STARVE_RANGE),
		.data = (__u64 *)s->bitmap,
	};

	return __iommu_unmap_ioctl(s->env.iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
				   TEST_IOVA, STARVE_RANGE * log->pgsize, &bitmap,
				   &s->unmapped);
}

static int call_attach(struct starving *s)
{
	return ioctl(s->group2_fd, VFIO_GROUP_SET_CONTAINER, &s->env.iommu->container_fd) ?
	       -errno : 0;
}

/*
 * Make the call with its next step failing, which may have no effect, where there
 * is another way. Sets s->done when there was no such step any more.
 */
static int starve_next(struct __test_metadata *_metadata, struct starving *s,
		       int (*call)(struct starving *s), u8 fill)
{
	int ret;

	memset(s->bitmap, fill, DIRTY_LOG_BITMAP_BYTES(STARVE_RANGE));

	fail_nth_arm(s->fail_nth, ++s->nth);
	ret = call(s);
	s->done = !fail_nth_disarm(s->fail_nth);

	s->injected += !s->done;
	s->absorbed += !s->done && !ret;

	/* Attaching a group, IOMMU drivers have errors of their own for it. */
	EXPECT_TRUE(!ret || ret == -ENOMEM || ret == -EFAULT || call == call_attach) {
		TH_LOG("failure %u: %d", s->nth, ret);
	}
	EXPECT_FALSE(ret && s->done) {
		TH_LOG("%d without a reason", ret);
	}

	return ret;
}

/* @least: so many steps of the call can fail, however it is made. */
static void starve_done(struct __test_metadata *_metadata, struct starving *s,
			const char *what, unsigned int least)
{
	TH_LOG("%s: %u failures injected, %u of them without effect", what,
	       s->injected, s->absorbed);
	EXPECT_LE(least, s->injected - s->absorbed);
}

static void starve_forget(struct starving *s)
{
	memset(s->dirty, 0, DIRTY_LOG_BITMAP_BYTES(STARVE_RANGE));
}

/* Catches a START that leaves the log half started. */
TEST_F_TIMEOUT(starve, start, TIMEOUT)
{
	struct starving *s = &self->state;

	while (!s->done) {
		/* Not part of the log that is started now */
		starve_write(s);

		if (starve_next(_metadata, s, call_start, 0)) {
			ASSERT_EQ(-EINVAL, call_noclear(s));
			continue;
		}

		starve_forget(s);
		ASSERT_EQ(0, starve_recheck(s, true));
		starve_write(s);
		ASSERT_EQ(0, starve_recheck(s, true));
		iommu_dirty_log_stop(s->env.iommu);
	}

	/* The bitmap of each mapping */
	starve_done(_metadata, s, "START", STARVE_MAPPINGS);
}

/* Catches a GET that clears what it could not hand over. */
TEST_F_TIMEOUT(starve, get, TIMEOUT)
{
	struct starving *s = &self->state;

	iommu_dirty_log_start(s->env.iommu);

	while (!s->done) {
		starve_write(s);

		if (!starve_next(_metadata, s, call_get, 0)) {
			ASSERT_EQ(0, starve_check(s, s->bitmap, true));
			starve_forget(s);
		}
		ASSERT_EQ(0, starve_recheck(s, true)) {
			TH_LOG("failure %u", s->nth);
		}
	}

	/* The user's bits of each mapping */
	starve_done(_metadata, s, "GET", STARVE_MAPPINGS);
}

TEST_F_TIMEOUT(starve, noclear, TIMEOUT)
{
	struct starving *s = &self->state;

	iommu_dirty_log_start(s->env.iommu);

	while (!s->done) {
		starve_write(s);

		if (!starve_next(_metadata, s, call_noclear, 0))
			ASSERT_EQ(0, starve_check(s, s->bitmap, true));
		ASSERT_EQ(0, starve_recheck(s, true)) {
			TH_LOG("failure %u", s->nth);
		}
	}

	/* The user's bits of each mapping */
	starve_done(_metadata, s, "NOCLEAR", STARVE_MAPPINGS);
}

/* Catches a CLEAR that fails after it cleared some of the pages. */
TEST_F_TIMEOUT(starve, clear, TIMEOUT)
{
	struct starving *s = &self->state;
	bool exact = true;

	iommu_dirty_log_start(s->env.iommu);

	while (!s->done) {
		starve_write(s);

		/* One that fails may leave pages dirty that were clean. */
		exact = !starve_next(_metadata, s, call_clear, 0xff);
		if (exact)
			starve_forget(s);
		ASSERT_EQ(0, starve_recheck(s, exact)) {
			TH_LOG("failure %u", s->nth);
		}
	}

	/* The user's bits of each mapping */
	starve_done(_metadata, s, "CLEAR", STARVE_MAPPINGS);
}

/* The new mapping is there as a whole, with a log, or not at all. */
TEST_F_TIMEOUT(starve, map, TIMEOUT)
{
	struct starving *s = &self->state;
	struct dma_region *region = &s->region;
	struct env *e = &s->env;
	const u64 npages = 600;
	u64 unmapped;

	iommu_dirty_log_start(e->iommu);

	region->size = npages * e->log.pgsize;
	region->vaddr = alloc_memory(region->size, 0);
	ASSERT_NE(MAP_FAILED, region->vaddr);
	memset(region->vaddr, 0, region->size);

	while (!s->done) {
		starve_write(s);

		/* Somewhere else each time: the tables for it are not there yet */
		region->iova = TEST_IOVA + (s->nth % 400 + 4) * (u64)SZ_1G +
			       SZ_2M - 7 * e->log.pgsize;

		if (starve_next(_metadata, s, call_map, 0)) {
			ASSERT_EQ(0, __iommu_unmap_ioctl(e->iommu, 0, region->iova, region->size,
							 NULL, &unmapped));
			ASSERT_EQ(0, unmapped);
		} else {
			/* It logs. */
			dma_write(e, region->iova + (npages - 1) * e->log.pgsize);
			iommu_dirty_log_get(e->iommu, region->iova, region->size, s->bitmap);
			ASSERT_TRUE(bit_get(s->bitmap, npages - 1));
			iommu_unmap(e->iommu, region);
		}

		ASSERT_EQ(0, starve_recheck(s, true)) {
			TH_LOG("failure %u", s->nth);
		}
	}

	/* The argument, the mapping, its bitmap, a page table */
	starve_done(_metadata, s, "MAP", 4);
}

/* Catches an UNMAP that fails with a part unmapped, its dirty pages gone. */
TEST_F_TIMEOUT(starve, unmap, TIMEOUT)
{
	struct starving *s = &self->state;
	struct env *e = &s->env;
	int i;

	iommu_dirty_log_start(e->iommu);

	while (!s->done) {
		starve_write(s);

		if (!starve_next(_metadata, s, call_unmap, 0)) {
			ASSERT_EQ(STARVE_MAPPINGS * STARVE_PAGES * e->log.pgsize, s->unmapped);
			ASSERT_EQ(0, starve_check(s, s->bitmap, true));
			starve_forget(s);

			for (i = 0; i < STARVE_MAPPINGS; i++) {
				list_del_init(&s->maps[i].link);
				iommu_map(e->iommu, &s->maps[i]);
			}
		}

		/* Also that all of it is still mapped */
		ASSERT_EQ(0, starve_recheck(s, true)) {
			TH_LOG("failure %u", s->nth);
		}
		for (i = 0; i < 9; i++)
			starve_write(s);
	}

	/* The user's bits of each mapping */
	starve_done(_metadata, s, "UNMAP with bitmap", STARVE_MAPPINGS);
}

/* Catches a group that takes the log along when it cannot be attached. */
TEST_F_TIMEOUT(starve, attach, TIMEOUT)
{
	struct starving *s = &self->state;
	bool exact = true;

	if (s->group2_fd < 0)
		SKIP(return, "needs a second device, in a group of its own");

#ifdef __aarch64__
	/* On SMMUv3 all that is mapped is dirty in a new domain. */
	exact = false;
#endif

	iommu_dirty_log_start(s->env.iommu);

	while (!s->done) {
		starve_write(s);

		if (!starve_next(_metadata, s, call_attach, 0)) {
			ASSERT_EQ(0, starve_recheck(s, exact));
			starve_write(s);
			ASSERT_EQ(0, ioctl(s->group2_fd, VFIO_GROUP_UNSET_CONTAINER));
		}

		ASSERT_EQ(0, starve_recheck(s, exact)) {
			TH_LOG("failure %u", s->nth);
		}
	}

	/* The container's group, its domain, the domain's page table */
	starve_done(_metadata, s, "attach", 3);
}

/* ---- Races ---- */

#define RACE_PAGES	700
#define RACE_OTHER	(TEST_IOVA + SZ_1G)

/* The device writes into so many of them. */
#define RACE_WRITTEN	500

struct racing {
	struct env env;
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
	struct env *e = &s->env;
	const char *skip = env_setup(e);

	if (skip)
		SKIP(return, "%s", skip);

	/* An odd page: small leaves */
	s->region.iova = TEST_IOVA + 13 * e->log.pgsize;
	s->region.size = RACE_PAGES * e->log.pgsize;
	s->region.vaddr = dirty_log_memory(s->region.size);
	s->other = alloc_memory(256 * e->log.pgsize, 0);
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
	env_teardown(&s->env);
}

struct racer {
	struct racing *s;
	const char *name;
	void (*step)(struct racer *r);
	pthread_t thread;
	unsigned int seed;
	u64 steps, good, errors;

	/* Leave the log of the pages at TEST_IOVA as it is. */
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

	dma_write(&s->env, s->region.iova + race_rnd(r, RACE_WRITTEN) * s->env.log.pgsize);
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
	static const u32 flags[] = { FLAG_GET, FLAG_NOCLEAR, FLAG_CLEAR };
	u8 bitmap[DIRTY_LOG_BITMAP_BYTES(1024)];
	struct env *e = &r->s->env;
	iova_t iova = race_rnd(r, 2) ? TEST_IOVA : RACE_OTHER;
	u64 first = race_rnd(r, 400);
	u64 size = (1 + race_rnd(r, 1024)) * e->log.pgsize;
	u32 flag = flags[race_rnd(r, 3)];

	if (r->spare && flag != FLAG_NOCLEAR)
		iova = RACE_OTHER;

	memset(bitmap, race_rnd(r, 256), sizeof(bitmap));

	switch (flag) {
	case FLAG_GET:
		race_allow(r, __iommu_dirty_log_get(e->iommu, iova, 1024 * e->log.pgsize, bitmap));
		break;
	case FLAG_NOCLEAR:
		iova += first * e->log.pgsize;
		race_allow(r, __iommu_dirty_log_get_noclear(e->iommu, iova, size, bitmap));
		break;
	case FLAG_CLEAR:
		iova += first * e->log.pgsize;
		race_allow(r, __iommu_dirty_log_clear(e->iommu, iova, size, bitmap));
		break;
	}
}

/* Raw ioctls: libvfio's list of regions is not for more than one thread. */
static void race_map(struct racer *r)
{
	u8 data[DIRTY_LOG_BITMAP_BYTES(1024)];
	struct env *e = &r->s->env;
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (u64)r->s->other,
		.iova = RACE_OTHER + race_rnd(r, 700) * e->log.pgsize,
		.size = (1 + race_rnd(r, 256)) * e->log.pgsize,
	};
	struct vfio_bitmap bitmap = {
		.pgsize = e->log.pgsize,
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
		race_allow(r, __iommu_unmap_ioctl(e->iommu, 0, RACE_OTHER, 1024 * e->log.pgsize,
						  NULL, NULL));
	else
		race_allow(r, __iommu_unmap_ioctl(e->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
						  RACE_OTHER, 1024 * e->log.pgsize, &bitmap, NULL));
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
			.iova = TEST_IOVA,
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
		args.dirty.flags = i % 2 ? FLAG_NOCLEAR : FLAG_CLEAR;
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
		.iova = TEST_IOVA,
		.size = 256 * s->env.log.pgsize,
	};
	struct vfio_iommu_type1_dirty_bitmap start = {
		.argsz = sizeof(start),
		.flags = FLAG_START,
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
	struct env *e = &s->env;
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
			dma_write(e, s->region.iova + page * e->log.pgsize);
			ASSERT_TRUE(race_dirty(s, page));
			ASSERT_EQ(e->log.hw ? 1 : RACE_PAGES, race_count(s));

			memset(mask, 0, sizeof(mask));
			bit_set(mask, page);
			iommu_dirty_log_clear(e->iommu, s->region.iova, s->region.size, mask);
			ASSERT_EQ(e->log.hw ? 0 : RACE_PAGES, race_count(s));
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
	u64 pgsize = s->env.log.pgsize, chunk, page, n;

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

	m.copy = alloc_memory(s->region.size, 0);
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
	if (s->env.log.hw)
		EXPECT_EQ(0, m.unwritten);
}

/* ---- Large ---- */

#define LARGE_PIECE	(32UL * SZ_1M)

FIXTURE(large) {
	struct env env;
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
	const char *skip = env_setup(&self->env);

	if (skip)
		SKIP(return, "%s", skip);
}

FIXTURE_TEARDOWN(large)
{
	env_teardown(&self->env);
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
	struct env *e = &self->env;
	u64 leaf = variant->large_leaves ? SZ_2M / SZ_4K : 1;
	u64 base = TEST_IOVA + (variant->large_leaves ? 0 : SZ_4K);
	u64 npages = size / SZ_4K;
	u64 bytes = DIRTY_LOG_BITMAP_BYTES(npages);
	const u64 pages[] = { 0, 511, 512, npages / 3, npages - 1 };
	u64 nr_leaves = variant->large_leaves ? 4 : 5;
	/* Some IOMMUs find leaves of 4 MiB and more in memory of 2 MiB pages. */
	bool exact = !variant->large_leaves || !(e->log.iova_pgsizes & (SZ_1G - SZ_4M));
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

	if (e->log.pgsize != SZ_4K || !(e->log.iova_pgsizes & SZ_2M))
		SKIP(return, "the IOMMU does not map pages of 4 KiB and of 2 MiB");

	memory = alloc_memory(LARGE_PIECE, MAP_HUGETLB | MAP_HUGE_2MB);
	if (memory == MAP_FAILED)
		SKIP(return, "needs %lu free pages of 2 MiB", LARGE_PIECE / SZ_2M);

	bitmap = alloc_memory(bytes, 0);
	mask = alloc_memory(bytes, 0);
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
	EXPECT_LE(e->log.hw ? nr_leaves * leaf : npages, sum);
	if (exact)
		EXPECT_GE(e->log.hw ? nr_leaves * leaf : npages, sum);

	/* All but the last page: it stays dirty, others of its leaf do not. */
	memset(mask, 0xff, bytes);
	mask[bytes - 1] = 0x7f;
	t = now();
	iommu_dirty_log_clear(e->iommu, base, size, mask);
	TH_LOG("CLEAR: %.2f s", now() - t);

	dma_write(e, base + pages[3] * SZ_4K);
	memset(bitmap, 0, bytes);
	t = now();
	iommu_dirty_log_get(e->iommu, base, size, bitmap);
	TH_LOG("GET: %.2f s", now() - t);

	EXPECT_TRUE(bit_get(bitmap, pages[3]));
	EXPECT_TRUE(bit_get(bitmap, pages[4]));
	sum = count_words(bitmap, bytes);
	EXPECT_LE(e->log.hw ? leaf + 1 : npages, sum);
	if (exact)
		EXPECT_GE(e->log.hw ? leaf + 1 : npages, sum);

	t = now();
	ASSERT_EQ(0, __iommu_unmap_ioctl(e->iommu, 0, base, size, NULL, &unmapped));
	TH_LOG("UNMAP: %.2f s", now() - t);
	EXPECT_EQ(size, unmapped);
}

int main(int argc, char *argv[])
{
	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	return test_harness_run(argc, argv);
}
