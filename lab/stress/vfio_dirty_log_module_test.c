// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dirty log where no machine can show it: with a device that has no IOMMU
 * (test_vfio_emulated), and with IOMMUs that log, do not log, and fail on demand
 * (test_vfio_iommu), mixed in one container, also with a real device. The modules
 * are loaded from test_modules/.
 */
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/limits.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "modules/test_vfio_emulated.h"
#include "modules/test_vfio_iommu.h"
#include "kselftest_harness.h"

/* Seconds, for a test on an emulated machine and a kernel full of checks */
#define TIMEOUT		240

static char **bdfs;
static int nr_bdfs;

enum {
	MOCK_A,
	MOCK_B,
	MOCK_LARGE = TEST_VFIO_IOMMU_LARGE,
	MOCK_INCAPABLE = TEST_VFIO_IOMMU_NR_CAPABLE,
	MOCK_INCAPABLE_TOO,
};

#define MOCK_SYSFS	"/sys/bus/platform/devices/" TEST_VFIO_IOMMU ".%d/%s"

struct mock {
	int id;
	int group_fd, fd;
};

static int mock_attach(struct dirty_log *e, struct mock *mock);
static void mock_detach(struct mock *mock);

/* ---- A device without an IOMMU in the same container ---- */

FIXTURE(vfio_dirty_log_emulated) {
	struct dirty_log log;
	struct dirty_log_mapping *m;
	int group_fd, fd;
};

static int emulated_group(const char *name)
{
	char link[PATH_MAX] = {}, path[PATH_MAX];
	int fd;

	snprintf_assert(path, sizeof(path), "/sys/devices/faux/%s/iommu_group", name);
	if (readlink(path, link, sizeof(link) - 1) < 0)
		return -1;

	snprintf_assert(path, sizeof(path), "/dev/vfio/%s", basename(link));
	fd = open(path, O_RDWR);
	VFIO_ASSERT_GE(fd, 0);

	return fd;
}

static int emulated_attach(struct dirty_log *e, int group_fd, const char *name)
{
	int fd;

	VFIO_ASSERT_EQ(0, ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &e->iommu->container_fd));
	fd = ioctl(group_fd, VFIO_GROUP_GET_DEVICE_FD, name);
	VFIO_ASSERT_GE(fd, 0);

	return fd;
}

FIXTURE_SETUP(vfio_dirty_log_emulated)
{
	struct dirty_log *e = &self->log;
	const char *skip;

	self->group_fd = emulated_group(TEST_VFIO_EMULATED);
	if (self->group_fd < 0)
		SKIP(return, "the module " TEST_VFIO_EMULATED " is not there: make KDIR=...");

	skip = dirty_log_setup(e, bdfs[0]);
	if (skip)
		SKIP(return, "%s", skip);

	self->fd = emulated_attach(e, self->group_fd, TEST_VFIO_EMULATED);

	self->m = dirty_log_map_pages(e, DIRTY_LOG_IOVA, 70);
}

FIXTURE_TEARDOWN(vfio_dirty_log_emulated)
{
	close(self->fd);
	close(self->group_fd);
	dirty_log_teardown(&self->log);
}

static void emulated_call(struct dirty_log *e, int fd, unsigned long cmd, struct dirty_log_mapping *m,
			  u64 offset, u64 size)
{
	struct test_vfio_emulated_range range = {
		.iova = m->dma.iova + offset,
		.size = size,
	};
	u64 page;

	VFIO_ASSERT_EQ(0, ioctl(fd, cmd, &range));

	for (page = offset / e->info.pgsize; page <= (offset + size - 1) / e->info.pgsize; page++) {
		if (cmd == TEST_VFIO_EMULATED_PIN)
			m->pinned[page] = 1;
		if (cmd == TEST_VFIO_EMULATED_UNPIN)
			m->pinned[page] = 0;
		else if (e->tracking)
			m->state[page] = PAGE_DIRTY;
	}
}

/*
 * Catches a CLEAR or GET that makes pinned pages clean, and pages that the CPU
 * wrote getting lost beside those that DMA wrote.
 */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, pins_and_writes, TIMEOUT)
{
	struct dirty_log *e = &self->log;
	struct dirty_log_mapping *m = self->m;
	u64 pgsize = e->info.pgsize;
	int round;

	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 3 * pgsize, pgsize);

	for (round = 0; round < 2; round++) {
		/* What is pinned is dirty from START on, what was written before is not. */
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 10, 20);
		dirty_log_start(e);
		dirty_log_check_all(e);

		emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 63 * pgsize, 2 * pgsize);
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 6 * pgsize - 1, 2);
		dirty_log_write(e, m, 5);
		dirty_log_write(e, m, 7);
		dirty_log_check_all(e);

		dirty_log_clear(e, dirty_log_iova(e, m, 3), 61, NULL);
		dirty_log_check_all(e);
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 7 * pgsize, 3 * pgsize);
		dirty_log_check(e, DIRTY_LOG_GET, m->dma.iova, m->npages);
		dirty_log_check_all(e);

		/* Dirty as it is; clean when it is cleared next, not before. */
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_UNPIN, m, 63 * pgsize, 2 * pgsize);
		dirty_log_check_all(e);
		dirty_log_clear(e, dirty_log_iova(e, m, 63), 1, NULL);
		dirty_log_check_all(e);
		dirty_log_check(e, DIRTY_LOG_GET, m->dma.iova, m->npages);
		dirty_log_check_all(e);

		dirty_log_stop(e);
	}
}

