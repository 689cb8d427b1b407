#!/bin/bash
# `make check-hostile`: the dirty log under kernels with every checker on.
#
# kernel-debug.config: memory errors, locks, leaks, undefined behaviour, tasks that hang,
# and fault injection. kernel-kcsan.config: data races. Each is first booted to prove that
# its detectors are awake: the kernel's own test modules, and splat.c where there is none,
# do one thing wrong for each of them. Then the tests run, with the hardware's log and with
# the pessimistic one. A complaint of the kernel, a leak, a failed test or a number that is
# too small fails the run. Last, those of the log on arm64 with pages of 64 KiB.
#
# Smaller or larger: CALLS= (1000000) calls of the fuzz test on the kernel of make check,
# DEBUG_CALLS= (50000) on the debug kernel, SECONDS_RACED= (600), GIB= (256), SEED=.
# With the pessimistic log, a tenth of calls and seconds. ONLY="hw kcsan ..." runs some of
# the boots: awake hw pessimistic lean kcsan 64k.
. "$(dirname "$0")/lib.sh"
prepare
[ -z "${QEMU:-}" ] || die "QEMU= does not go with make check-hostile"
only=${ONLY:-awake hw pessimistic lean kcsan 64k}
calls=${CALLS:-1000000} debug_calls=${DEBUG_CALLS:-50000}
raced=${SECONDS_RACED:-600} gib=${GIB:-256}
seed=${SEED:-$((RANDOM * 100000))}
begin=$SECONDS
failed=0

wrong() {
	say "not ok - $*"
	failed=1
}

wants() { [[ " $only " = *" $1 "* ]]; }

# vm VARIANT hw|pessimistic RUN LIMIT NAME=VALUE...: a guest; its output is shown
vm() {
	local variant=$1 log=$2 run=$3 limit=$4
	shift 4
	tap=$LOGS/vm-${IOMMU:+$IOMMU-}$log-$run${variant:+-$variant}.tap
	console=${tap%.tap}.console
	VARIANT=$variant LIMIT=$limit boot "${tap%.tap}.boot" "$log" "$run" "$@" || return 1
	[ ! -e "${tap%.tap}.boot.failed" ] || warn "the emulator failed and was started once more"
}

# awake WHAT REGEX: whether the console, or for kmemleak the tap, has the report
awake() {
	if grep -qE "$2" "$tap" "$console"; then
		say "ok - awake: $1"
	else
		wrong "asleep: $1"
	fi
}

complaints() { sed '/BUG: KCSAN:/d' "$console" | grep -cE "$COMPLAINTS" || :; }

# sum REGEX: of the numbers that the tests printed there, \1
sum() { sed -n "s/$1/\1/p" "$tap" | awk '{ n += $1 } END { print n + 0 }'; }
injected() { sum '.* \([0-9]*\) failures injected.*'; }
fuzzed() { sum '^# \([0-9]*\) calls in .*'; }
raced() { sum '.*raced for \([0-9]*\) s.*'; }

# hostile NAME VARIANT hw|pessimistic LIMIT TESTS CALLS SECONDS: run tests in a guest
hostile() {
	local name=$1 leaks skips
	say "booting: $name, seed $seed"
	vm "$2" "$3" hostile "$4" tests="$5" VFIO_DIRTY_LOG_FUZZ_SEED="$seed" \
		VFIO_DIRTY_LOG_FUZZ_CALLS="$6" VFIO_DIRTY_LOG_RACE_SECONDS="$7" \
		VFIO_DIRTY_LOG_LARGE_GIB="$gib" VFIO_DIRTY_LOG_MIGRATIONS=5 ||
		wrong "$name: a test failed, the machine died or the kernel complained"
	leaks=$(sed -n 's/^# leaks: //p' "$tap")
	say "# $name: $(complaints) splats, ${leaks:-no} leaks$([ "$2" = debug ] || echo ' looked for'), $(injected) failures injected, $(fuzzed) calls fuzzed, $(raced) s raced"
	skips=$(unexpected_skips "vtd-$3" "$tap")
	[ -z "$skips" ] || wrong "$name: skipped: $skips"
	[ "$(fuzzed)" -ge "$6" ] || wrong "$name: fewer than $6 calls were made"
	# Two races: all calls, and a migration among them
	[ "$(raced)" -ge $((2 * $7)) ] || wrong "$name: fewer than 2 times $7 s were raced"
	[ "$2" != debug ] || [ "$leaks" = 0 ] || wrong "$name: memory leaked (${console#"$TOP/"})"
	[ "$2" != debug ] || [ "$(injected)" -gt 1000 ] || wrong "$name: no more than $(injected) failures were injected"
}

"$TOP/scripts/build-qemu.sh"
if wants lean; then "$TOP/scripts/build-kernel.sh"; fi
if wants awake || wants hw || wants pessimistic; then "$TOP/scripts/build-kernel.sh" debug; fi
if wants kcsan; then "$TOP/scripts/build-kernel.sh" kcsan; fi
if wants 64k; then "$TOP/scripts/build-kernel.sh" arm64-64k; fi

