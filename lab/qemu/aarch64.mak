# The devices of the emulator for aarch64: virt with its SMMUv3, two cards
CONFIG_ARM_VIRT=y
CONFIG_PCIE_PORT=y
CONFIG_IGB_PCI_EXPRESS=y
# igb does not link without
CONFIG_E1000E_PCI_EXPRESS=y
