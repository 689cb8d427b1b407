// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dirty log of a type1 container: a dirty page is never forgotten, and
 * where the IOMMU keeps the log, a clean page is not reported either.
 *
 * The tests keep a model of the log (enum page_state for each mapped page) in
 * step with what they do. Whatever is read from the log is compared with the
 * model bit by bit: check() fills the bitmap with a poison, calls the kernel and
 * expects the model's bits for mapped pages and the poison everywhere else, also
 * before and behind the bitmap.
 *
 * With the pessimistic log the model is simple, all mapped pages are dirty,
 * always, and every test runs just the same.
 *
 * Environment:
 *  VFIO_DIRTY_LOG_EXPECT=hw|pessimistic	fail, rather than adapt or skip, if the
 *						log is the other one or is missing
 *  VFIO_DIRTY_LOG_VERBOSE=1			let the tests "show" print a table
 */
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/iommufd.h>
#include <linux/limits.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "test_modules/test_vfio_emulated.h"
#include "test_modules/test_vfio_iommu.h"
#include "kselftest_harness.h"

#define FLAG_START	VFIO_IOMMU_DIRTY_PAGES_FLAG_START
#define FLAG_STOP	VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP
#define FLAG_GET	VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP
#define FLAG_NOCLEAR	VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP_NOCLEAR
#define FLAG_CLEAR	VFIO_IOMMU_DIRTY_PAGES_FLAG_CLEAR_BITMAP

/* Where the tests map things: above 4 GiB, out of the way of the drivers. */
#define TEST_IOVA	(16UL * SZ_1G)

/* Bytes before and behind a bitmap that the kernel must leave alone. */
#define CANARY		64

/* Bytes of one DMA write. Some devices cannot do less than 60. */
#define DMA_SIZE	64

/* Seconds, for a test on an emulated machine and a kernel full of checks. */
#define TIMEOUT		240

#define MAX_MAPPINGS	16

static char **bdfs;
static int nr_bdfs;

enum page_state {
	PAGE_CLEAN,
	PAGE_DIRTY,
	/* In a leaf that was written, if the IOMMU uses such large leaves. */
	PAGE_EITHER,
};

struct mapping {
	struct dma_region dma;
	u64 npages;

	/* Pages that certainly, and that at most, share one IOPTE. */
	u64 min_leaf, max_leaf;

	u8 *state;

	/* Pinned by a device without IOMMU: dirty for as long as that lasts. */
	u8 *pinned;
};

struct env {
	struct __test_metadata *metadata;
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct vfio_pci_device *second;
	struct iova_allocator *iovas;
	struct iommu_dirty_log_info log;
	bool tracking;

	/* The device reads here. Part of the model: reads make nothing dirty. */
	struct mapping *src;

	struct mapping *mappings[MAX_MAPPINGS];

	/* Added to the address of the next bitmap, bytes. */
	unsigned int misalign;

	/* Make the calls as a 32-bit process does. */
	bool compat;

	u8 seq;
};

static void bit_put(void *bitmap, u64 bit, bool value)
{
	u8 *byte = (u8 *)bitmap + bit / 8;

	*byte = value ? *byte | (1 << (bit % 8)) : *byte & ~(1 << (bit % 8));
}

static void bits_set(void *bitmap, u64 first, u64 n)
{
	while (n--)
		bit_put(bitmap, first++, true);
}

static iova_t page_iova(struct env *e, struct mapping *m, u64 page)
{
	return m->dma.iova + page * e->log.pgsize;
}

/* ---- The model ---- */

static void model_clear(struct env *e, struct mapping *m, u64 page)
{
	m->state[page] = e->log.hw && !m->pinned[page] ? PAGE_CLEAN : PAGE_DIRTY;
}

static void model_reset(struct env *e, struct mapping *m)
{
	u64 page;

	for (page = 0; page < m->npages; page++)
		model_clear(e, m, page);
}

/* A mapping that is new to the IOMMU. */
static void model_map(struct env *e, struct mapping *m)
{
	model_reset(e, m);

#ifdef __aarch64__
	/* SMMUv3 cannot tell a fresh writable page from one that was written. */
	if (e->log.hw)
		memset(m->state, PAGE_EITHER, m->npages);
#endif
}

/* The pages [*first, *end) of @m that share a leaf of @leaf pages with @page. */
static void leaf_bounds(struct env *e, struct mapping *m, u64 leaf, u64 page,
			u64 *first, u64 *end)
{
	u64 base = m->dma.iova / e->log.pgsize;
	u64 leaf_first = (base + page) / leaf * leaf;

	*first = leaf_first > base ? leaf_first - base : 0;
	*end = min(leaf_first + leaf - base, m->npages);
}

static void model_write(struct env *e, struct mapping *m, u64 page)
{
	u64 p, end;

	if (!e->tracking)
		return;

	leaf_bounds(e, m, m->max_leaf, page, &p, &end);
	for (; p < end; p++) {
		if (m->state[p] == PAGE_CLEAN)
			m->state[p] = PAGE_EITHER;
	}

	leaf_bounds(e, m, m->min_leaf, page, &p, &end);
	for (; p < end; p++)
		m->state[p] = PAGE_DIRTY;
}

/* After a call that failed a page may be dirtier than before, never cleaner. */
static void model_after_error(struct env *e)
{
	int i;
	u64 p;

	for (i = 0; i < MAX_MAPPINGS; i++) {
		for (p = 0; e->mappings[i] && p < e->mappings[i]->npages; p++) {
			if (e->mappings[i]->state[p] == PAGE_CLEAN)
				e->mappings[i]->state[p] = PAGE_EITHER;
		}
	}
}

/* A device came while tracking, and with it perhaps a domain that is new. */
static void model_attach(struct env *e)
{
#ifdef __aarch64__
	/* All that is mapped is fresh there, see model_map(). */
	if (e->log.hw)
		model_after_error(e);
#endif
}

/* Lay the model over @want, EITHER as in @got. Bit 0 is the page at @iova. */
static void model_paint(struct env *e, iova_t iova, u64 npages, void *want, const void *got)
{
	u64 first = iova / e->log.pgsize;
	struct mapping *m;
	u64 page, bit;
	int i;

	for (i = 0; i < MAX_MAPPINGS; i++) {
		m = e->mappings[i];
		if (!m)
			continue;

		for (page = 0; page < m->npages; page++) {
			bit = m->dma.iova / e->log.pgsize + page - first;
			if (bit >= npages)
				continue;

			if (m->state[page] == PAGE_EITHER)
				bit_put(want, bit, bit_get(got, bit));
			else
				bit_put(want, bit, m->state[page] == PAGE_DIRTY);
		}
	}
}

/* ---- Calls that keep kernel and model in step ---- */

static void log_start(struct env *e)
{
	int i;

	iommu_dirty_log_start(e->iommu);

	for (i = 0; i < MAX_MAPPINGS && !e->tracking; i++) {
		if (e->mappings[i])
			model_reset(e, e->mappings[i]);
	}

	e->tracking = true;
}

static void log_stop(struct env *e)
{
	iommu_dirty_log_stop(e->iommu);
	e->tracking = false;
}

#ifdef __x86_64__
/* What the calls end in, as a 32-bit process knows it. */
struct compat_vfio_bitmap {
	__u64 pgsize;
	__u64 size;
	__u32 data;
} __packed;

struct compat_call {
	__u32 argsz;
	__u32 flags;
	__u64 iova;
	__u64 size;
	struct compat_vfio_bitmap bitmap;
	__u8 bits[];
} __packed;

/*
 * int $0x80 is the way into the kernel for 32-bit processes, and for a 64-bit one
 * that wants to be taken for one. What @arg points to lies below 4 GiB.
 */
static int compat_ioctl(int fd, unsigned long request, void *arg)
{
	int ret;

	asm volatile("int $0x80" : "=a" (ret)
		     : "a" (54 /* ioctl */), "b" (fd), "c" (request), "d" (arg)
		     : "memory", "cc", "r8", "r9", "r10", "r11");

	return ret;
}

/* UNMAP_DMA and DIRTY_PAGES have the same layout. @cut: bytes that argsz lacks. */
static int compat_call(struct env *e, unsigned long request, u32 flags, iova_t iova,
		       u64 npages, void *bitmap, int cut)
{
	u64 bytes = DIRTY_LOG_BITMAP_BYTES(npages);
	size_t size = sizeof(struct compat_call) + bytes;
	struct compat_call *call;
	int ret;

	call = mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	VFIO_ASSERT_NE(call, MAP_FAILED);

	*call = (struct compat_call) {
		.argsz = sizeof(*call) - cut,
		.flags = flags,
		.iova = iova,
		.size = npages * e->log.pgsize,
		.bitmap.pgsize = e->log.pgsize,
		.bitmap.size = bytes,
		.bitmap.data = (uintptr_t)call->bits,
	};

	memcpy(call->bits, bitmap, bytes);
	ret = compat_ioctl(e->iommu->container_fd, request, call);
	memcpy(bitmap, call->bits, bytes);
	munmap(call, size);

	return ret;
}

/* Without CONFIG_IA32_EMULATION the kernel answers with a signal. */
static bool compat_works(void)
{
	int status;
	pid_t pid;

	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid)
		_exit(compat_ioctl(-1, 0, NULL) == -EBADF ? 0 : 1);

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);

	return WIFEXITED(status) && !WEXITSTATUS(status);
}
#else
static int compat_call(struct env *e, unsigned long request, u32 flags, iova_t iova,
		       u64 npages, void *bitmap, int cut)
{
	return -ENOTTY;
}

static bool compat_works(void)
{
	return false;
}
#endif

static int log_call(struct env *e, u32 flag, iova_t iova, u64 npages, void *bitmap)
{
	u64 size = npages * e->log.pgsize;

	if (e->compat)
		return compat_call(e, VFIO_IOMMU_DIRTY_PAGES, flag, iova, npages, bitmap, 0);

	switch (flag) {
	case FLAG_GET:
		return __iommu_dirty_log_get(e->iommu, iova, size, bitmap);
	case FLAG_NOCLEAR:
		return __iommu_dirty_log_get_noclear(e->iommu, iova, size, bitmap);
	case FLAG_CLEAR:
		return __iommu_dirty_log_clear(e->iommu, iova, size, bitmap);
	}

	VFIO_FAIL("Unknown flag %u\n", flag);
}

static void model_cleared(struct env *e, iova_t iova, u64 npages, const void *mask)
{
	u64 first = iova / e->log.pgsize;
	struct mapping *m;
	u64 page, bit;
	int i;

	for (i = 0; i < MAX_MAPPINGS; i++) {
		m = e->mappings[i];

		for (page = 0; m && page < m->npages; page++) {
			bit = m->dma.iova / e->log.pgsize + page - first;
			if (bit < npages && (!mask || bit_get(mask, bit)))
				model_clear(e, m, page);
		}
	}
}

static void check_poisoned(struct env *e, u32 flag, iova_t iova, u64 npages, u8 poison)
{
	struct __test_metadata *_metadata = e->metadata;
	size_t size = DIRTY_LOG_BITMAP_BYTES(npages) + 2 * CANARY + e->misalign;
	u8 *got = malloc_assert(size), *want = malloc_assert(size);
	u8 *got_bits = got + CANARY + e->misalign;
	u8 *want_bits = want + CANARY + e->misalign;
	u64 shown = 0;
	size_t i;

	memset(got, poison, size);
	memset(want, poison, size);

	ASSERT_EQ(0, log_call(e, flag, iova, npages, got_bits));

	model_paint(e, iova, npages, want_bits, got_bits);

	for (i = 0; memcmp(got, want, size) && i < size * 8 && shown < 8; i++) {
		if (bit_get(got, i) == bit_get(want, i))
			continue;

		TH_LOG("%s, iova 0x%lx, poison 0x%x: bit %ld of %lu is %d, should be %d",
		       flag == FLAG_GET ? "GET" : "NOCLEAR", iova, poison,
		       (long)(i - 8 * (got_bits - got)), npages,
		       bit_get(got, i), bit_get(want, i));
		shown++;
	}
	ASSERT_EQ(0, shown);

	if (flag == FLAG_GET)
		model_cleared(e, iova, npages, NULL);

	free(got);
	free(want);
}

/* Read the log by @flag. It has to say what the model says, and no more. */
static void check(struct env *e, u32 flag, iova_t iova, u64 npages)
{
	if (flag == FLAG_GET) {
		/* Bits 0 and 1 for the poison in turns: GET can be asked only once. */
		check_poisoned(e, flag, iova, npages, e->seq++ & 1 ? 0xa5 : 0x5a);
		return;
	}

	check_poisoned(e, flag, iova, npages, 0x00);
	check_poisoned(e, flag, iova, npages, 0xff);
}

/* Check all that is mapped, leaving the log as it is. */
static void check_all(struct env *e)
{
	int i;

	for (i = 0; i < MAX_MAPPINGS; i++) {
		if (e->mappings[i])
			check(e, FLAG_NOCLEAR, e->mappings[i]->dma.iova,
			      e->mappings[i]->npages);
	}
}

static void log_clear(struct env *e, iova_t iova, u64 npages, void *mask)
{
	struct __test_metadata *_metadata = e->metadata;

	ASSERT_EQ(0, log_call(e, FLAG_CLEAR, iova, npages, mask));
	model_cleared(e, iova, npages, mask);
}

