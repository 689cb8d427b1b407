// SPDX-License-Identifier: GPL-2.0-only
/*
 * Make each allocation and each access to user memory of each call on the dirty
 * log of a type1 container fail in turn. A call that fails has the right error,
 * and no page is forgotten. A call that has a fallback must have used it.
 *
 * Needs CONFIG_FAULT_INJECTION_DEBUG_FS with failslab, page_alloc and usercopy.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

/* Timeout in seconds, for a thousand failures on an emulated machine */
#define TIMEOUT		600

/*
 * Mappings further apart than the kernel copies of a bitmap at once, so that one
 * call has many steps which can fail.
 */
#define MAPPINGS	130
#define PAGES		5
#define STRIDE		4200
#define RANGE		(MAPPINGS * STRIDE)

static char **bdfs;
static int nr_bdfs;

FIXTURE(vfio_dirty_log_fail_nth) {
	struct dirty_log log;
	struct dirty_log_mapping *m[MAPPINGS];
	struct vfio_iommu_type1_dirty_bitmap_get range;
	struct dma_region region;
	u8 *bits;
	int fd, group;
	unsigned int nth, injected, absorbed, writes;
	/* There was nothing left to fail */
	bool done;
};

#define Fixture FIXTURE_DATA(vfio_dirty_log_fail_nth)

/* So that fail-nth counts everything, and does not print a trace each time */
static bool fault_injection_setup(void)
{
	static const char * const zero[] = {
		"failslab/ignore-gfp-wait", "failslab/verbose",
		"fail_page_alloc/ignore-gfp-wait", "fail_page_alloc/verbose",
		"fail_page_alloc/min-order", "fail_page_alloc/ignore-gfp-highmem",
		"fail_usercopy/probability", "fail_usercopy/verbose",
	};
	char path[80];
	int i, fd;

	for (i = 0; i < ARRAY_SIZE(zero); i++) {
		snprintf_assert(path, sizeof(path), "/sys/kernel/debug/%s", zero[i]);
		fd = open(path, O_WRONLY);
		if (fd < 0)
			return false;
		VFIO_ASSERT_EQ(write(fd, "0", 1), 1);
		close(fd);
	}

	return true;
}

/* Let the @n-th step that can fail in this thread fail, from now on. */
static void arm(int fd, unsigned int n)
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
static bool disarm(int fd)
{
	char buf[16] = {};
	ssize_t ret;

	ret = pread(fd, buf, sizeof(buf) - 1, 0);
	VFIO_ASSERT_TRUE(ret > 0 || errno == EFAULT);
	arm(fd, 0);

	return ret > 0 && atoi(buf) == 0;
}

FIXTURE_SETUP(vfio_dirty_log_fail_nth)
{
	struct dirty_log *log = &self->log;
	const char *skip;
	u64 size, pgsize;
	void *vaddr;
	int i;

	self->group = -1;
	self->fd = open("/proc/thread-self/fail-nth", O_RDWR);
	if (self->fd < 0 || !fault_injection_setup())
		SKIP(return, "needs CONFIG_FAULT_INJECTION_DEBUG_FS, failslab, page_alloc, usercopy");

	skip = dirty_log_setup(log, bdfs[0]);
	if (skip)
		SKIP(return, "%s", skip);

	pgsize = log->info.pgsize;
	size = PAGES * pgsize;
	vaddr = dirty_log_alloc(size, 0);
	for (i = 0; i < MAPPINGS; i++) {
		/* At bits of all kinds */
		iova_t iova = DIRTY_LOG_IOVA + (i * STRIDE + i % 33 * 2 + 1) * pgsize;

		self->m[i] = dirty_log_map(log, vaddr, iova, size, pgsize);
	}

	/* Touch it, so that no page fault of the test's own memory fails */
	self->bits = dirty_log_alloc(DIRTY_LOG_BITMAP_BYTES(RANGE), MAP_POPULATE);
	ASSERT_NE(MAP_FAILED, self->bits);
	self->range.iova = DIRTY_LOG_IOVA;
	self->range.size = RANGE * pgsize;
	self->range.bitmap.pgsize = pgsize;
	self->range.bitmap.size = DIRTY_LOG_BITMAP_BYTES(RANGE);
	self->range.bitmap.data = (__u64 *)self->bits;
}

FIXTURE_TEARDOWN(vfio_dirty_log_fail_nth)
{
	if (self->group >= 0)
		close(self->group);
	dirty_log_teardown(&self->log);
}