/*
 * A write fails at a page that it may not write to, but has changed the page
 * before. Catches that page being forgotten because of the error.
 */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, write_in_part, TIMEOUT)
{
	struct dirty_log *e = &self->log;
	struct dirty_log_mapping *m = self->m;
	u64 pgsize = e->info.pgsize;
	u8 *page7 = m->dma.vaddr + 7 * pgsize;
	struct test_vfio_emulated_range range = {
		.iova = dirty_log_iova(e, m, 7),
		.size = 2 * pgsize,
	};

	memset(page7, 0xff, 2 * pgsize);
	dirty_log_start(e);

	ASSERT_EQ(0, mprotect(page7 + pgsize, pgsize, PROT_READ));
	ASSERT_EQ(-1, ioctl(self->fd, TEST_VFIO_EMULATED_WRITE, &range));
	ASSERT_EQ(EFAULT, errno);
	ASSERT_EQ(0, mprotect(page7 + pgsize, pgsize, PROT_READ | PROT_WRITE));

	/* The module writes zeros */
	ASSERT_EQ(0, page7[0]);
	m->state[7] = PAGE_DIRTY;
	if (e->info.hw)
		m->state[8] = PAGE_EITHER;
	dirty_log_check_all(e);

	dirty_log_check(e, DIRTY_LOG_GET, m->dma.iova, m->npages);
	dirty_log_check_all(e);
	dirty_log_stop(e);
}

/*
 * A pinned page is one page, wherever in it the address is: the one that is
 * dirty, also the last one of a mapping, and none where nothing is mapped.
 */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, pin_unaligned, TIMEOUT)
{
	struct dirty_log *e = &self->log;
	struct dirty_log_mapping *m = self->m;
	u64 pgsize = e->info.pgsize;
	struct test_vfio_emulated_range below = {
		.iova = m->dma.iova - 8,
		.size = 8,
	};

	ASSERT_EQ(-1, ioctl(self->fd, TEST_VFIO_EMULATED_PIN, &below));
	EXPECT_EQ(EINVAL, errno);

	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 4 * pgsize - 1, 1);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 70 * pgsize - 8, 8);
	dirty_log_start(e);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 9 * pgsize + 8, 8);
	dirty_log_check_all(e);
	dirty_log_clear(e, m->dma.iova, m->npages, NULL);
	dirty_log_check_all(e);

	emulated_call(e, self->fd, TEST_VFIO_EMULATED_UNPIN, m, 9 * pgsize + 8, 8);
	dirty_log_clear(e, m->dma.iova, m->npages, NULL);
	dirty_log_check_all(e);
	dirty_log_stop(e);
}

/* The device is told to unpin amid the unmap. Its pages are dirty all the same. */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, unmap_pinned, TIMEOUT)
{
	struct dirty_log *e = &self->log;
	struct dirty_log_mapping *m = self->m;
	u8 got[16] = {};
	u64 pgsize = e->info.pgsize;

	dirty_log_start(e);
	dirty_log_write(e, m, 1);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 3 * pgsize, 2 * pgsize);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 69 * pgsize, 1);

	ASSERT_EQ(0, __iommu_unmap_get_dirty(e->iommu, &m->dma, got, NULL));
	EXPECT_EQ(NULL, dirty_log_model_compare(e, m->dma.iova, m->npages, got, 0));

	dirty_log_model_forget(m);
	memset(m->pinned, 0, m->npages);
	dirty_log_map_again(e, m);
	dirty_log_check_all(e);
}

/*
 * The driver does not unpin. UNMAP is refused, whatever else is in its range, and
 * neither a mapping nor a page of the log goes.
 */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, unmap_refused, TIMEOUT)
{
	struct test_vfio_emulated_range on = { .size = 1 }, off = {};
	struct dirty_log *e = &self->log;
	struct dirty_log_mapping *m = self->m, *below;
	u64 pgsize = e->info.pgsize, size, unmapped;
	u64 data[2] = { ~0UL, ~0UL };
	struct vfio_bitmap bitmap = {
		.pgsize = pgsize,
		.size = sizeof(data),
		.data = (void *)data,
	};
	int i;

	below = dirty_log_map_pages(e, DIRTY_LOG_IOVA - 3 * pgsize, 3);
	size = below->dma.size + m->dma.size;

	dirty_log_start(e);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 3 * pgsize, pgsize);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 69 * pgsize, 1);
	ASSERT_EQ(0, ioctl(self->fd, TEST_VFIO_EMULATED_KEEP, &on));

	for (i = 0; i < 2; i++) {
		dirty_log_write(e, below, 1 + i);
		dirty_log_write(e, m, 5 + i);

		EXPECT_EQ(-EBUSY, __iommu_unmap_ioctl(e->iommu, 0, below->dma.iova, size, NULL, NULL));
		EXPECT_EQ(-EBUSY, __iommu_unmap_ioctl(e->iommu, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0, NULL, NULL));
		EXPECT_EQ(-EBUSY, __iommu_unmap_ioctl(e->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
						      below->dma.iova, size, &bitmap, NULL));
		dirty_log_check_all(e);
	}

	ASSERT_EQ(0, ioctl(self->fd, TEST_VFIO_EMULATED_KEEP, &off));
	ASSERT_EQ(0, __iommu_unmap_ioctl(e->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
					 below->dma.iova, size, &bitmap, &unmapped));
	EXPECT_EQ(size, unmapped);
	EXPECT_EQ(NULL, dirty_log_model_compare(e, below->dma.iova, 73, data, 0xff));
	list_del_init(&below->dma.link);
	list_del_init(&m->dma.link);
}

struct unmap_race {
	struct dirty_log *e;
	int group_fd;
	struct vfio_iommu_type1_dma_map map;
	pthread_t thread;
	u64 pinned, errors;
	bool over;
};

/* The last device that was opened is the first one that has to unpin. */
static void *unmap_race_pin(void *arg)
{
	struct unmap_race *r = arg;
	struct test_vfio_emulated_range pin = {
		.iova = r->map.iova,
		.size = r->map.size,
	};
	int fd;

	while (!READ_ONCE(r->over)) {
		fd = ioctl(r->group_fd, VFIO_GROUP_GET_DEVICE_FD, TEST_VFIO_EMULATED_TOO);
		VFIO_ASSERT_GE(fd, 0);
		if (ioctl(r->e->iommu->container_fd, VFIO_IOMMU_MAP_DMA, &r->map))
			r->errors += errno != EEXIST;
		if (!ioctl(fd, TEST_VFIO_EMULATED_PIN, &pin))
			WRITE_ONCE(r->pinned, r->pinned + 1);
		if (__iommu_unmap_ioctl(r->e->iommu, 0, pin.iova, pin.size, NULL, NULL))
			r->errors++;
		close(fd);
	}

	return NULL;
}