/* Clear all pages of a range. */
static void clear_range(struct env *e, iova_t iova, u64 npages)
{
	u8 *mask = malloc_assert(DIRTY_LOG_BITMAP_BYTES(npages));

	/* Bits behind the range as well: they must not reach any page. */
	memset(mask, 0xff, DIRTY_LOG_BITMAP_BYTES(npages));
	log_clear(e, iova, npages, mask);
	free(mask);
}

/* Clear one page by a mask for the whole mapping. */
static void clear_page_of(struct env *e, struct mapping *m, u64 page)
{
	u8 *mask = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(m->npages));

	bit_put(mask, page, true);
	log_clear(e, m->dma.iova, m->npages, mask);
	free(mask);
}

/* Pages of the largest leaf that fits into the mapping. */
static u64 max_leaf(struct env *e, struct mapping *m)
{
	u64 leaf = e->log.pgsize;
	u64 size;

	for (size = leaf; size && size <= m->dma.size; size <<= 1) {
		if (e->log.iova_pgsizes & size)
			leaf = size;
	}

	return leaf / e->log.pgsize;
}

static void map_again(struct env *e, struct mapping *m)
{
	int i;

	iommu_map(e->iommu, &m->dma);
	model_map(e, m);

	for (i = 0; e->mappings[i]; i++)
		VFIO_ASSERT_LT(i, MAX_MAPPINGS - 1);

	e->mappings[i] = m;
}

/* Map memory that consists of pages of @page_size bytes at least. */
static struct mapping *map_memory(struct env *e, void *vaddr, iova_t iova,
				  u64 size, u64 page_size)
{
	struct mapping *m = calloc_assert(1, sizeof(*m));

	m->dma.vaddr = vaddr;
	m->dma.iova = iova;
	m->dma.size = size;
	m->npages = size / e->log.pgsize;
	m->state = calloc_assert(m->npages, 1);
	m->pinned = calloc_assert(m->npages, 1);
	m->max_leaf = max_leaf(e, m);
	m->min_leaf = e->log.iova_pgsizes & page_size ? page_size / e->log.pgsize : 1;

	map_again(e, m);

	return m;
}

static void *alloc_memory(u64 size, int flags)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);
}

static struct mapping *map_pages(struct env *e, iova_t iova, u64 npages)
{
	u64 size = npages * e->log.pgsize;
	void *vaddr;

	vaddr = alloc_memory(size, 0);
	VFIO_ASSERT_NE(vaddr, MAP_FAILED);

	return map_memory(e, vaddr, iova, size, e->log.pgsize);
}

static void model_forget(struct env *e, struct mapping *m)
{
	int i;

	for (i = 0; i < MAX_MAPPINGS; i++) {
		if (e->mappings[i] == m)
			e->mappings[i] = NULL;
	}
}

static void unmap_pages(struct env *e, struct mapping *m)
{
	iommu_unmap(e->iommu, &m->dma);
	model_forget(e, m);
}

/* ---- DMA ---- */

/*
 * Let @device write DMA_SIZE bytes at @offset of @m and see that it did. Returns
 * false if it did not.
 */
static bool __dma_write(struct env *e, struct vfio_pci_device *device,
			struct mapping *m, u64 offset)
{
	void *dst = m->dma.vaddr + offset;

	memset(e->src->dma.vaddr, ++e->seq ?: ++e->seq, DMA_SIZE);

	if (vfio_pci_driver_memcpy(device, e->src->dma.iova, m->dma.iova + offset, DMA_SIZE))
		return false;

	return !memcmp(dst, e->src->dma.vaddr, DMA_SIZE);
}

static void dma_write_at(struct env *e, struct vfio_pci_device *device,
			 struct mapping *m, u64 offset)
{
	struct __test_metadata *_metadata = e->metadata;

	ASSERT_TRUE(__dma_write(e, device, m, offset)) {
		TH_LOG("DMA to iova 0x%lx failed", m->dma.iova + offset);
	}

	model_write(e, m, offset / e->log.pgsize);
	model_write(e, m, (offset + DMA_SIZE - 1) / e->log.pgsize);
}

static void write_page(struct env *e, struct mapping *m, u64 page)
{
	dma_write_at(e, e->device, m, page * e->log.pgsize + 8 * (page % 4));
}

/* ---- Setting up ---- */

static bool expects(const char *what)
{
	const char *env = getenv("VFIO_DIRTY_LOG_EXPECT");

	return env && !strcmp(env, what);
}

static void driver_start(struct env *e, struct vfio_pci_device *device)
{
	struct dma_region *region = &device->driver.region;

	region->size = SZ_2M;
	region->vaddr = alloc_memory(region->size, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->iova = iova_allocator_alloc(e->iovas, region->size);
	iommu_map(e->iommu, region);

	vfio_pci_driver_init(device);
}

/* Returns why the test cannot run, or NULL. */
static const char *env_setup(struct env *e, struct __test_metadata *metadata)
{
	u64 size;

	*e = (struct env) {
		.metadata = metadata,
	};

	e->iommu = iommu_init(MODE_VFIO_TYPE1V2_IOMMU);
	e->device = vfio_pci_device_init(bdfs[0], e->iommu);

	if (!e->device->driver.ops)
		return "libvfio has no driver for the device";

	if (iommu_check_extension(e->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) != 1 &&
	    !getenv("VFIO_DIRTY_LOG_EXPECT"))
		return "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR";

	iommu_dirty_log_info(e->iommu, &e->log);

	e->iovas = iova_allocator_init(e->iommu);
	driver_start(e, e->device);

	size = getpagesize();
	e->src = map_pages(e, iova_allocator_alloc(e->iovas, size), size / e->log.pgsize);

	return NULL;
}

static void env_teardown(struct env *e)
{
	if (e->second)
		vfio_pci_device_cleanup(e->second);
	if (e->device)
		vfio_pci_device_cleanup(e->device);
	iova_allocator_cleanup(e->iovas);
	iommu_cleanup(e->iommu);
}

/* ---- Every IOMMU mode: does it offer the log, and if not, how is it refused? ---- */

FIXTURE(vfio_dirty_log_modes) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
};

FIXTURE_VARIANT(vfio_dirty_log_modes) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode)		\
FIXTURE_VARIANT_ADD(vfio_dirty_log_modes, _iommu_mode) {	\
	.iommu_mode = #_iommu_mode,				\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

#undef FIXTURE_VARIANT_ADD_IOMMU_MODE

FIXTURE_SETUP(vfio_dirty_log_modes)
{
	self->iommu = iommu_init(variant->iommu_mode);
	self->device = vfio_pci_device_init(bdfs[0], self->iommu);
}

FIXTURE_TEARDOWN(vfio_dirty_log_modes)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

static bool is_mode(struct iommu *iommu, const char *mode)
{
	return !strcmp(iommu->mode->name, mode);
}

TEST_F_TIMEOUT(vfio_dirty_log_modes, extension, TIMEOUT)
{
	bool offered = is_mode(self->iommu, MODE_VFIO_TYPE1V2_IOMMU);
	struct iommu *fresh;

	if (offered && !getenv("VFIO_DIRTY_LOG_EXPECT") &&
	    iommu_check_extension(self->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) == 0)
		SKIP(return, "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR");

	/* Nothing is attached to this one, so no IOMMU driver is behind it. */
	fresh = iommu_init(variant->iommu_mode);
	EXPECT_EQ(0, iommu_check_extension(fresh, VFIO_DIRTY_LOG_MANUAL_CLEAR));
	iommu_cleanup(fresh);

	EXPECT_EQ(offered,
		  iommu_check_extension(self->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR));
}

TEST_F_TIMEOUT(vfio_dirty_log_modes, capability, TIMEOUT)
{
	struct iommu_dirty_log_info log;
	int ret;

	ret = __iommu_dirty_log_info(self->iommu, &log);

	if (is_mode(self->iommu, MODE_IOMMUFD)) {
		/* An iommufd without a compatibility IOAS. */
		ASSERT_EQ(-ENODEV, ret);
		return;
	}

	if (!is_mode(self->iommu, MODE_VFIO_TYPE1_IOMMU) &&
	    !is_mode(self->iommu, MODE_VFIO_TYPE1V2_IOMMU)) {
		ASSERT_EQ(-ENOENT, ret);
		return;
	}

	ASSERT_EQ(0, ret);
	EXPECT_EQ(log.iova_pgsizes & -log.iova_pgsizes, log.pgsize);
	EXPECT_GE(log.pgsize, getpagesize());
	/* 2^31 pages */
	EXPECT_EQ(SZ_256M, log.max_bitmap_size);
	EXPECT_EQ(0, log.flags & ~VFIO_IOMMU_INFO_CAP_MIGRATION_HW_DIRTY);

	/* A v1 container has the capability, but no log. */
	if (!is_mode(self->iommu, MODE_VFIO_TYPE1V2_IOMMU)) {
		EXPECT_FALSE(log.hw);
		return;
	}

	if (expects("hw"))
		EXPECT_TRUE(log.hw);
	if (expects("pessimistic"))
		EXPECT_FALSE(log.hw);
}

/* Every call, and every flag or two that are no call at all. */
static const u32 all_flags[] = {
	0, FLAG_START, FLAG_STOP, FLAG_GET, FLAG_NOCLEAR, FLAG_CLEAR,
	FLAG_CLEAR << 1, 1U << 31, FLAG_START | FLAG_STOP, ~0U,
};

/* Calls that do nothing but fail, if @err; otherwise the calls without START. */
TEST_F_TIMEOUT(vfio_dirty_log_modes, calls, TIMEOUT)
{
	const u64 pgsize = getpagesize();
	u64 bits[2] = { 0x55, 0xaa };
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = TEST_IOVA,
		.size = pgsize,
		.bitmap = {
			.pgsize = pgsize,
			.size = 8,
			.data = (__u64 *)bits,
		},
	};
	struct dma_region region = {
		.iova = TEST_IOVA,
		.size = pgsize,
	};
	u64 unmapped = ~0UL;
	int err, i;

	region.vaddr = alloc_memory(pgsize, 0);
	ASSERT_NE(MAP_FAILED, region.vaddr);
	iommu_map(self->iommu, &region);

	if (is_mode(self->iommu, MODE_VFIO_TYPE1V2_IOMMU))
		err = 0;
	else if (is_mode(self->iommu, MODE_VFIO_TYPE1_IOMMU))
		err = -EACCES;
	else
		err = -ENOTTY;

	for (i = 0; i < ARRAY_SIZE(all_flags); i++) {
		/* START and STOP are the only ones that can succeed here. */
		bool call = all_flags[i] == FLAG_START || all_flags[i] == FLAG_STOP;
		u32 argsz = sizeof(struct vfio_iommu_type1_dirty_bitmap);

		if (!call)
			argsz += sizeof(range);

		if (!err && all_flags[i] == FLAG_START)
			continue;

		EXPECT_EQ(err ?: call ? 0 : -EINVAL,
			  __iommu_dirty_log_ioctl(self->iommu, argsz, all_flags[i], &range)) {
			TH_LOG("flags 0x%x", all_flags[i]);
		}
	}

	/* Without START there is no log to read while unmapping. */
	EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(self->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
					       region.iova, region.size, &range.bitmap, NULL));
	EXPECT_EQ(0x55, bits[0]);
	EXPECT_EQ(0xaa, bits[1]);

	/* It was not unmapped. */
	EXPECT_EQ(0, __iommu_unmap(self->iommu, &region, &unmapped));
	EXPECT_EQ(pgsize, unmapped);
}

FIXTURE(vfio_dirty_log_process) {
	/* The test opens the device in processes of its own. */
};

FIXTURE_SETUP(vfio_dirty_log_process)
{
}

FIXTURE_TEARDOWN(vfio_dirty_log_process)
{
}

/*
 * The capability against an independent witness: what iommufd says about the
 * same IOMMU. Catches a log that is pessimistic though it need not be, and one
 * that calls itself the hardware's without any.
 */
