// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO devices behind an IOMMU, all of it without hardware. Some of the IOMMUs log
 * dirty pages and some do not, and they fail when they are told to: for tests of
 * what type1 makes of IOMMUs that no one machine has side by side.
 *
 * A domain's page table is an xarray of leaves, which are all of one size: both
 * index and value are numbers of leaves. Its IOTLB is as unforgiving as one can
 * be: an entry that has seen a write stays until it is flushed, and as long as it
 * is there the dirty bit in the page table is not set again.
 */
#include <linux/cleanup.h>
#include <linux/device.h>
#include <linux/highmem.h>
#include <linux/iommu.h>
#include <linux/iova_bitmap.h>
#include <linux/irqdomain.h>
#include <linux/kstrtox.h>
#include <linux/lockdep.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pfn.h>
#include <linux/platform_device.h>
#include <linux/property.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/uaccess.h>
#include <linux/vfio.h>
#include <linux/wait.h>
#include <linux/xarray.h>

#include "test_vfio_iommu.h"

/* Marks of a domain's leaves: the dirty bit, and the same one in the IOTLB */
#define LEAF_DIRTY	XA_MARK_0
#define LEAF_CACHED	XA_MARK_1

enum test_fail {
	TEST_FAIL_START,
	TEST_FAIL_READ,
	TEST_FAIL_MAP,
	TEST_FAIL_NR,
};

static const char * const test_fail_names[] = {
	[TEST_FAIL_START] = "start",
	[TEST_FAIL_READ] = "read",
	[TEST_FAIL_MAP] = "map",
};

struct test_domain {
	struct iommu_domain domain;
	struct test_dev *dev;
	struct xarray leaves;
	unsigned int shift;	/* of a leaf's size */
	bool tracking;
};

struct test_dev {
	struct platform_device *pdev;
	struct test_domain *domain;
	/* Returned by the next call: negative, or 0 */
	int fail[TEST_FAIL_NR];
	/* Calls that read the log so far */
	unsigned int reads;
	/* Calls wait as long as it is set, and so many do */
	bool stall;
	atomic_t stalled;
};

struct test_vfio {
	struct vfio_device vdev;
};

/* Protects the domains, and what the devices have of them and of failures */
static DEFINE_MUTEX(test_lock);
static DECLARE_WAIT_QUEUE_HEAD(test_wait);
static struct test_dev test_devs[TEST_VFIO_IOMMU_NR_DEVICES];

static struct fwnode_handle *test_fwnode;
static struct irq_domain *test_irq_domain;
static struct iommu_device test_iommu;

static struct test_dev *to_test_dev(struct device *dev)
{
	return &test_devs[to_platform_device(dev)->id];
}

static bool test_capable_dev(struct test_dev *dev)
{
	return dev - test_devs < TEST_VFIO_IOMMU_NR_CAPABLE;
}

static struct test_domain *to_test_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct test_domain, domain);
}

/* The error that the test asked for. The next call succeeds. */
static int test_fail(struct test_domain *domain, enum test_fail what)
{
	int ret = domain->dev->fail[what];

	domain->dev->fail[what] = 0;

	return ret;
}

/* Wait for the test to end the stall, or for a fatal signal. Not under test_lock. */
static int test_stall(struct test_dev *dev)
{
	int ret;

	if (!READ_ONCE(dev->stall))
		return 0;

	atomic_inc(&dev->stalled);
	ret = wait_event_killable(test_wait, !READ_ONCE(dev->stall));
	atomic_dec(&dev->stalled);

	return ret;
}

/* ---- The domain ---- */

static int test_attach(struct iommu_domain *domain, struct device *dev,
		       struct iommu_domain *old)
{
	guard(mutex)(&test_lock);

	/* One that cannot log would take a domain that logs: it must not be asked to. */
	if (to_test_domain(domain)->dev != to_test_dev(dev) &&
	    (!domain->dirty_ops || test_capable_dev(to_test_dev(dev))))
		return -EINVAL;

	to_test_dev(dev)->domain = to_test_domain(domain);

	return 0;
}

static int test_attach_none(struct iommu_domain *domain, struct device *dev,
			    struct iommu_domain *old)
{
	guard(mutex)(&test_lock);

