// SPDX-License-Identifier: GPL-2.0-only
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/iommufd.h>
#include <linux/mman.h>
#include <linux/vfio.h>

#include <libvfio.h>

/* Bytes before and behind a bitmap that the kernel must leave alone */
#define CANARY	64

/* ---- The model ---- */

static u64 first_page(struct dirty_log *log, struct dirty_log_mapping *m)
{
	return m->dma.iova / log->info.pgsize;
}

static void clean_page(struct dirty_log *log, struct dirty_log_mapping *m, u64 page)
{
	m->state[page] = log->info.hw && !m->pinned[page] ? PAGE_CLEAN : PAGE_DIRTY;
}

/* Its former contents are unknown: a mapping is dirty once if the log runs. */
static void model_map(struct dirty_log *log, struct dirty_log_mapping *m)
{
	memset(m->state, PAGE_DIRTY, m->npages);
	memset(m->in_iommu, false, m->npages);
	memset(m->alone, false, m->npages);
	list_add_tail(&m->link, &log->mappings);
}

void dirty_log_model_forget(struct dirty_log_mapping *m)
{
	list_del_init(&m->link);
}

void dirty_log_model_start(struct dirty_log *log)
{
	if (!log->tracking)
		dirty_log_model_clear(log, 0, ULONG_MAX, NULL);

	log->tracking = true;
}

static void model_stop(struct dirty_log *log)
{
	struct dirty_log_mapping *m;

	log->tracking = false;

	/* What was split is one leaf again */
	list_for_each_entry(m, &log->mappings, link)
		memset(m->alone, false, m->npages);
}

static void write_leaf(struct dirty_log *log, struct dirty_log_mapping *m, u64 page,
		       u64 leaf, enum dirty_log_page state)
{
	u64 base = first_page(log, m);
	u64 first = (base + page) / leaf * leaf;
	u64 end = min(first + leaf - base, m->npages);
	u64 p = first > base ? first - base : 0;

	for (; p < end; p++)
		if (p == page || !m->alone[p])
			m->state[p] = max_t(u8, m->state[p], state);
}

void dirty_log_model_write(struct dirty_log *log, struct dirty_log_mapping *m, u64 page)
{
	if (!log->tracking)
		return;

	write_leaf(log, m, page, m->alone[page] ? 1 : m->max_leaf, PAGE_EITHER);
	write_leaf(log, m, page, m->min_leaf, PAGE_DIRTY);
	m->in_iommu[page] = true;
}

void dirty_log_model_clear(struct dirty_log *log, iova_t iova, u64 npages, const void *mask)
{
	struct dirty_log_mapping *m;
	u64 page, bit;

	list_for_each_entry(m, &log->mappings, link) {
		for (page = 0; page < m->npages; page++) {
			bit = first_page(log, m) + page - iova / log->info.pgsize;
			if (bit >= npages || (mask && !bit_get(mask, bit)))
				continue;

			/* A dirty leaf is split, others in the same place may be */
			if (mask && log->split_on_clear) {
				m->min_leaf = 1;
				m->alone[page] |= m->in_iommu[page];
			}
			m->in_iommu[page] = false;
			clean_page(log, m, page);
		}
	}
}

void dirty_log_model_error(struct dirty_log *log)
{
	struct dirty_log_mapping *m;
	u64 page;

	list_for_each_entry(m, &log->mappings, link) {
		memset(m->in_iommu, false, m->npages);
		for (page = 0; page < m->npages; page++)
			m->state[page] = max_t(u8, m->state[page], PAGE_EITHER);
	}
}

void dirty_log_model_attach(struct dirty_log *log)
{
	struct dirty_log_mapping *m;

	/* The leaves of a new domain are whole, and the log of an old one was read */
	list_for_each_entry(m, &log->mappings, link) {
		memset(m->in_iommu, false, m->npages);
		memset(m->alone, false, m->npages);
	}
#ifdef __aarch64__
	/* SMMUv3 cannot tell a writable page that is new from one that was written */
	dirty_log_model_error(log);
#endif
}

