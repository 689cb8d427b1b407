#!/bin/bash
# usage: bar.sh [write]
#
# Measure what the log's calls cost on the kernel that make check boots, at small sizes,
# in instructions, and compare with scripts/bar.tsv: a figure that is more than 3 % worse
# fails and is named. Two runs of one kernel differ by less than 0.3 %.
# write: make what is measured now the table.
. "$(dirname "$0")/lib.sh"
prepare
if [ -n "${QEMU:-}" ] || other_base; then
	say "skip    costs: scripts/bar.tsv is for the base tree of series.txt and the QEMU that is built"
	exit 0
fi
perf=./vfio_dirty_log_perf_test
"$TOP/scripts/vm.sh" hw measure bar obj/boot \
	"$perf -t series -u insn -r 3 -m 0,64; $perf -s -t series -u insn -r 3 -m 64,1024" >"$LOGS/bar.out" 2>&1 || {
	tail -n 20 "$LOGS/bar.out"
	die "the guest failed (build/logs/vm-bar.tap)"
}
# By call: one figure for each line of the test, the container's by their own name.
awk -F'\t' '
	BEGIN { OFS = "\t"; print "interface", "op", "pattern", "mib", "leaf_kib", "insn_per_call" }
	$1 == "tree" { part++ }
	$1 == "series" { print (part == 2 ? "container" : $2), $3, $4, $5, $6, $8 }' "$LOGS/vm-bar.tap" >"$BUILD/bar.tsv"
if [ "${1:-}" = write ]; then
	cp "$BUILD/bar.tsv" "$TOP/scripts/bar.tsv"
	exit 0
fi
awk -F'\t' '
	FNR == 1 { next }
	{ key = $1 " " $2 " " $3 " " $4 " MiB, leaves of " $5 " KiB" }
	FNR == NR { was[key] = $6; next }
	{
		n++
		if (!(key in was)) {
			print "not in the table: " key
			bad++
			next
		}
		is = $6 / was[key]
		if (is > 1.03) {
			printf "worse by %.1f %%: %s: %d instructions, were %d\n", 100 * (is - 1), key, $6, was[key]
			bad++
		} else if (is < 0.97) {
			better++
		}
		delete was[key]
	}
	END {
		for (key in was) {
			print "not measured: " key
			bad++
		}
		printf "%d figures, %d worse%s\n", n, bad, better ? ", " better " better (scripts/bar.sh write)" : ""
		exit bad > 0 || !n
	}' "$TOP/scripts/bar.tsv" "$BUILD/bar.tsv"
