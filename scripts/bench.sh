#!/bin/bash
# Measure what the dirty log costs, in the base tree and with the series, and what a
# migration sends. Writes build/bench: *.tsv (columns are named in their first line) and
# figures, *.svg. The unit is the guest's instructions (QEMU's -icount): a busy host
# makes it slower and no different.
#
# The kernels are those of make run and make check without what looks for mistakes:
# a tree and objects of their own in $BASE_DIR/bench, where only what differs between the
# two is built twice.
. "$(dirname "$0")/lib.sh"
prepare
"$TOP/scripts/qemu.sh"
# Its initramfs runs on both kernels.
"$TOP/scripts/kernel.sh"

bench=$BASE_DIR/bench
name=$(basename "$(readlink -f "$BASE_DIR")")
out=$BUILD/bench
mkdir -p "$bench" "$out"

# kernel TREE BRANCH MINUTES: build $bench/TREE/bzImage.
kernel() {
	local key about=$3
	key=$(cat "$BASE_DIR/git/refs/heads/$2")-$(declare -f kernel |
		key_of "$BASE_DIR/obj/wanted.config" "$TOP/scripts/packages" -)
	[ "$(cat "$bench/$1/key" 2>/dev/null)" != "$key" ] || return 0
	need_room 3500 "the benchmark's objects"
	[ -e "$bench/obj/vmlinux" ] || about=10
	long "$1 kernel" "$about" enter bash -euc '
		export KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_USER=vfio KBUILD_BUILD_HOST=vfio
		cd /cache/$1/bench
		mkdir -p src obj "$2"
		GIT_INDEX_FILE=/cache/$1/bench/index git --git-dir=../git --work-tree=src read-tree --reset -u "$3"
		mount --bind src /src/linux
		mount --bind obj /obj
		grep -vE "^CONFIG_(DEBUG_(KERNEL|LIST|ATOMIC_SLEEP)|DETECT_HUNG_TASK|FAULT_.*|FAIL.*)=" \
			/cache/$1/obj/wanted.config >/obj/wanted.config
		cd /src/linux
		make -s O=/obj KCONFIG_ALLCONFIG=/obj/wanted.config allnoconfig
		make O=/obj -j "$JOBS" bzImage
		cp /obj/arch/x86/boot/bzImage "/cache/$1/bench/$2/"
		echo "$4" >"/cache/$1/bench/$2/key"
	' kernel "$name" "$1" "$2" "$key" || die "the $1 kernel could not be built"
}
kernel mainline base 3
kernel series series 3

# The emulator has to have the hardware's log, and the same for all figures.
[ -z "${QEMU:-}" ] || die "QEMU= does not go with make bench"

# measure NAME DIRECTORY MINUTES COMMANDS: what they print goes to build/logs/vm-NAME.tap.
measure() {
	long "$1" "$3" "$TOP/scripts/vm.sh" hw measure "$1" "$2" "$4" ||
		die "$1: the guest failed (build/logs/vm-$1.tap)"
}
# table NAME COLUMNS HEADER: lines of columns as NAME printed them, under a header
table() {
	printf '%s\n' "$3" | tr ' ' '\t'
	cut -f"1-$2" "$LOGS/vm-$1.tap" | grep -v '^#' | grep "^[a-z]*$(printf '\t')" | grep -v '^\(tree\|writer\)'
}
perf=./vfio_dirty_log_perf_test
columns="tree interface op pattern mib leaf_kib insn_per_page"
sizes=${SIZES:-64,256,1024,4096}

for tree in mainline series; do
	measure "bench-$tree" "bench/$tree" 8 \
		"$perf -t $tree -u insn -r 5 -m 0; $perf -t $tree -u insn -r 1 -m $sizes"
done
{
	table bench-mainline 7 "$columns"
	table bench-series 7 "$columns" | sed 1d
} >"$out/cost.tsv"

# The container is full of mappings of 64 MiB; see the test for ops and patterns.
measure bench-scale bench/series 3 \
	"$perf -s -t series -u insn -m 64,1024,16384,65536,262144 -r 2"
table bench-scale 8 "$columns insn_per_call" >"$out/scale.tsv"

measure bench-precopy bench/series 1 "./vfio_dirty_log_precopy_test -m 64 -s 3"
table bench-precopy 9 "writer mode chunk_pages seed sent oracle redundant rounds dirty_at_stop" >"$out/precopy.tsv"

"$TOP/scripts/bench-report.sh" | tee "$out/report.txt"
say "build/bench: $(cd "$out" && echo *); done in $(hms $SECONDS)"
