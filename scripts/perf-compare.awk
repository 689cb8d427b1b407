# The baseline, then what was measured: name what is more than 3 % worse, or missing.
FNR == 1 { next }
{ key = $1 " " $2 " " $3 " " $4 " MiB, leaves of " $5 " KiB" }
FNR == NR { was[key] = $6; next }
{ n++ }
!(key in was) { print "not in the table: " key; bad++; next }
{
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
	printf "%d figures, %d worse%s\n", n, bad, better ? ", " better " better (scripts/bench.sh compare write)" : ""
	exit bad > 0 || !n
}