	to_test_dev(dev)->domain = NULL;

	return 0;
}

static int test_map_pages(struct iommu_domain *domain, unsigned long iova,
			  phys_addr_t paddr, size_t pgsize, size_t pgcount,
			  int prot, gfp_t gfp, size_t *mapped)
{
	struct test_domain *td = to_test_domain(domain);
	size_t pos;
	int ret;

	guard(mutex)(&test_lock);

	ret = test_fail(td, TEST_FAIL_MAP);

	for (pos = 0; pos < pgsize * pgcount && !ret; pos += 1UL << td->shift) {
		ret = xa_insert(&td->leaves, (iova + pos) >> td->shift,
				xa_mk_value((paddr + pos) >> td->shift), gfp);
		if (!ret)
			*mapped += 1UL << td->shift;
	}

	return ret;
}

static size_t test_unmap_pages(struct iommu_domain *domain, unsigned long iova,
			       size_t pgsize, size_t pgcount,
			       struct iommu_iotlb_gather *gather)
{
	struct test_domain *td = to_test_domain(domain);
	size_t pos;

	guard(mutex)(&test_lock);

	for (pos = 0; pos < pgsize * pgcount; pos += 1UL << td->shift) {
		if (!xa_erase(&td->leaves, (iova + pos) >> td->shift))
			break;
	}

	return pos;
}

static phys_addr_t test_iova_to_phys(struct iommu_domain *domain, dma_addr_t iova)
{
	struct test_domain *td = to_test_domain(domain);
	void *leaf = xa_load(&td->leaves, iova >> td->shift);

	if (!leaf)
		return 0;

	return ((phys_addr_t)xa_to_value(leaf) << td->shift) +
	       (iova & ((1UL << td->shift) - 1));
}

static void test_flush(struct test_domain *td, unsigned long first, unsigned long last)
{
	void *leaf;

	guard(mutex)(&test_lock);

	for (leaf = xa_find(&td->leaves, &first, last, LEAF_CACHED); leaf;
	     leaf = xa_find_after(&td->leaves, &first, last, LEAF_CACHED))
		xa_clear_mark(&td->leaves, first, LEAF_CACHED);
}

static void test_iotlb_sync(struct iommu_domain *domain,
			    struct iommu_iotlb_gather *gather)
{
	struct test_domain *td = to_test_domain(domain);

	test_flush(td, gather->start >> td->shift, gather->end >> td->shift);
}

static void test_flush_iotlb_all(struct iommu_domain *domain)
{
	test_flush(to_test_domain(domain), 0, ULONG_MAX);
}

static void test_domain_free(struct iommu_domain *domain)
{
	struct test_domain *td = to_test_domain(domain);

	xa_destroy(&td->leaves);
	kfree(td);
}

static int test_set_dirty_tracking(struct iommu_domain *domain, bool enabled)
{
	struct test_domain *td = to_test_domain(domain);
	int ret = 0;

	guard(mutex)(&test_lock);

	if (enabled)
		ret = test_fail(td, TEST_FAIL_START);
	if (!ret)
		td->tracking = enabled;

	return ret;
}

static int test_read_and_clear_dirty(struct iommu_domain *domain,
				     unsigned long iova, size_t size,
				     unsigned long flags,
				     struct iommu_dirty_bitmap *dirty)
{
	struct test_domain *td = to_test_domain(domain);
	unsigned long index = iova >> td->shift;
	unsigned long last = (iova + size - 1) >> td->shift;
	void *leaf;
	int ret;

	/* A killed task reads on: to stop is up to the caller. */
	test_stall(td->dev);

	guard(mutex)(&test_lock);

	td->dev->reads++;

	/* Without tracking there is nothing to read, but to clear is fine */
	if (!td->tracking && dirty->bitmap)
		return -EINVAL;

	ret = test_fail(td, TEST_FAIL_READ);
	if (ret)
		last = index + (last - index) / 2;

	for (leaf = xa_find(&td->leaves, &index, last, LEAF_DIRTY); leaf;
	     leaf = xa_find_after(&td->leaves, &index, last, LEAF_DIRTY)) {
		iommu_dirty_bitmap_record(dirty, index << td->shift, 1UL << td->shift);
		if (!(flags & IOMMU_DIRTY_NO_CLEAR))
			xa_clear_mark(&td->leaves, index, LEAF_DIRTY);
	}