TEST_F_TIMEOUT(vfio_dirty_log_process, capability_is_true, TIMEOUT)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
	};
	struct iommu_hw_info info = {
		.size = sizeof(info),
	};
	struct iommu_dirty_log_info log;
	struct vfio_pci_device *device;
	struct iommu *iommu;
	bool capable;

	iommu = iommu_init(MODE_IOMMUFD);
	device = vfio_pci_device_alloc(bdfs[0], iommu);
	vfio_pci_cdev_open(device, bdfs[0]);
	bind.iommufd = iommu->iommufd;
	ASSERT_EQ(0, ioctl(device->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	info.dev_id = bind.out_devid;
	ASSERT_EQ(0, ioctl(iommu->iommufd, IOMMU_GET_HW_INFO, &info));
	capable = info.out_capabilities & IOMMU_HW_CAP_DIRTY_TRACKING;
	ASSERT_EQ(0, close(device->fd));
	vfio_pci_device_free(device);
	iommu_cleanup(iommu);

	iommu = iommu_init(MODE_VFIO_TYPE1V2_IOMMU);
	device = vfio_pci_device_init(bdfs[0], iommu);
	ASSERT_EQ(0, __iommu_dirty_log_info(iommu, &log));

	if (iommu_check_extension(iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) != 1 &&
	    !getenv("VFIO_DIRTY_LOG_EXPECT"))
		SKIP(return, "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR");

	EXPECT_EQ(capable, log.hw);
	TH_LOG("the dirty log is %s", log.hw ? "the hardware's" : "pessimistic");

	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
}

/* ---- One mapping, of pages of several sizes ---- */

FIXTURE(vfio_dirty_log) {
	struct env env;
	struct mapping *m;
	/* Pages to write: at both ends and between, in different leaves if there are. */
	u64 spots[3];
};

FIXTURE_VARIANT(vfio_dirty_log) {
	u64 size;
	u64 page_size;
	int mmap_flags;
};

FIXTURE_VARIANT_ADD(vfio_dirty_log, anonymous) {
	/* Less than 2 MiB, so that no IOMMU finds room for a superpage. */
	.size = SZ_1M,
	.page_size = SZ_4K,
};

FIXTURE_VARIANT_ADD(vfio_dirty_log, anonymous_hugetlb_2mb) {
	.size = SZ_8M,
	.page_size = SZ_2M,
	.mmap_flags = MAP_HUGETLB | MAP_HUGE_2MB,
};

FIXTURE_VARIANT_ADD(vfio_dirty_log, anonymous_hugetlb_1gb) {
	.size = SZ_1G,
	.page_size = SZ_1G,
	.mmap_flags = MAP_HUGETLB | MAP_HUGE_1GB,
};

FIXTURE_SETUP(vfio_dirty_log)
{
	const char *skip;
	void *vaddr;

	vaddr = alloc_memory(variant->size, variant->mmap_flags);
	if (vaddr == MAP_FAILED)
		SKIP(return, "no memory of pages of 0x%lx bytes: %s",
		     variant->page_size, strerror(errno));

	skip = env_setup(&self->env, _metadata);
	if (skip)
		SKIP(return, "%s", skip);

	self->m = map_memory(&self->env, vaddr, TEST_IOVA, variant->size, variant->page_size);

	self->spots[0] = 5;
	self->spots[1] = self->m->npages / 3;
	self->spots[2] = self->m->npages - 1;
}

FIXTURE_TEARDOWN(vfio_dirty_log)
{
	env_teardown(&self->env);
}

/*
 * Exactly what was written between START and STOP. Catches dirty bits that
 * survive from before START, a log that START does not turn on, an IOTLB entry
 * from before START through which writes go unseen, bits at wrong offsets.
 */
TEST_F_TIMEOUT(vfio_dirty_log, start_and_stop, TIMEOUT)
{
	struct env *e = &self->env;
	u8 bitmap[CANARY];
	int cycle, i;

	for (cycle = 0; cycle < 3; cycle++) {
		write_page(e, self->m, self->spots[0]);
		write_page(e, self->m, self->spots[2]);

		log_start(e);
		check_all(e);

		write_page(e, self->m, self->spots[0]);
		write_page(e, self->m, self->spots[1]);
		check_all(e);

		/* Nothing changes: neither the log's pages nor that it runs. */
		log_start(e);
		check_all(e);
		write_page(e, self->m, self->spots[2]);
		check_all(e);

		log_stop(e);
		log_stop(e);

		for (i = 0; i < ARRAY_SIZE(all_flags); i++) {
			if (all_flags[i] < FLAG_GET || all_flags[i] > FLAG_CLEAR)
				continue;
			EXPECT_EQ(-EINVAL, log_call(e, all_flags[i], self->m->dma.iova, 1, bitmap));
		}
	}
}

/* Catches a NOCLEAR that clears, in dma->bitmap or in the IOMMU. */
TEST_F_TIMEOUT(vfio_dirty_log, noclear_leaves, TIMEOUT)
{
	struct env *e = &self->env;
	int i;

	log_start(e);

	for (i = 0; i < ARRAY_SIZE(self->spots); i++) {
		write_page(e, self->m, self->spots[i]);
		check_all(e);
		check_all(e);
	}

	check(e, FLAG_GET, self->m->dma.iova, self->m->npages);
}

/*
 * Catches a GET that leaves pages dirty, that leaves the IOMMU's bits or a stale
 * IOTLB entry behind, and a GET that does not look at the IOMMU.
 */
TEST_F_TIMEOUT(vfio_dirty_log, get_clears, TIMEOUT)
{
	struct env *e = &self->env;
	int i;

	log_start(e);
	check(e, FLAG_GET, self->m->dma.iova, self->m->npages);

	for (i = 0; i < ARRAY_SIZE(self->spots); i++) {
		write_page(e, self->m, self->spots[i]);
		check(e, FLAG_GET, self->m->dma.iova, self->m->npages);

		/* The translation is hot. */
		write_page(e, self->m, self->spots[i]);
		check(e, FLAG_GET, self->m->dma.iova, self->m->npages);
		check(e, FLAG_GET, self->m->dma.iova, self->m->npages);
	}
}

/*
 * Catches a CLEAR that takes the neighbours in the same superpage along (one of
 * 512 leaves 511), that clears beyond its mask, or clears nothing.
 */
TEST_F_TIMEOUT(vfio_dirty_log, clear_some, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u8 *mask = malloc_assert(DIRTY_LOG_BITMAP_BYTES(m->npages));
	int i;

	log_start(e);

	for (i = 0; i < ARRAY_SIZE(self->spots); i++)
		write_page(e, m, self->spots[i]);

	/* Unread as yet: the IOMMU's bits go and dma->bitmap has none. */
	clear_page_of(e, m, self->spots[0]);
	check_all(e);

	/* Read: dma->bitmap has them. */
	clear_page_of(e, m, self->spots[2]);
	check_all(e);

	/* A clean page, in a dirty superpage if there are any. */
	clear_page_of(e, m, self->spots[0]);
	check_all(e);

	memset(mask, 0, DIRTY_LOG_BITMAP_BYTES(m->npages));
	log_clear(e, m->dma.iova, m->npages, mask);
	check_all(e);

	/* All but one. */
	bits_set(mask, 0, m->npages);
	bit_put(mask, self->spots[1], false);
	log_clear(e, m->dma.iova, m->npages, mask);
	check_all(e);

	clear_page_of(e, m, self->spots[1]);
	check_all(e);

	for (i = 0; i < ARRAY_SIZE(self->spots); i++)
		write_page(e, m, self->spots[i]);
	check_all(e);
}

/*
 * One mask with runs and gaps of all kinds of lengths. Catches pages between two
 * runs that are cleared along, and a run that is cut short.
 */
TEST_F_TIMEOUT(vfio_dirty_log, clear_sparse, TIMEOUT)
{
	static const u64 runs[] = { 2, 1, 3, 64, 1, 7, 65, 2, 63, 130 };
	static const u64 gaps[] = { 1, 2, 7, 61, 64, 130, 63, 65, 62, 128 };
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u8 *mask = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(m->npages));
	u64 page = 0;
	int i, round;

	/* The second round finds the bits in dma->bitmap, the first in the IOMMU. */
	for (round = 0; round < 2; round++) {
		log_start(e);

		for (i = 0, page = 0; i < ARRAY_SIZE(gaps); i++) {
			if (page + runs[i] + 1 >= m->npages)
				break;

			/* Dirty at both ends, and its neighbours with it */
			write_page(e, m, page);
			write_page(e, m, page + 1);
			write_page(e, m, page + runs[i]);
			write_page(e, m, page + runs[i] + 1);
			bits_set(mask, page + 1, runs[i]);
			page += runs[i] + gaps[i];
		}
		if (round)
			check_all(e);

		log_clear(e, m->dma.iova, m->npages, mask);
		check_all(e);
		log_stop(e);
	}
}

/* What nobody thought of. The seed is fixed, a failure can be had again. */
TEST_F_TIMEOUT(vfio_dirty_log, random_calls, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u8 *mask = malloc_assert(DIRTY_LOG_BITMAP_BYTES(m->npages));
	u64 first, n, i;
	int step;

	srandom(1);
	log_start(e);

	for (step = 0; step < 150; step++) {
		first = random() % m->npages;
		n = 1 + random() % min(m->npages - first, 1UL << random() % 19);

		switch (random() % 8) {
		case 0 ... 3:
			write_page(e, m, random() % 2 ? first : self->spots[random() % 3]);
			break;
		case 4:
			check(e, FLAG_NOCLEAR, page_iova(e, m, first), n);
			break;
		case 5 ... 6:
			/* Dense and thin masks */
			for (i = 0; i < DIRTY_LOG_BITMAP_BYTES(n); i++)
				mask[i] = random() % 4 ? 0 : random();
			log_clear(e, page_iova(e, m, first), n, mask);
			break;
		case 7:
			if (random() % 4)
				check_all(e);
			else
				check(e, FLAG_GET, m->dma.iova, m->npages);
			break;
		}
	}

	check_all(e);
}

/*
 * Write, clear, write again at once. Catches a CLEAR that does not flush the
 * IOTLB, that flushes another range than it cleared, or that clears dma->bitmap
 * only and leaves the IOMMU's bit, which then looks like the second write.
 */
TEST_F_TIMEOUT(vfio_dirty_log, clear_then_write, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	int i;

	log_start(e);

	for (i = 0; i < 12; i++) {
		u64 page = self->spots[i % ARRAY_SIZE(self->spots)];

		write_page(e, m, page);
		if (i % 4 < 2)
			clear_page_of(e, m, page);
		else
			clear_range(e, page_iova(e, m, page), 1);
		if (i % 2)
			check_all(e);

		write_page(e, m, page);
		check_all(e);
	}

	clear_range(e, m->dma.iova, m->npages);
	check_all(e);

	for (i = 0; i < ARRAY_SIZE(self->spots); i++)
		write_page(e, m, self->spots[i]);
	check_all(e);
}

/*
 * A part of a mapping, cutting superpages at both ends and covering others.
 * Catches bits lost or cleared outside the part, and a leaf that starts before
 * the part and is not recorded.
 */
TEST_F_TIMEOUT(vfio_dirty_log, subrange, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	const u64 first = m->npages / 4 - 13;
	const u64 end = m->npages / 2 + 77;
	const u64 writes[] = { 0, first - 1, first, first + 200 < end ? first + 200 : first + 1,
			       end - 1, end, m->npages - 1 };
	int round, i;

	log_start(e);

	for (round = 0; round < 2; round++) {
		for (i = 0; i < ARRAY_SIZE(writes); i++)
			write_page(e, m, writes[i]);

		check(e, FLAG_NOCLEAR, page_iova(e, m, first), end - first);
		if (round)
			check_all(e);

		clear_range(e, page_iova(e, m, first), end - first);
		check(e, FLAG_NOCLEAR, page_iova(e, m, first), end - first);
		check_all(e);
	}

	/* Single pages by ranges of their own, at either side of an edge. */
	for (i = 0; i < ARRAY_SIZE(writes); i++) {
		clear_range(e, page_iova(e, m, writes[i]), 1);
		check(e, FLAG_NOCLEAR, page_iova(e, m, writes[i]), 1);
	}
	check_all(e);
}

/* Catches an UNMAP that does not ask the IOMMU, or forgets what was read before. */
TEST_F_TIMEOUT(vfio_dirty_log, unmap_get_dirty, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u64 size = DIRTY_LOG_BITMAP_BYTES(m->npages) + CANARY;
	u8 *got = calloc_assert(1, size), *want = calloc_assert(1, size);
	u64 unmapped = 0;
	int round;

	for (round = 0; round < 2; round++) {
		log_start(e);

		/* One read before, one cleared, one only known to the IOMMU. */
		write_page(e, m, self->spots[0]);
		write_page(e, m, self->spots[1]);
		check_all(e);
		clear_page_of(e, m, self->spots[1]);
		write_page(e, m, self->spots[2]);

		/* Bits are written, not or'ed in. */
		memset(got, round ? 0xff : 0, size);
		memset(want, round ? 0xff : 0, size);
		memset(got + size - CANARY, 0xa5, CANARY);
		memset(want + size - CANARY, 0xa5, CANARY);
		ASSERT_EQ(0, __iommu_unmap_get_dirty(e->iommu, &m->dma, got, &unmapped));
		EXPECT_EQ(m->dma.size, unmapped);
		model_paint(e, m->dma.iova, m->npages, want, got);
		EXPECT_EQ(0, memcmp(got, want, size));
		model_forget(e, m);

		/* A new mapping in the same place knows nothing of the old one. */
		map_again(e, m);
		check_all(e);
		write_page(e, m, self->spots[1]);
		check_all(e);

		log_stop(e);
	}
}

static const char *yes(bool bit, const char *word)
{
	return bit ? word : "-";
}