static void *unmap_race_unmap(void *arg)
{
	struct unmap_race *r = arg;
	u64 data[1];
	struct vfio_bitmap bitmap = {
		.pgsize = r->map.size / 4,
		.size = sizeof(data),
		.data = (void *)data,
	};

	while (!READ_ONCE(r->over)) {
		if (__iommu_unmap_ioctl(r->e->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
					r->map.iova, r->map.size, &bitmap, NULL))
			r->errors++;
		usleep(1000);
	}

	return NULL;
}

/*
 * UNMAP lets go of its locks for the drivers to unpin. Others unmap the same then, and
 * a device and a group come and go. Catches locks taken in the wrong order, as a
 * standstill, and a mapping used after it is gone, by the module if the kernel runs
 * with slab_debug=P.
 */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, unmap_races, TIMEOUT)
{
	struct dirty_log *e = &self->log;
	struct mock mock = { .id = MOCK_B };
	struct unmap_race races[2];
	time_t end = time(NULL) + 3;
	int group_fd, i, n, opened;

	group_fd = emulated_group(TEST_VFIO_EMULATED_TOO);
	ASSERT_GE(group_fd, 0);
	ASSERT_EQ(0, ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &e->iommu->container_fd));
	dirty_log_start(e);

	for (i = 0; i < 2; i++) {
		races[i] = (struct unmap_race) {
			.e = e,
			.group_fd = group_fd,
			.map = {
				.argsz = sizeof(races[i].map),
				.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
				.vaddr = (u64)self->m->dma.vaddr,
				.iova = DIRTY_LOG_IOVA + SZ_1G,
				.size = 4 * e->info.pgsize,
			},
		};
		ASSERT_EQ(0, pthread_create(&races[i].thread, NULL,
					    i ? unmap_race_unmap : unmap_race_pin, &races[i]));
	}

	for (n = 0; n < 10 || time(NULL) < end; n++) {
		ASSERT_EQ(0, mock_attach(e, &mock));
		dirty_log_write(e, self->m, n % 70);

		/* At any moment of the others' UNMAP, which an attach has to wait for */
		for (opened = 0; opened < 10; opened++) {
			close(self->fd);
			usleep(opened * 300);
			self->fd = ioctl(self->group_fd, VFIO_GROUP_GET_DEVICE_FD,
					 TEST_VFIO_EMULATED);
			ASSERT_GE(self->fd, 0);
		}
		mock_detach(&mock);
	}

	for (i = 0; i < 2; i++) {
		WRITE_ONCE(races[i].over, true);
		ASSERT_EQ(0, pthread_join(races[i].thread, NULL));
		EXPECT_EQ(0, races[i].errors);
	}
	EXPECT_LT(10, races[0].pinned);
	TH_LOG("%d times attached, %lu times pinned", n, races[0].pinned);
	close(group_fd);

	dirty_log_check_all(e);
	dirty_log_clear(e, self->m->dma.iova, self->m->npages, NULL);
	dirty_log_check_all(e);
}

/*
 * The IOMMU's domain goes with its last device, the container stays because of
 * the other one. Catches the domain's dirty pages going with it. With a
 * pessimistic log all pages are dirty once and the log is precise then, for what
 * is left cannot write unseen; until the device comes back.
 */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, last_of_domain, TIMEOUT)
{
	struct dirty_log *e = &self->log;
	struct dirty_log_mapping *m = self->m;
	bool hw = e->info.hw;
	int round;

	dirty_log_start(e);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 0, 1);

	for (round = 0; round < 2; round++) {
		dirty_log_write(e, m, 5);
		dirty_log_check_all(e);
		dirty_log_write(e, m, 6);
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 9 * e->info.pgsize, 1);

		vfio_pci_device_cleanup(e->device);
		e->device = NULL;

		iommu_dirty_log_info(e->iommu, &e->info);
		EXPECT_TRUE(e->info.hw);
		dirty_log_check_all(e);
		dirty_log_clear(e, m->dma.iova, 6, NULL);
		dirty_log_check_all(e);
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 3 * e->info.pgsize, 1);
		dirty_log_check_all(e);
		dirty_log_check(e, DIRTY_LOG_GET, m->dma.iova, m->npages);
		dirty_log_check_all(e);

		e->device = vfio_pci_device_init(bdfs[0], e->iommu);
		iommu_dirty_log_info(e->iommu, &e->info);
		EXPECT_EQ(hw, e->info.hw);
		if (!hw)
			dirty_log_model_clear(e, 0, ~0UL, NULL);
		dirty_log_model_attach(e);
		dirty_log_start_driver(e, e->device);
		dirty_log_check_all(e);
	}

	dirty_log_stop(e);
}

/* ---- IOMMUs that no machine has side by side: the module's, and the device's ---- */

FIXTURE(vfio_dirty_log_mock) {
	struct dirty_log log;
	struct mock mocks[TEST_VFIO_IOMMU_NR_DEVICES];
	struct dirty_log_mapping *m, *other;
};

/* Returns what VFIO_GROUP_SET_CONTAINER does, errors as -errno. */
static int mock_attach(struct dirty_log *e, struct mock *mock)
{
	char path[PATH_MAX], link[PATH_MAX] = {};

	snprintf_assert(path, sizeof(path), MOCK_SYSFS, mock->id, "iommu_group");
	VFIO_ASSERT_GT(readlink(path, link, sizeof(link) - 1), 0);

	snprintf_assert(path, sizeof(path), "/dev/vfio/%s", basename(link));
	mock->group_fd = open(path, O_RDWR);
	VFIO_ASSERT_GE(mock->group_fd, 0);

	if (ioctl(mock->group_fd, VFIO_GROUP_SET_CONTAINER, &e->iommu->container_fd)) {
		int ret = -errno;

		close(mock->group_fd);
		mock->group_fd = -1;
		return ret;
	}

	/* The first one has to say what container it is, for others it is too late. */
	ioctl(e->iommu->container_fd, VFIO_SET_IOMMU, e->iommu->mode->iommu_type);

	snprintf_assert(path, sizeof(path), TEST_VFIO_IOMMU ".%d", mock->id);
	mock->fd = ioctl(mock->group_fd, VFIO_GROUP_GET_DEVICE_FD, path);
	VFIO_ASSERT_GE(mock->fd, 0);

	return 0;
}