/* Another page becomes dirty, one that no call has read from the IOMMU yet. */
static void write_next(Fixture *self)
{
	unsigned int n = self->writes++;

	dirty_log_write(&self->log, self->m[n * 7 % MAPPINGS], n % PAGES);
}

/* Only this system call: everything in it that can fail is counted. */
static int call_bitmap(Fixture *self, u32 flag)
{
	return __iommu_dirty_log_ioctl(self->log.iommu, sizeof(self->range) +
				       sizeof(struct vfio_iommu_type1_dirty_bitmap),
				       flag, flag == DIRTY_LOG_START ? NULL : &self->range);
}

static int call_unmap(Fixture *self, u32 unused)
{
	return __iommu_unmap_ioctl(self->log.iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
				   self->range.iova, self->range.size, &self->range.bitmap, NULL);
}

static int call_map(Fixture *self, u32 unused)
{
	return __iommu_map(self->log.iommu, &self->region);
}

static int call_attach(Fixture *self, u32 unused)
{
	return ioctl(self->group, VFIO_GROUP_SET_CONTAINER, &self->log.iommu->container_fd) ?
	       -errno : 0;
}

/* Make the call with its next step failing. */
static int next(struct __test_metadata *_metadata, Fixture *self,
		int (*call)(Fixture *self, u32 flag), u32 flag)
{
	int ret;

	write_next(self);
	memset(self->bits, flag == DIRTY_LOG_CLEAR ? 0xff : 0, DIRTY_LOG_BITMAP_BYTES(RANGE));

	arm(self->fd, ++self->nth);
	ret = call(self, flag);
	self->done = !disarm(self->fd);
	self->injected += !self->done;
	self->absorbed += !self->done && !ret;

	/* IOMMU drivers have errors of their own for attaching a group. */
	EXPECT_TRUE(!ret || ret == -ENOMEM || ret == -EFAULT || call == call_attach) {
		TH_LOG("failure %u: %d", self->nth, ret);
	}
	EXPECT_FALSE(ret && self->done) {
		TH_LOG("%d without a reason", ret);
	}

	return ret;
}

/* Check what the call has read or, if NULL, what the next successful call reads. */
static void check(struct __test_metadata *_metadata, Fixture *self, const u8 *bits)
{
	const char *error;

	if (!bits) {
		memset(self->bits, 0, DIRTY_LOG_BITMAP_BYTES(RANGE));
		ASSERT_EQ(0, call_bitmap(self, DIRTY_LOG_NOCLEAR));
	}

	error = dirty_log_model_compare(&self->log, DIRTY_LOG_IOVA, RANGE, self->bits, 0);
	ASSERT_EQ(NULL, error) {
		TH_LOG("failure %u: %s", self->nth, error);
	}
}

/* At least this many steps of the call can fail. */
static void finish(struct __test_metadata *_metadata, Fixture *self, unsigned int least)
{
	TH_LOG("one by one, %u failures injected, %u of them without effect",
	       self->injected, self->absorbed);
	EXPECT_LE(least, self->injected - self->absorbed);
}

/* Catches a START that leaves the log half started. */
TEST_F_TIMEOUT(vfio_dirty_log_fail_nth, start, TIMEOUT)
{
	while (!self->done) {
		if (next(_metadata, self, call_bitmap, DIRTY_LOG_START)) {
			ASSERT_EQ(-EINVAL, call_bitmap(self, DIRTY_LOG_NOCLEAR));
			continue;
		}

		dirty_log_model_start(&self->log);
		check(_metadata, self, NULL);
		write_next(self);
		check(_metadata, self, NULL);
		dirty_log_stop(&self->log);
	}

	finish(_metadata, self, MAPPINGS);
}

static void each_bitmap(struct __test_metadata *_metadata, Fixture *self, u32 flag)
{
	int ret;

	dirty_log_start(&self->log);

	while (!self->done) {
		ret = next(_metadata, self, call_bitmap, flag);

		if (ret && flag == DIRTY_LOG_CLEAR)
			dirty_log_model_error(&self->log);
		else if (!ret && flag != DIRTY_LOG_CLEAR)
			check(_metadata, self, self->bits);
		if (!ret && flag != DIRTY_LOG_NOCLEAR)
			dirty_log_model_clear(&self->log, DIRTY_LOG_IOVA, RANGE, NULL);
		check(_metadata, self, NULL);
	}

	/* The user's bits of each mapping */
	finish(_metadata, self, MAPPINGS);
}

