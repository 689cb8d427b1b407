#!/bin/bash
# Run in the guest, by scripts/guest.sh, which has $expect (hw or pessimistic) from the
# kernel's command line. The file /migrate/plan has a test a line: LOG NAME OUTCOME
# ARGUMENTS..., for the machine whose log is LOG, with arguments for `migrate`. LOG
# no-flush is a kernel whose CLEAR_BITMAP does not flush ($only picks it). OUTCOME is
# what has to come of it: equal, lost, endless, or refused. split=0 is for this script:
# large leaves stay; split=1: skip it where the kernel does not split. Prints TAP, and a
# line of figures (migrate.sh names them) a migration.
cd /migrate || exit 1
: "${expect:=hw}"
mkdir -p /small /huge
mount -t tmpfs -o size=200m tmpfs /small
mount -t hugetlbfs -o pagesize=2M hugetlbfs /huge
echo 72 >/proc/sys/vm/nr_hugepages
# Little is on its way between the source and the one who counts.
echo 32768 >/proc/sys/net/core/wmem_default
busybox insmod igb_migration.ko || exit 1
for bdf in 0000:01:00.0 0000:02:00.0; do
	device=/sys/bus/pci/devices/$bdf
	[ ! -e $device/driver ] || echo $bdf >$device/driver/unbind
	echo igb-migration >$device/driver_override
	echo $bdf >/sys/bus/pci/drivers_probe
	[ -e $device/driver ] || exit 1
done

# The host looks whether the machine still runs; a migration may take long.
while sleep 30; do echo "alive" >/dev/console; done &

failed=0 n=0
only=${only:-$expect}
echo "TAP version 13"
echo "1..$(grep -c "^$only" plan)"
while read -r log name outcome arguments; do
	[ "$log" = "$only" ] || continue
	n=$((n + 1))
	huge=Y
	[[ $arguments == *leaf=2m* ]] || huge=N
	[ $huge = Y ] && disable=N || disable=Y
	echo "$disable" >/sys/module/vfio_iommu_type1/parameters/disable_hugepages
	split=Y
	[[ $arguments != *split=0* ]] || split=N
	parameter=$(find /sys/module/vfio_iommu_type1/parameters -name '*split*')
	if [ -n "$parameter" ]; then
		echo "$split" >"$parameter"
	elif [[ $arguments == *split=1* ]]; then
		echo "ok $n $name # SKIP this kernel does not split large leaves"
		continue
	fi
	begin=$SECONDS
	# shellcheck disable=SC2086 # words
	timeout -k 5 900 ./migrate $arguments >/tmp/out 2>&1
	rc=$?
	sed "s/^row/row\t$name/" /tmp/out | grep '^row'
	case $outcome in
	equal) [ $rc = 0 ] ;;
	lost) grep -q $'\tLOST\t' /tmp/out ;;
	endless) [ $rc = 2 ] ;;
	refused) grep -q "doesn't support device and IOMMU dirty tracking" /tmp/out ;;
	*) false ;;
	esac && result=ok || result="not ok" failed=1
	[ "$result" = ok ] || grep -v '^row' /tmp/out | sed 's/^\(# \)\?/# /'
	echo "$result $n $name # $((SECONDS - begin)) s"
done <plan
exit $failed