	return ret;
}

static const struct iommu_dirty_ops test_dirty_ops = {
	.set_dirty_tracking = test_set_dirty_tracking,
	.read_and_clear_dirty = test_read_and_clear_dirty,
};

static const struct iommu_domain_ops test_domain_ops = {
	.attach_dev = test_attach,
	.map_pages = test_map_pages,
	.unmap_pages = test_unmap_pages,
	.iova_to_phys = test_iova_to_phys,
	.iotlb_sync = test_iotlb_sync,
	.flush_iotlb_all = test_flush_iotlb_all,
	.free = test_domain_free,
};

/* ---- The IOMMU ---- */

static bool test_capable(struct device *dev, enum iommu_cap cap)
{
	switch (cap) {
	case IOMMU_CAP_CACHE_COHERENCY:
		return true;
	case IOMMU_CAP_DIRTY_TRACKING:
		return test_capable_dev(to_test_dev(dev));
	default:
		return false;
	}
}

static struct iommu_domain *
test_domain_alloc(struct device *dev, u32 flags,
		  const struct iommu_user_data *user_data)
{
	struct test_domain *td;

	if (flags & ~IOMMU_HWPT_ALLOC_DIRTY_TRACKING || user_data)
		return ERR_PTR(-EOPNOTSUPP);
	if (flags && !test_capable_dev(to_test_dev(dev)))
		return ERR_PTR(-EOPNOTSUPP);

	td = kzalloc_obj(*td, GFP_KERNEL_ACCOUNT);
	if (!td)
		return ERR_PTR(-ENOMEM);

	xa_init(&td->leaves);
	td->dev = to_test_dev(dev);
	td->shift = PAGE_SHIFT;
	td->domain.ops = &test_domain_ops;
	td->domain.pgsize_bitmap = PAGE_SIZE * TEST_VFIO_IOMMU_LARGE_PAGES;
	if (td->dev == &test_devs[TEST_VFIO_IOMMU_LARGE])
		td->shift += ilog2(TEST_VFIO_IOMMU_LARGE_PAGES);
	else
		td->domain.pgsize_bitmap |= PAGE_SIZE;
	td->domain.geometry.aperture_end = ULONG_MAX;
	td->domain.geometry.force_aperture = true;
	if (flags)
		td->domain.dirty_ops = &test_dirty_ops;

	return &td->domain;
}

static struct iommu_device *test_probe_device(struct device *dev)
{
	return &test_iommu;
}

static int test_def_domain_type(struct device *dev)
{
	return IOMMU_DOMAIN_IDENTITY;
}

static const struct iommu_domain_ops test_none_ops = {
	.attach_dev = test_attach_none,
};

static struct iommu_domain test_identity_domain = {
	.type = IOMMU_DOMAIN_IDENTITY,
	.ops = &test_none_ops,
};

static struct iommu_domain test_blocked_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &test_none_ops,
};

static const struct iommu_ops test_iommu_ops = {
	.capable = test_capable,
	.domain_alloc_paging_flags = test_domain_alloc,
	.probe_device = test_probe_device,
	.device_group = generic_device_group,
	.def_domain_type = test_def_domain_type,
	.identity_domain = &test_identity_domain,
	.blocked_domain = &test_blocked_domain,
	.release_domain = &test_blocked_domain,
	.owner = THIS_MODULE,
};

/* ---- The device ---- */

static int test_write(struct test_dev *dev, u64 iova, u64 size, u8 value)
{
	struct test_domain *td;
	unsigned long index;
	phys_addr_t phys;
	size_t len;

	guard(mutex)(&test_lock);

	td = dev->domain;

	for (; size; iova += len, size -= len) {
		phys = td ? test_iova_to_phys(&td->domain, iova) : 0;
		if (!phys)
			return -EFAULT;

		index = iova >> td->shift;
		if (td->tracking && !xa_get_mark(&td->leaves, index, LEAF_CACHED)) {
			xa_set_mark(&td->leaves, index, LEAF_DIRTY);
			xa_set_mark(&td->leaves, index, LEAF_CACHED);
		}

		len = min_t(u64, size, PAGE_SIZE - offset_in_page(phys));
		memset_page(pfn_to_page(PHYS_PFN(phys)), offset_in_page(phys), value, len);
	}

	return 0;
}

