/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
#ifndef SELFTESTS_VFIO_TEST_MODULES_TEST_VFIO_IOMMU_H
#define SELFTESTS_VFIO_TEST_MODULES_TEST_VFIO_IOMMU_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * Name of the module and of its platform driver. Y or N, written to the attribute
 * "devices" of the driver, makes the devices come and go. They are named
 * TEST_VFIO_IOMMU.0 and so on, each in a group of its own and behind an IOMMU of
 * its own: no two of them share a domain, unless the kernel mistakes one that logs
 * for one that does not.
 */
#define TEST_VFIO_IOMMU			"test_vfio_iommu"

/* The IOMMUs of the first so many log dirty pages, the others' do not. */
#define TEST_VFIO_IOMMU_NR_CAPABLE	3
#define TEST_VFIO_IOMMU_NR_DEVICES	5

/* The smallest page of this one's IOMMU is so many pages of the CPU. */
#define TEST_VFIO_IOMMU_LARGE		2
#define TEST_VFIO_IOMMU_LARGE_PAGES	4

/*
 * Attributes of a device, in sysfs:
 *
 * tracking	reads 1 if the domain that the device is attached to is logging, 0 if it
 *		is not, and - if it cannot.
 *
 * reads	counts how often the device's IOMMU was asked for its log.
 *
 * stall	Y lets such a call, and a first access to memory of the device, wait for N
 *		or for a fatal signal. Reads how many are waiting.
 *
 * fail		"start ERRNO", "read ERRNO" or "map ERRNO", with a positive errno,
 *		lets the next such call of the device's IOMMU fail, and only that. A
 *		read of the log fails half way. With 0 it does not fail after all.
 */

struct test_vfio_iommu_write {
	__aligned_u64 iova;
	__aligned_u64 size;
	__u32 value;
	__u32 reserved;
};

/*
 * Fill a range of IOVA with the byte value, by "DMA". Fails with EFAULT, perhaps
 * half way, if it is not mapped.
 */
#define TEST_VFIO_IOMMU_WRITE	_IOW('v', 3, struct test_vfio_iommu_write)

/* mmap() of a device gives memory of its own, at any offset and of any size. */

#endif /* SELFTESTS_VFIO_TEST_MODULES_TEST_VFIO_IOMMU_H */