/* What a migration does, told as a table. */
TEST_F_TIMEOUT(vfio_dirty_log, show, TIMEOUT)
{
	const char *verbose = getenv("VFIO_DIRTY_LOG_VERBOSE");
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u64 bytes = DIRTY_LOG_BITMAP_BYTES(m->npages);
	u8 *written = calloc_assert(1, bytes), *mask = calloc_assert(1, bytes);
	u8 *before = calloc_assert(1, bytes), *after = calloc_assert(1, bytes);
	u8 *want_before = calloc_assert(1, bytes), *want_after = calloc_assert(1, bytes);
	u64 page, first;
	bool ok = true;
	int i;

	log_start(e);

	for (i = 0; i < 3; i++) {
		bit_put(written, self->spots[i], true);
		write_page(e, m, self->spots[i]);
	}
	bit_put(written, self->spots[1] + 1, true);
	write_page(e, m, self->spots[1] + 1);

	ASSERT_EQ(0, log_call(e, FLAG_NOCLEAR, m->dma.iova, m->npages, before));
	model_paint(e, m->dma.iova, m->npages, want_before, before);

	bit_put(mask, self->spots[0], true);
	bit_put(mask, self->spots[1], true);
	log_clear(e, m->dma.iova, m->npages, mask);

	ASSERT_EQ(0, log_call(e, FLAG_NOCLEAR, m->dma.iova, m->npages, after));
	model_paint(e, m->dma.iova, m->npages, want_after, after);

	if (verbose)
		printf("# The dirty log is %s. %lu pages of %lu bytes at iova 0x%lx.\n"
		       "# %-15s  %-7s  %-7s  %-7s  %-13s  %s\n",
		       e->log.hw ? "the hardware's" : "pessimistic", m->npages, e->log.pgsize,
		       m->dma.iova,
		       "pages", "written", "NOCLEAR", "cleared", "NOCLEAR again", "verdict");

	for (page = first = 0; page < m->npages; page++) {
		bool good = bit_get(before, page) == bit_get(want_before, page) &&
			    bit_get(after, page) == bit_get(want_after, page);
		u64 next = page + 1;

		ok &= good;

		/* One line for pages that fared alike. */
		if (next < m->npages &&
		    bit_get(written, next) == bit_get(written, page) &&
		    bit_get(before, next) == bit_get(before, page) &&
		    bit_get(mask, next) == bit_get(mask, page) &&
		    bit_get(after, next) == bit_get(after, page) &&
		    good == (bit_get(before, next) == bit_get(want_before, next) &&
			     bit_get(after, next) == bit_get(want_after, next)))
			continue;

		if (verbose)
			printf("# %6lu - %6lu  %-7s  %-7s  %-7s  %-13s  %s\n", first, page,
			       yes(bit_get(written, page), "by DMA"),
			       yes(bit_get(before, page), "dirty"),
			       yes(bit_get(mask, page), "cleared"),
			       yes(bit_get(after, page), "dirty"),
			       good ? "ok" : "WRONG");
		first = next;
	}
	fflush(stdout);

	EXPECT_TRUE(ok);
	log_stop(e);
}

/* ---- Several mappings and odd ranges ---- */

FIXTURE(vfio_dirty_log_container) {
	struct env env;
};

FIXTURE_SETUP(vfio_dirty_log_container)
{
	const char *skip = env_setup(&self->env, _metadata);

	if (skip)
		SKIP(return, "%s", skip);
}

FIXTURE_TEARDOWN(vfio_dirty_log_container)
{
	env_teardown(&self->env);
}

/*
 * Mappings that begin at all kinds of bit offsets, with and without holes
 * between. Catches bits that move or reach into holes and neighbours (5 pages
 * followed by 70 do that at the second GET if a shifted copy is not cleared
 * whole), a hole's bits overwritten, and offsets that are wrong modulo 8 or 64.
 */
TEST_F_TIMEOUT(vfio_dirty_log_container, bit_offsets, TIMEOUT)
{
	static const struct {
		u64 npages;
		u64 hole;
	} layout[] = {
		{ 5, 0 }, { 70, 3 }, { 1, 0 }, { 64, 61 },
		{ 63, 1 }, { 8, 0 }, { 129, 0 }, { 2, 66 },
	};
	static const u64 starts[] = { 0, 1, 7, 8, 63, 64, 65, 128 };
	struct mapping *m[ARRAY_SIZE(layout)];
	struct env *e = &self->env;
	u64 pgsize = e->log.pgsize;
	u64 npages = 0;
	int i, round;

	for (i = 0; i < ARRAY_SIZE(layout); i++) {
		m[i] = map_pages(e, TEST_IOVA + npages * pgsize, layout[i].npages);
		npages += layout[i].npages + layout[i].hole;
	}

	log_start(e);

	for (round = 0; round < ARRAY_SIZE(starts); round++) {
		iova_t iova = TEST_IOVA - starts[round] * pgsize;
		u64 n = starts[round] + npages + 9 * round;

		for (i = round % 2; i < ARRAY_SIZE(layout); i += 2) {
			write_page(e, m[i], 0);
			write_page(e, m[i], layout[i].npages - 1);
		}

		/* An unaligned bitmap as well. */
		e->misalign = round;

		check(e, FLAG_NOCLEAR, iova, n);
		if (round % 3 == 1)
			clear_range(e, iova, n - 80);
		check(e, FLAG_GET, iova, n);
		check(e, FLAG_GET, iova, n);
	}

	check_all(e);
}

/* Catches a range that is resolved to whole mappings, or to the first one only. */
TEST_F_TIMEOUT(vfio_dirty_log_container, parts_and_holes, TIMEOUT)
{
	struct env *e = &self->env;
	u64 pgsize = e->log.pgsize;
	struct mapping *a, *b, *c;
	iova_t iova;
	u64 n;

	a = map_pages(e, TEST_IOVA, 100);
	b = map_pages(e, TEST_IOVA + 117 * pgsize, 3);
	c = map_pages(e, TEST_IOVA + 200 * pgsize, 150);

	log_start(e);

	for (n = 1; n < 230; n += 57) {
		iova = TEST_IOVA + 90 * pgsize;

		write_page(e, a, 89);
		write_page(e, a, 90);
		write_page(e, a, 99);
		write_page(e, b, 1);
		write_page(e, c, 18);
		write_page(e, c, 149);

		check(e, FLAG_NOCLEAR, iova, n);
		clear_range(e, iova, n);
		check(e, FLAG_NOCLEAR, iova, n);
		check_all(e);
	}

	/* Nothing but a hole: nothing is written, nothing is cleared. */
	check(e, FLAG_NOCLEAR, TEST_IOVA + 120 * pgsize, 80);
	check(e, FLAG_GET, TEST_IOVA + 120 * pgsize, 80);
	clear_range(e, TEST_IOVA + 120 * pgsize, 80);
	check_all(e);
}

/* GET refuses to cut a mapping in two; NOCLEAR and CLEAR do not mind. */
TEST_F_TIMEOUT(vfio_dirty_log_container, bisected, TIMEOUT)
{
	static const struct {
		u64 first, npages;
		bool bisects;
	} ranges[] = {
		{ 0, 9, true }, { 1, 9, true }, { 1, 20, true }, { 3, 2, true }, { 0, 22, true },
		{ 12, 9, true }, { 0, 10, false }, { 10, 10, false }, { 0, 30, false },
		{ 12, 8, false }, { 12, 4, false },
	};
	struct env *e = &self->env;
	u64 pgsize = e->log.pgsize;
	struct mapping *a, *b;
	u8 bitmap[CANARY];
	int i;

	/* Pages 0 to 9, a hole, pages 20 to 29 */
	a = map_pages(e, TEST_IOVA, 10);
	b = map_pages(e, TEST_IOVA + 20 * pgsize, 10);

	log_start(e);

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		iova_t iova = TEST_IOVA + ranges[i].first * pgsize;

		write_page(e, a, 4);
		write_page(e, a, 9);
		write_page(e, b, 0);

		check(e, FLAG_NOCLEAR, iova, ranges[i].npages);

		if (ranges[i].bisects) {
			EXPECT_EQ(-EINVAL, log_call(e, FLAG_GET, iova, ranges[i].npages, bitmap)) {
				TH_LOG("%lu pages from %lu", ranges[i].npages, ranges[i].first);
			}
			check_all(e);
			clear_range(e, iova, ranges[i].npages);
		} else {
			check(e, FLAG_GET, iova, ranges[i].npages);
		}
		check_all(e);
	}
}

static iova_t last_iova(struct env *e)
{
	struct iommu_iova_range *ranges;
	iova_t last;
	u32 n;

	ranges = iommu_iova_ranges(e->iommu, &n);
	last = ranges[n - 1].last;
	free(ranges);

	return last;
}

/* Catches sums that overflow, and an end that is taken for an exclusive one. */
TEST_F_TIMEOUT(vfio_dirty_log_container, top_of_iova_space, TIMEOUT)
{
	struct env *e = &self->env;
	u64 pgsize = e->log.pgsize;
	struct mapping *m;

	m = map_pages(e, (last_iova(e) & ~(pgsize - 1)) - 2 * pgsize, 3);

	log_start(e);
	write_page(e, m, 2);
	check_all(e);
	check(e, FLAG_NOCLEAR, page_iova(e, m, 2), 1);

	/* From below the mapping up to the top */
	check(e, FLAG_NOCLEAR, m->dma.iova - 70 * pgsize, 73);

	clear_range(e, page_iova(e, m, 2), 1);
	check_all(e);
	write_page(e, m, 2);
	write_page(e, m, 0);
	clear_range(e, page_iova(e, m, 1), 2);
	check_all(e);
	check(e, FLAG_GET, m->dma.iova, 3);
	check_all(e);
}

/*
 * A range of 5 GiB above 4 GiB. Catches page numbers and offsets in 32 bits: with
 * an int, (2^19 << 12) is negative and (2^20 << 12) is 0.
 */
TEST_F_TIMEOUT(vfio_dirty_log_container, more_than_32_bits, TIMEOUT)
{
	static const u64 offsets[] = {
		0, SZ_2G - SZ_64K, SZ_2G + SZ_64K, 0x100000000, 0x140000000,
	};
	struct mapping *m[ARRAY_SIZE(offsets)];
	struct env *e = &self->env;
	u64 npages = (0x140000000 + SZ_64K) / e->log.pgsize;
	u64 i;

	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		m[i] = map_pages(e, TEST_IOVA + offsets[i], SZ_64K / e->log.pgsize);
		ASSERT_EQ(0, m[i]->dma.iova & ~TEST_IOVA & ~0x1ffffffffUL);
	}

	log_start(e);
	for (i = 0; i < ARRAY_SIZE(offsets); i++)
		write_page(e, m[i], i % m[i]->npages);

	check(e, FLAG_NOCLEAR, TEST_IOVA, npages);

	for (i = 0; i < ARRAY_SIZE(offsets); i += 2)
		clear_page_of(e, m[i], i % m[i]->npages);
	check_all(e);

	clear_range(e, TEST_IOVA, npages);
	check_all(e);

	for (i = 0; i < ARRAY_SIZE(offsets); i++)
		write_page(e, m[i], i % m[i]->npages);
	check(e, FLAG_GET, TEST_IOVA, npages);
	check_all(e);
}

/*
 * The largest bitmap, for 8 TiB of IOVA with 4 KiB pages; all of its memory but
 * what belongs to a mapping stays untouched.
 */
TEST_F_TIMEOUT(vfio_dirty_log_container, largest_bitmap, TIMEOUT)
{
	struct env *e = &self->env;
	u64 pgsize = e->log.pgsize;
	struct vfio_iommu_type1_dirty_bitmap_get range = {
		.iova = TEST_IOVA,
		.size = e->log.max_bitmap_size * 8 * pgsize,
		.bitmap = {
			.pgsize = pgsize,
			.size = e->log.max_bitmap_size,
		},
	};
	const u32 argsz = sizeof(struct vfio_iommu_type1_dirty_bitmap) + sizeof(range);
	static const u32 flags[] = { FLAG_NOCLEAR, FLAG_CLEAR, FLAG_NOCLEAR, FLAG_GET, FLAG_GET };
	const u64 poison = 0xa55a0ff0c33c9669;
	u64 last = range.size / pgsize - 1;
	const u64 untouched[] = { 1, last / 128, last / 64 - 1 };
	struct mapping *a, *b = NULL;
	u8 *bitmap;
	int i, j;

	bitmap = mmap(NULL, range.bitmap.size + getpagesize(), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, bitmap);
	range.bitmap.data = (__u64 *)bitmap;

	a = map_pages(e, TEST_IOVA + 3 * pgsize, 2);
	if (last_iova(e) / pgsize >= TEST_IOVA / pgsize + last)
		b = map_pages(e, TEST_IOVA + last * pgsize, 1);
	else
		TH_LOG("The IOVA space is too small for a mapping at the end");

	log_start(e);
	write_page(e, a, 1);
	if (b)
		write_page(e, b, 0);

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		bool clear = flags[i] == FLAG_CLEAR;

		bit_put(bitmap, 4, clear);
		bit_put(bitmap, last, clear);
		for (j = 0; j < ARRAY_SIZE(untouched); j++)
			range.bitmap.data[untouched[j]] = poison;

		ASSERT_EQ(0, __iommu_dirty_log_ioctl(e->iommu, argsz, flags[i], &range));

		for (j = 0; j < ARRAY_SIZE(untouched); j++)
			EXPECT_EQ(poison, range.bitmap.data[untouched[j]]);

		if (clear) {
			model_clear(e, a, 1);
			if (b)
				model_clear(e, b, 0);
			check_all(e);
			write_page(e, a, 1);
			if (b)
				write_page(e, b, 0);
			continue;
		}

		EXPECT_EQ(a->state[0] == PAGE_DIRTY, bit_get(bitmap, 3));
		EXPECT_EQ(a->state[1] == PAGE_DIRTY, bit_get(bitmap, 4));
		EXPECT_FALSE(bit_get(bitmap, 5));
		EXPECT_EQ(b && b->state[0] == PAGE_DIRTY, bit_get(bitmap, last));
		EXPECT_FALSE(bit_get(bitmap, last - 1));

		if (flags[i] == FLAG_GET)
			model_cleared(e, range.iova, last + 1, NULL);
	}

	/* One page more than the largest bitmap has bits for, or a larger bitmap. */
	for (i = 1; i < ARRAY_SIZE(flags) - 1; i++) {
		range.size += pgsize;
		EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(e->iommu, argsz, flags[i], &range));
		range.bitmap.size += 8;
		EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(e->iommu, argsz, flags[i], &range));
		range.size -= pgsize;
		EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(e->iommu, argsz, flags[i], &range));
		range.bitmap.size -= 8;
	}

	check_all(e);
}

