#!/bin/bash
# The guest's first process (/init of the initramfs). The kernel's messages go to the
# first serial port; this script's output, TAP, to the second. The kernel hands over
# run=check, demo, awake, hostile, migrate or measure (commands="..."), IOMMU=vtd, amd or
# smmuv3, and expect=hw or expect=pessimistic, from its command line.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm
# The runner writes to /dev/stdout, which devtmpfs does not have.
ln -s /proc/self/fd /dev/fd
for n in stdin:0 stdout:1 stderr:2; do ln -s "/proc/self/fd/${n#*:}" "/dev/${n%:*}"; done
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug
tty=/dev/ttyS1
[ "${IOMMU:-}" != smmuv3 ] || tty=/dev/ttyAMA1
stty -F $tty raw 2>/dev/null
exec </dev/null >$tty 2>&1

leave() {
	echo "# guest: exit status $1"
	timeout 10 stty -F $tty raw # which waits until that is out
	busybox poweroff -f
	sleep 60
}

# leaks: the number of leaks that kmemleak knows of. It reports no memory that is younger
# than five seconds, and the second scan takes back what the first one saw by mistake.
leaks() {
	sleep 6
	echo scan >/sys/kernel/debug/kmemleak
	sleep 6
	echo scan >/sys/kernel/debug/kmemleak
	grep -c '^unreferenced object' /sys/kernel/debug/kmemleak
}

if [ "${run:-}" = awake ]; then
	# Each detector is given something to find, by the kernel's own modules where there is
	# one. A report of KASAN's turns lockdep off, so it comes last.
	[ ! -e /sys/kernel/debug/kmemleak ] || echo clear >/sys/kernel/debug/kmemleak
	echo 1 >/proc/sys/kernel/watchdog_thresh
	echo 2 >/proc/sys/kernel/hung_task_timeout_secs
	cd /modules || leave 1
	# No newline: it would be part of the pattern.
	printf %s "${kunit:-}" >/sys/module/kunit/parameters/filter_glob
	while read -r module arguments; do
		[ -e "$module.ko" ] || continue
		echo "# $module $arguments"
		# shellcheck disable=SC2086 # words
		busybox insmod "$module.ko" $arguments
		# kcsan_test needs it.
		[ "$module" = torture ] || busybox rmmod "$module"
	done <<-'END'
		splat what=lockdep
		splat what=atomic_sleep
		splat what=list
		test_ubsan
		kmemleak-test
		test_lockup time_secs=8 disable_preempt=1
		test_lockup time_secs=8 state=D
		kasan_test
		torture
		kcsan_test
	END
	[ ! -e /sys/kernel/debug/kmemleak ] || echo "# leaks: $(leaks)"
	leave 0
fi

echo 64 >/proc/sys/vm/nr_hugepages
cd /kselftest/vfio || leave 1
read -ra devices <<<"${bdf:-0000:01:00.0 0000:02:00.0}"
./setup.sh "${devices[@]}" >/dev/console 2>&1 || {
	echo "Bail out! setup.sh failed"
	leave 1
}
export VFIO_SELFTESTS_BDF="${devices[*]}"
# Which log this machine has: with another one the tests fail rather than adapt.
export VFIO_DIRTY_LOG_EXPECT=${expect:-}

case ${run:-check} in
demo)
	VFIO_DIRTY_LOG_VERBOSE=1 ./vfio_dirty_log_test -t show
	leave $?
	;;
migrate)
	/migrate/guest.sh
	leave $?
	;;
measure)
	unset VFIO_DIRTY_LOG_EXPECT
	bash -ec "${commands:-}"
	leave $?
	;;
mutants)
	/mutants/run
	leave $?
	;;
hostile)
	# tests=PROGRAM[:ARGUMENT...],... and, for them, VFIO_DIRTY_LOG_... in the environment
	# The host looks whether the machine still runs; a test may be silent for hours.
	while sleep 30; do echo "alive" >/dev/console; done &
	[ ! -e /sys/kernel/debug/kmemleak ] || echo clear >/sys/kernel/debug/kmemleak
	failed=0
	IFS=, read -ra programs <<<"${tests:-}"
	for t in "${programs[@]}"; do
		IFS=: read -ra words <<<"$t"
		echo "# program: ${words[*]}"
		begin=$SECONDS
		"./vfio_dirty_log_${words[0]}" "${words[@]:1}" || failed=1
		echo "# program: ${words[*]}: $((SECONDS - begin)) s"
	done
	if [ -e /sys/kernel/debug/kmemleak ]; then
		leaked=$(leaks)
		echo "# leaks: $leaked"
		[ "$leaked" = 0 ] || cat /sys/kernel/debug/kmemleak >/dev/console
	fi
	leave $failed
	;;
*)
	# What is left out, and why:
	# memcpy_storm copies up to 250 GB, hours under an emulator. Each of the driver's
	# tests fills 1 GiB first, some 5 s: once for each kind of container is enough, and
	# since they do not touch the dirty log, one kind in either boot.
	args="-T memcpy_storm -V vfio_type1_iommu -V iommufd_compat_type1 -V iommufd_compat_type1v2"
	if [ "$expect" = hw ]; then args+=" -V iommufd"; else args+=" -V vfio_type1v2_iommu"; fi
	export KSELFTEST_VFIO_PCI_DRIVER_TEST_ARGS="$args"
	# 8 ways to migrate, 6 of them with a pessimistic log: 182 migrations in both boots.
	export VFIO_DIRTY_LOG_MIGRATIONS=13 VFIO_DIRTY_LOG_RACE_SECONDS=5
	cd /kselftest || leave 1
	tests=(-c vfio)
	# Those of iommufd have a mock IOMMU: once is enough, in the boot that is shorter.
	[ "$IOMMU-$expect" != vtd-pessimistic ] || tests+=(-c iommu)
	if [ "$IOMMU" != vtd ]; then
		# The tests of the log alone: the others show nothing of an IOMMU that they do
		# not on VT-d, and of the log only its own test where it is pessimistic, since
		# all else is then up to type1. Arm's machine has SR-IOV as well.
		wanted=vfio_dirty_log_test
		[ "$expect" != hw ] || wanted='(vfio_dirty_log_.*|vfio_pci_sriov_uapi_test)'
		tests=()
		for t in $(./run_kselftest.sh -l | grep -xE "vfio:$wanted" | grep -vE 'perf|fail_nth|precopy|fuzz|race|module|split'); do
			tests+=(-t "$t")
		done
		VFIO_DIRTY_LOG_MIGRATIONS=3
	fi
	./run_kselftest.sh "${tests[@]}"
	leave $?
	;;
esac
