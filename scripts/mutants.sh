#!/bin/bash
# Plant the faults of lab/mutants and see that the tests that they name find them: see
# lab/mutants/README. ONLY="NAME..." plants some of them.
. "$(dirname "$0")/lib.sh"
prepare
"$TOP/scripts/build-qemu.sh"
"$TOP/scripts/build-kernel.sh"

work=$BUILD/mutants
base=$(basename "$(readlink -f "$BASE_DIR")")
rm -rf "$work"
mkdir -p "$work/diffs"
passed=0 failed=0 skipped=0
names=("no fault") tests=("") machines=("")

# A fault's number is its place in the list of all, so that what was built for some of
# them serves the others.
n=0
for diff in "$TOP"/lab/mutants/*.diff; do
	n=$((n + 1))
	name=$(basename "$diff" .diff)
	sed "s/\<MUTANT\>/mutant($n)/g" "$diff" >"$work/diffs/$(printf %03d "$n")-$name.diff"
	names[n]=$name
	tests[n]=$(sed -n 's/^# caught by: *//p' "$diff")
	[ -n "${tests[n]}" ] || die "$name: no test"
	machines[n]=$(sed -n 's/^# machine: *//p' "$diff")
	[ -n "${machines[n]}" ] || { [[ ${tests[n]} = *' '* ]] && machines[n]=hw; } || machines[n]=kunit
	[ -z "${ONLY:-}" ] || [[ " $ONLY " = *" $name "* ]] || machines[n]=
done

# lane MACHINE: the numbers of its faults, in the array numbers
lane() {
	local n
	numbers=()
	for n in "${!names[@]}"; do [ "${machines[n]}" != "$1" ] || numbers+=("$n"); done
	[ ${#numbers[@]} -gt 0 ]
}

# kernel DIRECTORY TARGET...: the one in there with all faults, in DIRECTORY-mutants; once
built=
kernel() {
	local dir=$1
	[[ $built != *" $dir "* ]] || return 0
	built+=" $dir "
	shift
	[ -e "$BASE_DIR/$dir-mutants" ] || {
		rm -rf "$BASE_DIR/tmp.mutants"
		cp -a "$BASE_DIR/$dir" "$BASE_DIR/tmp.mutants"
		rm -rf "$BASE_DIR/tmp.mutants"/{boot,kunit*}
		mv "$BASE_DIR/tmp.mutants" "$BASE_DIR/$dir-mutants"
	}
	# At the path of the one without faults: make would build all anew elsewhere.
	# shellcheck disable=SC2016 # expands in the environment
	long "$dir with $((${#names[@]} - 1)) faults" 5 enter bash -euc '
		obj=/cache/$1
		[[ $obj != */obj ]] || obj=/obj
		mount --bind "/cache/$1-mutants" $obj
		shift
		/checkout/lab/mutants/plant /checkout/build/mutants/diffs
		cd /src/linux
		make -s O=$obj -j "$JOBS" "$@"
	' mutants "$base/$dir" "$@" || die "the mutants could not be built (build/logs)"
}

# verdict NUMBER RC: whether the test's result is the right one
verdict() {
	local what=${names[$1]}
	[ "$1" != 0 ] || what="no fault in ${tests[0]}"
	if case $2 in no-such-test | 4) false ;; 0) [ "$1" = 0 ] ;; *) [ "$1" != 0 ] ;; esac then
		passed=$((passed + 1))
		say "ok      $what"
	else
		failed=$((failed + 1))
		say "not ok  $what: ${tests[$1]}: $2"
	fi
}

