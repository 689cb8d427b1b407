# build/migrate.tsv as a figure: pages sent until the migration ended, seed 1
set terminal svg size 720,420 font "sans-serif,13" background "white"
set output "/checkout/build/migrate.svg"
set title "Pages sent by a virtual machine of 64 MiB with an igb assigned (no bar: no end)"
set ylabel "pages"; set yrange [0:*]; set grid ytics; set border 3; set tics nomirror
set style data histograms; set style fill solid 0.8; set boxwidth 0.9; set key top right
file(s) = "< awk -F'\t' -v want='" . s . "' 'BEGIN { n = split(want, w, \" \") } { pages[$1] = $6 == \"endless\" ? 0 : $8 } END { for (i = 1; i <= n; i++) print pages[w[i]] + 0 }' /checkout/build/migrate.tsv"
plot file("get-4k-1 get-4k-hot get-4k-sweep get-2m") using 1 title "type1, GET BITMAP", \
	file("iommufd-4k-1 iommufd-4k-hot iommufd-4k-sweep iommufd-2m") using 1 title "iommufd, today", \
	file("manual-4k-1 manual-4k-hot manual-4k-sweep manual-2m-split-1") using 1 title "type1, CLEAR BITMAP", \
	file("iommufd-manual-4k-1 iommufd-manual-4k-hot iommufd-manual-4k-sweep iommufd-manual-2m-split-1") using 1:xtic(word("uniform hot sweep uniform,2MiB", int($0) + 1)) title "iommufd, by chunk"