/* ---- Mappings that come, go and change while the log runs ---- */

/* Catches a new mapping that is born dirty, or has no log of its own. */
TEST_F_TIMEOUT(vfio_dirty_log_container, map_while_tracking, TIMEOUT)
{
	struct env *e = &self->env;
	u64 pgsize = e->log.pgsize;
	struct mapping *a, *b;
	int round;

	log_start(e);

	for (round = 0; round < 3; round++) {
		a = map_pages(e, TEST_IOVA, 70);
		check_all(e);
		write_page(e, a, 69);
		check_all(e);

		b = map_pages(e, TEST_IOVA + 70 * pgsize, 5);
		check(e, FLAG_NOCLEAR, TEST_IOVA, 75);
		write_page(e, b, 4);
		clear_range(e, TEST_IOVA + 69 * pgsize, 2);
		check(e, FLAG_GET, TEST_IOVA, 75);

		/* What is unmapped dirty leaves nothing behind for the next round. */
		write_page(e, a, 3);
		write_page(e, b, 3);
		unmap_pages(e, a);
		check(e, FLAG_NOCLEAR, TEST_IOVA, 75);
		unmap_pages(e, b);
		check(e, FLAG_NOCLEAR, TEST_IOVA, 75);
	}
}

/* Several mappings, one of them unread, unmapped at once into one bitmap. */
TEST_F_TIMEOUT(vfio_dirty_log_container, unmap_several, TIMEOUT)
{
	struct env *e = &self->env;
	u64 pgsize = e->log.pgsize;
	u64 npages = 5 + 70 + 11 + 130;
	struct vfio_bitmap bitmap = {
		.pgsize = pgsize,
		.size = DIRTY_LOG_BITMAP_BYTES(npages),
	};
	u8 *want = calloc_assert(1, bitmap.size);
	struct mapping *m[3];
	u64 unmapped = 0;
	int i;

	bitmap.data = calloc_assert(1, bitmap.size);
	memset(bitmap.data, 0xff, bitmap.size);
	memset(want, 0xff, bitmap.size);

	m[0] = map_pages(e, TEST_IOVA, 5);
	m[1] = map_pages(e, TEST_IOVA + 5 * pgsize, 70);
	m[2] = map_pages(e, TEST_IOVA + 86 * pgsize, 130);

	log_start(e);
	for (i = 0; i < 3; i++)
		write_page(e, m[i], 4);
	check(e, FLAG_NOCLEAR, TEST_IOVA, 75);
	write_page(e, m[2], 129);

	ASSERT_EQ(0, __iommu_unmap_ioctl(e->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
					 TEST_IOVA, npages * pgsize, &bitmap, &unmapped));
	EXPECT_EQ((5 + 70 + 130) * pgsize, unmapped);

	model_paint(e, TEST_IOVA, npages, want, bitmap.data);
	EXPECT_EQ(0, memcmp(want, bitmap.data, bitmap.size));

	for (i = 0; i < 3; i++) {
		list_del_init(&m[i]->dma.link);
		model_forget(e, m[i]);
		map_again(e, m[i]);
	}
	check_all(e);
}

/* The log goes on over a container without any mapping. */
TEST_F_TIMEOUT(vfio_dirty_log_container, unmap_all, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m, *src = e->src;

	m = map_pages(e, TEST_IOVA, 70);
	log_start(e);
	write_page(e, m, 2);

	iommu_unmap_all(e->iommu);
	model_forget(e, m);
	model_forget(e, src);
	check(e, FLAG_NOCLEAR, TEST_IOVA, 70);
	check(e, FLAG_GET, TEST_IOVA, 70);
	clear_range(e, TEST_IOVA, 70);

	iommu_map(e->iommu, &e->device->driver.region);
	map_again(e, src);
	map_again(e, m);
	check_all(e);
	write_page(e, m, 3);
	check_all(e);
	log_stop(e);
}

/* DMA goes on while vaddr is away, and so does the log. */
TEST_F_TIMEOUT(vfio_dirty_log_container, vaddr, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m;
	void *vaddr;

	if (iommu_check_extension(e->iommu, VFIO_UPDATE_VADDR) != 1)
		SKIP(return, "the container does not offer VFIO_UPDATE_VADDR");

	m = map_pages(e, TEST_IOVA, 70);
	log_start(e);
	write_page(e, m, 1);

	ASSERT_EQ(0, __iommu_vaddr_invalidate(e->iommu, &m->dma));
	check_all(e);
	write_page(e, m, 2);
	check_all(e);
	clear_page_of(e, m, 1);
	check_all(e);
	write_page(e, m, 3);

	vaddr = mremap(m->dma.vaddr, m->dma.size, m->dma.size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       mmap_reserve(m->dma.size, SZ_2M, 0));
	ASSERT_NE(MAP_FAILED, vaddr);
	m->dma.vaddr = vaddr;
	ASSERT_EQ(0, __iommu_vaddr_update(e->iommu, &m->dma));

	check_all(e);
	write_page(e, m, 4);
	check(e, FLAG_GET, TEST_IOVA, 70);
	check_all(e);

	/* Starting while vaddr is away */
	log_stop(e);
	ASSERT_EQ(0, __iommu_vaddr_invalidate(e->iommu, &m->dma));
	log_start(e);
	write_page(e, m, 5);
	ASSERT_EQ(0, __iommu_vaddr_update(e->iommu, &m->dma));
	check_all(e);
}

/* ---- Calls that fail ---- */

/*
 * Three mappings and a bitmap of two pages of memory: the bits of the first are
 * in its first page, those of the second in both, those of the third in the
 * second page.
 */
#define FAR_PAGES	(40000 + 64)

static void far_layout(struct env *e, struct mapping *m[3])
{
	u64 bits = 8 * getpagesize();

	VFIO_ASSERT_LT(bits, 40000);

	m[0] = map_pages(e, TEST_IOVA, 130);
	m[1] = map_pages(e, TEST_IOVA + (bits - 64) * e->log.pgsize, 128);
	m[2] = map_pages(e, TEST_IOVA + 40000 * e->log.pgsize, 64);
}

static void far_dirty(struct env *e, struct mapping *m[3])
{
	write_page(e, m[0], 0);
	write_page(e, m[0], 129);
	write_page(e, m[1], 63);
	write_page(e, m[1], 64);
	write_page(e, m[2], 10);
}

/*
 * The bitmap cannot be accessed, at all or from its second page on. Catches a GET
 * that cleared what it could not hand over, in this or in an earlier mapping, a
 * CLEAR that clears before it has read its mask, an UNMAP that has unmapped a
 * part, dma->bitmap left shifted.
 */
TEST_F_TIMEOUT(vfio_dirty_log_container, bad_bitmap_pointer, TIMEOUT)
{
	static const struct {
		const char *name;
		int prot[2];
		bool clear_can;
	} bad[] = {
		{ "no access", { PROT_NONE, PROT_NONE } },
		{ "first page only", { PROT_READ | PROT_WRITE, PROT_NONE } },
		{ "second page only", { PROT_NONE, PROT_READ | PROT_WRITE } },
		{ "read-only", { PROT_READ, PROT_READ }, true },
		{ "first page writable", { PROT_READ | PROT_WRITE, PROT_READ }, true },
	};
	static const u32 flags[] = { FLAG_GET, FLAG_NOCLEAR, FLAG_CLEAR, 0 /* UNMAP */ };
	struct env *e = &self->env;
	const size_t page = getpagesize();
	struct vfio_bitmap bitmap = {
		.pgsize = e->log.pgsize,
		.size = DIRTY_LOG_BITMAP_BYTES(FAR_PAGES),
	};
	struct mapping *m[3];
	int i, f, ret;
	u8 *bits;

	ASSERT_LT(page, bitmap.size);
	ASSERT_GE(2 * page, bitmap.size);
	bits = alloc_memory(2 * page, 0);
	ASSERT_NE(MAP_FAILED, bits);
	bitmap.data = (__u64 *)bits;

	far_layout(e, m);
	log_start(e);

	for (f = 0; f < ARRAY_SIZE(flags); f++) {
		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			bool works = flags[f] == FLAG_CLEAR && bad[i].clear_can;
			u64 unmapped = 0;

			/* One of them read before, the others only known to the IOMMU */
			far_dirty(e, m);
			if (i % 2)
				check(e, FLAG_NOCLEAR, m[1]->dma.iova, m[1]->npages);

			memset(bits, 0xff, 2 * page);
			ASSERT_EQ(0, mprotect(bits, page, bad[i].prot[0]));
			ASSERT_EQ(0, mprotect(bits + page, page, bad[i].prot[1]));

			if (flags[f])
				ret = log_call(e, flags[f], TEST_IOVA, FAR_PAGES, bits);
			else
				ret = __iommu_unmap_ioctl(e->iommu,
							  VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
							  TEST_IOVA, FAR_PAGES * e->log.pgsize,
							  &bitmap, &unmapped);

			ASSERT_EQ(0, mprotect(bits, 2 * page, PROT_READ | PROT_WRITE));

			EXPECT_EQ(works ? 0 : -EFAULT, ret) {
				TH_LOG("flag 0x%x, %s", flags[f], bad[i].name);
			}
			if (works)
				model_cleared(e, TEST_IOVA, FAR_PAGES, NULL);
			else
				model_after_error(e);

			check_all(e);
			check(e, FLAG_GET, TEST_IOVA, FAR_PAGES);
		}
	}

	/* All three are still there. */
	far_dirty(e, m);
	check_all(e);
	for (i = 0; i < 3; i++)
		unmap_pages(e, m[i]);
}

struct bad_field {
	const char *name;
	int err;
	int field;
	u64 value;
	int field2;
	u64 value2;
};

#define RANGE(_field)	(offsetof(struct vfio_iommu_type1_dirty_bitmap_get, _field) / 8)

/*
 * Every field at every kind of bad value. None may change the log or the bitmap.
 * (All fields are 64 bits wide: the table counts in words.)
 */
