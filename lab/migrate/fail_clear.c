// SPDX-License-Identifier: GPL-2.0
/* For LD_PRELOAD: the FAIL_CLEAR-th CLEAR_BITMAP, and all after it, fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdlib.h>

#define CLEAR_BITMAP (1 << 4)

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next)(int, unsigned long, void *);
	static int calls;
	void *argument;
	va_list ap;

	va_start(ap, request);
	argument = va_arg(ap, void *);
	va_end(ap);
	if (!next)
		next = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
	/* VFIO_DEVICE_FEATURE has the same number, but not these flags */
	if (request == VFIO_IOMMU_DIRTY_PAGES &&
	    ((struct vfio_iommu_type1_dirty_bitmap *)argument)->flags == CLEAR_BITMAP &&
	    ++calls >= atoi(getenv("FAIL_CLEAR"))) {
		errno = ENOMEM;
		return -1;
	}
	return next(fd, request, argument);
}