static void mock_detach(struct mock *mock)
{
	close(mock->fd);
	close(mock->group_fd);
	mock->fd = -1;
	mock->group_fd = -1;
}

static void mock_set(struct mock *mock, const char *attribute, const char *text)
{
	char path[PATH_MAX];
	int fd;

	snprintf_assert(path, sizeof(path), MOCK_SYSFS, mock->id, attribute);
	fd = open(path, O_WRONLY);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

/* A number, or the character - */
static int mock_get(struct mock *mock, const char *attribute)
{
	char path[PATH_MAX], text[16] = {};
	int fd;

	snprintf_assert(path, sizeof(path), MOCK_SYSFS, mock->id, attribute);
	fd = open(path, O_RDONLY);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_GT(read(fd, text, sizeof(text) - 1), 0);
	close(fd);

	return text[0] == '-' ? '-' : atoi(text);
}

/* Let the next "start", "read" or "map" of the device's IOMMU fail with @err. */
static void mock_fail(struct mock *mock, const char *what, int err)
{
	char text[32];

	snprintf_assert(text, sizeof(text), "%s %d", what, err);
	mock_set(mock, "fail", text);
}

static bool mock_tracks(struct mock *mock)
{
	return mock_get(mock, "tracking") == 1;
}

static void mock_write(struct dirty_log *e, struct mock *mock, struct dirty_log_mapping *m, u64 page)
{
	struct test_vfio_iommu_write write = {
		.iova = dirty_log_iova(e, m, page) + 8,
		.size = DIRTY_LOG_DMA_SIZE,
		.value = ++e->seq,
	};
	u8 *data = m->dma.vaddr + page * e->info.pgsize + 8;

	VFIO_ASSERT_EQ(0, ioctl(mock->fd, TEST_VFIO_IOMMU_WRITE, &write));
	VFIO_ASSERT_EQ(write.value, data[0]);
	VFIO_ASSERT_EQ(write.value, data[DIRTY_LOG_DMA_SIZE - 1]);

	dirty_log_model_write(e, m, page);
}

/*
 * What kind of log it is after a group came or went. If it is a pessimistic one,
 * everything is dirty from now on. If it is not any more, everything is dirty
 * still, until it is cleared: that is what the model says already.
 */
static void check_kind(struct dirty_log *e, bool hw)
{
	iommu_dirty_log_info(e->iommu, &e->info);
	VFIO_ASSERT_EQ(hw, e->info.hw);

	/* Clear, as far as a pessimistic log can be */
	if (!hw)
		dirty_log_model_clear(e, 0, ~0UL, NULL);
}

/* There is no log, and MAP and UNMAP do not mind. */
static void check_stopped(struct dirty_log *e)
{
	struct dirty_log_mapping *m = list_first_entry(&e->mappings, struct dirty_log_mapping, link);
	u64 bitmap[4] = {};

	VFIO_ASSERT_EQ(-EINVAL, dirty_log_call(e, DIRTY_LOG_NOCLEAR, m->dma.iova, 1, bitmap));
	VFIO_ASSERT_EQ(-EINVAL, dirty_log_call(e, DIRTY_LOG_CLEAR, m->dma.iova, 1, bitmap));
	VFIO_ASSERT_EQ(-EINVAL, dirty_log_call(e, DIRTY_LOG_GET, m->dma.iova, m->npages, bitmap));

	m = dirty_log_map_pages(e, DIRTY_LOG_IOVA + SZ_1G, 3);
	dirty_log_unmap(e, m);
}

/* Whatever the log was through: it is sound now, for every device given. */
static void check_sound(struct dirty_log *e, struct mock *mock, struct mock *other)
{
	struct dirty_log_mapping *m = list_first_entry(&e->mappings, struct dirty_log_mapping, link);
	int round;

	dirty_log_check_all(e);
	dirty_log_check(e, DIRTY_LOG_GET, m->dma.iova, m->npages);
	dirty_log_check_all(e);

	/* The second round's writes find the IOTLB as the first one left it. */
	for (round = 0; round < 2; round++) {
		mock_write(e, mock, m, 1);
		if (other)
			mock_write(e, other, m, 2);
		if (e->device)
			dirty_log_write(e, m, 3);
		dirty_log_check_all(e);
		dirty_log_clear(e, dirty_log_iova(e, m, 1), 3, NULL);
		dirty_log_check_all(e);
	}

	mock_write(e, mock, m, m->npages - 1);
	dirty_log_check(e, DIRTY_LOG_GET, m->dma.iova, m->npages);
	dirty_log_check_all(e);
}

FIXTURE_SETUP(vfio_dirty_log_mock)
{
	struct dirty_log *e = &self->log;
	int i;

	INIT_LIST_HEAD(&e->mappings);

	if (access("/sys/bus/platform/devices/" TEST_VFIO_IOMMU ".0", F_OK))
		SKIP(return, "the module " TEST_VFIO_IOMMU " is not there: make KDIR=...");

	for (i = 0; i < TEST_VFIO_IOMMU_NR_DEVICES; i++) {
		self->mocks[i] = (struct mock) {
			.id = i,
			.group_fd = -1,
			.fd = -1,
		};

		/* A test before may have ended early. */
		mock_fail(&self->mocks[i], "start", 0);
		mock_fail(&self->mocks[i], "read", 0);
		mock_fail(&self->mocks[i], "map", 0);
		mock_set(&self->mocks[i], "stall", "N");
	}

	e->iommu = iommu_init(MODE_VFIO_TYPE1V2_IOMMU);
	ASSERT_EQ(0, mock_attach(e, &self->mocks[MOCK_A]));

	if (iommu_check_extension(e->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) != 1 &&
	    !getenv("VFIO_DIRTY_LOG_EXPECT"))
		SKIP(return, "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR");

	iommu_dirty_log_info(e->iommu, &e->info);
	ASSERT_TRUE(e->info.hw);

	self->m = dirty_log_map_pages(e, DIRTY_LOG_IOVA, 70);
	self->other = dirty_log_map_pages(e, DIRTY_LOG_IOVA + SZ_2M, 3);

	/* Its IOMMU takes larger pages, but logs the small ones. */
	self->m->max_leaf = 1;
	self->other->max_leaf = 1;
}

FIXTURE_TEARDOWN(vfio_dirty_log_mock)
{
	int i;

	if (self->log.device)
		vfio_pci_device_cleanup(self->log.device);
	for (i = 0; i < TEST_VFIO_IOMMU_NR_DEVICES; i++)
		mock_detach(&self->mocks[i]);
	iommu_cleanup(self->log.iommu);
}

/* Two IOMMUs, two domains: what either logs is reported, and nothing else. */
TEST_F_TIMEOUT(vfio_dirty_log_mock, two_domains, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct dirty_log *e = &self->log;
	int round;

	ASSERT_EQ(0, mock_attach(e, b));
	check_kind(e, true);

	for (round = 0; round < 2; round++) {
		mock_write(e, a, self->m, 9);
		mock_write(e, b, self->m, 10);
		dirty_log_start(e);
		EXPECT_TRUE(mock_tracks(a));
		EXPECT_TRUE(mock_tracks(b));
		dirty_log_check_all(e);

		mock_write(e, a, self->m, 0);
		mock_write(e, b, self->m, 64);
		mock_write(e, b, self->other, 2);
		check_sound(e, a, b);

		dirty_log_stop(e);
		EXPECT_FALSE(mock_tracks(a));
		EXPECT_FALSE(mock_tracks(b));
		check_stopped(e);
	}
}

/* The log is pessimistic from START on, and precise once the cause has left. */
TEST_F_TIMEOUT(vfio_dirty_log_mock, incapable_before_start, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *bad = &self->mocks[MOCK_INCAPABLE];
	struct dirty_log *e = &self->log;

	ASSERT_EQ(0, mock_attach(e, bad));
	check_kind(e, false);

	dirty_log_start(e);
	dirty_log_check_all(e);
	dirty_log_clear(e, self->m->dma.iova, self->m->npages, NULL);
	dirty_log_check_all(e);
	mock_write(e, bad, self->m, 6);
	mock_write(e, a, self->m, 7);
	dirty_log_check(e, DIRTY_LOG_GET, self->m->dma.iova, self->m->npages);

	mock_detach(bad);
	check_kind(e, true);
	check_sound(e, a, NULL);

	/* It left, but nobody has cleared its pages yet. */
	dirty_log_clear(e, self->other->dma.iova, 1, NULL);
	dirty_log_check_all(e);

	dirty_log_stop(e);
	dirty_log_start(e);
	check_sound(e, a, NULL);
}

/*
 * Groups that cannot log come while tracking, and go. Catches a log that says it
 * is precise while they are there, that stays pessimistic with the last one gone
 * or turns precise with the first one, and pages getting lost that were written
 * unseen, or that were cleared while that meant nothing.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, incapable_while_tracking, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *bad = &self->mocks[MOCK_INCAPABLE];
	struct mock *b = &self->mocks[MOCK_B], *bad_too = &self->mocks[MOCK_INCAPABLE_TOO];
	struct dirty_log *e = &self->log;
	int round;

	dirty_log_start(e);

	for (round = 0; round < 3; round++) {
		mock_write(e, a, self->m, 5);
		dirty_log_check_all(e);

		ASSERT_EQ(0, mock_attach(e, bad));
		check_kind(e, false);
		dirty_log_check_all(e);
		EXPECT_TRUE(mock_tracks(a));
		dirty_log_clear(e, self->m->dma.iova, self->m->npages, NULL);
		dirty_log_check_all(e);

		/* One that can log does not help, first or last in the container. */
		if (round == 2) {
			ASSERT_EQ(0, mock_attach(e, b));
			check_kind(e, false);
			dirty_log_check_all(e);
		}

		if (round == 1) {
			ASSERT_EQ(0, mock_attach(e, bad_too));
			mock_detach(bad);
			check_kind(e, false);
			dirty_log_check_all(e);
			mock_write(e, bad_too, self->m, 8);
			dirty_log_clear(e, self->m->dma.iova, self->m->npages, NULL);
			mock_detach(bad_too);
		} else {
			mock_write(e, bad, self->m, 8);
			/* All of it the user took for clean, if it did not ask first. */
			dirty_log_check(e, DIRTY_LOG_GET, self->m->dma.iova, self->m->npages);
			dirty_log_check(e, DIRTY_LOG_GET, self->other->dma.iova, self->other->npages);
			mock_detach(bad);
		}

		check_kind(e, true);
		dirty_log_check_all(e);

		/* Once means: until it is cleared, page by page. */
		dirty_log_clear(e, dirty_log_iova(e, self->m, 2), 5, NULL);
		dirty_log_check_all(e);
		mock_write(e, a, self->m, 3);
		dirty_log_check_all(e);
		dirty_log_check(e, DIRTY_LOG_GET, self->other->dma.iova, self->other->npages);
		check_sound(e, a, round == 2 ? b : NULL);
	}
}