const char *dirty_log_model_compare(struct dirty_log *log, iova_t iova, u64 npages,
				    const void *bitmap, u8 poison)
{
	static const char * const words[] = { "clean", "", "dirty" };
	u64 bytes = DIRTY_LOG_BITMAP_BYTES(npages), first = iova / log->info.pgsize;
	u8 *left = malloc_assert(bytes);
	struct dirty_log_mapping *m;
	static char error[128];
	u64 page, bit, base, i;
	u8 state;

	/* Outside of the mapped pages it is unchanged */
	memcpy(left, bitmap, bytes);
	error[0] = 0;

	list_for_each_entry(m, &log->mappings, link) {
		base = first_page(log, m);
		page = first > base ? first - base : 0;

		for (; page < m->npages && base + page - first < npages; page++) {
			bit = base + page - first;
			state = bit_get(bitmap, bit) ? PAGE_DIRTY : PAGE_CLEAN;
			bit_put(left, bit, bit_get(&poison, bit % 8));

			if (m->state[page] == PAGE_EITHER)
				m->state[page] = state;
			if (m->state[page] == state || error[0])
				continue;

			snprintf(error, sizeof(error), "page %lu of iova 0x%lx is %s, reported as %s",
				 page, m->dma.iova, words[m->state[page]], words[state]);
		}
	}

	for (i = 0; i < bytes && !error[0]; i++) {
		if (left[i] != poison)
			snprintf(error, sizeof(error), "bits %lu to %lu of %lu: no mapped page's is changed",
				 i * 8, i * 8 + 7, npages);
	}

	free(left);
	return error[0] ? error : NULL;
}

/* ---- Calls that keep log and model in step ---- */

void dirty_log_start(struct dirty_log *log)
{
	iommu_dirty_log_start(log->iommu);
	dirty_log_model_start(log);
}

void dirty_log_stop(struct dirty_log *log)
{
	iommu_dirty_log_stop(log->iommu);
	model_stop(log);
}

int dirty_log_call(struct dirty_log *log, u32 flag, iova_t iova, u64 npages, void *bitmap)
{
	return __iommu_dirty_log_bitmap(log->iommu, flag, iova, npages * log->info.pgsize, bitmap);
}

static void check_poisoned(struct dirty_log *log, u32 flag, iova_t iova, u64 npages, u8 poison)
{
	u64 bytes = DIRTY_LOG_BITMAP_BYTES(npages);
	u64 size = bytes + 2 * CANARY + log->misalign, i;
	u8 *buf = malloc_assert(size), *bits = buf + CANARY + log->misalign;
	const char *error;

	memset(buf, poison, size);
	VFIO_ASSERT_EQ(dirty_log_call(log, flag, iova, npages, bits), 0);

	error = dirty_log_model_compare(log, iova, npages, bits, poison);
	VFIO_ASSERT_NULL(error, "%s of %lu pages at iova 0x%lx: %s\n",
			 flag == DIRTY_LOG_GET ? "GET" : "NOCLEAR", npages, iova, error);

	for (i = 0; i < size; i++)
		VFIO_ASSERT_TRUE(buf + i - bits < bytes || buf[i] == poison,
				 "byte %ld of a bitmap of %lu was changed\n",
				 (long)(buf + i - bits), bytes);

	if (flag == DIRTY_LOG_GET)
		dirty_log_model_clear(log, iova, npages, NULL);

	free(buf);
}

void dirty_log_check(struct dirty_log *log, u32 flag, iova_t iova, u64 npages)
{
	if (flag == DIRTY_LOG_GET) {
		/* Bits 0 and 1 for the poison in turns: GET can be asked only once. */
		check_poisoned(log, flag, iova, npages, log->seq++ & 1 ? 0xa5 : 0x5a);
		return;
	}

	check_poisoned(log, flag, iova, npages, 0x00);
	check_poisoned(log, flag, iova, npages, 0xff);
}

