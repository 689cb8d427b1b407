// SPDX-License-Identifier: GPL-2.0-only
/*
 * A VFIO device without hardware and without an IOMMU behind it: what it does to
 * the user's memory it does with the CPU, by vfio_pin_pages() and vfio_dma_rw(),
 * when it is told so by ioctl(). For tests of what type1 does for such devices.
 */
#include <linux/cleanup.h>
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
};

struct test_pin {
	struct list_head link;
	dma_addr_t iova;
};

static struct faux_device *test_faux;
static struct test_vfio *test_vfio;

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
	default:
		return -ENOTTY;
	}
}

static void test_close_device(struct vfio_device *vdev)
{
	test_unpin(vdev, 0, U64_MAX);
}

static const struct vfio_device_ops test_ops = {
	.name = TEST_VFIO_EMULATED,
	.init = test_init_dev,
	.close_device = test_close_device,
	.ioctl = test_ioctl,
	.dma_unmap = test_unpin,
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
};

static int __init test_init(void)
{
	int ret;

	test_faux = faux_device_create(TEST_VFIO_EMULATED, NULL, NULL);
	if (!test_faux)
		return -ENODEV;

	test_vfio = vfio_alloc_device(test_vfio, vdev, &test_faux->dev, &test_ops);
	if (IS_ERR(test_vfio)) {
		ret = PTR_ERR(test_vfio);
		goto err_faux;
	}

	ret = vfio_register_emulated_iommu_dev(&test_vfio->vdev);
	if (ret)
		goto err_put;

	return 0;

err_put:
	vfio_put_device(&test_vfio->vdev);
err_faux:
	faux_device_destroy(test_faux);
	return ret;
}

static void __exit test_exit(void)
{
	vfio_unregister_group_dev(&test_vfio->vdev);
	vfio_put_device(&test_vfio->vdev);
	faux_device_destroy(test_faux);
}

module_init(test_init);
module_exit(test_exit);

MODULE_DESCRIPTION("VFIO device without an IOMMU, for selftests");
MODULE_LICENSE("GPL");
