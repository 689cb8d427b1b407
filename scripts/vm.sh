#!/bin/bash
# usage: vm.sh hw|pessimistic check|demo|awake|hostile|migrate [NAME=VALUE...]
#        vm.sh hw measure NAME DIRECTORY COMMANDS
#
# Boot the patched kernel with two igb cards behind an emulated IOMMU (hw: it tracks
# dirty pages, pessimistic: it cannot) and run there what guest.sh has under that name,
# which finds each NAME=VALUE in its environment. IOMMU=vtd|amd|smmuv3: Intel's (if none is
# named), AMD's, or Arm's in an arm64 machine. VARIANT=debug|kcsan|64k: the kernel that
# build-kernel.sh made under that name (arm64-64k). LIMIT=SECONDS, which it may take in all.
# Prints what the guest prints; the kernel's messages go to build/logs/vm-....console.
# measure: run COMMANDS, and not the patched kernel, but the one in DIRECTORY below
# $BASE_DIR. One processor, whose clock counts instructions: a nanosecond is one.
# Exit status: 0 only if the guest's was 0 and its kernel complained of nothing; for
# `awake`, which is there to make it complain, if the guest's was 0.
. "$(dirname "$0")/lib.sh"
prepare
log=$1 run=$2
shift 2
limit=${LIMIT:-900} quiet=150 # seconds: in all, and without a word
iommu=${IOMMU:-vtd}
name=vm-${IOMMU:+$IOMMU-}$log-$run${VARIANT:+-$VARIANT}
[ "$iommu" != smmuv3 ] || VARIANT=arm64${VARIANT:+-$VARIANT}
kernel=obj${VARIANT:+-$VARIANT}/boot
initramfs=$kernel
# The processors take turns: on a busy host the emulated machine loses a timer interrupt
# now and then, and stands still. What looks for races lets them run side by side.
thread=single
case $run in awake | hostile | migrate) thread=multi ;; esac
accel=(-smp 2 -accel "tcg,thread=$thread")
[ "$run" != migrate ] || initramfs=obj/migrate
if [ "$run" = measure ]; then
	name=vm-$1 kernel=$2 initramfs=obj/boot
	set -- "commands=\"$3\""
	accel=(-smp 1 -accel "tcg,thread=single" -icount "shift=0,sleep=off")
	limit=7200 quiet=1200
fi
tap=$LOGS/$name.tap
console=$LOGS/$name.console

arch=x86_64 image=bzImage
# no_timer_check, and ticks that never stop (highres=off): an interrupt that comes again and
# again does no harm by being lost once; a one-shot timer would be waited for forever.
append="console=ttyS0 no_timer_check nohz=off highres=off" behind=()
# The TSC's frequency is measured while booting, against the PIT: on a busy host that went
# wrong in one boot of ten, the clock ran 3 to 11 times too fast, and tests timed out.
[ "$run" = measure ] || append+=" clocksource=acpi_pm tsc=unstable"
# Of pages of 64 KiB the large ones would be of 512 MiB.
huge="hugepagesz=1G hugepages=1"
[ "${VARIANT:-}" != arm64-64k ] || huge=default_hugepagesz=2M
case $iommu in
vtd)
	device=intel-iommu,intremap=on,x-scalable-mode=on,aw-bits=48
	[ "$log" = pessimistic ] || device+=,x-ssads=on
	machine=(-machine "q35,kernel-irqchip=split" -cpu max -device "$device")
	append+=" intel_iommu=on,sm_on"
	;;
amd)
	device=amd-iommu,intremap=on
	[ "$log" = pessimistic ] || device+=,x-hd=on
	machine=(-machine "q35,kernel-irqchip=split" -cpu max -device "$device")
	# 0000:04:01.0's DMA comes with the requester ID of an alias, 04:00.0.
	# shellcheck disable=SC2054 # commas belong to QEMU's options
	behind=(-device pcie-root-port,id=rp3,slot=3,chassis=3 -device pcie-pci-bridge,id=pci,bus=rp3
		-device igb,bus=pci,addr=1,rombar=0)
	;;
smmuv3)
	# With a device tree: ACPI's tables say that there is no HTTU.
	machine=(-machine "virt,gic-version=3,iommu=smmuv3,acpi=off" -cpu neoverse-n1)
	[ "$log" = pessimistic ] || machine+=(-global arm-smmuv3.x-httu=on)
	arch=aarch64 image=Image append="console=ttyAMA0 vfio_pci.enable_sriov=1"
	;;
*) die "IOMMU=$iommu: it is vtd, amd or smmuv3" ;;
esac
# shellcheck disable=SC2054 # commas belong to QEMU's options
machine+=("${accel[@]}" -m 4G -net none -vga none -display none -monitor none -no-reboot
	-device pcie-root-port,id=rp1,slot=1,chassis=1 -device igb,bus=rp1,rombar=0
	-device pcie-root-port,id=rp2,slot=2,chassis=2 -device igb,bus=rp2,rombar=0 "${behind[@]}"
	-append "$append loglevel=7 panic=-1 oops=panic $huge run=$run IOMMU=$iommu expect=$log $*")

qemu() {
	if [ -n "${QEMU:-}" ]; then
		unshare --pid --fork --kill-child "$QEMU" "${machine[@]}" \
			-kernel "$BASE_DIR/$kernel/$image" -initrd "$BASE_DIR/$initramfs/initramfs" -serial "file:$console" -serial stdio
	else
		base=/cache/$(basename "$(readlink -f "$BASE_DIR")")
		enter "/cache/${QEMU_DIR##*/}/qemu-system-$arch" "${machine[@]}" \
			-L /usr/share/qemu -L /usr/share/seabios -kernel "$base/$kernel/$image" -initrd "$base/$initramfs/initramfs" \
			-serial "file:/checkout/${console#"$TOP/"}" -serial stdio
	fi
}

: >"$console"
: >"$tap"
set -m # a process group of its own, for finish
(qemu </dev/null | tee "$tap") &
set +m
long_pid=$!
cut=
while kill -0 "$long_pid" 2>/dev/null; do
	sleep 1
	last=$(stat -c %Y "$tap" "$console" | sort -n | tail -n 1)
	if [ "$SECONDS" -gt "$limit" ]; then
		cut="took more than $limit s"
	elif [ $(($(date +%s) - last)) -gt $quiet ]; then
		cut="said nothing for $quiet s"
	fi
	[ -z "$cut" ] || kill -KILL -- "-$long_pid" 2>/dev/null || :
done
wait "$long_pid" 2>/dev/null || :
long_pid=

status=$(sed -n 's/^# guest: exit status //p' "$tap")
trouble=
# The data races that KCSAN reports are for check-hostile.sh to judge.
[ "$run" = awake ] || trouble=$(sed '/BUG: KCSAN:/d' "$console" | grep -m 1 -A 40 -E "$COMPLAINTS" | tr -d '\r' || :)
if [ "$status" = 0 ] && [ -z "$trouble" ]; then
	exit 0
fi
[ -n "$status" ] || say "Bail out! the guest did not finish${cut:+: it $cut and was cut off}"
if [ -n "$trouble" ]; then
	say "Bail out! the kernel complained:"
	say "$trouble" | sed 's/^/# /'
fi
say "# the last lines of the console (${console#"$TOP/"}):"
tail -n 15 "$console" | tr -d '\r' | sed 's/^/# /'
exit 1
