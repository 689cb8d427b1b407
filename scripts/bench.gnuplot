cd "/checkout/build/bench"
set terminal svg size 720,440 font "sans-serif,13" background "white"
set grid ytics; set border 3; set tics nomirror
set output "cost.svg"
set title "Reading the dirty log and clearing it, 1 GiB, leaves of 4 KiB"
set ylabel "instructions per 4 KiB page"; set logscale y; set yrange [5:300]
set style data histograms; set style fill solid 0.8; set boxwidth 0.9; set key top left
plot "cost.get" using 2:xtic(1) title "iommufd, 7.3", "" using 3 title "iommufd, series", "" using 4 title "type1, series"
unset logscale; set style data linespoints
set output "precopy.svg"
set title "Redundant pages of a pre-copy"
set xlabel "pages that one CLEAR is for (dashed: GET, which clears all as it reads)"; set ylabel "redundant pages"
set logscale x 2; set logscale y; set yrange [0.5:*]; set key top left
pick(w, m, wanted, mode, v) = (w eq wanted && m eq mode) ? v : NaN
set datafile separator "\t"
plot for [i=1:3] "precopy.mean" using (pick(strcol(1), strcol(2), word("hot uniform sweep", i), "manual", $3)):4 with linespoints lc i lw 2 title word("hot uniform sweep", i), \
	for [i=1:3] "precopy.mean" using (pick(strcol(1), strcol(2), word("hot uniform sweep", i), "get", 64)):4:($3 - 64):(0) with vectors nohead dashtype 2 lw 2 lc i notitle
