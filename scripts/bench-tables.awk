# Tables of cost.tsv, scale.tsv, precopy.tsv, large.tsv and split.tsv; cost.get and precopy.mean for bench.gnuplot.
FNR == 1 { file++; next }
file == 1 { cost[$1, $2, $3, $4, $5, $6] = $7; if ($6 == 4 && $5 > mib && $5 <= 1024) mib = $5; next }
file == 2 { page[$3, $4, $5] = $7; call[$3, $4, $5] = $8; if (!seen[$5]++) size[++sizes] = $5; next }
file == 4 {
	if (!($10 in leaf_seen)) { leaf[++leaves] = $10; leaf_seen[$10] }
	large[$1, $2, $10] = $5; large_rounds[$1, $2, $10] = $8
	next
}
/^split/ { figure[++figures] = sprintf("  %-44s%9d KiB%12s", $2, $3, sprintf($4 < 1000 ? "%.1f" : "%d", $4)); next }
{
	key = $1 SUBSEP $2 SUBSEP $3
	n[key]++; sent[key] += $5; oracle[key] += $6; redundant[key] += $7; rounds[key] += $8; stop[key] += $9
	if (!seen[$1]++) writer[++writers] = $1
	if (!chunk_seen[$3]++) chunk[++chunks] = $3
	if ($3 > all) all = $3
}

function of(tree, interface, op, pattern,    key) {
	key = tree SUBSEP interface SUBSEP op SUBSEP pattern SUBSEP mib SUBSEP 4
	return key in cost ? sprintf("%.1f", cost[key]) : "-"
}
function costs(name, p) {
	printf "  %-10s%10s%8s%11s%8s%11s%8s%8s\n", name, of("mainline", "iommufd", "noclear", p),
		of("mainline", "iommufd", "get", p), of("series", "iommufd", "noclear", p), of("series", "iommufd", "get", p),
		of("series", "type1", "noclear", p), of("series", "type1", "get", p), of("series", "type1", "clear", p)
}
function pages(w, mode, l) {
	return (w, mode, l) in large ? sprintf("%d (%d)", large[w, mode, l], large_rounds[w, mode, l]) : "-"
}
function sends(name, w, mode, c,    key) {
	key = w SUBSEP mode SUBSEP c
	printf "  %-9s%-14s%9d%9d%11.1f%8.1f%16.1f\n", name, mode == "get" ? mode : mode " " c,
		sent[key] / n[key], oracle[key] / n[key], redundant[key] / n[key], rounds[key] / n[key], stop[key] / n[key]
}

END {
	patterns = split("clean every100 every10 every2 run64 all", pattern, " ")
	printf "Instructions for each 4 KiB page of a mapping of %d MiB, leaves of 4 KiB:\n\n", mib
	print "             iommufd, mainline   iommufd, series     type1, series"
	print "              NO_CLEAR     GET   NO_CLEAR     GET    NOCLEAR     GET   CLEAR"
	for (i = 1; i <= patterns; i++) {
		costs(pattern[i], pattern[i])
		print pattern[i], of("mainline", "iommufd", "get", pattern[i]) + 0, of("series", "iommufd", "get", pattern[i]) + 0,
			of("series", "type1", "get", pattern[i]) + 0 >"cost.get"
	}
	mib = 0
	print "\nInstructions for a call of one page, dirty:\n"
	costs("", "all")

	print "\nContainers of different size, full of mappings of 64 MiB; instructions:\n"
	print "     GiB   CLEAR one page   mask of all: one page     no page     GET per page   START per page"
	print "                 per call     per 64 pages of IOVA      per 64"
	for (i = 1; i <= sizes; i++) {
		m = size[i]
		printf "%8.4g%17d%25.2f%12.2f%17.2f%17.2f\n", m / 1024, call["clear", "one", m],
			64 * page["clear", "spanned", m], 64 * page["clear", "none", m], page["get", "clean", m], page["start", "clean", m]
	}

	printf "\nA migration of %d pages, the mean of %d seeds:\n\n", all, n["hot" SUBSEP "get" SUBSEP all]
	print "  writer   mode, chunk        sent   oracle  redundant  rounds   dirty at stop"
	for (i = 1; i <= writers; i++) {
		sends(writer[i], writer[i], "get", all)
		for (j = 1; j <= chunks; j++)
			if (chunk[j] == 64 || chunk[j] == 512 || chunk[j] == 4096 || chunk[j] == all)
				sends("", writer[i], "manual", chunk[j])
	}
	print "\nThe same of 32 MiB, cleared in chunks of 512 pages, by the size of the leaves; pages sent"
	print "(rounds; 30 is given up):\n\n  writer        leaves             get          manual           split"
	for (i = 1; i <= writers; i++)
		for (j = 1; j <= leaves; j++)
			printf "  %-9s%7d KiB%16s%16s%16s\n", j == 1 ? writer[i] : "", leaf[j], pages(writer[i], "get", leaf[j]),
				pages(writer[i], "manual", leaf[j]), pages(writer[i], "split", leaf[j])
	print "\nOne page of each leaf of 1 GiB written; instructions, and memory of page tables:\n"
	for (i = 1; i <= figures; i++)
		print figure[i]

	# A mean of 0 is drawn at the lower edge.
	for (key in n) {
		split(key, k, SUBSEP)
		v = redundant[key] / n[key]
		print k[1] "\t" k[2] "\t" k[3] "\t" (v < 0.5 ? 0.5 : v) | "sort -k1,1 -k2,2 -k3,3n >precopy.mean"
	}
}
