// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two VFIO devices without hardware and without an IOMMU behind them: what they do to
 * the user's memory they do with the CPU, by vfio_pin_pages() and vfio_dma_rw(),
 * when they are told so by ioctl(). For tests of what type1 does for such devices.
 */
#include <linux/cleanup.h>
#include <linux/delay.h>
#include <linux/device/faux.h>
#include <linux/iommu.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vfio.h>

#include "test_vfio_emulated.h"

struct test_vfio {
	struct vfio_device vdev;
	/* Protects pins, and is not held while type1 is called */
	struct mutex lock;
	struct list_head pins;
	/* The driver does not unpin when it is told to */
	bool keep;
};

struct test_pin {
	struct list_head link;
	dma_addr_t iova;
};

static const char * const test_names[] = {
	TEST_VFIO_EMULATED,
	TEST_VFIO_EMULATED_TOO,
};

static struct faux_device *test_faux[ARRAY_SIZE(test_names)];
static struct test_vfio *test_vfio[ARRAY_SIZE(test_names)];

static struct test_vfio *to_test_vfio(struct vfio_device *vdev)
{
	return container_of(vdev, struct test_vfio, vdev);
}

static int test_init_dev(struct vfio_device *vdev)
{
	struct test_vfio *test = to_test_vfio(vdev);

	mutex_init(&test->lock);
	INIT_LIST_HEAD(&test->pins);

	return 0;
}

static int test_pin(struct test_vfio *test, u64 iova, u64 size)
{
	struct test_pin *pin;
	struct page *page;
	u64 pos;
	int ret;

	for (pos = 0; pos < size; pos += PAGE_SIZE) {
		pin = kzalloc_obj(*pin);
		if (!pin)
			return -ENOMEM;

		pin->iova = iova + pos;
		ret = vfio_pin_pages(&test->vdev, pin->iova, 1,
				     IOMMU_READ | IOMMU_WRITE, &page);
		if (ret != 1) {
			kfree(pin);
			return ret < 0 ? ret : -EIO;
		}

		scoped_guard(mutex, &test->lock)
			list_add(&pin->link, &test->pins);
	}

	return 0;
}

static void test_unpin(struct vfio_device *vdev, u64 iova, u64 size)
{
	struct test_vfio *test = to_test_vfio(vdev);
	struct test_pin *pin, *next;
	LIST_HEAD(unpinned);

	scoped_guard(mutex, &test->lock) {
		list_for_each_entry_safe(pin, next, &test->pins, link) {
			if (pin->iova >= iova && pin->iova - iova < size)
				list_move(&pin->link, &unpinned);
		}
	}

	list_for_each_entry_safe(pin, next, &unpinned, link) {
		vfio_unpin_pages(vdev, pin->iova, 1);
		kfree(pin);
	}
}

static int test_write(struct test_vfio *test, u64 iova, u64 size)
{
	void *data;
	int ret;

	if (!size || size > SZ_1M)
		return -EINVAL;

	data = kvzalloc(size, GFP_KERNEL);
	if (!data)
		return -ENOMEM;

	ret = vfio_dma_rw(&test->vdev, iova, data, size, true);
	kvfree(data);

	return ret;
}

static long test_ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg)
{
	struct test_vfio *test = to_test_vfio(vdev);
	struct test_vfio_emulated_range range;

	if (copy_from_user(&range, (void __user *)arg, sizeof(range)))
		return -EFAULT;

	switch (cmd) {
	case TEST_VFIO_EMULATED_PIN:
		return test_pin(test, range.iova, range.size);
	case TEST_VFIO_EMULATED_UNPIN:
		test_unpin(vdev, range.iova, range.size);
		return 0;
	case TEST_VFIO_EMULATED_WRITE:
		return test_write(test, range.iova, range.size);
	case TEST_VFIO_EMULATED_KEEP:
		test->keep = range.size;
		return 0;
	default:
		return -ENOTTY;
	}
}

/* type1 does not hold the container's lock: let others come in between. */
static void test_dma_unmap(struct vfio_device *vdev, u64 iova, u64 size)
{
	/* A whole mapping's, or read from one that was freed */
	WARN_ON_ONCE(!PAGE_ALIGNED(iova | size));

	usleep_range(500, 1000);
	if (!to_test_vfio(vdev)->keep)
		test_unpin(vdev, iova, size);
	usleep_range(500, 1000);
}

static void test_close_device(struct vfio_device *vdev)
{
	to_test_vfio(vdev)->keep = false;
	test_unpin(vdev, 0, U64_MAX);
}

static const struct vfio_device_ops test_ops = {
	.name = TEST_VFIO_EMULATED,
	.init = test_init_dev,
	.close_device = test_close_device,
	.ioctl = test_ioctl,
	.dma_unmap = test_dma_unmap,
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
};

static int test_add(int i)
{
	int ret;

	test_faux[i] = faux_device_create(test_names[i], NULL, NULL);
	if (!test_faux[i])
		return -ENODEV;

	test_vfio[i] = vfio_alloc_device(test_vfio, vdev, &test_faux[i]->dev, &test_ops);
	if (IS_ERR(test_vfio[i])) {
		ret = PTR_ERR(test_vfio[i]);
		goto err_faux;
	}

	ret = vfio_register_emulated_iommu_dev(&test_vfio[i]->vdev);
	if (ret)
		goto err_put;

	return 0;

err_put:
	vfio_put_device(&test_vfio[i]->vdev);
err_faux:
	faux_device_destroy(test_faux[i]);
	return ret;
}

static void test_del(int i)
{
	vfio_unregister_group_dev(&test_vfio[i]->vdev);
	vfio_put_device(&test_vfio[i]->vdev);
	faux_device_destroy(test_faux[i]);
}

static int __init test_init(void)
{
	int ret;

	ret = test_add(0);
	if (ret)
		return ret;

	ret = test_add(1);
	if (ret)
		test_del(0);

	return ret;
}

static void __exit test_exit(void)
{
	test_del(1);
	test_del(0);
}

module_init(test_init);
module_exit(test_exit);

MODULE_DESCRIPTION("VFIO devices without an IOMMU, for selftests");
MODULE_LICENSE("GPL");
