// SPDX-License-Identifier: GPL-2.0-only
/*
 * Copy memory while devices write to it, with the dirty page log of a VFIO type1
 * container: what a VMM does to migrate a guest. This is the example of
 * Documentation/userspace-api/vfio-dirty-log.rst.
 *
 * "vfio_dirty_log_example /dev/vfio/GROUP" copies a buffer that the devices of
 * that group could write to (they are not told to), and says which log it was.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/vfio.h>

/* doc: begin */

/* A multiple of 64, so that the bits of each chunk begin with a word */
#define CHUNK_PAGES	512ULL
#define MAX_ROUNDS	30
#define FEW_PAGES	16

struct region {
	int container;
	uint64_t iova;		/* one mapping, or several, or with holes */
	uint64_t npages;
	uint64_t pgsize;	/* pgsize_bitmap of the migration capability */
	bool precise;		/* its flag VFIO_IOMMU_INFO_CAP_MIGRATION_HW_DIRTY */
	uint64_t *bitmap;	/* one bit a page, whole words */
	char *src, *dst;
};

/* One VFIO_IOMMU_DIRTY_PAGES call; first is a multiple of 64. 0 or -errno. */
static int dirty_pages(struct region *r, uint32_t flag, uint64_t first,
		       uint64_t npages)
{
	struct vfio_iommu_type1_dirty_bitmap_get *range;
	struct vfio_iommu_type1_dirty_bitmap *call;
	size_t argsz = sizeof(*call) + sizeof(*range);
	int ret;

	call = calloc(1, argsz);
	if (!call)
		return -ENOMEM;

	call->argsz = argsz;
	call->flags = flag;

	/* START and STOP ignore the rest */
	range = (void *)call->data;
	range->iova = r->iova + first * r->pgsize;
	range->size = npages * r->pgsize;
	range->bitmap.pgsize = r->pgsize;
	range->bitmap.size = (npages + 63) / 64 * 8;
	range->bitmap.data = (__u64 *)&r->bitmap[first / 64];

	ret = ioctl(r->container, VFIO_IOMMU_DIRTY_PAGES, call) ? -errno : 0;
	free(call);
	return ret;
}

static bool is_dirty(struct region *r, uint64_t page)
{
	return r->bitmap[page / 64] >> (page % 64) & 1;
}

/* Copy the pages in the bitmap. Returns their number, or -errno. */
static int64_t copy_pages(struct region *r)
{
	uint64_t first, n, page, dirty;
	int64_t copied = 0;
	int ret;

	for (first = 0; first < r->npages; first += n) {
		n = r->npages - first;
		if (n > CHUNK_PAGES)
			n = CHUNK_PAGES;

		dirty = 0;
		for (page = first; page < first + n; page++)
			dirty += is_dirty(r, page);
		if (!dirty)
			continue;

		/* First clear, then copy: a write in between is logged */
		ret = dirty_pages(r, VFIO_IOMMU_DIRTY_PAGES_FLAG_CLEAR_BITMAP,
				  first, n);
		if (ret)
			return ret;

		for (page = first; page < first + n; page++)
			if (is_dirty(r, page))
				memcpy(r->dst + page * r->pgsize,
				       r->src + page * r->pgsize, r->pgsize);
		copied += dirty;
	}

	return copied;
}

/* Copy what is dirty. Returns the number of pages, or -errno. */
static int64_t copy_dirty(struct region *r)
{
	int ret;

	/* The bits of pages that are not mapped stay as they are here */
	memset(r->bitmap, 0, (r->npages + 63) / 64 * 8);

	ret = dirty_pages(r, VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP_NOCLEAR,
			  0, r->npages);
	if (ret)
		return ret;

	/*
	 * A VMM ORs in what KVM logged, the writes of the vCPUs, now and not
	 * before: the call has written the bit of each mapped page, 0 or 1. It
	 * also clears the pages that it copies in KVM's log.
	 */

	return copy_pages(r);
}

