/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
#ifndef SELFTESTS_VFIO_TEST_MODULES_TEST_VFIO_EMULATED_H
#define SELFTESTS_VFIO_TEST_MODULES_TEST_VFIO_EMULATED_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Name of the module, of its device in /sys/devices/faux, and for GET_DEVICE_FD */
#define TEST_VFIO_EMULATED	"test_vfio_emulated"

/* Its second device */
#define TEST_VFIO_EMULATED_TOO	"test_vfio_emulated_too"

/* Pages of IOVA, in bytes */
struct test_vfio_emulated_range {
	__aligned_u64 iova;
	__aligned_u64 size;
};

/* Pin the pages, one by one, as if a device was going to write to them. */
#define TEST_VFIO_EMULATED_PIN		_IOW('v', 0, struct test_vfio_emulated_range)

/* Unpin those of the pages that are pinned. */
#define TEST_VFIO_EMULATED_UNPIN	_IOW('v', 1, struct test_vfio_emulated_range)

/* Write to the range, which need not begin or end with a page, by vfio_dma_rw(). */
#define TEST_VFIO_EMULATED_WRITE	_IOW('v', 2, struct test_vfio_emulated_range)

/*
 * With a size that is not 0: do not unpin when type1 wants it, until this is called
 * with 0. The range is not looked at.
 */
#define TEST_VFIO_EMULATED_KEEP		_IOW('v', 4, struct test_vfio_emulated_range)

#endif /* SELFTESTS_VFIO_TEST_MODULES_TEST_VFIO_EMULATED_H */