/*
 * START on two domains, of which either fails, at either step. Catches the other
 * one being left to track, the error being swallowed or replaced, and a log that
 * runs half.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, start_fails, TIMEOUT)
{
	static const char * const steps[] = { "start", "read" };
	static const int errors[] = { ENOSPC, EIO };
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct dirty_log *e = &self->log;
	int i;

	ASSERT_EQ(0, mock_attach(e, b));

	for (i = 0; i < 4; i++) {
		mock_write(e, a, self->m, 20);
		mock_write(e, b, self->m, 21);

		mock_fail(i & 1 ? a : b, steps[i / 2], errors[i & 1]);
		ASSERT_EQ(-errors[i & 1], __iommu_dirty_log_start(e->iommu));
		EXPECT_FALSE(mock_tracks(a));
		EXPECT_FALSE(mock_tracks(b));
		check_stopped(e);

		dirty_log_start(e);
		EXPECT_TRUE(mock_tracks(a));
		EXPECT_TRUE(mock_tracks(b));
		check_sound(e, a, b);

		/* It runs, so nothing is started and nothing can fail. */
		mock_fail(a, "start", EIO);
		dirty_log_start(e);
		mock_write(e, b, self->m, 33);
		dirty_log_check_all(e);

		/* Uses the failure up */
		dirty_log_stop(e);
		ASSERT_EQ(-EIO, __iommu_dirty_log_start(e->iommu));
		EXPECT_FALSE(mock_tracks(b));
	}
}

