// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dirty log of a type1 container at its limits: the largest bitmap, a mapping
 * whose virtual address is taken away, and a user that has no memory left.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

/* Timeout in seconds, for an emulated machine with a debug kernel */
#define TIMEOUT		240

static char **bdfs;
static int nr_bdfs;

FIXTURE(vfio_dirty_log_limits) {
	struct dirty_log log;
};

FIXTURE_SETUP(vfio_dirty_log_limits)
{
	const char *skip = dirty_log_setup(&self->log, bdfs[0]);

	if (!skip && !self->log.info.hw)
		skip = "the log is pessimistic: all pages are dirty, always";
	if (skip)
		SKIP(return, "%s", skip);
}

FIXTURE_TEARDOWN(vfio_dirty_log_limits)
{
	dirty_log_teardown(&self->log);
}

static iova_t last_iova(struct dirty_log *log)
{
	struct iommu_iova_range *ranges;
	iova_t last;
	u32 n;

	ranges = iommu_iova_ranges(log->iommu, &n);
	last = ranges[n - 1].last;
	free(ranges);

	return last;
}

/* The largest bitmap: its memory stays untouched but where something is mapped. */
TEST_F_TIMEOUT(vfio_dirty_log_limits, largest_bitmap, TIMEOUT)
{
	static const u32 flags[] = { DIRTY_LOG_NOCLEAR, DIRTY_LOG_CLEAR, DIRTY_LOG_GET };
	struct dirty_log *log = &self->log;
	u64 pgsize = log->info.pgsize, last = log->info.max_bitmap_size * 8 - 1;
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = DIRTY_LOG_IOVA,
		.size = (last + 1) * pgsize,
		.bitmap = {
			.pgsize = pgsize,
			.size = log->info.max_bitmap_size,
		},
	};
	const u32 argsz = sizeof(struct vfio_iommu_type1_dirty_bitmap) + sizeof(range);
	const u64 poison = 0xa55a0ff0c33c9669, untouched[] = { 1, last / 128, last / 64 - 1 };
	struct dirty_log_mapping *a, *b = NULL;
	int i, j;

	range.bitmap.data = mmap(NULL, range.bitmap.size + getpagesize(), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, range.bitmap.data);

	a = dirty_log_map_pages(log, DIRTY_LOG_IOVA + 3 * pgsize, 2);
	if (last_iova(log) / pgsize >= DIRTY_LOG_IOVA / pgsize + last)
		b = dirty_log_map_pages(log, DIRTY_LOG_IOVA + last * pgsize, 1);

	dirty_log_start(log);

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		bool clear = flags[i] == DIRTY_LOG_CLEAR;

		dirty_log_write(log, a, 1);
		if (b)
			dirty_log_write(log, b, 0);

		range.bitmap.data[0] = clear << 4;
		bit_put(range.bitmap.data, last, clear);
		for (j = 0; j < ARRAY_SIZE(untouched); j++)
			range.bitmap.data[untouched[j]] = poison;

		ASSERT_EQ(0, __iommu_dirty_log_ioctl(log->iommu, argsz, flags[i], &range));

		EXPECT_EQ(1UL << 4, range.bitmap.data[0]);
		EXPECT_EQ(clear || b, bit_get(range.bitmap.data, last));
		for (j = 0; j < ARRAY_SIZE(untouched); j++)
			EXPECT_EQ(poison, range.bitmap.data[untouched[j]]);

		if (flags[i] != DIRTY_LOG_NOCLEAR)
			dirty_log_model_clear(log, range.iova, last + 1, NULL);
		dirty_log_check_all(log);

		/* One page more than the largest bitmap has bits for, or a larger bitmap */
		range.size += pgsize;
		EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz, flags[i], &range));
		range.bitmap.size += 8;
		EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz, flags[i], &range));
		range.size -= pgsize;
		EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(log->iommu, argsz, flags[i], &range));
		range.bitmap.size -= 8;
	}
}

/* DMA goes on while vaddr is away, and so does the log. */
TEST_F_TIMEOUT(vfio_dirty_log_limits, vaddr, TIMEOUT)
{
	struct dirty_log *log = &self->log;
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_VADDR,
		.iova = DIRTY_LOG_IOVA,
		.size = 70 * log->info.pgsize,
	};
	struct dirty_log_mapping *m;
	int round;

	if (iommu_check_extension(log->iommu, VFIO_UPDATE_VADDR) != 1)
		SKIP(return, "the container does not offer VFIO_UPDATE_VADDR");

	m = dirty_log_map_pages(log, DIRTY_LOG_IOVA, 70);

	for (round = 0; round < 2; round++) {
		/* Started before, and while vaddr is away */
		if (!round)
			dirty_log_start(log);
		ASSERT_EQ(0, __iommu_unmap_ioctl(log->iommu, VFIO_DMA_UNMAP_FLAG_VADDR, m->dma.iova,
						 m->dma.size, NULL, NULL));
		dirty_log_start(log);
		dirty_log_write(log, m, 1);
		dirty_log_write(log, m, 2);
		dirty_log_check_all(log);
		dirty_log_clear_page(log, m, 1);
		dirty_log_write(log, m, 3);

		m->dma.vaddr = mremap(m->dma.vaddr, m->dma.size, m->dma.size,
				      MREMAP_MAYMOVE | MREMAP_FIXED,
				      mmap_reserve(m->dma.size, SZ_2M, 0));
		ASSERT_NE(MAP_FAILED, m->dma.vaddr);
		map.vaddr = (u64)m->dma.vaddr;
		ASSERT_EQ(0, ioctl(log->iommu->container_fd, VFIO_IOMMU_MAP_DMA, &map));

		dirty_log_check_all(log);
		dirty_log_write(log, m, 4);
		dirty_log_check(log, DIRTY_LOG_GET, DIRTY_LOG_IOVA, 70);
		dirty_log_stop(log);
	}
}