TEST_F_TIMEOUT(vfio_dirty_log_container, bad_arguments, TIMEOUT)
{
	struct env *e = &self->env;
	const u64 pgsize = e->log.pgsize;
	const u64 npages = 130;
	u64 bitmap[8];
	struct vfio_iommu_type1_dirty_bitmap_get good = {
		.iova = TEST_IOVA,
		.size = npages * pgsize,
		.bitmap = {
			.pgsize = pgsize,
			.size = DIRTY_LOG_BITMAP_BYTES(npages),
			.data = (__u64 *)bitmap,
		},
	};
	const struct bad_field bad[] = {
		{ "size 0", -EINVAL, RANGE(size), 0 },
		{ "size 1", -EINVAL, RANGE(size), 1 },
		{ "size not of whole pages", -EINVAL, RANGE(size), good.size - 1 },
		{ "size of half a page more", -EINVAL, RANGE(size), good.size + pgsize / 2 },
		{ "size for more bits than there are", -EINVAL, RANGE(size), 193 * pgsize },
		{ "size up to the end of 64 bits", -EINVAL, RANGE(size), -good.iova },
		{ "size beyond 64 bits", -EOVERFLOW, RANGE(size), pgsize - good.iova },
		{ "size of -1", -EOVERFLOW, RANGE(size), ~0UL },
		{ "iova + size beyond 64 bits", -EOVERFLOW, RANGE(iova), -pgsize },
		{ "iova 1", -EINVAL, RANGE(iova), 1 },
		{ "iova not of whole pages", -EINVAL, RANGE(iova), good.iova + pgsize / 2 },
		{ "pgsize 0", -EINVAL, RANGE(bitmap.pgsize), 0 },
		{ "pgsize 1", -EINVAL, RANGE(bitmap.pgsize), 1 },
		{ "half the pgsize, double the bitmap", -EINVAL, RANGE(bitmap.pgsize), pgsize / 2,
		  RANGE(bitmap.size), sizeof(bitmap) },
		{ "double the pgsize", -EINVAL, RANGE(bitmap.pgsize), pgsize * 2 },
		{ "pgsize 3", -EINVAL, RANGE(bitmap.pgsize), pgsize * 3 },
		{ "pgsize of 2 MiB", -EINVAL, RANGE(bitmap.pgsize), SZ_2M },
		{ "pgsize of 2^63", -EINVAL, RANGE(bitmap.pgsize), 1UL << 63 },
		{ "no bitmap", -EINVAL, RANGE(bitmap.size), 0 },
		{ "bitmap a byte too small", -EINVAL, RANGE(bitmap.size), good.bitmap.size - 1 },
		{ "bitmap a word too small", -EINVAL, RANGE(bitmap.size), good.bitmap.size - 8 },
		{ "bitmap too large", -EINVAL, RANGE(bitmap.size), e->log.max_bitmap_size + 1 },
		{ "bitmap of -1", -EINVAL, RANGE(bitmap.size), ~0UL },
		{ "bitmap in the kernel", -EINVAL, RANGE(bitmap.data), 0xffff888000000000UL },
		{ "bitmap up to the end of 64 bits", -EINVAL, RANGE(bitmap.data), -8UL },
		{ "bitmap at NULL", -EFAULT, RANGE(bitmap.data), 0 },
	};
	const u32 argsz = sizeof(struct vfio_iommu_type1_dirty_bitmap);
	static const u32 flags[] = { FLAG_GET, FLAG_NOCLEAR, FLAG_CLEAR, 0 /* UNMAP */ };
	struct vfio_iommu_type1_dirty_bitmap_get range;
	struct mapping *m;
	int i, f, j, ret;
	u8 *bits;
	u64 all;

	m = map_pages(e, TEST_IOVA, npages);
	log_start(e);

	for (f = 0; f < ARRAY_SIZE(flags); f++) {
		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			/* UNMAP looks at the bitmap's size first, which is bad, too. */
			if (!flags[f] && bad[i].field == RANGE(size) && bad[i].err == -EOVERFLOW)
				continue;

			write_page(e, m, i);
			memset(bitmap, 0xff, sizeof(bitmap));

			range = good;
			((u64 *)&range)[bad[i].field] = bad[i].value;
			if (bad[i].field2)
				((u64 *)&range)[bad[i].field2] = bad[i].value2;

			if (flags[f])
				ret = __iommu_dirty_log_ioctl(e->iommu, argsz + sizeof(range),
							      flags[f], &range);
			else
				ret = __iommu_unmap_ioctl(e->iommu,
							  VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
							  range.iova, range.size, &range.bitmap,
							  NULL);

			EXPECT_EQ(bad[i].err, ret) {
				TH_LOG("flag 0x%x, %s", flags[f], bad[i].name);
			}

			for (j = 0; j < ARRAY_SIZE(bitmap); j++)
				EXPECT_EQ(~0UL, bitmap[j]);
			check_all(e);
		}
		check(e, FLAG_GET, TEST_IOVA, npages);
	}

	/* argsz and flags */
	for (f = 0; f < 3; f++) {
		const u32 short_argsz[] = { 0, 1, argsz - 1, argsz, argsz + sizeof(good) - 1 };

		write_page(e, m, 7 + f);
		for (i = 0; i < ARRAY_SIZE(short_argsz); i++) {
			EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(e->iommu, short_argsz[i],
								   flags[f], &good)) {
				TH_LOG("flag 0x%x, argsz %u", flags[f], short_argsz[i]);
			}
			check_all(e);
		}
	}
	EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(e->iommu, argsz - 1, FLAG_STOP, NULL));
	EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(e->iommu, argsz + sizeof(good), 0, &good));
	for (i = 0; i < 32; i++) {
		for (j = 0; j <= i; j++) {
			u32 wrong = 1U << i | 1U << j;

			/* One flag of the five is the only right thing. */
			if (i == j && wrong <= FLAG_CLEAR)
				continue;

			EXPECT_EQ(-EINVAL, __iommu_dirty_log_ioctl(e->iommu, argsz + sizeof(good),
								   wrong, &good)) {
				TH_LOG("flags 0x%x", wrong);
			}
		}
		check_all(e);
	}
	EXPECT_EQ(-1, ioctl(e->iommu->container_fd, VFIO_IOMMU_DIRTY_PAGES, NULL));
	EXPECT_EQ(EFAULT, errno);
	check_all(e);

	/* Odd, but right: a huge argsz, IOVA 0, a bitmap at an odd address */
	all = (TEST_IOVA + good.size) / pgsize;
	bits = calloc_assert(1, DIRTY_LOG_BITMAP_BYTES(all) + 16);
	for (f = 0; f < 3; f++) {
		range = good;
		range.iova = 0;
		range.size = all * pgsize;
		range.bitmap.data = (__u64 *)(bits + 1 + 2 * f);
		range.bitmap.size = DIRTY_LOG_BITMAP_BYTES(all) + 8;

		write_page(e, m, 20 + f);
		memset(bits, 0, DIRTY_LOG_BITMAP_BYTES(all) + 16);
		EXPECT_EQ(0, __iommu_dirty_log_ioctl(e->iommu, ~0U, flags[f], &range));
		EXPECT_EQ(flags[f] != FLAG_CLEAR,
			  bit_get(range.bitmap.data, TEST_IOVA / pgsize + 20 + f));
		if (flags[f] == FLAG_GET)
			model_cleared(e, 0, all, NULL);
		check_all(e);
	}
	free(bits);
	EXPECT_EQ(0, __iommu_dirty_log_ioctl(e->iommu, ~0U, FLAG_START, NULL));
	check_all(e);

	/* UNMAP takes the bitmap along with no other flag, and only with all of it. */
	for (i = 0; i < 2; i++) {
		u32 other = i ? VFIO_DMA_UNMAP_FLAG_ALL : VFIO_DMA_UNMAP_FLAG_VADDR;

		EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(e->iommu,
						       VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | other,
						       i ? 0 : TEST_IOVA, i ? 0 : good.size,
						       &good.bitmap, NULL));
	}
	EXPECT_EQ(-EINVAL, __iommu_unmap_ioctl(e->iommu, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
					       TEST_IOVA, good.size, NULL, NULL));

	check_all(e);
	write_page(e, m, 8);
	check_all(e);
	unmap_pages(e, m);
}

/*
 * The bitmap's address is shorter in the calls of a 32-bit process. Catches them
 * being refused, and their bitmap being read or written elsewhere.
 */
TEST_F_TIMEOUT(vfio_dirty_log_container, compat, TIMEOUT)
{
	struct env *e = &self->env;
	u8 got[16] = {}, want[16] = {};
	struct mapping *m;

	if (!compat_works())
		SKIP(return, "needs x86-64 and CONFIG_IA32_EMULATION");

	m = map_pages(e, TEST_IOVA, 70);
	e->compat = true;

	log_start(e);
	write_page(e, m, 1);
	write_page(e, m, 69);
	check_all(e);
	clear_page_of(e, m, 69);
	check_all(e);
	write_page(e, m, 33);
	check(e, FLAG_GET, m->dma.iova, m->npages);
	check_all(e);

	/* One byte short of the pointer. */
	write_page(e, m, 64);
	EXPECT_EQ(-EINVAL, compat_call(e, VFIO_IOMMU_DIRTY_PAGES, FLAG_GET, m->dma.iova,
				       m->npages, got, 1));
	EXPECT_EQ(-EINVAL, compat_call(e, VFIO_IOMMU_UNMAP_DMA,
				       VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, m->dma.iova,
				       m->npages, got, 1));
	check_all(e);

	ASSERT_EQ(0, compat_call(e, VFIO_IOMMU_UNMAP_DMA, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
				 m->dma.iova, m->npages, got, 0));
	model_paint(e, m->dma.iova, m->npages, want, got);
	EXPECT_EQ(0, memcmp(got, want, sizeof(got)));
	model_forget(e, m);
}

/* ---- DMA that does not stop ---- */

struct writer {
	struct env *env;
	struct mapping *m;
	pthread_t thread;
	bool stop;
	u64 writes;
	u64 failures;
};

static void *writer_fn(void *arg)
{
	struct writer *w = arg;

	while (!READ_ONCE(w->stop)) {
		if (!__dma_write(w->env, w->env->device, w->m,
				 w->writes % w->m->npages * w->env->log.pgsize))
			w->failures++;
		WRITE_ONCE(w->writes, w->writes + 1);
	}

	return NULL;
}

static void writer_start(struct writer *w)
{
	VFIO_ASSERT_EQ(pthread_create(&w->thread, NULL, writer_fn, w), 0);
}

static void writer_stop(struct writer *w)
{
	WRITE_ONCE(w->stop, true);
	VFIO_ASSERT_EQ(pthread_join(w->thread, NULL), 0);
}

/* For lockdep, KASAN and the rest: every call against DMA, the log sound after. */
TEST_F_TIMEOUT(vfio_dirty_log_container, calls_during_dma, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = map_pages(e, TEST_IOVA, 70);
	struct mapping *other = map_pages(e, TEST_IOVA + SZ_2M, 70);
	struct writer w = { .env = e, .m = m };
	u64 bitmap[2], mask[2] = { ~0UL, ~0UL };
	u64 before;
	int i;

	writer_start(&w);

	for (i = 0; i < 40; i++) {
		before = READ_ONCE(w.writes);

		ASSERT_EQ(0, __iommu_dirty_log_start(e->iommu));
		ASSERT_EQ(0, log_call(e, FLAG_NOCLEAR, TEST_IOVA, 70, bitmap));
		ASSERT_EQ(0, log_call(e, FLAG_CLEAR, TEST_IOVA, 70, mask));
		ASSERT_EQ(0, __iommu_unmap_get_dirty(e->iommu, &other->dma, bitmap, NULL));
		iommu_map(e->iommu, &other->dma);
		ASSERT_EQ(0, log_call(e, FLAG_GET, TEST_IOVA, 70, bitmap));
		if (i % 4 == 3)
			ASSERT_EQ(0, __iommu_dirty_log_stop(e->iommu));

		while (READ_ONCE(w.writes) == before)
			sched_yield();
	}

	writer_stop(&w);
	EXPECT_EQ(0, w.failures);
	EXPECT_GE(w.writes, 40);

	iommu_dirty_log_stop(e->iommu);
	log_start(e);
	check_all(e);
	write_page(e, m, 69);
	check_all(e);
}

/*
 * The process dies with the log running and DMA under way: all of it is torn down
 * by close. Whatever is left must not disturb the next user.
 */
TEST_F_TIMEOUT(vfio_dirty_log_process, killed_during_dma, TIMEOUT)
{
	struct writer *w;
	const char *skip;
	struct env *e;
	int status, i;
	u64 *writes;
	pid_t pid;

	writes = alloc_memory(getpagesize(), 0);
	ASSERT_NE(MAP_FAILED, writes);

	for (i = 0; i < 3; i++) {
		*writes = 0;
		pid = fork();
		ASSERT_GE(pid, 0);

		if (!pid) {
			e = calloc_assert(1, sizeof(*e));
			w = calloc_assert(1, sizeof(*w));
			if (env_setup(e, _metadata))
				_exit(KSFT_SKIP);

			w->env = e;
			w->m = map_pages(e, TEST_IOVA, 70);
			iommu_dirty_log_start(e->iommu);
			writer_start(w);
			for (;;)
				WRITE_ONCE(*writes, READ_ONCE(w->writes));
		}

		while (READ_ONCE(*writes) < 10 && !waitpid(pid, &status, WNOHANG))
			usleep(1000);
		if (READ_ONCE(*writes) < 10) {
			ASSERT_TRUE(WIFEXITED(status));
			ASSERT_EQ(KSFT_SKIP, WEXITSTATUS(status));
			SKIP(return, "the log or a driver for the device is missing");
		}

		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_TRUE(WIFSIGNALED(status));
	}

	e = calloc_assert(1, sizeof(*e));
	skip = env_setup(e, _metadata);
	ASSERT_EQ(NULL, skip);
	map_pages(e, TEST_IOVA, 70);
	log_start(e);
	check_all(e);
	write_page(e, e->mappings[1], 11);
	check_all(e);
	env_teardown(e);
}

/* ---- Two devices ---- */

FIXTURE(vfio_dirty_log_two_devices) {
	struct env env;
	struct mapping *m;
};

FIXTURE_SETUP(vfio_dirty_log_two_devices)
{
	const char *skip;

	if (nr_bdfs < 2)
		SKIP(return, "needs the BDFs of two devices, got one");

	if (sysfs_iommu_group_get(bdfs[0]) == sysfs_iommu_group_get(bdfs[1]))
		SKIP(return, "%s and %s are in the same IOMMU group", bdfs[0], bdfs[1]);

	skip = env_setup(&self->env, _metadata);
	if (skip)
		SKIP(return, "%s", skip);

	self->m = map_pages(&self->env, TEST_IOVA, 200);
}

FIXTURE_TEARDOWN(vfio_dirty_log_two_devices)
{
	env_teardown(&self->env);
}

/* Returns why the second device cannot be used, or NULL. */
static const char *attach_second(struct env *e)
{
	struct iommu_dirty_log_info log;

	e->second = vfio_pci_device_init(bdfs[1], e->iommu);
	if (!e->second->driver.ops)
		return "libvfio has no driver for the second device";

	/* A new kind of IOMMU would change what kind of log it is. */
	iommu_dirty_log_info(e->iommu, &log);
	if (log.hw != e->log.hw || log.pgsize != e->log.pgsize)
		return "the devices are behind IOMMUs of different kinds";

	driver_start(e, e->second);

	return NULL;
}