# skip MACHINE REASON
skip() {
	lane "$1" || return 0
	skipped=$((skipped + ${#numbers[@]}))
	say "skipped $1, ${#numbers[@]} faults: $2"
}

# kunit NUMBER SUITE[.CASE]: run KUnit's kernel
kunit() {
	local out=$LOGS/mutant-$1-kunit.out rc=0
	enter timeout -k 5 60 /obj/kunit-mutants/linux mem=256M console=tty kunit_shutdown=halt \
		"kunit.filter_glob=$2" "mutant=$1" >"$out" 2>&1 </dev/null || :
	grep -qE '^ *1\.\.[1-9]' "$out" || rc=no-such-test
	if grep -qE '^ *not ok ' "$out" || ! grep -qE '^ok ' "$out"; then [ $rc != 0 ] || rc=1; fi
	verdict "$1" "$rc"
}

# guest KERNEL MACHINE [NAME=VALUE]: boot until all of its faults were switched on. When the
# kernel dies, that is a verdict, and the others get another boot.
guest() {
	local dir=$1 log=${2##*-} iommu=${2%-*} from=1 again=0 lines n tap rc
	shift 2
	[ "$iommu" != "$log" ] || iommu=vtd
	case $iommu in
	smmuv3) kernel "$dir" ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- Image ;;
	*) kernel "$dir" bzImage ;;
	esac
	rm -rf "$work/root"
	mkdir -p "$work/root/mutants"
	install -m 755 "$TOP/lab/mutants/run" "$work/root/mutants/run"
	{
		for n in "${numbers[@]}"; do echo "0 ${tests[n]}"; done | sort -u
		for n in "${numbers[@]}"; do echo "$n ${tests[n]}"; done
	} >"$work/root/mutants/list"
	lines=$(wc -l <"$work/root/mutants/list")
	enter bash -euc 'cd /checkout/build/mutants/root && find . | cpio --quiet -o -H newc' >"$work/cpio"
	mkdir -p "$BASE_DIR/$dir-mutants/boot"
	cat "$BASE_DIR/$dir/boot/initramfs" "$work/cpio" >"$BASE_DIR/$dir-mutants/boot/initramfs"
	cp "$BASE_DIR/$dir-mutants"/arch/*/boot/{bzImage,Image} "$BASE_DIR/$dir-mutants/boot/" 2>/dev/null || :
	tap=$LOGS/vm-$iommu-$log-mutants-mutants.tap
	while [ "$from" -le "$lines" ]; do
		IOMMU=$iommu VARIANT=mutants LIMIT=7200 \
			"$TOP/scripts/vm.sh" "$log" mutants "from=$from" "$@" >"$work/boot" 2>&1 || :
		while read -r n rc; do
			tests[0]=$(sed -n "${from}s/^0 //p" "$work/root/mutants/list")
			verdict "$n" "$rc"
			from=$((from + 1))
		done < <(sed -n 's/^# mutant \([0-9]*\): \(.*\)/\1 \2/p' "$tap" | tr -d '\r')
		[ "$from" -le "$lines" ] || break
		n=$(sed -n "${from}s/ .*//p" "$work/root/mutants/list")
		# It was running, or the boot itself failed
		grep -q "^# mutant $n" "$tap" || die "no boot (${tap#"$TOP/"})"
		# A machine that stands still says nothing of the kernel: see boot in lib.sh.
		if [ $again != "$from" ] && ! grep -qE "$COMPLAINTS" "${tap%tap}console"; then
			again=$from
			continue
		fi
		verdict "$n" "the kernel died"
		from=$((from + 1))
	done
}

if lane kunit; then
	[ -e "$BASE_DIR/obj/kunit/.config" ] || long KUnit 8 "$TOP/scripts/check-kunit.sh"
	kernel obj/kunit ARCH=um
	for t in $(for n in "${numbers[@]}"; do echo "${tests[n]}"; done | sort -u); do
		tests[0]=$t
		kunit 0 "$t"
	done
	for n in "${numbers[@]}"; do kunit "$n" "${tests[n]}"; done
fi
for machine in hw pessimistic; do
	! lane $machine || guest obj $machine
done
if ! can_log amd; then
	skip amd-hw "the emulator has no amd-iommu that tracks dirty pages"
	skip "amd-hw bdf=0000:04:01.0" "the same"
else
	! lane amd-hw || guest obj amd-hw
	! lane "amd-hw bdf=0000:04:01.0" || guest obj amd-hw bdf=0000:04:01.0
fi
if ! can_log smmuv3; then
	skip smmuv3-hw "the emulator has no SMMUv3 that tracks dirty pages"
elif [ ! -e "$BASE_DIR/obj-arm64/boot/key" ]; then
	skip smmuv3-hw "no kernel, scripts/build-kernel.sh arm64 makes it"
elif lane smmuv3-hw; then
	"$TOP/scripts/build-kernel.sh" arm64
	guest obj-arm64 smmuv3-hw
fi
say "$passed passed, $failed failed${skipped:+, $skipped skipped}"
[ $failed = 0 ]
