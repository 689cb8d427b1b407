#!/bin/bash
# usage: vm.sh hw|pessimistic check|demo
#
# Boot the patched kernel with two igb cards behind an emulated VT-d (hw: it tracks
# dirty pages, pessimistic: it cannot) and run there what guest.sh has under that name.
# Prints what the guest prints; the kernel's messages go to build/logs/vm-....console.
# Exit status: 0 only if the guest's was 0 and its kernel complained of nothing.
. "$(dirname "$0")/lib.sh"
prepare
iommu=$1 run=$2
limit=${VM_LIMIT:-900}
console=vm-$iommu-$run.console
boot=$BASE_DIR/obj/boot

device=intel-iommu,intremap=on,x-scalable-mode=on,aw-bits=48
[ "$iommu" = pessimistic ] || device+=,x-ssads=on
# shellcheck disable=SC2054 # commas belong to QEMU's options
machine=(-accel tcg,thread=multi -machine q35,kernel-irqchip=split -cpu max -smp 2 -m 4G
	-device "$device" -net none -vga none -display none -monitor none -no-reboot
	-device pcie-root-port,id=rp1,slot=1,chassis=1 -device igb,bus=rp1,rombar=0
	-device pcie-root-port,id=rp2,slot=2,chassis=2 -device igb,bus=rp2,rombar=0
	-append "console=ttyS0 no_timer_check loglevel=7 panic=-1 oops=panic intel_iommu=on,sm_on hugepagesz=1G hugepages=1 run=$run expect=$iommu")

: >"$LOGS/$console"
rc=0
if [ -n "${QEMU:-}" ]; then
	unshare --pid --fork --kill-child timeout "$limit" "$QEMU" "${machine[@]}" \
		-kernel "$boot/bzImage" -initrd "$boot/initramfs" \
		-serial "file:$LOGS/$console" -serial stdio </dev/null || rc=$?
else
	enter timeout "$limit" "/cache/${QEMU_DIR##*/}/qemu-system-x86_64" "${machine[@]}" \
		-L /usr/share/qemu -L /usr/share/seabios -kernel /obj/boot/bzImage -initrd /obj/boot/initramfs \
		-serial "file:/checkout/build/logs/$console" -serial stdio </dev/null || rc=$?
fi | tee "$LOGS/vm-$iommu-$run.tap"
status=$(sed -n 's/^# guest: exit status //p' "$LOGS/vm-$iommu-$run.tap")
trouble=$(grep -E 'BUG:|WARNING:|Oops:|Kernel panic|general protection|blocked for more than|rcu.*stall|soft lockup|UBSAN:|KASAN:|list_(add|del) corruption' \
	"$LOGS/$console" | head -n 5 || :)

if [ "${status:-}" = 0 ] && [ -z "$trouble" ]; then
	exit 0
fi
[ -n "$status" ] || say "Bail out! the guest did not finish (a hang is cut off after $limit s)"
[ -z "$trouble" ] || say "not ok - the kernel complained: $trouble"
say "# the last lines of the console (build/logs/$console):"
tail -n 15 "$LOGS/$console" | tr -d '\r' | sed 's/^/# /'
exit 1
