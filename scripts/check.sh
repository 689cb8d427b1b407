#!/bin/bash
# Every check, the cheap ones first. The last line on stdout counts them: each check,
# each KUnit case and each selftest is one. Exit status 0 only if none failed and every
# group of tests ran some.
#
# What takes long runs in lanes side by side: the selftests on each IOMMU, with the
# hardware's log and with the pessimistic one, and what is named behind them. ONLY="..."
# runs some of the lanes.
. "$(dirname "$0")/lib.sh"
set +e
lanes=${ONLY:-vtd-hw vtd-pessimistic smmuv3-hw smmuv3-pessimistic amd-hw amd-pessimistic perf migrate KUnit set shellcheck}
passed=0 failed=0 skipped=0 current=start
begin=$SECONDS

closing() {
	finish
	if [ -n "$current" ]; then
		say "not ok  stopped in: $current"
		failed=$((failed + 1))
	fi
	say "# $(hms $((SECONDS - begin))) in all; logs in build/logs"
	say "$passed passed, $failed failed, $skipped skipped"
	if [ "$failed" = 0 ] && [ "$passed" -gt 0 ]; then exit 0; else exit 1; fi
}
trap closing EXIT

# check NAME COMMAND...: one check; its output is shown when it fails.
check() {
	local start=$SECONDS log
	current=$1
	log=$LOGS/check-${1//[^a-zA-Z0-9]/-}.log
	shift
	if "$@" >"$log" 2>&1 </dev/null; then
		passed=$((passed + 1))
		say "ok      $current ($(hms $((SECONDS - start)))) $(tail -n 1 "$log" | cut -c1-70)"
		current=
		return 0
	fi
	failed=$((failed + 1))
	say "not ok  $current ($(hms $((SECONDS - start))))"
	tail -n 25 "$log" | sed 's/^/        /'
	current=
	return 1
}

# add NAME PASSED FAILED SKIPPED: the counts of a group of tests.
add() {
	passed=$((passed + $2)) failed=$((failed + $3)) skipped=$((skipped + $4))
	say "        $1: $2 passed, $3 failed, $4 skipped"
	if [ "$2" = 0 ]; then
		say "not ok  $1: no test passed"
		failed=$((failed + 1))
	fi
}

# step NAME COMMAND...: a check that later ones stand on and that may take long: its
# output is shown as it comes, and it is the last one if it fails.
step() {
	local start=$SECONDS
	current=$1
	shift
	"$@" </dev/null || exit 1
	passed=$((passed + 1))
	say "ok      $current ($(hms $((SECONDS - start))))"
	current=
}

kunit_counts() {
	sed -n 's/.*Ran [0-9]* tests: //p' "$1" | tail -n 1 | tr ',' '\n' | awk -F': *' '
		{ gsub(/ /, "", $1); n[$1] = $2 }
		END { print n["passed"] + 0, n["failed"] + n["crashed"] + n["errors"] + 0, n["skipped"] + 0 }'
}

# A test program counts by its subtests; where it shows none, or fails although none of
# them did, by itself. What the plan names and never came is a failure.
tap_counts() {
	awk '
		/^1\.\.[0-9]+/ { plan = substr($0, 4) + 0 }
		/^# (not )?ok [0-9]+ / {
			n++
			if (/^# not/) { bad++; f++ } else if (/# SKIP/) s++; else p++
		}
		/^(not )?ok [0-9]+ / {
			top++
			if (/^not/) { if (!bad) f++ } else if (!n) { if (/# SKIP/) s++; else p++ }
			n = bad = 0
		}
		END { if (top < plan) f += plan - top; print p + 0, f + 0, s + 0 }' "$1"
}

# lane MODE: what runs beside the others; its output, its exit status
lane() {
	local -x IOMMU=
	local command
	case $1 in
	perf) command=("$TOP/scripts/bench.sh" compare) ;;
	set) command=("$TOP/scripts/check-series.sh" set) ;;
	migrate) command=("$TOP/scripts/migrate.sh" short) ;;
	shellcheck) command=(enter bash -c 'cd /checkout && shellcheck scripts/*.sh lab/*/*.sh .ci/run') ;;
	KUnit) command=("$TOP/scripts/check-kunit.sh") ;;
	*) IOMMU=${1%-*} command=(boot "$LOGS/vm-$1-check.boot" "${1#*-}" check) ;;
	esac
	"${command[@]}" 2>&1 | tee "$LOGS/vm-$1-check.out" | sed -u "s/^/$1: /"
	echo "${PIPESTATUS[0]}" >"$LOGS/vm-$1-check.rc"
}

# Side by side, where memory allows it: guests wait more than they compute, and perf
# counts instructions, which others do not change.
lanes() {
	local mode need left=0
	for mode; do
		case $mode in *-hw | *-pessimistic | perf | migrate) need=5000 ;; *) need=1000 ;; esac
		if [ $need -gt "$left" ]; then
			wait
			left=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
		fi
		left=$((left - need))
		lane "$mode" &
	done
	wait
}