static long test_ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg)
{
	struct test_vfio_iommu_write write;

	if (cmd != TEST_VFIO_IOMMU_WRITE)
		return -ENOTTY;

	if (copy_from_user(&write, (void __user *)arg, sizeof(write)))
		return -EFAULT;

	return test_write(to_test_dev(vdev->dev), write.iova, write.size, write.value);
}

static vm_fault_t test_fault(struct vm_fault *vmf)
{
	if (test_stall(vmf->vma->vm_private_data))
		return VM_FAULT_SIGBUS;

	vmf->page = alloc_page(GFP_HIGHUSER | __GFP_ZERO);

	return vmf->page ? 0 : VM_FAULT_OOM;
}

static const struct vm_operations_struct test_vm_ops = {
	.fault = test_fault,
};

static int test_mmap(struct vfio_device *vdev, struct vm_area_struct *vma)
{
	vma->vm_private_data = to_test_dev(vdev->dev);
	vma->vm_ops = &test_vm_ops;

	return 0;
}

static const struct vfio_device_ops test_vfio_ops = {
	.name = TEST_VFIO_IOMMU,
	.ioctl = test_ioctl,
	.mmap = test_mmap,
	.bind_iommufd = vfio_iommufd_physical_bind,
	.unbind_iommufd = vfio_iommufd_physical_unbind,
	.attach_ioas = vfio_iommufd_physical_attach_ioas,
	.detach_ioas = vfio_iommufd_physical_detach_ioas,
};

static int test_probe(struct platform_device *pdev)
{
	struct test_vfio *test;
	int ret;

	test = vfio_alloc_device(test_vfio, vdev, &pdev->dev, &test_vfio_ops);
	if (IS_ERR(test))
		return PTR_ERR(test);

	ret = vfio_register_group_dev(&test->vdev);
	if (ret) {
		vfio_put_device(&test->vdev);
		return ret;
	}

	platform_set_drvdata(pdev, test);

	return 0;
}

static void test_remove(struct platform_device *pdev)
{
	struct test_vfio *test = platform_get_drvdata(pdev);

	vfio_unregister_group_dev(&test->vdev);
	vfio_put_device(&test->vdev);
}

static ssize_t tracking_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct test_domain *td;

	guard(mutex)(&test_lock);

	td = to_test_dev(dev)->domain;

	return sysfs_emit(buf, "%c\n", !td || !td->domain.dirty_ops ? '-' :
			  td->tracking ? '1' : '0');
}
static DEVICE_ATTR_RO(tracking);

static ssize_t reads_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	guard(mutex)(&test_lock);

	return sysfs_emit(buf, "%u\n", to_test_dev(dev)->reads);
}
static DEVICE_ATTR_RO(reads);

static ssize_t stall_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&to_test_dev(dev)->stalled));
}

static ssize_t stall_store(struct device *dev, struct device_attribute *attr,
			   const char *buf, size_t count)
{
	bool on;
	int ret;

	ret = kstrtobool(buf, &on);
	if (ret)
		return ret;

	WRITE_ONCE(to_test_dev(dev)->stall, on);
	wake_up_all(&test_wait);

	return count;
}
static DEVICE_ATTR_RW(stall);

static ssize_t fail_store(struct device *dev, struct device_attribute *attr,
			  const char *buf, size_t count)
{
	char name[8];
	int what, err;

	if (sscanf(buf, "%7s %d", name, &err) != 2 || err < 0 || err > MAX_ERRNO)
		return -EINVAL;

	what = match_string(test_fail_names, ARRAY_SIZE(test_fail_names), name);
	if (what < 0)
		return what;

	guard(mutex)(&test_lock);

	to_test_dev(dev)->fail[what] = -err;

	return count;
}
static DEVICE_ATTR_WO(fail);

static struct attribute *test_dev_attrs[] = {
	&dev_attr_tracking.attr,
	&dev_attr_reads.attr,
	&dev_attr_stall.attr,
	&dev_attr_fail.attr,
	NULL,
};
ATTRIBUTE_GROUPS(test_dev);