/*
 * Catches a domain that is not started on attach, dirty pages lost at the attach,
 * and a CLEAR that flushes one device's IOTLB only.
 */
TEST_F_TIMEOUT(vfio_dirty_log_two_devices, attach_while_tracking, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	const char *skip;
	int i;

	log_start(e);
	write_page(e, m, 1);

	skip = attach_second(e);
	if (skip)
		SKIP(return, "%s", skip);

	model_attach(e);
	check_all(e);

	dma_write_at(e, e->second, m, 2 * e->log.pgsize);
	check_all(e);

	for (i = 0; i < 8; i++) {
		write_page(e, m, 100);
		dma_write_at(e, e->second, m, (100 + i % 2) * e->log.pgsize);
		clear_range(e, page_iova(e, m, 100), 2);
		check_all(e);
		dma_write_at(e, i % 4 < 2 ? e->second : e->device, m,
			     (100 + i % 2) * e->log.pgsize);
		check_all(e);
	}

	log_stop(e);
	log_start(e);
	check_all(e);
	dma_write_at(e, e->second, m, 3 * e->log.pgsize);
	write_page(e, m, 4);
	check(e, FLAG_GET, TEST_IOVA, m->npages);
	check_all(e);
}

/* Catches a detach that takes the dirty pages along, or stops the others' log. */
TEST_F_TIMEOUT(vfio_dirty_log_two_devices, detach_while_tracking, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	const char *skip;

	skip = attach_second(e);
	if (skip)
		SKIP(return, "%s", skip);

	log_start(e);
	write_page(e, m, 1);
	check_all(e);
	write_page(e, m, 2);
	dma_write_at(e, e->second, m, 3 * e->log.pgsize);

	vfio_pci_device_cleanup(e->device);
	e->device = NULL;
	check_all(e);

	dma_write_at(e, e->second, m, 4 * e->log.pgsize);
	check_all(e);
	clear_range(e, page_iova(e, m, 1), 2);
	dma_write_at(e, e->second, m, 2 * e->log.pgsize);
	check_all(e);

	/* And back again */
	e->device = vfio_pci_device_init(bdfs[0], e->iommu);
	model_attach(e);
	driver_start(e, e->device);
	write_page(e, m, 5);
	check(e, FLAG_GET, TEST_IOVA, m->npages);
	check_all(e);
}

/* ---- A device without an IOMMU in the same container ---- */

FIXTURE(vfio_dirty_log_emulated) {
	struct env env;
	struct mapping *m;
	int group_fd, fd;
};

FIXTURE_SETUP(vfio_dirty_log_emulated)
{
	char link[PATH_MAX] = {}, path[PATH_MAX];
	struct env *e = &self->env;
	const char *skip;

	if (readlink("/sys/devices/faux/" TEST_VFIO_EMULATED "/iommu_group", link,
		     sizeof(link) - 1) < 0)
		SKIP(return, "the module " TEST_VFIO_EMULATED " is not there: make KDIR=...");

	skip = env_setup(e, _metadata);
	if (skip)
		SKIP(return, "%s", skip);

	snprintf_assert(path, sizeof(path), "/dev/vfio/%s", basename(link));
	self->group_fd = open(path, O_RDWR);
	ASSERT_GE(self->group_fd, 0);
	ASSERT_EQ(0, ioctl(self->group_fd, VFIO_GROUP_SET_CONTAINER, &e->iommu->container_fd));
	self->fd = ioctl(self->group_fd, VFIO_GROUP_GET_DEVICE_FD, TEST_VFIO_EMULATED);
	ASSERT_GE(self->fd, 0);

	self->m = map_pages(e, TEST_IOVA, 70);
}

FIXTURE_TEARDOWN(vfio_dirty_log_emulated)
{
	close(self->fd);
	close(self->group_fd);
	env_teardown(&self->env);
}

static void emulated_call(struct env *e, int fd, unsigned long cmd, struct mapping *m,
			  u64 offset, u64 size)
{
	struct __test_metadata *_metadata = e->metadata;
	struct test_vfio_emulated_range range = {
		.iova = m->dma.iova + offset,
		.size = size,
	};
	u64 page;

	ASSERT_EQ(0, ioctl(fd, cmd, &range)) {
		TH_LOG("ioctl 0x%lx: %s", cmd, strerror(errno));
	}

	for (page = offset / e->log.pgsize; page <= (offset + size - 1) / e->log.pgsize; page++) {
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
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u64 pgsize = e->log.pgsize;
	int round;

	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 3 * pgsize, pgsize);

	for (round = 0; round < 2; round++) {
		/* What is pinned is dirty from START on, what was written before is not. */
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 10, 20);
		log_start(e);
		check_all(e);

		emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 63 * pgsize, 2 * pgsize);
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 6 * pgsize - 1, 2);
		write_page(e, m, 5);
		write_page(e, m, 7);
		check_all(e);

		clear_range(e, page_iova(e, m, 3), 61);
		check_all(e);
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 7 * pgsize, 3 * pgsize);
		check(e, FLAG_GET, m->dma.iova, m->npages);
		check_all(e);

		/* Dirty as it is; clean when it is cleared next, not before. */
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_UNPIN, m, 63 * pgsize, 2 * pgsize);
		check_all(e);
		clear_range(e, page_iova(e, m, 63), 1);
		check_all(e);
		check(e, FLAG_GET, m->dma.iova, m->npages);
		check_all(e);

		log_stop(e);
	}
}

/*
 * A write fails at a page that it may not write to, but has changed the page
 * before. Catches that page being forgotten because of the error.
 */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, write_in_part, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u64 pgsize = e->log.pgsize;
	u8 *page7 = m->dma.vaddr + 7 * pgsize;
	struct test_vfio_emulated_range range = {
		.iova = page_iova(e, m, 7),
		.size = 2 * pgsize,
	};

	memset(page7, 0xff, 2 * pgsize);
	log_start(e);

	ASSERT_EQ(0, mprotect(page7 + pgsize, pgsize, PROT_READ));
	ASSERT_EQ(-1, ioctl(self->fd, TEST_VFIO_EMULATED_WRITE, &range));
	ASSERT_EQ(EFAULT, errno);
	ASSERT_EQ(0, mprotect(page7 + pgsize, pgsize, PROT_READ | PROT_WRITE));

	/* The module writes zeros */
	ASSERT_EQ(0, page7[0]);
	m->state[7] = PAGE_DIRTY;
	if (e->log.hw)
		m->state[8] = PAGE_EITHER;
	check_all(e);

	check(e, FLAG_GET, m->dma.iova, m->npages);
	check_all(e);
	log_stop(e);
}

/*
 * A pinned page is one page, wherever in it the address is: the one that is
 * dirty, also the last one of a mapping, and none where nothing is mapped.
 */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, pin_unaligned, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u64 pgsize = e->log.pgsize;
	struct test_vfio_emulated_range below = {
		.iova = m->dma.iova - 8,
		.size = 8,
	};

	ASSERT_EQ(-1, ioctl(self->fd, TEST_VFIO_EMULATED_PIN, &below));
	EXPECT_EQ(EINVAL, errno);

	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 4 * pgsize - 1, 1);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 70 * pgsize - 8, 8);
	log_start(e);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 9 * pgsize + 8, 8);
	check_all(e);
	clear_range(e, m->dma.iova, m->npages);
	check_all(e);

	emulated_call(e, self->fd, TEST_VFIO_EMULATED_UNPIN, m, 9 * pgsize + 8, 8);
	clear_range(e, m->dma.iova, m->npages);
	check_all(e);
	log_stop(e);
}

/* The device is told to unpin amid the unmap. Its pages are dirty all the same. */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, unmap_pinned, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u8 got[16] = {}, want[16] = {};
	u64 pgsize = e->log.pgsize;

	log_start(e);
	write_page(e, m, 1);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 3 * pgsize, 2 * pgsize);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 69 * pgsize, 1);

	ASSERT_EQ(0, __iommu_unmap_get_dirty(e->iommu, &m->dma, got, NULL));
	model_paint(e, m->dma.iova, m->npages, want, got);
	EXPECT_EQ(0, memcmp(got, want, sizeof(got)));

	model_forget(e, m);
	memset(m->pinned, 0, m->npages);
	map_again(e, m);
	check_all(e);
}

/*
 * The IOMMU's domain goes with its last device, the container stays because of
 * the other one. Catches the domain's dirty pages going with it. With a
 * pessimistic log all pages are dirty once and the log is precise then, for what
 * is left cannot write unseen; until the device comes back.
 */
TEST_F_TIMEOUT(vfio_dirty_log_emulated, last_of_domain, TIMEOUT)
{
	struct env *e = &self->env;
	struct mapping *m = self->m;
	bool hw = e->log.hw;
	int round;

	log_start(e);
	emulated_call(e, self->fd, TEST_VFIO_EMULATED_PIN, m, 0, 1);

	for (round = 0; round < 2; round++) {
		write_page(e, m, 5);
		check_all(e);
		write_page(e, m, 6);
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 9 * e->log.pgsize, 1);

		vfio_pci_device_cleanup(e->device);
		e->device = NULL;

		iommu_dirty_log_info(e->iommu, &e->log);
		EXPECT_TRUE(e->log.hw);
		check_all(e);
		clear_range(e, m->dma.iova, 6);
		check_all(e);
		emulated_call(e, self->fd, TEST_VFIO_EMULATED_WRITE, m, 3 * e->log.pgsize, 1);
		check_all(e);
		check(e, FLAG_GET, m->dma.iova, m->npages);
		check_all(e);

		e->device = vfio_pci_device_init(bdfs[0], e->iommu);
		iommu_dirty_log_info(e->iommu, &e->log);
		EXPECT_EQ(hw, e->log.hw);
		if (!hw)
			model_reset(e, m);
		if (!hw)
			model_reset(e, e->src);
		model_attach(e);
		driver_start(e, e->device);
		check_all(e);
	}

	log_stop(e);
}

/* ---- IOMMUs that no machine has side by side: the module's, and the device's ---- */

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

FIXTURE(vfio_dirty_log_mock) {
	struct env env;
	struct mock mocks[TEST_VFIO_IOMMU_NR_DEVICES];
	struct mapping *m, *other;
};

/* Returns what VFIO_GROUP_SET_CONTAINER does, errors as -errno. */
static int mock_attach(struct env *e, struct mock *mock)
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
	ioctl(e->iommu->container_fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);

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

/* Let the next "start", "read" or "map" of the device's IOMMU fail with @err. */
static void mock_fail(struct mock *mock, const char *what, int err)
{
	char path[PATH_MAX], text[32];
	int fd, len;

	snprintf_assert(path, sizeof(path), MOCK_SYSFS, mock->id, "fail");
	fd = open(path, O_WRONLY);
	VFIO_ASSERT_GE(fd, 0);
	len = snprintf(text, sizeof(text), "%s %d", what, err);
	VFIO_ASSERT_EQ(write(fd, text, len), len);
	close(fd);
}

static bool mock_tracks(struct mock *mock)
{
	char path[PATH_MAX], text = 0;
	int fd;

	snprintf_assert(path, sizeof(path), MOCK_SYSFS, mock->id, "tracking");
	fd = open(path, O_RDONLY);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(read(fd, &text, 1), 1);
	close(fd);

	return text == '1';
}

static void mock_write(struct env *e, struct mock *mock, struct mapping *m, u64 page)
{
	struct __test_metadata *_metadata = e->metadata;
	struct test_vfio_iommu_write write = {
		.iova = page_iova(e, m, page) + 8,
		.size = DMA_SIZE,
		.value = ++e->seq,
	};
	u8 *data = m->dma.vaddr + page * e->log.pgsize + 8;

	ASSERT_EQ(0, ioctl(mock->fd, TEST_VFIO_IOMMU_WRITE, &write));
	ASSERT_EQ(write.value, data[0]);
	ASSERT_EQ(write.value, data[DMA_SIZE - 1]);

	model_write(e, m, page);
}

/*
 * What kind of log it is after a group came or went. If it is a pessimistic one,
 * everything is dirty from now on. If it is not any more, everything is dirty
 * still, until it is cleared: that is what the model says already.
 */
static void check_kind(struct env *e, bool hw)
{
	struct __test_metadata *_metadata = e->metadata;
	int i;

	iommu_dirty_log_info(e->iommu, &e->log);
	ASSERT_EQ(hw, e->log.hw);

	for (i = 0; i < MAX_MAPPINGS && !hw; i++) {
		if (e->mappings[i])
			model_reset(e, e->mappings[i]);
	}
}

/* There is no log, and MAP and UNMAP do not mind. */
static void check_stopped(struct env *e)
{
	struct __test_metadata *_metadata = e->metadata;
	struct mapping *m = e->mappings[0];
	u64 bitmap[4] = {};

	EXPECT_EQ(-EINVAL, log_call(e, FLAG_NOCLEAR, m->dma.iova, 1, bitmap));
	EXPECT_EQ(-EINVAL, log_call(e, FLAG_CLEAR, m->dma.iova, 1, bitmap));
	EXPECT_EQ(-EINVAL, log_call(e, FLAG_GET, m->dma.iova, m->npages, bitmap));

	m = map_pages(e, TEST_IOVA + SZ_1G, 3);
	unmap_pages(e, m);
}