/* ---- No memory ---- */

static void write_file(const char *name, const char *text)
{
	int fd = open(name, O_WRONLY);

	VFIO_ASSERT_EQ(write(fd, text, strlen(text)), (ssize_t)strlen(text), "%s\n", name);
	close(fd);
}

/* Leave the memory cgroup @room bytes more than it uses. */
static void limit_memory(u64 room)
{
	int fd = open("memory.current", O_RDONLY);
	char text[32] = {};

	VFIO_ASSERT_GT(read(fd, text, sizeof(text) - 1), 0);
	close(fd);
	snprintf_assert(text, sizeof(text), "%lu", strtoul(text, NULL, 0) + room);
	write_file("memory.max", text);
}

/* START, and MAP while the log runs, where there is no memory for their bitmaps */
static int memory_cgroup_child(void)
{
	struct dma_region regions[48] = {};
	void *vaddr = dirty_log_alloc(SZ_1G, MAP_HUGETLB | MAP_HUGE_1GB);
	u64 *bitmap = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(SZ_1G / getpagesize()));
	struct dirty_log log;
	int i, ret;

	if (vaddr == MAP_FAILED || dirty_log_setup(&log, bdfs[0]))
		return KSFT_SKIP;

	write_file("cgroup.procs", "0");
	for (i = 0; i < ARRAY_SIZE(regions); i++) {
		regions[i].vaddr = vaddr;
		regions[i].iova = DIRTY_LOG_IOVA + (u64)i * SZ_1G;
		regions[i].size = SZ_1G;
		if (i < ARRAY_SIZE(regions) / 2)
			iommu_map(log.iommu, &regions[i]);
	}
	VFIO_ASSERT_EQ(mlockall(MCL_CURRENT), 0);

	limit_memory(SZ_256K);
	VFIO_ASSERT_EQ(__iommu_dirty_log_start(log.iommu), -ENOMEM);
	VFIO_ASSERT_EQ(dirty_log_call(&log, DIRTY_LOG_GET, DIRTY_LOG_IOVA,
				      SZ_1G / log.info.pgsize, bitmap), -EINVAL);

	write_file("memory.max", "max");
	iommu_dirty_log_start(log.iommu);
	limit_memory(SZ_256K);
	for (ret = 0; !ret && i > ARRAY_SIZE(regions) / 2; i--)
		ret = __iommu_map(log.iommu, &regions[i - 1]);
	VFIO_ASSERT_EQ(ret, -ENOMEM);

	return KSFT_PASS;
}

FIXTURE(vfio_dirty_log_memory) {
	char root[32];
};

FIXTURE_SETUP(vfio_dirty_log_memory)
{
	strcpy(self->root, "/tmp/cgroup.XXXXXX");
	ASSERT_NE(NULL, mkdtemp(self->root));
	if (mount("none", self->root, "cgroup2", 0, NULL)) {
		rmdir(self->root);
		SKIP(return, "no cgroup2: %s", strerror(errno));
	}
	ASSERT_EQ(0, chdir(self->root));
	write_file("cgroup.subtree_control", "+memory");
	ASSERT_EQ(0, mkdir("vfio_dirty_log_limits_test", 0700));
	ASSERT_EQ(0, chdir("vfio_dirty_log_limits_test"));
}

FIXTURE_TEARDOWN(vfio_dirty_log_memory)
{
	EXPECT_EQ(0, chdir(self->root));
	EXPECT_EQ(0, rmdir("vfio_dirty_log_limits_test"));
	EXPECT_EQ(0, chdir("/"));
	EXPECT_EQ(0, umount(self->root));
	EXPECT_EQ(0, rmdir(self->root));
}

/*
 * What grows with the mappings is charged to the user's memory cgroup. Catches a
 * user that is killed where a call can fail.
 */
TEST_F_TIMEOUT(vfio_dirty_log_memory, limited, TIMEOUT)
{
	pid_t pid = fork();
	int status;

	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(memory_cgroup_child());
	ASSERT_EQ(pid, waitpid(pid, &status, 0));

	ASSERT_TRUE(WIFEXITED(status)) {
		TH_LOG("killed by signal %d", WTERMSIG(status));
	}
	if (WEXITSTATUS(status) == KSFT_SKIP)
		SKIP(return, "needs a free page of 1 GiB and a device with a driver in libvfio");
	EXPECT_EQ(KSFT_PASS, WEXITSTATUS(status));
}

int main(int argc, char *argv[])
{
	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	return test_harness_run(argc, argv);
}