/*
 * An attach while tracking that fails, because its domain cannot be started or
 * the mappings cannot be replayed: it is refused with the IOMMU's error, and for
 * the log it has never been. The second attempt is a good one.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, attach_fails, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct mock *bad = &self->mocks[MOCK_INCAPABLE];
	struct dirty_log *e = &self->log;
	int round;

	dirty_log_start(e);

	for (round = 0; round < 2; round++) {
		mock_write(e, a, self->m, 30);
		dirty_log_check_all(e);

		mock_fail(b, round ? "map" : "start", ENOSPC);
		ASSERT_EQ(-ENOSPC, mock_attach(e, b));
		EXPECT_FALSE(mock_tracks(b));
		EXPECT_TRUE(mock_tracks(a));
		check_kind(e, true);
		dirty_log_check_all(e);
		mock_write(e, a, self->m, 31);
		check_sound(e, a, NULL);

		/* One that could not log and did not come in spoils nothing. */
		mock_write(e, a, self->m, 32);
		mock_fail(bad, "map", EIO);
		ASSERT_EQ(-EIO, mock_attach(e, bad));
		check_kind(e, true);
		check_sound(e, a, NULL);

		mock_write(e, a, self->m, 33);
		ASSERT_EQ(0, mock_attach(e, b));
		EXPECT_TRUE(mock_tracks(b));
		check_kind(e, true);
		mock_write(e, b, self->m, 34);
		dirty_log_check_all(e);
		check_sound(e, a, b);
		mock_detach(b);
		dirty_log_check_all(e);
	}
}

/*
 * A group leaves with dirty pages in its page table. They stay in the log, and if
 * they cannot be read any more, every page is dirty.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, detach_keeps, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct dirty_log *e = &self->log;
	int round;

	dirty_log_start(e);

	for (round = 0; round < 4; round++) {
		ASSERT_EQ(0, mock_attach(e, b));
		mock_write(e, a, self->m, 1);
		mock_write(e, b, self->m, 2);
		mock_write(e, b, self->m, 69);
		mock_write(e, b, self->other, 1);

		/* m, which is at the lower IOVA, is read first. */
		if (round == 2)
			mock_fail(b, "read", EIO);
		mock_detach(b);

		if (round == 2)
			memset(self->m->state, PAGE_DIRTY, self->m->npages);
		check_sound(e, a, NULL);
		dirty_log_check(e, DIRTY_LOG_GET, self->other->dma.iova, self->other->npages);
	}
}

/*
 * The IOMMU fails half way through a read of its log, in every call that reads
 * it: the call fails with that error and no page is lost, though the other mapping
 * could be read.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, read_fails, TIMEOUT)
{
	static const u32 flags[] = { DIRTY_LOG_NOCLEAR, DIRTY_LOG_GET, DIRTY_LOG_CLEAR, 0 };
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct dirty_log *e = &self->log;
	struct dirty_log_mapping *m = self->m;
	u64 size = self->other->dma.iova + self->other->dma.size - m->dma.iova;
	u64 npages = size / e->info.pgsize, bytes = DIRTY_LOG_BITMAP_BYTES(npages);
	struct vfio_bitmap bitmap = {
		.pgsize = e->info.pgsize,
		.size = bytes,
		.data = malloc_assert(bytes),
	};
	int i, ret;

	ASSERT_EQ(0, mock_attach(e, b));
	dirty_log_start(e);

	for (i = 0; i < 2 * ARRAY_SIZE(flags); i++) {
		mock_write(e, a, m, 4);
		mock_write(e, a, m, 68);
		mock_write(e, b, m, 5);
		mock_write(e, b, m, 69);

		mock_fail(i & 1 ? a : b, "read", ENXIO);
		memset(bitmap.data, 0xff, bytes);
		if (flags[i / 2])
			ret = dirty_log_call(e, flags[i / 2], m->dma.iova, npages, bitmap.data);
		else
			ret = __iommu_unmap_ioctl(e->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
						  m->dma.iova, size, &bitmap, NULL);
		ASSERT_EQ(-ENXIO, ret);

		dirty_log_model_error(e);
		dirty_log_check_all(e);
		check_sound(e, a, b);
	}
}

/* The smallest page of some IOMMU is larger than the CPU's: there is no log. */
TEST_F_TIMEOUT(vfio_dirty_log_mock, large_page_size, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *large = &self->mocks[MOCK_LARGE];
	struct dirty_log *e = &self->log;

	/* Its IOMMU could not map these. */
	dirty_log_unmap(e, self->m);
	dirty_log_unmap(e, self->other);

	ASSERT_EQ(0, mock_attach(e, large));
	EXPECT_EQ(-EOPNOTSUPP, __iommu_dirty_log_start(e->iommu));
	EXPECT_EQ(0, iommu_check_extension(e->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR));
	EXPECT_FALSE(mock_tracks(a));
	EXPECT_FALSE(mock_tracks(large));
	mock_detach(large);

	dirty_log_map_again(e, self->m);
	dirty_log_map_again(e, self->other);
	dirty_log_start(e);
	check_sound(e, a, NULL);
}

/* The last page of a 64-bit IOVA space, where the end of a range is 0. */
TEST_F_TIMEOUT(vfio_dirty_log_mock, last_page, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A];
	struct dirty_log *e = &self->log;
	struct dirty_log_mapping *m;
	u8 got[8] = {};
	u64 unmapped;
	int round;

	m = dirty_log_map_pages(e, -2 * e->info.pgsize, 2);
	m->max_leaf = 1;

	for (round = 0; round < 2; round++) {
		dirty_log_start(e);
		mock_write(e, a, m, 1);
		dirty_log_check_all(e);
		dirty_log_clear(e, dirty_log_iova(e, m, 1), 1, NULL);
		dirty_log_check_all(e);
		mock_write(e, a, m, 1);
		dirty_log_check(e, DIRTY_LOG_GET, m->dma.iova, 2);
		dirty_log_check_all(e);
		mock_write(e, a, m, 0);
		mock_write(e, a, m, 1);
		check_sound(e, a, NULL);
		dirty_log_stop(e);
	}

	dirty_log_start(e);
	mock_write(e, a, m, 1);
	ASSERT_EQ(0, __iommu_unmap_get_dirty(e->iommu, &m->dma, got, &unmapped));
	EXPECT_EQ(m->dma.size, unmapped);
	EXPECT_EQ(NULL, dirty_log_model_compare(e, m->dma.iova, 2, got, 0));
}

