// SPDX-License-Identifier: GPL-2.0
/*
 * A VFIO driver for QEMU's igb that can migrate it: vfio-pci-core, and the device
 * states STOP_COPY and RESUMING.  For tests only.  Its state is a handful of
 * registers, enough for a guest that polls one queue to go on with another igb at
 * the same position of its rings.
 */
#include <linux/anon_inodes.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/uaccess.h>
#include <linux/vfio_pci_core.h>

#define CTRL	0x0000
#define STATUS	0x0008
#define CTRL_EXT 0x0018
#define MDIC	0x0020
#define RCTL	0x0100
#define TCTL	0x0400

#define STATUS_LU	BIT(1)
#define RCTL_EN		BIT(1)
#define TCTL_EN		BIT(1)
#define MDIC_BMCR_AUTONEG (0x1200 | 1 << 21 | 1 << 26)	/* enable, restart */

/* In the order in which they are restored: the tails, which start work, last */
static const u16 regs[] = {
	CTRL, CTRL_EXT,
	0xe000, 0xe004, 0xe008, 0xe010, 0xe028,	/* TDBAL TDBAH TDLEN TDH TXDCTL */
	0xc000, 0xc004, 0xc008, 0xc00c, 0xc010, 0xc028,	/* RDBAL.. SRRCTL RDH RXDCTL */
	RCTL, TCTL,
	0xc018, 0xe018,				/* RDT TDT */
};

#define STATE_SIZE (ARRAY_SIZE(regs) * sizeof(u32))

struct igb_device {
	struct vfio_pci_core_device core;
	struct mutex lock;		/* of what follows */
	enum vfio_device_mig_state state;
	u32 saved[ARRAY_SIZE(regs)];
	size_t filled;			/* bytes of it that are valid */
	bool master;
};

/* Access to BAR 0, which the guest may have switched off */
static void __iomem *igb_begin(struct igb_device *igb, u16 *cmd)
{
	struct pci_dev *pdev = igb->core.pdev;

	down_write(&igb->core.memory_lock);
	pci_read_config_word(pdev, PCI_COMMAND, cmd);
	pci_write_config_word(pdev, PCI_COMMAND, *cmd | PCI_COMMAND_MEMORY);
	return igb->core.barmap[0];
}

static void igb_end(struct igb_device *igb, u16 cmd)
{
	pci_write_config_word(igb->core.pdev, PCI_COMMAND, cmd);
	up_write(&igb->core.memory_lock);
}

static int igb_stop(struct igb_device *igb)
{
	void __iomem *bar;
	unsigned int i;
	u16 cmd;

	bar = igb_begin(igb, &cmd);
	for (i = 0; i < ARRAY_SIZE(regs); i++)
		igb->saved[i] = ioread32(bar + regs[i]);
	iowrite32(ioread32(bar + RCTL) & ~RCTL_EN, bar + RCTL);
	iowrite32(ioread32(bar + TCTL) & ~TCTL_EN, bar + TCTL);
	igb->filled = STATE_SIZE;
	igb->master = cmd & PCI_COMMAND_MASTER;
	/* Nothing is written to memory from here on */
	igb_end(igb, cmd & ~PCI_COMMAND_MASTER);
	return 0;
}

static int igb_run(struct igb_device *igb)
{
	void __iomem *bar;
	unsigned int i;
	int ret = 0;
	u16 cmd;

	if (igb->filled != STATE_SIZE)
		return 0;

	bar = igb_begin(igb, &cmd);
	if (!(ioread32(bar + STATUS) & STATUS_LU)) {
		iowrite32(MDIC_BMCR_AUTONEG, bar + MDIC);
		for (i = 0; i < 2000 && !(ioread32(bar + STATUS) & STATUS_LU); i++)
			usleep_range(1000, 2000);
		if (i == 2000)
			ret = -EIO;
	}
	if (igb->master)
		cmd |= PCI_COMMAND_MASTER;
	pci_write_config_word(igb->core.pdev, PCI_COMMAND,
			      cmd | PCI_COMMAND_MEMORY);
	for (i = 0; i < ARRAY_SIZE(regs); i++)
		iowrite32(igb->saved[i], bar + regs[i]);
	igb_end(igb, cmd);
	igb->filled = 0;
	return ret;
}

static ssize_t igb_file_read(struct file *filp, char __user *buf, size_t len,
			     loff_t *pos)
{
	struct igb_device *igb = filp->private_data;
	ssize_t ret;

	mutex_lock(&igb->lock);
	ret = simple_read_from_buffer(buf, len, &filp->f_pos, igb->saved,
				      igb->filled);
	mutex_unlock(&igb->lock);
	return ret;
}

static ssize_t igb_file_write(struct file *filp, const char __user *buf,
			      size_t len, loff_t *pos)
{
	struct igb_device *igb = filp->private_data;
	ssize_t ret;

	mutex_lock(&igb->lock);
	ret = simple_write_to_buffer(igb->saved, STATE_SIZE, &filp->f_pos, buf,
				     len);
	if (ret > 0)
		igb->filled = filp->f_pos;
	mutex_unlock(&igb->lock);
	return ret;
}

static int igb_file_release(struct inode *inode, struct file *filp)
{
	struct igb_device *igb = filp->private_data;

	vfio_device_put_registration(&igb->core.vdev);
	return 0;
}