/* Catches a GET that clears what it could not report. */
TEST_F_TIMEOUT(vfio_dirty_log_fail_nth, get, TIMEOUT)
{
	each_bitmap(_metadata, self, DIRTY_LOG_GET);
}

TEST_F_TIMEOUT(vfio_dirty_log_fail_nth, noclear, TIMEOUT)
{
	each_bitmap(_metadata, self, DIRTY_LOG_NOCLEAR);
}

/* Catches a CLEAR that fails after it cleared some of the pages. */
TEST_F_TIMEOUT(vfio_dirty_log_fail_nth, clear, TIMEOUT)
{
	each_bitmap(_metadata, self, DIRTY_LOG_CLEAR);
}

/* The new mapping is there as a whole, with a log, or not at all. */
TEST_F_TIMEOUT(vfio_dirty_log_fail_nth, map, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	const u64 npages = 600, pgsize = log->info.pgsize;
	struct dma_region *region = &self->region;
	u64 bits[10], unmapped;

	dirty_log_start(log);

	region->size = npages * pgsize;
	region->vaddr = dirty_log_alloc(region->size, MAP_POPULATE);

	while (!self->done) {
		/* Somewhere else each time: the tables for it are not there yet */
		region->iova = DIRTY_LOG_IOVA + (self->nth % 400 + 100) * (u64)SZ_1G +
			       SZ_1G / 2 - 7 * pgsize;

		if (next(_metadata, self, call_map, 0)) {
			ASSERT_EQ(0, __iommu_unmap_ioctl(log->iommu, 0, region->iova, region->size,
							 NULL, &unmapped));
			ASSERT_EQ(0, unmapped);
		} else {
			/* It logs. */
			iommu_dirty_log_get(log->iommu, region->iova, region->size, bits);
			ASSERT_TRUE(bit_get(bits, npages - 1));
			ASSERT_EQ(0, vfio_pci_driver_memcpy(log->device, log->src->dma.iova,
							    region->iova, DIRTY_LOG_DMA_SIZE));
			iommu_dirty_log_get(log->iommu, region->iova, region->size, bits);
			ASSERT_TRUE(bit_get(bits, 0));
			ASSERT_NE(log->info.hw, bit_get(bits, npages - 1));
			iommu_unmap(log->iommu, region);
		}
		check(_metadata, self, NULL);
	}

	/* The argument, the mapping, its bitmap, a page table */
	finish(_metadata, self, 4);
}

/* Catches an UNMAP that fails with a part unmapped, its dirty pages gone. */
TEST_F_TIMEOUT(vfio_dirty_log_fail_nth, unmap, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	int i;

	dirty_log_start(log);

	while (!self->done) {
		if (!next(_metadata, self, call_unmap, 0)) {
			check(_metadata, self, self->bits);
			for (i = 0; i < MAPPINGS; i++) {
				list_del_init(&self->m[i]->dma.link);
				dirty_log_model_forget(self->m[i]);
				dirty_log_map_again(log, self->m[i]);
			}
			dirty_log_clear(log, DIRTY_LOG_IOVA, RANGE, NULL);
		}

		/* Also that all of it is still mapped */
		check(_metadata, self, NULL);
		for (i = 0; i < 9; i++)
			write_next(self);
	}

	finish(_metadata, self, MAPPINGS);
}

/* Catches a group that corrupts the log when it cannot be attached. */
TEST_F_TIMEOUT(vfio_dirty_log_fail_nth, attach, TIMEOUT)
{
	struct iommu_dirty_log_info info;

	if (nr_bdfs < 2 || sysfs_iommu_group_get(bdfs[0]) == sysfs_iommu_group_get(bdfs[1]))
		SKIP(return, "needs a second device, in a group of its own");

	self->group = vfio_group_open(bdfs[1]);
	dirty_log_start(&self->log);

	while (!self->done) {
		if (!next(_metadata, self, call_attach, 0)) {
			iommu_dirty_log_info(self->log.iommu, &info);
			ASSERT_EQ(self->log.info.hw, info.hw);
			dirty_log_model_attach(&self->log);
			check(_metadata, self, NULL);
			write_next(self);
			ASSERT_EQ(0, ioctl(self->group, VFIO_GROUP_UNSET_CONTAINER));
		}
		check(_metadata, self, NULL);
	}

	/* The container's group, its domain, the domain's page table */
	finish(_metadata, self, 3);
}

int main(int argc, char *argv[])
{
	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	return test_harness_run(argc, argv);
}