/* A log is not read for nobody: what goes with nobody asking, an empty mask. */
TEST_F_TIMEOUT(vfio_dirty_log_mock, not_read, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct dirty_log *e = &self->log;
	u64 mask[2] = {};
	int reads;

	ASSERT_EQ(0, mock_attach(e, b));
	dirty_log_start(e);
	mock_write(e, a, self->m, 1);
	mock_write(e, b, self->m, 2);

	/* But for the container that goes on */
	reads = mock_get(b, "reads");
	mock_detach(b);
	EXPECT_LT(reads, mock_get(b, "reads"));

	reads = mock_get(a, "reads");
	dirty_log_clear(e, self->m->dma.iova, self->m->npages, mask);
	dirty_log_unmap(e, self->other);
	EXPECT_EQ(reads, mock_get(a, "reads"));
	dirty_log_check_all(e);

	reads = mock_get(a, "reads");
	mock_detach(a);
	EXPECT_EQ(reads, mock_get(a, "reads"));
}

/* A v1 container cannot log: its domains are what they are where nobody wants a log. */
TEST_F_TIMEOUT(vfio_dirty_log_mock, v1_container, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct dirty_log v1 = { .iommu = iommu_init(MODE_VFIO_TYPE1_IOMMU) };

	ASSERT_EQ(0, mock_attach(&v1, b));
	EXPECT_EQ(0, mock_get(a, "tracking"));
	EXPECT_EQ('-', mock_get(b, "tracking"));
	EXPECT_EQ(-EACCES, __iommu_dirty_log_start(v1.iommu));

	mock_detach(b);
	iommu_cleanup(v1.iommu);
}

/* Until the mock has @n callers waiting */
static void mock_wait(struct mock *mock, int n)
{
	int i;

	for (i = 0; mock_get(mock, "stall") != n; i++) {
		VFIO_ASSERT_LT(i, 5000);
		usleep(1000);
	}
}

/*
 * A task is killed in the middle of a call, and another one goes on with the
 * container. Catches a call that reads all of the log first, and pages getting lost
 * that were read for a user who never saw them.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, killed, TIMEOUT)
{
	static const u32 flags[] = {
		DIRTY_LOG_NOCLEAR, DIRTY_LOG_GET, DIRTY_LOG_CLEAR, DIRTY_LOG_START, 0
	};
	struct mock *a = &self->mocks[MOCK_A];
	struct dirty_log *e = &self->log;
	u64 pgsize = e->info.pgsize, bits[1024] = {};
	struct dirty_log_mapping *across, *far;
	struct vfio_bitmap bitmap = {
		.pgsize = pgsize,
		.size = sizeof(bits),
		.data = (void *)bits,
	};
	int i, reads, status;
	iova_t iova;
	u64 size;
	pid_t pid;

	/* Over the end of a step of the IOMMU layer's, and one of type1's steps away */
	across = dirty_log_map_pages(e, DIRTY_LOG_IOVA + SZ_128M - 9 * pgsize, 70);
	far = dirty_log_map_pages(e, across->dma.iova + SZ_64M, 3);
	across->max_leaf = 1;
	far->max_leaf = 1;
	memset(bits, 0xff, sizeof(bits));

	/* First two mappings, then one that is read in two steps */
	for (i = 0; i < 2 * ARRAY_SIZE(flags); i++) {
		u32 flag = flags[i / 2];

		if (flag != DIRTY_LOG_START)
			dirty_log_start(e);
		mock_write(e, a, across, 8);
		mock_write(e, a, across, 9);
		mock_write(e, a, across, 69);
		mock_write(e, a, far, 1);
		mock_write(e, a, self->m, 3);

		if (i % 2) {
			iova = across->dma.iova;
			size = across->dma.size;
		} else if (flag == DIRTY_LOG_NOCLEAR || flag == DIRTY_LOG_CLEAR) {
			iova = dirty_log_iova(e, across, 10);
			size = far->dma.iova + far->dma.size - iova;
		} else {
			/* No part of a mapping */
			iova = self->m->dma.iova;
			size = self->other->dma.iova + self->other->dma.size - iova;
		}

		reads = mock_get(a, "reads");
		mock_set(a, "stall", "Y");
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			if (flag == DIRTY_LOG_START)
				__iommu_dirty_log_start(e->iommu);
			else if (flag)
				__iommu_dirty_log_bitmap(e->iommu, flag, iova, size, bits);
			else
				__iommu_unmap_ioctl(e->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
						    iova, size, &bitmap, NULL);
			_exit(0);
		}

		mock_wait(a, 1);
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_TRUE(WIFSIGNALED(status));
		EXPECT_EQ(reads + 1, mock_get(a, "reads"));
		mock_set(a, "stall", "N");

		if (flag == DIRTY_LOG_START) {
			check_stopped(e);
			dirty_log_start(e);
		} else {
			dirty_log_model_error(e);
		}
		dirty_log_check_all(e);
		check_sound(e, a, NULL);
		dirty_log_check(e, DIRTY_LOG_GET, across->dma.iova, across->npages);
		mock_write(e, a, across, 8);
		mock_write(e, a, across, 69);
		dirty_log_check_all(e);
		dirty_log_stop(e);
	}
}

struct late {
	struct mock *mock;
	int fd;
	bool late;
};

static void *end_stall(void *arg)
{
	struct late *l = arg;
	struct pollfd fd = { .fd = l->fd, .events = POLLIN };

	if (!poll(&fd, 1, 30000)) {
		l->late = true;
		mock_set(l->mock, "stall", "N");
	}

	return NULL;
}