if wants awake; then
	vm debug hw awake 900 kunit=kasan.kmalloc_oob_right || wrong "the detectors' boot did not end well"
	awake lockdep 'WARNING: possible circular locking dependency detected'
	awake DEBUG_ATOMIC_SLEEP 'BUG: sleeping function called from invalid context at .*splat\.c'
	awake DEBUG_LIST 'list_add (corruption|double add)'
	awake "UBSAN, bounds" 'UBSAN: array-index-out-of-bounds in .*test_ubsan\.c'
	awake "UBSAN, shift" 'UBSAN: shift-out-of-bounds in .*test_ubsan\.c'
	awake kmemleak '^# leaks: [1-9]'
	awake "soft lockup" 'BUG: soft lockup - CPU#'
	awake "hung task" 'INFO: task .* blocked for more than'
	awake KASAN 'BUG: KASAN: slab-out-of-bounds in kmalloc_oob_right'
fi

all=fail_nth,race_test,module_test,test,limits_test,migration_test,fuzz_test
for log in hw pessimistic; do
	if wants $log; then
		hostile "debug kernel, $log" debug $log 14400 $all "$debug_calls" "$raced"
	fi
	debug_calls=$((debug_calls / 10)) raced=$((raced / 10))
done

for log in hw pessimistic; do
	if wants lean; then
		hostile "kernel of make check, $log" "" $log 7200 fuzz_test "$calls" 0
	fi
	calls=$((calls / 10))
done

# Which races are ours: those where one of the two accesses was made by a function of
# these files; a helper of lib/ counts for its caller.
kcsan_ours() {
	# shellcheck disable=SC2016 # expands in the environment
	local nm='cd /cache/$1/obj-kcsan && nm $2 2>/dev/null | awk "\$2 ~ /[tT]/ { print \$3 }" | sort -u'
	local base
	base=$(basename "$(readlink -f "$BASE_DIR")")
	enter bash -c "$nm" nm "$base" "drivers/vfio/vfio_iommu_type1.o drivers/vfio/container.o
		drivers/vfio/vfio_main.o drivers/iommu/iommu-dirty-log.o drivers/iommu/iommufd/iova_bitmap.o drivers/iommu/generic_pt/fmt/*.o" >"$LOGS/kcsan.ours"
	enter bash -c "$nm" nm "$base" "lib/lib.a lib/*.o" >"$LOGS/kcsan.lib"
	grep -q '^vfio_iommu_type1_ioctl$' "$LOGS/kcsan.ours" || die "the functions of the kernel with KCSAN cannot be listed"
	awk -v ours="$LOGS/kcsan.ours" -v lib="$LOGS/kcsan.lib" '
		function flush() {
			if (title != "") print (mine ? "ours: " : "else: ") title
			title = ""; mine = 0
		}
		BEGIN {
			while ((getline f <ours) > 0) is_ours[f] = 1
			while ((getline f <lib) > 0) is_lib[f] = 1
		}
		{ gsub(/\r/, ""); sub(/^\[[^]]*\] ?/, "") }
		/^BUG: KCSAN:/ { flush(); title = $0; next }
		/^={20,}/ { if (body) flush(); next }
		title != "" && / (by task|by interrupt|of [0-9]+ bytes)/ { top = 1; body = 1; next }
		title != "" && top && match($0, /^ *[a-zA-Z_][a-zA-Z0-9_.]*\+0x/) {
			f = substr($0, RSTART, RLENGTH - 3); gsub(/ /, "", f)
			if (is_ours[f]) mine = 1
			if (!is_lib[f]) top = 0
		}
		END { flush() }' "$console"
}

if wants kcsan; then
	vm kcsan hw awake 900 kunit=kcsan.test_basic || wrong "KCSAN's boot did not end well"
	awake KCSAN 'BUG: KCSAN: data-race in test_kernel_(read|write)'
	say "booting: KCSAN"
	calls=${DEBUG_CALLS:-50000} raced=${SECONDS_RACED:-600}
	hostile KCSAN kcsan hw 7200 race_test:-r:race.all,race_test:-r:race.migration,module_test,test,limits_test,fuzz_test $((calls / 5)) $((raced / 5))
	kcsan_ours | sort | uniq -c >"$LOGS/kcsan.races"
	say "# KCSAN: $(grep -c ' ours: ' "$LOGS/kcsan.races" || :) races in what the series touches, $(grep -c ' else: ' "$LOGS/kcsan.races" || :) elsewhere (build/logs/kcsan.races):"
	sed 's/^/# /' "$LOGS/kcsan.races"
	! grep -q ' ours: ' "$LOGS/kcsan.races" || wrong "KCSAN: data races in what the series touches"
fi

# Pages of another size, on the IOMMU that has them
if wants 64k; then
	say "booting: pages of 64 KiB"
	IOMMU=smmuv3 vm 64k hw hostile 7200 tests=test,migration_test VFIO_DIRTY_LOG_MIGRATIONS=3 ||
		wrong "pages of 64 KiB: a test failed, the machine died or the kernel complained"
	# With these the CPU has no hugepage of 1 GiB.
	skips=$(unexpected_skips smmuv3-hw "$tap" | grep -v 'no memory of pages of 0x40000000 bytes' || :)
	[ -z "$skips" ] || wrong "pages of 64 KiB: skipped: $skips"
fi

say "# $(hms $((SECONDS - begin))) in all"
[ $failed = 0 ] || exit 1
say "ok - nothing was forgotten, nobody complained"