/* Whatever the log was through: it is sound now, for every device given. */
static void check_sound(struct env *e, struct mock *mock, struct mock *other)
{
	struct mapping *m = e->mappings[0];
	int round;

	check_all(e);
	check(e, FLAG_GET, m->dma.iova, m->npages);
	check_all(e);

	/* The second round's writes find the IOTLB as the first one left it. */
	for (round = 0; round < 2; round++) {
		mock_write(e, mock, m, 1);
		if (other)
			mock_write(e, other, m, 2);
		if (e->device)
			write_page(e, m, 3);
		check_all(e);
		clear_range(e, page_iova(e, m, 1), 3);
		check_all(e);
	}

	mock_write(e, mock, m, m->npages - 1);
	check(e, FLAG_GET, m->dma.iova, m->npages);
	check_all(e);
}

FIXTURE_SETUP(vfio_dirty_log_mock)
{
	struct env *e = &self->env;
	int i;

	*e = (struct env) {
		.metadata = _metadata,
	};

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
	}

	e->iommu = iommu_init(MODE_VFIO_TYPE1V2_IOMMU);
	ASSERT_EQ(0, mock_attach(e, &self->mocks[MOCK_A]));

	if (iommu_check_extension(e->iommu, VFIO_DIRTY_LOG_MANUAL_CLEAR) != 1 &&
	    !getenv("VFIO_DIRTY_LOG_EXPECT"))
		SKIP(return, "the kernel does not offer VFIO_DIRTY_LOG_MANUAL_CLEAR");

	iommu_dirty_log_info(e->iommu, &e->log);
	ASSERT_TRUE(e->log.hw);

	self->m = map_pages(e, TEST_IOVA, 70);
	self->other = map_pages(e, TEST_IOVA + SZ_2M, 3);

	/* Its IOMMU takes larger pages, but logs the small ones. */
	self->m->max_leaf = 1;
	self->other->max_leaf = 1;
}

FIXTURE_TEARDOWN(vfio_dirty_log_mock)
{
	int i;

	if (self->env.device)
		vfio_pci_device_cleanup(self->env.device);
	for (i = 0; i < TEST_VFIO_IOMMU_NR_DEVICES; i++)
		mock_detach(&self->mocks[i]);
	iommu_cleanup(self->env.iommu);
}

/* Two IOMMUs, two domains: what either logs is reported, and nothing else. */
TEST_F_TIMEOUT(vfio_dirty_log_mock, two_domains, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct env *e = &self->env;
	int round;

	ASSERT_EQ(0, mock_attach(e, b));
	check_kind(e, true);

	for (round = 0; round < 2; round++) {
		mock_write(e, a, self->m, 9);
		mock_write(e, b, self->m, 10);
		log_start(e);
		EXPECT_TRUE(mock_tracks(a));
		EXPECT_TRUE(mock_tracks(b));
		check_all(e);

		mock_write(e, a, self->m, 0);
		mock_write(e, b, self->m, 64);
		mock_write(e, b, self->other, 2);
		check_sound(e, a, b);

		log_stop(e);
		EXPECT_FALSE(mock_tracks(a));
		EXPECT_FALSE(mock_tracks(b));
		check_stopped(e);
	}
}

/* The log is pessimistic from START on, and precise once the cause has left. */
TEST_F_TIMEOUT(vfio_dirty_log_mock, incapable_before_start, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *bad = &self->mocks[MOCK_INCAPABLE];
	struct env *e = &self->env;

	ASSERT_EQ(0, mock_attach(e, bad));
	check_kind(e, false);

	log_start(e);
	check_all(e);
	clear_range(e, self->m->dma.iova, self->m->npages);
	check_all(e);
	mock_write(e, bad, self->m, 6);
	mock_write(e, a, self->m, 7);
	check(e, FLAG_GET, self->m->dma.iova, self->m->npages);

	mock_detach(bad);
	check_kind(e, true);
	check_sound(e, a, NULL);

	/* It left, but nobody has cleared its pages yet. */
	clear_range(e, self->other->dma.iova, 1);
	check_all(e);

	log_stop(e);
	log_start(e);
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
	struct env *e = &self->env;
	int round;

	log_start(e);

	for (round = 0; round < 3; round++) {
		mock_write(e, a, self->m, 5);
		check_all(e);

		ASSERT_EQ(0, mock_attach(e, bad));
		check_kind(e, false);
		check_all(e);
		EXPECT_TRUE(mock_tracks(a));
		clear_range(e, self->m->dma.iova, self->m->npages);
		check_all(e);

		/* One that can log does not help, first or last in the container. */
		if (round == 2) {
			ASSERT_EQ(0, mock_attach(e, b));
			check_kind(e, false);
			check_all(e);
		}

		if (round == 1) {
			ASSERT_EQ(0, mock_attach(e, bad_too));
			mock_detach(bad);
			check_kind(e, false);
			check_all(e);
			mock_write(e, bad_too, self->m, 8);
			clear_range(e, self->m->dma.iova, self->m->npages);
			mock_detach(bad_too);
		} else {
			mock_write(e, bad, self->m, 8);
			/* All of it the user took for clean, if it did not ask first. */
			check(e, FLAG_GET, self->m->dma.iova, self->m->npages);
			check(e, FLAG_GET, self->other->dma.iova, self->other->npages);
			mock_detach(bad);
		}

		check_kind(e, true);
		check_all(e);

		/* Once means: until it is cleared, page by page. */
		clear_range(e, page_iova(e, self->m, 2), 5);
		check_all(e);
		mock_write(e, a, self->m, 3);
		check_all(e);
		check(e, FLAG_GET, self->other->dma.iova, self->other->npages);
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
	struct env *e = &self->env;
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

		log_start(e);
		EXPECT_TRUE(mock_tracks(a));
		EXPECT_TRUE(mock_tracks(b));
		check_sound(e, a, b);

		/* It runs, so nothing is started and nothing can fail. */
		mock_fail(a, "start", EIO);
		log_start(e);
		mock_write(e, b, self->m, 33);
		check_all(e);

		/* Uses the failure up */
		log_stop(e);
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
	struct env *e = &self->env;
	int round;

	log_start(e);

	for (round = 0; round < 2; round++) {
		mock_write(e, a, self->m, 30);
		check_all(e);

		mock_fail(b, round ? "map" : "start", ENOSPC);
		ASSERT_EQ(-ENOSPC, mock_attach(e, b));
		EXPECT_FALSE(mock_tracks(b));
		EXPECT_TRUE(mock_tracks(a));
		check_kind(e, true);
		check_all(e);
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
		check_all(e);
		check_sound(e, a, b);
		mock_detach(b);
		check_all(e);
	}
}

/*
 * A group leaves with dirty pages in its page table. They stay in the log, and if
 * they cannot be read any more, every page is dirty.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, detach_keeps, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct env *e = &self->env;
	int round;

	log_start(e);

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
		check(e, FLAG_GET, self->other->dma.iova, self->other->npages);
	}
}

/*
 * The IOMMU fails half way through a read of its log, in every call that reads
 * it: the call fails with that error and no page is lost.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, read_fails, TIMEOUT)
{
	static const u32 flags[] = { FLAG_NOCLEAR, FLAG_GET, FLAG_CLEAR, 0 };
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct env *e = &self->env;
	struct mapping *m = self->m;
	u64 bitmap[2];
	int i, ret;

	ASSERT_EQ(0, mock_attach(e, b));
	log_start(e);

	for (i = 0; i < 2 * ARRAY_SIZE(flags); i++) {
		mock_write(e, a, m, 4);
		mock_write(e, a, m, 68);
		mock_write(e, b, m, 5);
		mock_write(e, b, m, 69);

		mock_fail(i & 1 ? a : b, "read", ENXIO);
		memset(bitmap, 0xff, sizeof(bitmap));
		if (flags[i / 2])
			ret = log_call(e, flags[i / 2], m->dma.iova, m->npages, bitmap);
		else
			ret = __iommu_unmap_get_dirty(e->iommu, &m->dma, bitmap, NULL);
		ASSERT_EQ(-ENXIO, ret);

		model_after_error(e);
		check_all(e);
		check_sound(e, a, b);
	}
}

/*
 * A group comes or goes whose IOMMU has larger pages. It changes the page size of
 * the container, but not that of a log that runs: catches bits that stand for
 * other pages from then on, and pages of a larger leaf getting lost.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, page_size_stays, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *large = &self->mocks[MOCK_LARGE];
	const u64 leaf = TEST_VFIO_IOMMU_LARGE_PAGES;
	struct env *e = &self->env;
	u64 pgsize = e->log.pgsize;
	u64 log_pgsize, bitmap[1];
	struct mapping *m;
	void *vaddr;
	int first;

	vaddr = alloc_memory(SZ_2M, MAP_HUGETLB | MAP_HUGE_2MB);
	if (vaddr == MAP_FAILED)
		SKIP(return, "no memory of pages of 2 MiB: %s", strerror(errno));

	unmap_pages(e, self->m);
	unmap_pages(e, self->other);

	for (first = 0; first < 2; first++) {
		/* Nothing is mapped or unmapped while it is there: type1 warns then. */
		m = map_memory(e, vaddr, TEST_IOVA, SZ_2M, pgsize);
		m->max_leaf = 1;
		log_pgsize = pgsize;

		if (first) {
			ASSERT_EQ(0, mock_attach(e, large));
			iommu_dirty_log_info(e->iommu, &e->log);
			log_pgsize = pgsize * leaf;
			m->npages /= leaf;
		}

		/* From START on, until STOP */
		ASSERT_EQ(log_pgsize, e->log.pgsize);
		log_start(e);
		mock_write(e, a, m, 7);
		if (first) {
			mock_write(e, large, m, 9);
			mock_detach(large);
		} else {
			ASSERT_EQ(0, mock_attach(e, large));
		}

		check_kind(e, true);
		ASSERT_EQ(log_pgsize, e->log.pgsize);
		check_sound(e, a, NULL);

		if (!first) {
			m->min_leaf = leaf;
			m->max_leaf = leaf;
			mock_write(e, large, m, 21);
			m->min_leaf = 1;
			m->max_leaf = 1;
			mock_write(e, a, m, 50);
			check_all(e);
			clear_range(e, page_iova(e, m, 22), 1);
			check_all(e);
			mock_detach(large);
			check_kind(e, true);
			check_all(e);
		}

		log_stop(e);
		unmap_pages(e, m);
		iommu_dirty_log_info(e->iommu, &e->log);
		ASSERT_EQ(pgsize, e->log.pgsize);
		EXPECT_EQ(-EINVAL, log_call(e, FLAG_NOCLEAR, TEST_IOVA, 1, bitmap));
	}
}

/*
 * A device of the machine beside the module's: IOMMU drivers of two kinds in one
 * container, whatever the machine's can do. Catches what they do to each other.
 */
TEST_F_TIMEOUT(vfio_dirty_log_mock, beside_device, TIMEOUT)
{
	struct mock *a = &self->mocks[MOCK_A], *b = &self->mocks[MOCK_B];
	struct env *e = &self->env;
	struct mapping *m = self->m;
	struct iommu_dirty_log_info log;
	bool hw;
	u64 size;
	int i;

	e->iovas = iova_allocator_init(e->iommu);
	size = getpagesize();
	e->src = map_pages(e, iova_allocator_alloc(e->iovas, size), size / e->log.pgsize);

	log_start(e);
	mock_write(e, a, m, 10);

	for (i = 0; i < 2; i++) {
		e->device = vfio_pci_device_init(bdfs[0], e->iommu);
		if (!e->device->driver.ops)
			SKIP(return, "libvfio has no driver for the device");

		iommu_dirty_log_info(e->iommu, &log);
		hw = log.hw;
		if (expects("hw"))
			ASSERT_TRUE(hw);
		if (expects("pessimistic"))
			ASSERT_FALSE(hw);
		check_kind(e, hw);
		model_attach(e);
		check_all(e);

		driver_start(e, e->device);
		write_page(e, m, 11);
		mock_write(e, a, m, 12);
		check_sound(e, a, NULL);

		/* The device's domain is started before the one that fails. */
		log_stop(e);
		mock_fail(a, "start", ENOSPC);
		ASSERT_EQ(-ENOSPC, __iommu_dirty_log_start(e->iommu));
		check_stopped(e);
		log_start(e);
		check_sound(e, a, NULL);

		mock_fail(b, "start", EIO);
		ASSERT_EQ(-EIO, mock_attach(e, b));
		check_sound(e, a, NULL);
		ASSERT_EQ(0, mock_attach(e, b));
		check_sound(e, a, b);
		log_stop(e);
		mock_fail(b, "start", EIO);
		ASSERT_EQ(-EIO, __iommu_dirty_log_start(e->iommu));
		EXPECT_FALSE(mock_tracks(a));
		check_stopped(e);
		log_start(e);
		check_sound(e, a, b);

		/* Either leaves with dirty pages */
		write_page(e, m, 20);
		mock_write(e, b, m, 21);
		mock_write(e, a, m, 22);
		mock_detach(b);
		check_kind(e, hw);
		check_all(e);
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