# result LANE NAME: what came of it
result() {
	local skips
	current=$2
	if [ "$(cat "$LOGS/vm-$1-check.rc")" != 0 ]; then
		failed=$((failed + 1))
		say "not ok  $2"
		tail -n 25 "$LOGS/vm-$1-check.out" | sed 's/^/        /'
	elif grep '^skip ' "$LOGS/vm-$1-check.out"; then
		skipped=$((skipped + 1))
	else
		passed=$((passed + 1))
		say "ok      $2: $(tail -n 1 "$LOGS/vm-$1-check.out" | cut -c1-100)"
	fi
	current=
	case $1 in
	perf | set | shellcheck) return ;;
	migrate)
		[ -s "$LOGS/migrate.tap" ] || return
		# shellcheck disable=SC2046 # three words
		add "$2" $(tap_counts "$LOGS/migrate.tap")
		return
		;;
	KUnit)
		# shellcheck disable=SC2046 # three words
		add KUnit $(kunit_counts "$LOGS/vm-KUnit-check.out")
		return
		;;
	esac
	if [ -e "$LOGS/vm-$1-check.boot.failed" ]; then
		say "warning: $2: the emulator failed and was started once more"
	fi
	[ "$1" != smmuv3-hw ] || kunit_arm64
	# shellcheck disable=SC2046 # three words
	add "$2" $(tap_counts "$LOGS/vm-$1-check.tap")
	grep -E '^(# )?not ok' "$LOGS/vm-$1-check.tap" | sed 's/^/        /'
	skips=$(unexpected_skips "$1" "$LOGS/vm-$1-check.tap")
	if [ -n "$skips" ]; then
		say "not ok  $2: skipped, but everything needed is there:"
		say "$skips" | sed 's/^/        /'
		failed=$((failed + 1))
	fi
}

# The arm64 kernel runs KUnit tests as it boots.
kunit_arm64() {
	check "KUnit on arm64" enter /src/linux/tools/testing/kunit/kunit.py parse "/checkout/build/logs/vm-smmuv3-hw-check.console"
	# shellcheck disable=SC2046 # three words
	add "KUnit on arm64" $(kunit_counts "$LOGS/check-KUnit-on-arm64.log")
}

no_device() {
	enter bash -euc '
		cp -a /obj/install /tmp/kselftest
		cd /tmp/kselftest
		./run_kselftest.sh -c vfio >/tmp/tap
		cat /tmp/tap
		# vfio_setup_test.sh has a /sys of its own.
		if grep -E "^(not )?ok" /tmp/tap | grep -vE "# SKIP|^ok .*setup_test"; then exit 1; fi
		grep -c "# SKIP" /tmp/tap | sed "s/\$/ test programs skipped/"
	'
}

prepare
step "environment" "$TOP/scripts/build-env.sh"
step "the series applies with git am" "$TOP/scripts/tree.sh" apply
if other_base; then
	say "skip    make export changes nothing: the patches were made on another tree"
	skipped=$((skipped + 1))
else
	check "make export changes nothing" "$TOP/scripts/export.sh" check
fi
check "checkpatch.pl --strict --codespell" "$TOP/scripts/checkpatch.sh"
check "README's map" "$TOP/scripts/check-readme.sh"
step "kernel and selftests build" "$TOP/scripts/build-kernel.sh"
check "selftests without a device are skipped" no_device
step "QEMU" "$TOP/scripts/build-qemu.sh"
for lane in $lanes; do
	case $lane in *-hw | *-pessimistic) ;; *) continue ;; esac
	can_log "${lane%-*}"
	case $?$lane in 2* | 1*-hw) ;; *) continue ;; esac
	say "skip    selftests, $lane: this QEMU has no such machine or cannot track dirty pages"
	skipped=$((skipped + 1))
	lanes=${lanes/$lane/}
done
# What is slow to build is built by itself.
if [[ $lanes = *smmuv3* ]]; then step "arm64 kernel and selftests build" "$TOP/scripts/build-kernel.sh" arm64; fi
if [[ $lanes = *KUnit* ]] && [ ! -e "$BASE_DIR/obj/kunit/linux" ]; then step "KUnit's kernel" long KUnit 8 "$TOP/scripts/check-kunit.sh"; fi

current=guests
rm -f "$LOGS"/vm-*
say "  lanes: $lanes"
# shellcheck disable=SC2086 # words
long lanes 8 lanes $lanes
for lane in $lanes; do
	case $lane in
	perf) result perf "no call of the log costs 3 % more than in scripts/perf-baseline.tsv" ;;
	set) result set "each set: mailbox, recipients, quilt, sparse, kernel-doc" ;;
	migrate) result migrate "a virtual machine with an assigned card migrates" ;;
	KUnit | shellcheck) result "$lane" "$lane" ;;
	*) result "$lane" "selftests, ${lane/-/, } dirty log" ;;
	esac
done