struct clear {
	struct dirty_log *e;
	struct dirty_log_mapping *m;
	void *mask;
	int ret;
};

static void *clear_fn(void *arg)
{
	struct clear *c = arg;

	c->ret = dirty_log_call(c->e, DIRTY_LOG_CLEAR, c->m->dma.iova, c->m->npages, c->mask);

	return NULL;
}

/* The mask's memory takes its time. Nobody else has to wait for it. */
TEST_F_TIMEOUT(vfio_dirty_log_mock, slow_mask, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A];
	struct dirty_log *e = &self->log;
	struct clear c = { .e = e, .m = self->m };
	struct late l = { .mock = a };
	pthread_t clearing, waiting;
	u64 bits[2] = {};
	int ends[2];

	dirty_log_start(e);
	mock_write(e, a, self->m, 5);

	c.mask = mmap(NULL, getpagesize(), PROT_READ | PROT_WRITE, MAP_SHARED, a->fd, 0);
	ASSERT_NE(MAP_FAILED, c.mask);
	ASSERT_EQ(0, pipe(ends));
	l.fd = ends[0];

	mock_set(a, "stall", "Y");
	ASSERT_EQ(0, pthread_create(&waiting, NULL, end_stall, &l));
	ASSERT_EQ(0, pthread_create(&clearing, NULL, clear_fn, &c));
	mock_wait(a, 1);

	/* Reads no log: it would be stalled, too */
	EXPECT_EQ(-EINVAL, dirty_log_call(e, DIRTY_LOG_GET, self->m->dma.iova, 69, bits));

	EXPECT_EQ(1, write(ends[1], "", 1));
	ASSERT_EQ(0, pthread_join(waiting, NULL));
	EXPECT_FALSE(l.late);
	mock_set(a, "stall", "N");
	ASSERT_EQ(0, pthread_join(clearing, NULL));
	EXPECT_EQ(0, c.ret);

	/* The mask was all zeros */
	check_sound(e, a, NULL);
	close(ends[0]);
	close(ends[1]);
	munmap(c.mask, getpagesize());
}

/*
 * A device of the machine beside the module's: IOMMU drivers of two kinds in one
 * container, whatever the machine's can do. Catches what they do to each other.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, beside_device, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct dirty_log *e = &self->log;
	struct dirty_log_mapping *m = self->m;
	struct iommu_dirty_log_info log;
	bool hw;
	u64 size;
	int i;

	e->iovas = iova_allocator_init(e->iommu);
	size = getpagesize();
	e->src = dirty_log_map_pages(e, iova_allocator_alloc(e->iovas, size), size / e->info.pgsize);

	dirty_log_start(e);
	mock_write(e, a, m, 10);

	for (i = 0; i < 2; i++) {
		e->device = vfio_pci_device_init(bdfs[0], e->iommu);
		if (!e->device->driver.ops)
			SKIP(return, "libvfio has no driver for the device");

		iommu_dirty_log_info(e->iommu, &log);
		hw = log.hw;
		if (!strcmp(getenv("VFIO_DIRTY_LOG_EXPECT") ?: "", "hw"))
			ASSERT_TRUE(hw);
		if (!strcmp(getenv("VFIO_DIRTY_LOG_EXPECT") ?: "", "pessimistic"))
			ASSERT_FALSE(hw);
		check_kind(e, hw);
		dirty_log_model_attach(e);
		dirty_log_check_all(e);

		dirty_log_start_driver(e, e->device);
		dirty_log_write(e, m, 11);
		mock_write(e, a, m, 12);
		check_sound(e, a, NULL);

		/* The device's domain is started before the one that fails. */
		dirty_log_stop(e);
		mock_fail(a, "start", ENOSPC);
		ASSERT_EQ(-ENOSPC, __iommu_dirty_log_start(e->iommu));
		check_stopped(e);
		dirty_log_start(e);
		check_sound(e, a, NULL);

		mock_fail(b, "start", EIO);
		ASSERT_EQ(-EIO, mock_attach(e, b));
		check_sound(e, a, NULL);
		ASSERT_EQ(0, mock_attach(e, b));
		check_sound(e, a, b);
		dirty_log_stop(e);
		mock_fail(b, "start", EIO);
		ASSERT_EQ(-EIO, __iommu_dirty_log_start(e->iommu));
		EXPECT_FALSE(mock_tracks(a));
		check_stopped(e);
		dirty_log_start(e);
		check_sound(e, a, b);

		/* Either leaves with dirty pages */
		dirty_log_write(e, m, 20);
		mock_write(e, b, m, 21);
		mock_write(e, a, m, 22);
		mock_detach(b);
		check_kind(e, hw);
		dirty_log_check_all(e);
		vfio_pci_device_cleanup(e->device);
		e->device = NULL;
		check_kind(e, true);
		check_sound(e, a, NULL);
	}

	iova_allocator_cleanup(e->iovas);
}

/* Does nothing if the module is not there, or loaded already. */
static bool load_module(const char *name)
{
	char path[PATH_MAX];
	int fd, ret;

	snprintf_assert(path, sizeof(path), "test_modules/%s.ko", name);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return false;

	ret = syscall(__NR_finit_module, fd, "", 0);
	close(fd);

	return !ret;
}

static void mock_devices(const char *on)
{
	int fd;

	fd = open("/sys/bus/platform/drivers/" TEST_VFIO_IOMMU "/devices", O_WRONLY);
	if (fd < 0 || write(fd, on, 1) != 1)
		fprintf(stderr, "%s: devices: %s\n", TEST_VFIO_IOMMU, strerror(errno));
	close(fd);
}

int main(int argc, char *argv[])
{
	bool emulated, mock;
	int ret;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);

	emulated = load_module(TEST_VFIO_EMULATED);
	mock = load_module(TEST_VFIO_IOMMU);
	if (mock)
		mock_devices("Y");

	ret = test_harness_run(argc, argv);

	if (mock) {
		mock_devices("N");
		syscall(__NR_delete_module, TEST_VFIO_IOMMU, O_NONBLOCK);
	}
	if (emulated)
		syscall(__NR_delete_module, TEST_VFIO_EMULATED, O_NONBLOCK);

	return ret;
}
