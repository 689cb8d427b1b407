#!/bin/bash
# Plant the faults of lab/mutants and see that the tests that they name find them: see
# lab/mutants/README. ONLY="NAME..." plants some of them.
. "$(dirname "$0")/lib.sh"
prepare
"$TOP/scripts/qemu.sh"
"$TOP/scripts/kernel.sh"
[ -e "$BASE_DIR/kunit/.config" ] || long KUnit 8 "$TOP/scripts/kunit.sh"

work=$BUILD/mutants
base=$(basename "$(readlink -f "$BASE_DIR")")
rm -rf "$work"
mkdir -p "$work/diffs"
passed=0 failed=0
names=("no fault") tests=("") machines=("")

# A fault's number is its place in this list.
for diff in "$TOP"/lab/mutants/*.diff; do
	name=$(basename "$diff" .diff)
	[ -z "${ONLY:-}" ] || [[ " $ONLY " = *" $name "* ]] || continue
	n=${#names[@]}
	names+=("$name")
	tests+=("$(sed -n 's/^# caught by: *//p' "$diff")")
	[ -n "${tests[n]}" ] || die "$name: no test"
	machine=$(sed -n 's/^# machine: *//p' "$diff")
	if [[ ${tests[n]} = *' '* ]]; then machines+=("${machine:-hw}"); else machines+=(kunit); fi
	sed "s/\<MUTANT\>/mutant($n)/g" "$diff" >"$work/diffs/$(printf %03d "$n")-$name.diff"
done

for dir in obj kunit; do
	[ -e "$BASE_DIR/$dir-mutants" ] || {
		rm -rf "$BASE_DIR/tmp.mutants"
		cp -a "$BASE_DIR/$dir" "$BASE_DIR/tmp.mutants"
		rm -rf "$BASE_DIR/tmp.mutants/boot"
		mv "$BASE_DIR/tmp.mutants" "$BASE_DIR/$dir-mutants"
	}
done

