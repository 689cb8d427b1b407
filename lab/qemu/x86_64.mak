# The devices of the emulator for x86_64: q35, its IOMMUs, cards, bridges; vfio-pci for
# the machine that lab/migrate runs inside.
CONFIG_Q35=y
CONFIG_VTD=y
CONFIG_AMD_IOMMU=y
CONFIG_PCIE_PORT=y
CONFIG_IGB_PCI_EXPRESS=y
# igb does not link without
CONFIG_E1000E_PCI_EXPRESS=y
CONFIG_VFIO=y
CONFIG_VFIO_PCI=y
CONFIG_PCI_BRIDGE=y
CONFIG_PCIE_PCI_BRIDGE=y
CONFIG_IOMMUFD=y
