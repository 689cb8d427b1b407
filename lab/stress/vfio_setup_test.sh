#!/bin/bash
# setup.sh and cleanup.sh of VFIO's selftests on a /sys of this script's own, in which
# a device can have any address and vfio-pci can refuse it. It lies beside them.
# shellcheck disable=SC2317,SC2015,SC2086 # called by name, A && B || return, one word each
cd "$(dirname "$0")" || exit 1
if [ -z "${SETUP_TEST_INSIDE:-}" ]; then
	SETUP_TEST_INSIDE=$(mktemp -d) || exit 1
	export SETUP_TEST_INSIDE TMPDIR=$SETUP_TEST_INSIDE
	busybox unshare -m "./${0##*/}"
	rc=$?
	rm -rf "$SETUP_TEST_INSIDE"
	exit $rc
fi
mount --make-rprivate / && mount -t tmpfs tmpfs /sys || exit 4

pci=/sys/bus/pci
a=0000:01:00.0 b=0000:02:00.0 far=10000:01:00.0
for device in "$a" "$b" "$far"; do
	mkdir -p $pci/devices/"$device" $pci/drivers/{igb,vfio-pci}
	ln -s ../../drivers/igb $pci/devices/"$device"/driver
done

# bound DEVICE DRIVER: whether that was the driver's last one
bound() { [ "$(cat $pci/drivers/"$2"/bind 2>/dev/null)" = "$1" ]; }

# Whoever starts it: a shell takes a script without an interpreter line for its own.
starts() {
	busybox sh -c "./setup.sh $a" && bound $a vfio-pci &&
		busybox sh -c "./run.sh true" && busybox sh -c ./cleanup.sh && bound $a igb
}
one_more() { ./setup.sh $a && ./setup.sh $a $b && bound $b vfio-pci; }
twice() { ./setup.sh $a && rm $pci/drivers/vfio-pci/bind && ./setup.sh $a && ! bound $a vfio-pci; }
refused() {
	mkdir -p $pci/drivers/vfio-pci/bind # cannot be written to
	! ./setup.sh $a && ! ./setup.sh $a || return 1
	rmdir $pci/drivers/vfio-pci/bind
	./cleanup.sh && bound $a igb && ./setup.sh $a && bound $a vfio-pci
}
# A test looks for the device when it runs its first case.
large_domain() {
	./setup.sh $far && bound $far vfio-pci || return 1
	VFIO_SELFTESTS_BDF="$a $far" ./vfio_pci_device_test -l 2>&1 | grep validate_bars || return 1
	./vfio_pci_device_test -l $far 2>&1 | grep validate_bars
}

n=0 failed=0
unset VFIO_SELFTESTS_BDF
echo TAP version 13
echo 1..5
for t in starts one_more twice refused large_domain; do
	n=$((n + 1))
	rm -rf "${TMPDIR:?}"/* $pci/drivers/*/{bind,unbind}
	if $t >"$TMPDIR/out" 2>&1; then
		echo "ok $n $t"
	else
		sed 's/^/# /' "$TMPDIR/out"
		echo "not ok $n $t"
		failed=1
	fi
done
exit $failed