/* stop() returns once no device has DMA in flight. 0 or -errno. */
static int migrate(struct region *r, void (*stop)(void *opaque), void *opaque)
{
	int64_t ret = 0;
	int round;

	/* From now on, what is written is logged */
	ret = dirty_pages(r, VFIO_IOMMU_DIRTY_PAGES_FLAG_START, 0, 0);
	if (ret)
		return ret;

	/*
	 * Earlier writes are not: copy everything. Clear it as in every round,
	 * or pages written before their copy are copied twice.
	 */
	memset(r->bitmap, 0xff, (r->npages + 63) / 64 * 8);
	ret = copy_pages(r);

	/* A pessimistic log stays at all pages: rounds would be pointless */
	for (round = 0; r->precise && round < MAX_ROUNDS && ret > FEW_PAGES; round++)
		ret = copy_dirty(r);

	/* The devices have stopped: these are the last dirty pages */
	if (ret >= 0) {
		stop(opaque);
		ret = copy_dirty(r);
	}

	dirty_pages(r, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, 0, 0);
	return ret < 0 ? ret : 0;
}

/* doc: end */

/* Bytes of the buffer, and where the devices see it */
#define SIZE		(4ULL << 20)
#define IOVA		(4ULL << 30)

static void stop_devices(void *opaque)
{
	(void)opaque;	/* They have not been started */
}

/* Returns the migration capability, or NULL */
static struct vfio_iommu_type1_info_cap_migration *migration_cap(int container)
{
	struct vfio_iommu_type1_info head = { .argsz = sizeof(head) };
	struct vfio_iommu_type1_info *info;
	struct vfio_info_cap_header *cap;
	uint32_t off;

	/* Get its size first */
	if (ioctl(container, VFIO_IOMMU_GET_INFO, &head))
		return NULL;

	info = calloc(1, head.argsz);
	if (!info)
		return NULL;

	info->argsz = head.argsz;
	if (ioctl(container, VFIO_IOMMU_GET_INFO, info) ||
	    !(info->flags & VFIO_IOMMU_INFO_CAPS))
		return NULL;

	for (off = info->cap_offset; off; off = cap->next) {
		cap = (void *)((char *)info + off);
		if (cap->id == VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION)
			return (void *)cap;
	}

	return NULL;
}

static void *alloc_pages(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

int main(int argc, char *argv[])
{
	struct vfio_iommu_type1_info_cap_migration *cap;
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.iova = IOVA,
		.size = SIZE,
	};
	struct region r = { .iova = IOVA };
	int group, ret;

	if (argc != 2) {
		fprintf(stderr, "usage: %s /dev/vfio/GROUP\n", argv[0]);
		return 2;
	}

	r.container = open("/dev/vfio/vfio", O_RDWR);
	group = open(argv[1], O_RDWR);
	if (r.container < 0 || group < 0 ||
	    ioctl(group, VFIO_GROUP_SET_CONTAINER, &r.container) ||
	    ioctl(r.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)) {
		perror("container");
		return 1;
	}

	if (ioctl(r.container, VFIO_CHECK_EXTENSION,
		  VFIO_DIRTY_LOG_MANUAL_CLEAR) != 1) {
		fprintf(stderr, "no VFIO_DIRTY_LOG_MANUAL_CLEAR\n");
		return 1;
	}

	cap = migration_cap(r.container);
	if (!cap) {
		fprintf(stderr, "no migration capability\n");
		return 1;
	}

	r.pgsize = cap->pgsize_bitmap;
	r.precise = cap->flags & VFIO_IOMMU_INFO_CAP_MIGRATION_HW_DIRTY;
	r.npages = SIZE / r.pgsize;
	r.bitmap = calloc((r.npages + 63) / 64, 8);
	r.src = alloc_pages(SIZE);
	r.dst = alloc_pages(SIZE);
	if (!r.bitmap || r.src == MAP_FAILED || r.dst == MAP_FAILED) {
		perror("memory");
		return 1;
	}

	memset(r.src, 0xa5, SIZE);
	map.vaddr = (uintptr_t)r.src;
	if (ioctl(r.container, VFIO_IOMMU_MAP_DMA, &map)) {
		perror("VFIO_IOMMU_MAP_DMA");
		return 1;
	}

	ret = migrate(&r, stop_devices, NULL);
	if (ret) {
		fprintf(stderr, "migrate: %s\n", strerror(-ret));
		return 1;
	}

	if (memcmp(r.src, r.dst, SIZE)) {
		fprintf(stderr, "the copy differs\n");
		return 1;
	}

	printf("%llu pages of %llu bytes copied; the log is %s\n",
	       (unsigned long long)r.npages, (unsigned long long)r.pgsize,
	       r.precise ? "the hardware's" : "pessimistic");
	return 0;
}