static const struct file_operations igb_file_ops = {
	.owner = THIS_MODULE,
	.read = igb_file_read,
	.write = igb_file_write,
	.release = igb_file_release,
};

static struct file *igb_file(struct igb_device *igb, int flags)
{
	struct file *filp;

	if (!vfio_device_try_get_registration(&igb->core.vdev))
		return ERR_PTR(-ENODEV);
	filp = anon_inode_getfile("igb-migration", &igb_file_ops, igb, flags);
	if (IS_ERR(filp))
		vfio_device_put_registration(&igb->core.vdev);
	else
		stream_open(filp->f_inode, filp);
	return filp;
}

static struct file *igb_step(struct igb_device *igb,
			     enum vfio_device_mig_state new)
{
	enum vfio_device_mig_state old = igb->state;
	int ret = 0;

	if (old == VFIO_DEVICE_STATE_RUNNING)
		ret = igb_stop(igb);
	else if (new == VFIO_DEVICE_STATE_RUNNING)
		ret = igb_run(igb);
	else if (new == VFIO_DEVICE_STATE_STOP_COPY)
		return igb_file(igb, O_RDONLY);
	else if (new == VFIO_DEVICE_STATE_RESUMING) {
		igb->filled = 0;
		igb->master = false;	/* configuration space comes by itself */
		return igb_file(igb, O_WRONLY);
	}
	return ERR_PTR(ret);
}

static struct file *igb_set_state(struct vfio_device *vdev,
				  enum vfio_device_mig_state new)
{
	struct igb_device *igb = container_of(vdev, struct igb_device, core.vdev);
	enum vfio_device_mig_state next;
	struct file *res = NULL;
	int ret;

	mutex_lock(&igb->lock);
	while (new != igb->state) {
		ret = vfio_mig_get_next_state(vdev, igb->state, new, &next);
		if (ret) {
			res = ERR_PTR(ret);
			break;
		}
		res = igb_step(igb, next);
		if (IS_ERR(res))
			break;
		igb->state = next;
	}
	mutex_unlock(&igb->lock);
	return res;
}

static int igb_get_state(struct vfio_device *vdev,
			 enum vfio_device_mig_state *state)
{
	struct igb_device *igb = container_of(vdev, struct igb_device, core.vdev);

	mutex_lock(&igb->lock);
	*state = igb->state;
	mutex_unlock(&igb->lock);
	return 0;
}

/* Without it QEMU takes the state for 100 GiB and never switches over */
static int igb_get_data_size(struct vfio_device *vdev, unsigned long *length)
{
	*length = STATE_SIZE;
	return 0;
}

static const struct vfio_migration_ops igb_migration_ops = {
	.migration_set_state = igb_set_state,
	.migration_get_state = igb_get_state,
	.migration_get_data_size = igb_get_data_size,
};

static int igb_init_dev(struct vfio_device *vdev)
{
	struct igb_device *igb = container_of(vdev, struct igb_device, core.vdev);

	mutex_init(&igb->lock);
	vdev->migration_flags = VFIO_MIGRATION_STOP_COPY;
	vdev->mig_ops = &igb_migration_ops;
	return vfio_pci_core_init_dev(vdev);
}

static int igb_open_device(struct vfio_device *vdev)
{
	struct igb_device *igb = container_of(vdev, struct igb_device, core.vdev);
	int ret;

	ret = vfio_pci_core_enable(&igb->core);
	if (ret)
		return ret;
	igb->state = VFIO_DEVICE_STATE_RUNNING;
	igb->filled = 0;
	vfio_pci_core_finish_enable(&igb->core);
	return 0;
}

static const struct vfio_device_ops igb_ops = {
	.name = "igb-migration",
	.init = igb_init_dev,
	.release = vfio_pci_core_release_dev,
	.open_device = igb_open_device,
	.close_device = vfio_pci_core_close_device,
	.ioctl = vfio_pci_core_ioctl,
	.get_region_info_caps = vfio_pci_ioctl_get_region_info,
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = vfio_pci_core_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
	.match_token_uuid = vfio_pci_core_match_token_uuid,
	.bind_iommufd = vfio_iommufd_physical_bind,
	.unbind_iommufd = vfio_iommufd_physical_unbind,
	.attach_ioas = vfio_iommufd_physical_attach_ioas,
	.detach_ioas = vfio_iommufd_physical_detach_ioas,
};

static int igb_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct igb_device *igb;
	int ret;

	igb = vfio_alloc_device(igb_device, core.vdev, &pdev->dev, &igb_ops);
	if (IS_ERR(igb))
		return PTR_ERR(igb);
	pci_set_drvdata(pdev, &igb->core);
	ret = vfio_pci_core_register_device(&igb->core);
	if (ret)
		vfio_put_device(&igb->core.vdev);
	return ret;
}

static void igb_remove(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = pci_get_drvdata(pdev);

	vfio_pci_core_unregister_device(core);
	vfio_put_device(&core->vdev);
}

static const struct pci_device_id igb_table[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(PCI_VENDOR_ID_INTEL, 0x10c9) },
	{}
};
MODULE_DEVICE_TABLE(pci, igb_table);

static struct pci_driver igb_driver = {
	.name = "igb-migration",
	.id_table = igb_table,
	.probe = igb_probe,
	.remove = igb_remove,
	.err_handler = &vfio_pci_core_err_handlers,
	.driver_managed_dma = true,
};
module_pci_driver(igb_driver);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("VFIO driver for QEMU's igb with migration, for tests");
