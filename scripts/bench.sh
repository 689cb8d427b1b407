#!/bin/bash
# usage: bench.sh | bench.sh report | bench.sh compare [write]
#
# (nothing): what the dirty log costs, in the base tree and with the series, and what a
#            migration sends: build/bench/*.tsv (columns named in their first line), then
# report:    tables and figures (*.svg) from these.
# compare:   the calls on the kernel of make check, at small sizes, beside
#            scripts/perf-baseline.tsv: a figure more than 3 % worse fails, and is named.
#            Two runs of one kernel differ by less than 0.3 %. write: the table anew.
#
# The unit is the guest's instructions (QEMU's -icount): a busy host makes it slower and no
# different. The kernels of (nothing) are that of make check without what looks for
# mistakes, in $BASE_DIR/bench, where only what differs between the two is built twice.
. "$(dirname "$0")/lib.sh"
perf=./vfio_dirty_log_perf_test
out=$BUILD/bench
bench=$BASE_DIR/bench

inside_kernel() { # TREE BRANCH KEY
	export KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_USER=vfio KBUILD_BUILD_HOST=vfio
	mkdir -p "$bench"/{src,obj,"$1"}
	GIT_INDEX_FILE=$bench/index git --git-dir="$BASE_DIR/git" --work-tree="$bench/src" read-tree --reset -u "$2"
	# The same paths as everywhere
	mount --bind "$bench/src" /src/linux
	mount --bind "$bench/obj" /obj
	grep -vE "^CONFIG_(DEBUG_(KERNEL|LIST|ATOMIC_SLEEP)|DETECT_HUNG_TASK|FAULT_.*|FAIL.*)=" \
		"$BASE_DIR/obj/wanted.config" >/obj/wanted.config
	cd /src/linux
	make -s O=/obj KCONFIG_ALLCONFIG=/obj/wanted.config allnoconfig
	make O=/obj -j "$JOBS" bzImage
	cp /obj/arch/x86/boot/bzImage "$bench/$1/"
	echo "$3" >"$bench/$1/key"
}
inside_or_go_on "$@"

# kernel TREE BRANCH: build $bench/TREE/bzImage
kernel() {
	local key about=3
	key=$(cat "$BASE_DIR/git/refs/heads/$2")-$(declare -f inside_kernel | key_of "$BASE_DIR/obj/wanted.config" "$TOP/scripts/packages" -)
	[ "$(cat "$bench/$1/key" 2>/dev/null)" != "$key" ] || return 0
	need_room 3500 "the benchmark's objects"
	[ -e "$bench/obj/vmlinux" ] || about=10
	long "$1 kernel" "$about" inside kernel "$1" "$2" "$key" || die "the $1 kernel could not be built"
}

# measure NAME DIRECTORY MINUTES COMMANDS: what they print is in build/logs/vm-NAME.tap
measure() {
	long "$1" "$3" "$TOP/scripts/vm.sh" hw measure "$1" "$2" "$4" || die "$1: the guest failed (build/logs/vm-$1.tap)"
}
# table NAME COLUMNS HEADER: lines of columns as NAME printed them, under a header
table() {
	printf '%s\n' "$3" | tr ' ' '\t'
	cut -f"1-$2" "$LOGS/vm-$1.tap" | grep -v '^#' | grep "^[a-z]*$(printf '\t')" | grep -v '^\(tree\|writer\)'
}

report() {
	cd "$out" || exit
	for file in cost scale precopy large split; do [ -s $file.tsv ] || die "build/bench/$file.tsv is not there: make bench makes it"; done
	awk -F'\t' -f "$TOP/scripts/bench-tables.awk" cost.tsv scale.tsv precopy.tsv large.tsv split.tsv | tee report.txt
	enter gnuplot /checkout/scripts/bench.gnuplot || die "gnuplot failed"
}

prepare
case ${1:-all} in
report) report ;;
compare)
	if [ -n "${QEMU:-}" ] || other_base; then
		say "skip    costs: scripts/perf-baseline.tsv is for the base tree of series.txt and the QEMU that is built"
		exit 0
	fi
	"$TOP/scripts/vm.sh" hw measure compare obj/boot \
		"$perf -t series -u insn -r 3 -m 0,64; $perf -s -t series -u insn -r 3 -m 64,1024" >"$LOGS/compare.out" 2>&1 || {
		tail -n 20 "$LOGS/compare.out"
		die "the guest failed (build/logs/vm-compare.tap)"
	}
	# By call: one figure for each line of the test, the container's by their own name.
	awk -F'\t' 'BEGIN { OFS = "\t"; print "interface", "op", "pattern", "mib", "leaf_kib", "insn_per_call" }
		$1 == "tree" { part++ }
		$1 == "series" { print (part == 2 ? "container" : $2), $3, $4, $5, $6, $8 }' "$LOGS/vm-compare.tap" >"$BUILD/perf.tsv"
	if [ "${2:-}" = write ]; then cp "$BUILD/perf.tsv" "$TOP/scripts/perf-baseline.tsv"; fi
	awk -F'\t' -f "$TOP/scripts/perf-compare.awk" "$TOP/scripts/perf-baseline.tsv" "$BUILD/perf.tsv"
	;;
all)
	# The emulator has to have the hardware's log, and the same for all figures.
	[ -z "${QEMU:-}" ] || die "QEMU= does not go with make bench"
	"$TOP/scripts/build-qemu.sh"
	"$TOP/scripts/build-kernel.sh" # its initramfs runs on both kernels
	mkdir -p "$bench" "$out"
	kernel mainline base
	kernel series series
	columns="tree interface op pattern mib leaf_kib insn_per_page"
	for tree in mainline series; do
		measure "bench-$tree" "bench/$tree" 8 "$perf -t $tree -u insn -r 5 -m 0; $perf -t $tree -u insn -r 1 -m ${SIZES:-64,256,1024,4096}"
	done
	{ table bench-mainline 7 "$columns" && table bench-series 7 "$columns" | sed 1d; } >"$out/cost.tsv"
	# The container is full of mappings of 64 MiB; see the test for ops and patterns.
	measure bench-scale bench/series 3 "$perf -s -t series -u insn -m 64,1024,16384,65536,262144 -r 2"
	table bench-scale 8 "$columns insn_per_call" >"$out/scale.tsv"
	columns="writer mode chunk_pages seed sent oracle redundant rounds dirty_at_stop leaf_kib"
	measure bench-precopy bench/series 1 "./vfio_dirty_log_precopy_test -m 64 -s 3"
	table bench-precopy 10 "$columns" >"$out/precopy.tsv"
	measure bench-large bench/series 8 "./vfio_dirty_log_split_test; ./vfio_dirty_log_precopy_test -m 32 -c 512 -l 4,2048,1048576"
	table bench-large 10 "$columns" | grep -v '^split' >"$out/large.tsv"
	{ printf 'what\tfigure\tleaf_kib\tvalue\n' && grep '^split' "$LOGS/vm-bench-large.tap"; } >"$out/split.tsv"
	report
	say "build/bench: $(cd "$out" && echo *); done in $(hms $SECONDS)"
	;;
*) die "usage: bench.sh [report | compare [write]]" ;;
esac
