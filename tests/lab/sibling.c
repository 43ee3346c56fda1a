// SPDX-License-Identifier: GPL-2.0
/*
 * A host driver that the kernel lets into an IOMMU group in use: it says that it manages its DMA itself, which is how
 * vfio-pci gets in, but it is none of VFIO's. Takes any PCI function whose driver_override names it, and does nothing.
 */
#include <linux/module.h>
#include <linux/pci.h>

static int sibling_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return 0;
}

static struct pci_driver sibling_driver = {
	.name = "lab-sibling",
	.probe = sibling_probe,
	.driver_managed_dma = true,
};
module_pci_driver(sibling_driver);

MODULE_DESCRIPTION("A sibling's driver, for pollvisor's lab");
MODULE_LICENSE("GPL");