void dirty_log_check_all(struct dirty_log *log)
{
	struct dirty_log_mapping *m;

	list_for_each_entry(m, &log->mappings, link)
		dirty_log_check(log, DIRTY_LOG_NOCLEAR, m->dma.iova, m->npages);
}

void dirty_log_clear(struct dirty_log *log, iova_t iova, u64 npages, const void *mask)
{
	u64 bytes = DIRTY_LOG_BITMAP_BYTES(npages);
	u8 *bits = malloc_assert(2 * bytes);

	memset(bits, 0xff, bytes);
	if (mask)
		memcpy(bits, mask, bytes);
	memcpy(bits + bytes, bits, bytes);

	VFIO_ASSERT_EQ(dirty_log_call(log, DIRTY_LOG_CLEAR, iova, npages, bits), 0);
	/* Only read: a GET would have written to it */
	VFIO_ASSERT_EQ(memcmp(bits, bits + bytes, bytes), 0);
	dirty_log_model_clear(log, iova, npages, bits);
	free(bits);
}

void dirty_log_clear_page(struct dirty_log *log, struct dirty_log_mapping *m, u64 page)
{
	u8 *mask = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(m->npages));

	bit_set(mask, page);
	dirty_log_clear(log, m->dma.iova, m->npages, mask);
	free(mask);
}

void dirty_log_write_at(struct dirty_log *log, struct vfio_pci_device *device,
			struct dirty_log_mapping *m, u64 offset)
{
	struct dma_region *src = &log->src->dma;

	memset(src->vaddr, ++log->seq ?: ++log->seq, DIRTY_LOG_DMA_SIZE);
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(device, src->iova, m->dma.iova + offset,
					      DIRTY_LOG_DMA_SIZE), 0,
		       "DMA to iova 0x%lx failed\n", m->dma.iova + offset);
	VFIO_ASSERT_EQ(memcmp(m->dma.vaddr + offset, src->vaddr, DIRTY_LOG_DMA_SIZE), 0);

	dirty_log_model_write(log, m, offset / log->info.pgsize);
	dirty_log_model_write(log, m, (offset + DIRTY_LOG_DMA_SIZE - 1) / log->info.pgsize);
}

void dirty_log_write(struct dirty_log *log, struct dirty_log_mapping *m, u64 page)
{
	dirty_log_write_at(log, log->device, m, page * log->info.pgsize + 8 * (page % 4));
}

/* ---- Memory and devices ---- */

void *dirty_log_alloc(u64 size, int flags)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);
}

struct dirty_log_mapping *dirty_log_map(struct dirty_log *log, void *vaddr, iova_t iova,
					u64 size, u64 page_size)
{
	struct dirty_log_mapping *m = calloc_assert(1, sizeof(*m));
	u64 leaf;

	VFIO_ASSERT_NE(vaddr, MAP_FAILED);
	m->dma.vaddr = vaddr;
	m->dma.iova = iova;
	m->dma.size = size;
	m->npages = size / log->info.pgsize;
	m->state = calloc_assert(m->npages, 1);
	m->pinned = calloc_assert(m->npages, 1);
	m->in_iommu = calloc_assert(m->npages, 1);
	m->alone = calloc_assert(m->npages, 1);

	m->max_leaf = 1;
	for (leaf = log->info.pgsize; leaf && leaf <= size; leaf <<= 1) {
		if (log->info.iova_pgsizes & leaf)
			m->max_leaf = leaf / log->info.pgsize;
	}
	m->min_leaf = log->info.iova_pgsizes & page_size ? page_size / log->info.pgsize : 1;

	dirty_log_map_again(log, m);

	return m;
}

struct dirty_log_mapping *dirty_log_map_pages(struct dirty_log *log, iova_t iova, u64 npages)
{
	u64 size = npages * log->info.pgsize;

