#!/bin/bash
# Build what is lacking, boot the patched kernel, and show its dirty log while a card
# writes by DMA: guest.sh's `demo`, on an IOMMU that tracks dirty pages in hardware
# (IOMMU=, see vm.sh).
. "$(dirname "$0")/lib.sh"
prepare
"$TOP/scripts/build-qemu.sh"
iommu=${IOMMU:-vtd}
if [ "$iommu" = smmuv3 ]; then "$TOP/scripts/build-kernel.sh" arm64; else "$TOP/scripts/build-kernel.sh"; fi
log=hw
can_log "$iommu" || {
	[ $? = 1 ] || die "this QEMU has no machine with IOMMU=$iommu"
	say "this QEMU cannot track dirty pages: the log is the pessimistic one"
	log=pessimistic
}
say "booting the patched kernel"
"$TOP/scripts/vm.sh" $log demo
say "done in $(hms $SECONDS)"