/* ---- Coming and going ---- */

static int test_add_dev(int id)
{
	struct platform_device *pdev;
	int ret;

	pdev = platform_device_alloc(TEST_VFIO_IOMMU, id);
	if (!pdev)
		return -ENOMEM;

	/* It sends no interrupts, and type1 wants to know that they are isolated */
	dev_set_msi_domain(&pdev->dev, test_irq_domain);

	/*
	 * It wants a lock that is not exported. That is against others who probe
	 * the device, of which nobody knows yet.
	 */
	lockdep_off();
	ret = iommu_fwspec_init(&pdev->dev, test_fwnode);
	lockdep_on();
	if (!ret)
		ret = platform_device_add(pdev);
	if (ret) {
		platform_device_put(pdev);
		return ret;
	}

	test_devs[id].pdev = pdev;

	return 0;
}

static void test_del_devs(void)
{
	int id;

	for (id = 0; id < TEST_VFIO_IOMMU_NR_DEVICES; id++) {
		platform_device_unregister(test_devs[id].pdev);
		test_devs[id].pdev = NULL;
	}
}

/*
 * The IOMMU core holds a reference to the module for each device, so these are not
 * there for as long as the module is: it could never be unloaded.
 */
static ssize_t devices_store(struct device_driver *driver, const char *buf, size_t count)
{
	static DEFINE_MUTEX(lock);
	int id, ret;
	bool on;

	ret = kstrtobool(buf, &on);
	if (ret)
		return ret;

	guard(mutex)(&lock);

	if (on == !!test_devs[0].pdev)
		return count;

	for (id = 0; on && id < TEST_VFIO_IOMMU_NR_DEVICES; id++) {
		ret = test_add_dev(id);
		if (ret)
			break;
	}

	if (!on || ret)
		test_del_devs();

	return ret ?: count;
}
static DRIVER_ATTR_WO(devices);

static struct attribute *test_driver_attrs[] = {
	&driver_attr_devices.attr,
	NULL,
};
ATTRIBUTE_GROUPS(test_driver);

static struct platform_driver test_driver = {
	.probe = test_probe,
	.remove = test_remove,
	.driver = {
		.name = TEST_VFIO_IOMMU,
		.groups = test_driver_groups,
		.dev_groups = test_dev_groups,
	},
	.driver_managed_dma = true,
};

static int __init test_init(void)
{
	struct irq_domain_info info = {
		.domain_flags = IRQ_DOMAIN_FLAG_ISOLATED_MSI,
		.ops = &irq_domain_simple_ops,
	};
	int ret;

	test_fwnode = fwnode_create_software_node(NULL, NULL);
	if (IS_ERR(test_fwnode))
		return PTR_ERR(test_fwnode);

	info.fwnode = test_fwnode;
	test_irq_domain = irq_domain_instantiate(&info);
	if (IS_ERR(test_irq_domain)) {
		ret = PTR_ERR(test_irq_domain);
		goto err_fwnode;
	}

	ret = iommu_device_sysfs_add(&test_iommu, NULL, NULL, TEST_VFIO_IOMMU);
	if (ret)
		goto err_irq_domain;

	test_iommu.fwnode = test_fwnode;
	ret = iommu_device_register(&test_iommu, &test_iommu_ops, NULL);
	if (ret)
		goto err_sysfs;

	ret = platform_driver_register(&test_driver);
	if (ret)
		goto err_iommu;

	return 0;

err_iommu:
	iommu_device_unregister(&test_iommu);
err_sysfs:
	iommu_device_sysfs_remove(&test_iommu);
err_irq_domain:
	irq_domain_remove(test_irq_domain);
err_fwnode:
	fwnode_remove_software_node(test_fwnode);
	return ret;
}

static void __exit test_exit(void)
{
	platform_driver_unregister(&test_driver);
	iommu_device_unregister(&test_iommu);
	iommu_device_sysfs_remove(&test_iommu);
	irq_domain_remove(test_irq_domain);
	fwnode_remove_software_node(test_fwnode);
}

module_init(test_init);
module_exit(test_exit);

MODULE_DESCRIPTION("VFIO devices behind IOMMUs of all kinds, for selftests");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("IOMMUFD");
