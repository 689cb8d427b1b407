#!/bin/bash
# Print tables of what bench.sh measured (build/bench/*.tsv), and draw the figures.
. "$(dirname "$0")/lib.sh"
cd "$BUILD/bench"
for file in cost scale precopy; do [ -s $file.tsv ] || die "build/bench/$file.tsv is not there: make bench makes it"; done

awk -F'\t' '
	NR == 1 { next }
	{ cost[$1, $2, $3, $4, $5, $6] = $7; if ($6 == 4 && $5 > mib && $5 <= 1024) mib = $5 }
	function of(tree, interface, op, pattern,    key) {
		key = tree SUBSEP interface SUBSEP op SUBSEP pattern SUBSEP mib SUBSEP 4
		return key in cost ? sprintf("%.1f", cost[key]) : "-"
	}
	END {
		n = split("clean every100 every10 every2 run64 all", patterns, " ")
		printf "Instructions for each 4 KiB page of a mapping of %d MiB, leaves of 4 KiB:\n\n", mib
		print "             iommufd, mainline   iommufd, series     type1, series"
		print "              NO_CLEAR     GET   NO_CLEAR     GET    NOCLEAR     GET   CLEAR"
		for (i = 1; i <= n; i++) {
			p = patterns[i]
			printf "  %-10s%10s%8s%11s%8s%11s%8s%8s\n", p,
				of("mainline", "iommufd", "noclear", p), of("mainline", "iommufd", "get", p),
				of("series", "iommufd", "noclear", p), of("series", "iommufd", "get", p),
				of("series", "type1", "noclear", p), of("series", "type1", "get", p),
				of("series", "type1", "clear", p)
		}
		print "\nInstructions for a call of one page, dirty:\n"
		mib = 0
		printf "  %-10s%10s%8s%11s%8s%11s%8s%8s\n", "", of("mainline", "iommufd", "noclear", "all"),
			of("mainline", "iommufd", "get", "all"), of("series", "iommufd", "noclear", "all"),
			of("series", "iommufd", "get", "all"), of("series", "type1", "noclear", "all"),
			of("series", "type1", "get", "all"), of("series", "type1", "clear", "all")
	}' cost.tsv

awk -F'\t' '
	NR == 1 { next }
	{ page[$3, $4, $5] = $7; call[$3, $4, $5] = $8; if (!seen[$5]++) mib[++n] = $5 }
	END {
		print "\nContainers of different size, full of mappings of 64 MiB; instructions:\n"
		print "     GiB   CLEAR one page   mask of all: one page     no page     GET per page   START per page"
		print "                 per call     per 64 pages of IOVA      per 64"
		for (i = 1; i <= n; i++) {
			m = mib[i]
			printf "%8.4g%17d%25.2f%12.2f%17.2f%17.2f\n", m / 1024, call["clear", "one", m],
				64 * page["clear", "spanned", m], 64 * page["clear", "none", m],
				page["get", "clean", m], page["start", "clean", m]
		}
	}' scale.tsv

awk -F'\t' '
	NR == 1 { next }
	{
		key = $1 SUBSEP $2 SUBSEP $3
		n[key]++; sent[key] += $5; oracle[key] += $6; redundant[key] += $7; rounds[key] += $8; stop[key] += $9
		if (!seen[$1]++) writers[++w] = $1
		if (!chunks[$3]++) list[++c] = $3
		if ($3 > all) all = $3
	}
	function line(name, key) {
		printf "  %-9s%-14s%9d%9d%11.1f%8.1f%16.1f\n", name, split(key, k, SUBSEP) && k[2] == "get" ? "get" : "manual " k[3],
			sent[key] / n[key], oracle[key] / n[key], redundant[key] / n[key], rounds[key] / n[key], stop[key] / n[key]
	}
	END {
		printf "\nA migration of %d pages, the mean of %d seeds:\n\n", all, n["hot" SUBSEP "get" SUBSEP all]
		print "  writer   mode, chunk        sent   oracle  redundant  rounds   dirty at stop"
		for (i = 1; i <= w; i++) {
			line(writers[i], writers[i] SUBSEP "get" SUBSEP all)
			for (j = 1; j <= c; j++)
				if (list[j] == 64 || list[j] == 512 || list[j] == 4096 || list[j] == all)
					line("", writers[i] SUBSEP "manual" SUBSEP list[j])
		}
	}' precopy.tsv

# Figures. A mean of 0 is drawn at the lower edge.
awk -F'\t' '
	NR > 1 { key = $1 "\t" $2 "\t" $3; n[key]++; sum[key] += $7; if (!seen[key]++) keys[++k] = key }
	END { for (i = 1; i <= k; i++) { v = sum[keys[i]] / n[keys[i]]; print keys[i] "\t" (v < 0.5 ? 0.5 : v) } }' precopy.tsv >precopy.mean
awk -F'\t' '
	$5 == 1024 && $6 == 4 && $3 == "get" { cost[$1, $2, $4] = $7 }
	END {
		n = split("clean every100 every10 every2 run64 all", patterns, " ")
		for (i = 1; i <= n; i++)
			print patterns[i], cost["mainline", "iommufd", patterns[i]] + 0, cost["series", "iommufd", patterns[i]] + 0,
				cost["series", "type1", patterns[i]] + 0
	}' cost.tsv >cost.get
enter gnuplot -e '
	cd "/checkout/build/bench";
	set terminal svg size 720,440 font "sans-serif,13" background "white";
	set grid ytics; set border 3; set tics nomirror;
	set output "cost.svg";
	set title "Reading the dirty log and clearing it, 1 GiB, leaves of 4 KiB";
	set ylabel "instructions per 4 KiB page"; set logscale y; set yrange [5:300];
	set style data histograms; set style fill solid 0.8; set boxwidth 0.9; set key top left;
	plot "cost.get" using 2:xtic(1) title "iommufd, 7.3", "" using 3 title "iommufd, series", "" using 4 title "type1, series";
	unset logscale; set style data linespoints;
	set output "precopy.svg";
	set title "Pages that a migration sends for nothing";
	set xlabel "pages that one CLEAR is for (dashed: GET, which clears all as it reads)"; set ylabel "redundant pages";
	set logscale x 2; set logscale y; set yrange [0.5:*]; set key top left;
	pick(w, m, wanted, mode, v) = (w eq wanted && m eq mode) ? v : NaN;
	set datafile separator "\t";
	plot for [i=1:3] "precopy.mean" using (pick(strcol(1), strcol(2), word("hot uniform sweep", i), "manual", $3)):4 with linespoints lc i lw 2 title word("hot uniform sweep", i),
		for [i=1:3] "precopy.mean" using (pick(strcol(1), strcol(2), word("hot uniform sweep", i), "get", 64)):4:($3 - 64):(0) with vectors nohead dashtype 2 lw 2 lc i notitle' ||
	die "gnuplot failed"
rm -f precopy.mean cost.get
