#!/bin/bash
# `make check-hostile`: the dirty log under a kernel with every checker on.
#
# Builds the debug kernel (kernel.config and kernel-debug.config) in the cache. Boots it
# once to prove that each detector is awake: splat.c does one thing wrong for each of
# them. Then boots it with the hardware's log and with the pessimistic one, and runs the
# tests of the dirty log there at full size. What a detector reports fails the run.
#
# CALLS=, SECONDS_RACED=, GIB= make it smaller: by default 1000000 calls, 600 seconds,
# 256 GiB with the hardware's log, a tenth of the first two with the pessimistic one.
#
# The first process of the guest is this script, too (/hostile of the initramfs). Kernel
# messages go to the first serial port, its own output to the second.
if [ "$$" = 1 ]; then
	export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TMPDIR=/tmp
	mount -t proc proc /proc
	mount -t sysfs sysfs /sys
	mount -t devtmpfs devtmpfs /dev
	mkdir -p /dev/shm
	ln -s /proc/self/fd /dev/fd
	mount -t tmpfs tmpfs /dev/shm
	mount -t tmpfs tmpfs /tmp
	mount -t debugfs debugfs /sys/kernel/debug
	stty -F /dev/ttyS1 raw 2>/dev/null
	exec </dev/null >/dev/ttyS1 2>&1
	failed=0

	leave() {
		echo "# guest: exit status $1"
		sleep 0.5
		busybox poweroff -f
		sleep 60
	}

	# Leaks are reported when two scans agree, and not in the first seconds.
	leaks() {
		sleep 6
		echo scan >/sys/kernel/debug/kmemleak
		sleep 6
		echo scan >/sys/kernel/debug/kmemleak
		grep -c '^unreferenced object' /sys/kernel/debug/kmemleak
	}

	if [ "${run:-}" = awake ]; then
		echo clear >/sys/kernel/debug/kmemleak
		echo 1 >/proc/sys/kernel/watchdog_thresh
		echo 2 >/proc/sys/kernel/hung_task_timeout_secs
		# Lockdep says one thing and is off from then on: its splat comes last.
		for what in kasan ubsan_bounds ubsan_shift atomic_sleep list leak hung_task soft_lockup lockdep; do
			busybox insmod /splat.ko what=$what 2>/dev/null
		done
		echo "# leaks: $(leaks)"
		leave 0
	fi

	echo 64 >/proc/sys/vm/nr_hugepages
	cd /kselftest/vfio || leave 1
	./setup.sh 0000:01:00.0 0000:02:00.0 >/dev/console 2>&1 || leave 1
	export VFIO_SELFTESTS_BDF="0000:01:00.0 0000:02:00.0"
	export VFIO_DIRTY_LOG_EXPECT=${expect:-}
	export VFIO_DIRTY_LOG_FUZZ_SEED=$seed VFIO_DIRTY_LOG_FUZZ_CALLS=$calls
	export VFIO_DIRTY_LOG_RACE_SECONDS=$seconds VFIO_DIRTY_LOG_LARGE_GIB=$gib
	echo clear >/sys/kernel/debug/kmemleak

	for t in vfio_dirty_log_{hostile,fuzz,migration}_test vfio_dirty_log_test; do
		echo "# $t"
		"./$t" || failed=1
	done

	leaked=$(leaks)
	echo "# leaks: $leaked"
	[ "$leaked" = 0 ] || cat /sys/kernel/debug/kmemleak >/dev/console
	leave $failed
fi

. "$(dirname "$0")/lib.sh"
prepare
"$TOP/scripts/qemu.sh"
# Its initramfs is the one that make check boots, and some more on top.
"$TOP/scripts/kernel.sh"
calls=${CALLS:-1000000} seconds=${SECONDS_RACED:-600} gib=${GIB:-256}
seed=${SEED:-$((RANDOM * 100000))}
base=$(basename "$(readlink -f "$BASE_DIR")")
debug=/cache/$base/obj-debug
about=2
[ -e "$CACHE/$base/obj-debug/vmlinux" ] || about=15

need_room 4000 "the debug kernel's objects"
long "debug kernel" $about enter bash -euc '
	export KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_USER=vfio KBUILD_BUILD_HOST=vfio
	obj=$1
	mkdir -p $obj
	cd /src/linux
	cat /checkout/scripts/kernel{,-debug}.config tools/testing/selftests/vfio/config{,.x86_64} |
		grep -E "^(# )?CONFIG_" | sort -u >$obj/wanted.config
	if [ ! -e $obj/.config ] || ! cmp -s $obj/wanted.config $obj/merged.config; then
		make -s O=$obj KCONFIG_ALLCONFIG=$obj/wanted.config allnoconfig
		cp $obj/wanted.config $obj/merged.config
	fi
	grep -vxFf $obj/.config $obj/wanted.config >$obj/lacking || :
	if [ -s $obj/lacking ]; then
		echo "the configuration does not take:" && cat $obj/lacking
		exit 1
	fi
	make O=$obj -j "$JOBS" bzImage modules
	make -s O=$obj headers
	rm -rf $obj/install
	make -s -C tools/testing/selftests O=$obj TARGETS=vfio -j "$JOBS" INSTALL_PATH=$obj/install install

	# On top of the initramfs: the selftests, whose module is made for this kernel
	mkdir /tmp/splat /tmp/root
	cp -a $obj/install /tmp/root/kselftest
	cp /checkout/scripts/splat.c /tmp/splat/
	echo "obj-m := splat.o" >/tmp/splat/Kbuild
	make O=$obj M=/tmp/splat modules
	cp /tmp/splat/splat.ko /tmp/root/
	install -m 755 /checkout/scripts/hostile.sh /tmp/root/hostile
	cd /tmp/root
	find . -print0 | sort -z | cpio --quiet -0 -o -H newc | cat /obj/boot/initramfs - >$obj/initramfs