# The changed files are mounted over the tree's, in there only.
# shellcheck disable=SC2016 # expands in the environment
long "kernels with ${#names[@]} faults" 5 enter bash -euc '
	cd /src/linux
	new=/tmp/new objects=/cache/$1
	declare="#ifndef mutant\nextern unsigned int mutant_nr;\n#define mutant(_nr) unlikely(READ_ONCE(mutant_nr) == (_nr))\n#endif"
	install -D -m 644 drivers/iommu/iommu.c $new/drivers/iommu/iommu.c
	# Each is a diff against the tree without the others: hunk by hunk, from the end of a
	# file to its beginning, line numbers stay right.
	for diff in /checkout/build/mutants/diffs/*.diff; do
		for file in $(sed -n "s,^+++ b/,,p" "$diff"); do
			install -D -m 644 "$file" "/tmp/one/$file"
			install -D -m 644 "$file" "$new/$file"
		done
		patch -s -p1 -d /tmp/one <"$diff" || { echo "does not apply: $diff" && exit 1; }
		for file in $(sed -n "s,^+++ b/,,p" "$diff"); do
			mkdir -p "/tmp/hunks/$file"
			diff -U0 "$file" "/tmp/one/$file" | awk -v dir="/tmp/hunks/$file" "
				/^@@/ { split(\$2, at, /[-,]/); out = sprintf(\"%s/%07d\", dir, at[2]); print \"--- a\n+++ b\" >out }
				out { print >out }" || :
		done
	done
	find /tmp/hunks -type f | sort -r | while read -r hunk; do
		file=${hunk#/tmp/hunks/}
		patch -s -F0 "$new/${file%/*}" <"$hunk" || { echo "two faults in one place: $hunk" && exit 1; }
	done
	for file in $(cd $new && find . -name "*.[ch]"); do
		sed -i "1i $declare" "$new/$file"
		[ "$file" != ./drivers/iommu/iommu.c ] ||
			printf "%s\n" "#include <linux/moduleparam.h>" "unsigned int mutant_nr;" \
				"core_param(mutant, mutant_nr, uint, 0644);" >>"$new/$file"
		mount --bind "$new/$file" "$file"
	done
	export KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_USER=vfio KBUILD_BUILD_HOST=vfio
	make -s O=$objects/obj-mutants -j "$JOBS" bzImage
	make -s O=$objects/kunit-mutants ARCH=um -j "$JOBS"
	mkdir -p $objects/obj-mutants/boot
	cp $objects/obj-mutants/arch/x86/boot/bzImage $objects/obj-mutants/boot/
' mutants "$base" || die "the mutants could not be built (build/logs)"

# verdict NUMBER RC: whether the test's result is the right one
verdict() {
	local what=${names[$1]}
	[ "$1" != 0 ] || what="no fault in ${tests[0]}"
	if case $2 in no-such-test | 4) false ;; 0) [ "$1" = 0 ] ;; *) [ "$1" != 0 ] ;; esac then
		passed=$((passed + 1))
		say "ok      $what"
	else
		failed=$((failed + 1))
		say "not ok  $what: ${tests[$1]}: $2"
	fi
}

# kunit NUMBER SUITE[.CASE]: run KUnit's kernel
kunit() {
	local out=$LOGS/mutant-$1-kunit.out rc=0
	enter timeout -k 5 180 "/cache/$base/kunit-mutants/linux" mem=256M console=tty kunit_shutdown=halt \
		"kunit.filter_glob=$2" "mutant=$1" >"$out" 2>&1 </dev/null || :
	grep -qE '^ *1\.\.[1-9]' "$out" || rc=no-such-test
	if grep -qE '^ *not ok ' "$out" || ! grep -qE '^ok ' "$out"; then [ $rc != 0 ] || rc=1; fi
	verdict "$1" "$rc"
}

# guest hw|pessimistic NUMBER...: boot until all of them were switched on. When the kernel
# dies, that is a verdict, and the others get another boot.
guest() {
	local machine=$1 from=1 lines n tap
	shift
	mkdir -p "$work/root/mutants"
	install -m 755 "$TOP/lab/mutants/run" "$work/root/mutants/run"
	{
		for n; do echo "0 ${tests[n]}"; done | sort -u
		for n; do echo "$n ${tests[n]}"; done
	} >"$work/root/mutants/list"
	lines=$(wc -l <"$work/root/mutants/list")
	enter bash -euc 'cd /checkout/build/mutants/root && find . | cpio --quiet -o -H newc' >"$work/cpio"
	cat "$BASE_DIR/obj/boot/initramfs" "$work/cpio" >"$BASE_DIR/obj-mutants/boot/initramfs"
	tap=$LOGS/vm-$machine-mutants-mutants.tap
	while [ "$from" -le "$lines" ]; do
		VARIANT=mutants LIMIT=3600 "$TOP/scripts/vm.sh" "$machine" mutants "from=$from" >"$work/boot" 2>&1 || :
		while read -r n rc; do
			tests[0]=$(sed -n "${from}s/^0 //p" "$work/root/mutants/list")
			verdict "$n" "$rc"
			from=$((from + 1))
		done < <(sed -n 's/^# mutant \([0-9]*\): \(.*\)/\1 \2/p' "$tap" | tr -d '\r')
		[ "$from" -le "$lines" ] || break
		n=$(sed -n "${from}s/ .*//p" "$work/root/mutants/list")
		# It was running, or the boot itself failed
		if grep -q "^# mutant $n" "$tap"; then verdict "$n" "the kernel died"; else die "no boot (build/logs/vm-$machine-mutants*)"; fi
		from=$((from + 1))
	done
}

for t in $(for n in "${!tests[@]}"; do [ "${machines[n]}" != kunit ] || echo "${tests[n]}"; done | sort -u); do
	tests[0]=$t
	kunit 0 "$t"
done
for machine in kunit hw pessimistic; do
	numbers=()
	for n in "${!names[@]}"; do [ "${machines[n]}" != $machine ] || numbers+=("$n"); done
	[ ${#numbers[@]} -gt 0 ] || continue
	if [ $machine = kunit ]; then
		for n in "${numbers[@]}"; do kunit "$n" "${tests[n]}"; done
	else
		guest $machine "${numbers[@]}"
	fi
done
say "$passed passed, $failed failed"
[ $failed = 0 ]
