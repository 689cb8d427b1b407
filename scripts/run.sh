#!/bin/bash
# Build what is lacking, boot the patched kernel, and show its dirty log while a card
# writes by DMA: guest.sh's `demo`, on an IOMMU that tracks dirty pages in hardware.
. "$(dirname "$0")/lib.sh"
prepare
"$TOP/scripts/qemu.sh"
"$TOP/scripts/kernel.sh"
iommu=hw
if [ -n "${QEMU:-}" ] && ! "$QEMU" -device intel-iommu,help | grep -q x-ssads; then
	say "this QEMU cannot track dirty pages: the log is the pessimistic one"
	iommu=pessimistic
fi
say "booting the patched kernel"
"$TOP/scripts/vm.sh" $iommu demo
say "done in $(hms $SECONDS)"