' debug "$debug" || die "the debug kernel could not be built"

# boot NAME hw|pessimistic LIMIT ARGUMENT...: boot it; the guest's output is shown and kept
# in build/logs/NAME.tap, the kernel's in NAME.console.
boot() {
	local name=$1 device=intel-iommu,intremap=on,x-scalable-mode=on,aw-bits=48 limit=$3 tap=$LOGS/$1.tap
	local expect=$2 machine qemu=("/cache/${QEMU_DIR##*/}/qemu-system-x86_64" -L /usr/share/qemu -L /usr/share/seabios)
	shift 3
	[ "$expect" = pessimistic ] || device+=,x-ssads=on
	[ -z "${QEMU:-}" ] || die "QEMU= does not go with make check-hostile"
	# shellcheck disable=SC2054 # commas belong to QEMU's options
	machine=(-accel tcg,thread=multi -machine q35,kernel-irqchip=split -cpu max -smp 2 -m 4G
		-device "$device" -net none -vga none -display none -monitor none -no-reboot
		-device pcie-root-port,id=rp1,slot=1,chassis=1 -device igb,bus=rp1,rombar=0
		-device pcie-root-port,id=rp2,slot=2,chassis=2 -device igb,bus=rp2,rombar=0
		-kernel "$debug/arch/x86/boot/bzImage" -initrd "$debug/initramfs"
		-append "console=ttyS0 loglevel=7 panic=-1 oops=panic no_timer_check intel_iommu=on,sm_on rdinit=/hostile expect=$expect $*")
	: >"$LOGS/$name.console"
	enter timeout "$limit" "${qemu[@]}" "${machine[@]}" \
		-serial "file:/checkout/build/logs/$name.console" -serial stdio </dev/null | tr -d '\r' | tee "$tap" ||
		say "not ok - $name: the guest was ended after $limit s or died"
	grep -q '^# guest: exit status 0$' "$tap"
}

failed=0
wrong() {
	say "not ok - $*"
	failed=1
}

begin=$SECONDS
boot hostile-awake hw 600 run=awake || wrong "the detectors' boot did not end well"
while read -r what pattern; do
	if [ "$what" = leak ]; then
		grep -q '^# leaks: [1-9]' "$LOGS/hostile-awake.tap" || { wrong "kmemleak is asleep"; continue; }
	else
		grep -qE "$pattern" "$LOGS/hostile-awake.console" || { wrong "the detector of $what is asleep"; continue; }
	fi
	say "ok - awake: $what"
done <<'P'
kasan BUG: KASAN: slab-out-of-bounds in .*\[splat\]
ubsan_bounds UBSAN: array-index-out-of-bounds in .*splat\.c
ubsan_shift UBSAN: shift-out-of-bounds in .*splat\.c
atomic_sleep BUG: sleeping function called from invalid context at .*splat\.c
list list_add (corruption|double add)
leak -
hung_task INFO: task .* for more than 2 seconds
soft_lockup BUG: soft lockup - CPU#
lockdep WARNING: possible circular locking dependency detected
P

splat='BUG:|WARNING:|Oops:|Kernel panic|general protection|blocked for more than|blocked in I/O wait|rcu.*stall|soft lockup|UBSAN:|KASAN:|list_(add|del) corruption|possible memory leaks'
for expect in hw pessimistic; do
	name=hostile-$expect
	if [ $expect = pessimistic ]; then
		calls=$((calls / 10)) seconds=$((seconds / 10))
	fi
	say "booting the debug kernel, $expect log: seed $seed, $calls calls, $seconds s of races, $gib GiB"
	boot $name $expect 21600 run=hostile seed="$seed" calls="$calls" seconds="$seconds" gib="$gib" ||
		wrong "$expect: a test failed"
	splats=$(grep -cE "$splat" "$LOGS/$name.console" || :)
	injected=$(sed -n 's/.*: \([0-9]*\) failures injected.*/\1/p' "$LOGS/$name.tap" | awk '{ n += $1 } END { print n + 0 }')
	leaks=$(sed -n 's/^# leaks: //p' "$LOGS/$name.tap")
	say "# $expect: $splats splats, ${leaks:-?} leaks, $injected failures injected"
	fuzzed=$(sed -n 's/^# \([0-9]* calls in .*\)/\1/p' "$LOGS/$name.tap")
	say "# $expect: ${fuzzed:=0}"
	[ "${fuzzed%% *}" -ge "$calls" ] || wrong "$expect: fewer than $calls calls were made"
	if [ "$splats" != 0 ]; then
		wrong "$expect: the kernel complained"
		grep -m 1 -A 60 -E "$splat" "$LOGS/$name.console" | tr -d '\r'
	fi
	[ "${leaks:-}" = 0 ] || wrong "$expect: memory leaked (build/logs/$name.console)"
	[ "$injected" -gt 1000 ] || wrong "$expect: fewer than 1000 failures were injected"
done
say "# $(hms $((SECONDS - begin))) in all"
[ $failed = 0 ] || exit 1
say "ok - nothing was forgotten, nobody complained"