	return dirty_log_map(log, dirty_log_alloc(size, 0), iova, size, log->info.pgsize);
}

void dirty_log_map_again(struct dirty_log *log, struct dirty_log_mapping *m)
{
	iommu_map(log->iommu, &m->dma);
	model_map(log, m);
}

void dirty_log_unmap(struct dirty_log *log, struct dirty_log_mapping *m)
{
	iommu_unmap(log->iommu, &m->dma);
	dirty_log_model_forget(m);
}

void dirty_log_start_driver(struct dirty_log *log, struct vfio_pci_device *device)
{
	struct dma_region *region = &device->driver.region;

	region->size = SZ_2M;
	region->vaddr = dirty_log_alloc(region->size, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->iova = iova_allocator_alloc(log->iovas, region->size);
	iommu_map(log->iommu, region);

	vfio_pci_driver_init(device);
}

bool dirty_log_splits_on_clear(void)
{
	int fd = open("/sys/module/vfio_iommu_type1/parameters/split_on_clear", O_RDONLY);
	char value = 0;

	if (fd >= 0) {
		VFIO_ASSERT_EQ(read(fd, &value, 1), 1);
		close(fd);
	}

#ifdef __aarch64__
	/* SMMUv3's page tables are those of io-pgtable-arm, which does not split. */
	return false;
#endif
	return value == 'Y';
}

u32 dirty_log_attach_hwpt(struct vfio_pci_device *device)
{
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc),
		.flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
		.dev_id = device->dev_id,
		.pt_id = device->iommu->ioas_id,
	};
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
	};

	if (ioctl(device->iommu->iommufd, IOMMU_HWPT_ALLOC, &alloc))
		return 0;

	attach.pt_id = alloc.out_hwpt_id;
	ioctl_assert(device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);

	return alloc.out_hwpt_id;
}

static const char *setup(struct dirty_log *log, const char *bdf, const char *mode)
{
	const char *expect = getenv("VFIO_DIRTY_LOG_EXPECT");
	u64 size = getpagesize();

	memset(log, 0, sizeof(*log));
	INIT_LIST_HEAD(&log->mappings);
	log->iommu = iommu_init(mode);
	log->device = vfio_pci_device_init(bdf, log->iommu);

	if (!log->device->driver.ops)
		return "libvfio has no driver for the device";

	if (log->iommu->iommufd) {
		log->hwpt = dirty_log_attach_hwpt(log->device);
		log->info.hw = log->hwpt;
		log->info.pgsize = size;
		log->info.iova_pgsizes = -size;
	} else {
		if (iommu_check_extension(log->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) != 1 && !expect)
			return "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR";
		iommu_dirty_log_info(log->iommu, &log->info);
		log->split_on_clear = dirty_log_splits_on_clear();
	}

	if (expect && *expect)
		VFIO_ASSERT_EQ(log->info.hw, !strcmp(expect, "hw"));
	if (log->iommu->iommufd && !log->hwpt)
		return "the log is pessimistic: no domain can log";

	log->iovas = iova_allocator_init(log->iommu);
	dirty_log_start_driver(log, log->device);
	log->src = dirty_log_map_pages(log, iova_allocator_alloc(log->iovas, size),
				       size / log->info.pgsize);

	return NULL;
}

const char *dirty_log_setup(struct dirty_log *log, const char *bdf)
{
	return setup(log, bdf, MODE_VFIO_TYPE1V2_IOMMU);
}

const char *dirty_log_setup_iommufd(struct dirty_log *log, const char *bdf)
{
	return setup(log, bdf, MODE_IOMMUFD);
}

void dirty_log_teardown(struct dirty_log *log)
{
	if (log->device)
		vfio_pci_device_cleanup(log->device);
	if (log->iovas)
		iova_allocator_cleanup(log->iovas);
	if (log->iommu)
		iommu_cleanup(log->iommu);
}
