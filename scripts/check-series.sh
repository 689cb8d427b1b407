#!/bin/bash
# usage: check-series.sh [SET...] | check-series.sh set
#
# What a maintainer checks before reading. Every set alone, on the base and the sets that
# it needs: each of its patches is built (git rebase --exec, ccache) in the variants below,
# with W=1 and sparse, the selftests with it; checkpatch.pl, kernel-doc, size; KUnit at the
# set's tip; its mailbox, its recipients. Where no SET is named, then of the whole: 7.2,
# coccicheck, htmldocs, and mistakes planted to prove that all these are looking. What is
# said of the base is not held against a patch. `set` is the part that takes seconds, for
# make check. VARIANTS="gcc off" does fewer builds. What came of a patch is kept in the
# cache.
. "$(dirname "$0")/lib.sh"
. "$TOP/scripts/sets.sh"
set +e

variants=${VARIANTS:-gcc clang arm64 i386 off bare mod}
columns="$variants selftests checkpatch kernel-doc size"
dirs="drivers/iommu/ drivers/vfio/"
options="64BIT SMP MODULES PRINTK BUG NET MULTIUSER EVENTFD EPOLL EXPERT COMPILE_TEST DEBUG_KERNEL
	RUNTIME_TESTING_MENU FAULT_INJECTION PCI PCI_MSI ACPI X86_X2APIC X86_PAE HIGHMEM64G IRQ_REMAP
	FTRACE ENABLE_DEFAULT_TRACERS IOMMU_SUPPORT INTEL_IOMMU AMD_IOMMU ARM_SMMU_V3 IOMMUFD IOMMUFD_TEST
	IOMMU_DIRTY_LOG GENERIC_PT DEBUG_GENERIC_PT IOMMU_PT IOMMU_PT_AMDV1 IOMMU_PT_VTDSS IOMMU_PT_RISCV64 IOMMU_PT_X86_64
	IOMMU_IO_PGTABLE_LPAE KUNIT IOMMU_IO_PGTABLE_LPAE_KUNIT_TEST IOMMU_PT_KUNIT_TEST
	IOVA_BITMAP_KUNIT_TEST IOMMU_DIRTY_LOG_KUNIT_TEST VFIO VFIO_GROUP VFIO_CONTAINER VFIO_DEVICE_CDEV VFIO_PCI"
S=$BASE_DIR/series # git, src (the moving tree), obj, log, base and kept (what was said)
hash() { sha256sum | cut -c1-16; }
recipe=$(hash <"$0")

# ---- One patch. A variant's options: off has iommufd, but no container, no KUnit and no
# tracing; bare neither iommufd nor VFIO (which selects the container where there is no
# iommufd), and so no IOMMUFD_DRIVER; in mod, type1, iommufd and KUnit are modules.
fragment() {
	local o
	for o in $options; do
		case $1:$o in
		off:VFIO_CONTAINER | off:IOMMU_DIRTY_LOG | off:*KUNIT* | off:*TRACE* | bare:IOMMUFD* | bare:IOMMU_DIRTY_LOG | bare:VFIO* | bare:*KUNIT*) echo "CONFIG_$o=n" ;;
		mod:VFIO | mod:IOMMUFD | mod:KUNIT | mod:*_KUNIT_TEST) echo "CONFIG_$o=m" ;;
		*) echo "CONFIG_$o=y" ;;
		esac
	done
}

kmake() { # VARIANT ARGUMENT...
	local args=(-C "$S/src" -k "O=$S/obj/$1" W=1 "CC=ccache gcc")
	case $1 in
	gcc) args+=(C=1 "CHECK=/checkout/scripts/sparse.sh") ;;
	clang) args+=("CC=ccache clang-17") ;;
	arm64) args+=(ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- "CC=ccache aarch64-linux-gnu-gcc") ;;
	i386) args+=(ARCH=i386) ;;
	esac
	make "${args[@]}" "${@:2}"
}

# A variant that is not what its name says would prove nothing.
is_true() {
	local on=VFIO_IOMMU_TYPE1=y off=none config=$S/obj/$1/.config
	case $1 in
	off) on=IOMMUFD=y off='VFIO_CONTAINER|KUNIT|TRACEPOINTS' ;;
	bare) on=IOMMU_SUPPORT=y off='IOMMU_DIRTY_LOG|IOMMUFD_DRIVER|VFIO|KUNIT' ;;
	mod) on=VFIO_IOMMU_TYPE1=m ;;
	esac
	if ! grep -q "^CONFIG_$on\$" "$config" || grep -E "^CONFIG_($off)=" "$config"; then
		echo "error: the configuration of $1 is not what it should be"
		return 1
	fi
}

# Modules that use the dirty log or an IOVA bitmap find these exported, in a namespace
# that they import. modpost would say so, but only with a whole kernel.
modules_link() {
	local o missing rc=0
	find drivers/iommu -name '*.o' -print0 | xargs -0 nm 2>/dev/null | sed -n 's/.* __export_symbol_//p' | sort >/tmp/exported
	for o in drivers/vfio/vfio_iommu_type1.o drivers/iommu/{iommu-dirty-log-kunit,iommufd/iova_bitmap_kunit}.o; do
		[ -e "$o" ] || continue
		missing=$(nm -u "$o" | grep -oE '(iommu_dirty_log|iova_bitmap)_.*' | sort | tee /tmp/used | comm -23 - /tmp/exported)
		[ -z "$missing" ] || { echo "error: $o: not exported: ${missing//$'\n'/ }"; rc=1; }
		! grep -q iova_bitmap_ /tmp/used || grep -qa import_ns=IOMMUFD "$o" || { echo "error: $o: imports no namespace IOMMUFD"; rc=1; }
	done
	return $rc
}

# build VARIANT: what make says of the moving tree, without line numbers, or that it failed
build() {
	local log=$S/log/$1
	mkdir -p "$S/obj/$1"
	if [ "$1" = selftests ]; then
		# Its objects do not depend on headers.
		rm -rf "$S/obj/$1/kselftest"
		make -s -C "$S/src" O="$S/obj/$1" ARCH=x86 headers && make -s -C "$S/src/tools/testing/selftests" \
			O="$S/obj/$1" TARGETS=vfio INSTALL_PATH="$S/obj/$1/install" install
	else
		fragment "$1" >"$S/obj/$1/fragment"
		# shellcheck disable=SC2086 # words
		kmake "$1" -s KCONFIG_ALLCONFIG="$S/obj/$1/fragment" allnoconfig && is_true "$1" && kmake "$1" $dirs &&
			{ [ "$1" != mod ] || (cd "$S/obj/$1" && modules_link); }
	fi >"$log" 2>&1 || echo "error: $1 does not build (${log#/cache/})" >>"$log"
	grep -aE '(^|: )(warning|error|fatal error): |^make.*\*\*\*' "$log" | sed -E 's/:[0-9]+(:[0-9]+)?:/:/' | sort -u
}

kernel_doc() { # COMMIT FILE...: what it says of them; two may run at a time
	local f dir
	dir=$(mktemp -d)
	for f in "${@:2}"; do
		mkdir -p "$dir/${f%/*}"
		git show "$1:$f" >"$dir/$f" 2>/dev/null || continue
		(cd "$dir" && /src/linux/tools/docs/kernel-doc -none -Wall "$f" 2>&1)
	done | sed -E 's/:[0-9]+/:/' | sort -u
}

# git rebase --exec, in the moving tree: one patch of SET, as a row of the table
inside_patch() {
	local c n v kept todo="" row="" code f
	c=$(git rev-parse HEAD) n=$(git rev-list --count "$1~$2..HEAD")
	n=$(patches | grep "^$1/" | sed -n "${n}p")
	git diff --name-only HEAD~ HEAD >/tmp/files
	mapfile -t code < <(grep -E '^(drivers|include)/.*\.[ch]$' /tmp/files)
	kept=$S/kept/$(git rev-parse "HEAD^{tree}" "HEAD~^{tree}" | hash)-$recipe
	mkdir -p "$kept"
	for v in $variants; do
		! grep -qE '^(drivers|include)/' /tmp/files || [ -e "$kept/$v" ] || todo+="$v "
	done
	! grep -qE '^(tools/testing/selftests|include/uapi)/' /tmp/files || [ -e "$kept/selftests" ] || todo+="selftests "
	[ -z "$todo" ] || xargs -n 1 -P "$JOBS" <<<"$todo" "$0" inside said "$kept"
	if [ ${#code[@]} != 0 ]; then
		comm -13 <(kernel_doc base "${code[@]}") <(kernel_doc "$c" "${code[@]}") >"$kept/kernel-doc"
		for f in "${code[@]}"; do
			[[ $f != *.c || " $variants " != *" bare "* ]] || ls "$S"/obj/*/"${f%.c}.o" >/dev/null 2>&1 ||
				echo "$f is compiled in no variant" >>"$kept/kernel-doc"
		done
	fi
	grep -F "patches/$n:" "$BUILD/series/checkpatch" >"$kept/checkpatch"
	git diff --numstat HEAD~ HEAD -- drivers include ':!*kunit*' ':!*selftest*' |
		awk '{ n += $1 } END { if (n > 300) print n " lines of kernel code are added, more than 300" }' >"$kept/size"
	for v in $columns; do
		if [ ! -e "$kept/$v" ]; then row+=" -"; elif [ -s "$kept/$v" ]; then row+=" FAIL"; else row+=" ok"; fi
	done
	# shellcheck disable=SC2086 # words
	{ printf '%-44s' "$(cut -c1-42 <<<"${n#*/}")" && printf '%-11s' $row && echo; } | tee -a "$BUILD/series/table"
	# shellcheck disable=SC2086
	(cd "$kept" && grep -a . $columns 2>/dev/null) | cut -c1-200 | head -n 12 | sed 's/^/      /'
	return 0
}
# said KEPT VARIANT: what is said that was not said of the base
inside_said() { build "$2" | comm -13 "$S/base/$2-$recipe" - >"$1/$2.new"; mv "$1/$2.new" "$1/$2"; }

# The moving tree: links cost nothing, and git never writes into a file that is there.
moving_tree() {
	mkdir -p "$S"/{obj,log,base,kept}
	export CCACHE_DIR=/cache/ccache CCACHE_MAXSIZE=4G GIT_WORK_TREE=$S/src
	if [ ! -d "$S/src" ]; then
		git clone -q --bare --shared "$BASE_DIR/git" "$S/git" && cp "$BASE_DIR/git/index" "$S/git/" && cp -al "$BASE_DIR/src" "$S/src" || exit
		git -C "$S/git" config core.trustctime false
		git -C "$S/git" config core.checkStat minimal
	fi
	git -C "$S/git" --work-tree="$S/src" checkout -q -f --detach && git -C "$S/git" fetch -q -f "$BASE_DIR/git" base:base series:series || exit
	sets_in "$S/git"
	cd "$S/src" || exit
}

inside_rows() { # SET...
	local v todo="" name
	moving_tree
	for v in $variants selftests; do [ -e "$S/base/$v-$recipe" ] || todo+="$v "; done
	if [ -n "$todo" ]; then
		say "  building the base: $todo"
		git checkout -q -f base
		xargs -n 1 -P "$JOBS" <<<"$todo" "$0" inside base
	fi
	for name; do
		say "$name, on ${BASE_DIR##*/} $(set_field "$name" needs)"
		git checkout -q -f -B check "$name"
		git rebase -q --exec "$0 inside patch $name $(set_count "$name")" "$name~$(set_count "$name")" || return 1
		kunit_of "$name"
	done
}
# From nothing: what was compiled already would say nothing.
inside_base() { rm -rf "$S/obj/$1"; build "$1" >"$S/base/$1.new"; mv "$S/base/$1.new" "$S/base/$1-$recipe"; }

kunit_of() { # SET, at its tip
	local kept config=drivers/iommu/.kunitconfig
	git diff --quiet "$(set_range "$1")" -- drivers/iommu && return
	kept=$S/kept/kunit-$(git rev-parse "$1:drivers" "$1:include" | hash)
	[ -e $config ] || config=drivers/iommu/generic_pt/.kunitconfig
	[ -e "$kept" ] || if ./tools/testing/kunit/kunit.py run --build_dir="$S/obj/kunit" --jobs="$JOBS" --kunitconfig $config \
		--make_options "CC=ccache gcc" >"$S/log/kunit" 2>&1; then grep -o 'Ran [0-9]* tests.*' "$S/log/kunit" | tail -n 1 >"$kept"; fi
	if [ -s "$kept" ]; then echo "KUnit ok  $(cat "$kept")"; else grep -a -A 5 FAILED "$S/log/kunit" | tail -n 15; echo "KUnit FAIL"; fi | tee -a "$BUILD/series/table"
}

# ---- Each set, and the whole

# Whoever gets a mailbox and has what it needs ends with the set's own tree. A set has at
# most 14 patches.
inside_mailbox() {
	local name rc=0
	sets_in /tmp/sets
	for name in $(set_names); do
		if ! bare_tree "${name}~$(set_count "$name")" || ! git am -q --empty=drop "$BUILD/$name.mbox" || ! git diff --quiet HEAD "$name"; then
			echo "$name: its mailbox does not apply, or gives another tree"
			rc=1
		fi
		[ "$(set_count "$name")" -le 14 ] || { echo "$name has $(set_count "$name") patches, more than 14"; rc=1; }
	done
	# The whole, as README has it
	if ! bare_tree base || ! git am -q "$TOP"/patches/*/*.patch || ! git diff --quiet HEAD series; then echo "git am patches/*/*.patch is not the series"; rc=1; fi
	echo "$(git rev-list --count base..HEAD) patches in $(set_names | wc -l) sets"
	return $rc
}

inside_quilt() {
	local f files
	export GIT_DIR=$BASE_DIR/git
	mkdir /tmp/quilt && cd /tmp/quilt || exit
	git diff --name-only -z --diff-filter=a base series | xargs -0 git archive base -- | tar -x
	QUILT_PATCHES=/checkout/patches QUILT_SERIES=/checkout/series.txt quilt push -a --fuzz=0 >/tmp/quilt.out 2>&1 || { tail /tmp/quilt.out; return 1; }
	mapfile -t files < <(git diff --name-only base series)
	for f in "${files[@]}"; do git show "series:$f" | cmp - "$f" || return 1; done
	echo "$(grep -c '^Applying patch' /tmp/quilt.out) patches, ${#files[@]} files as in the series"
}

# ok unless something is new; the last line counts
news() { comm -13 "$1" "$2" | tee /tmp/news; echo "$(wc -l <"$1") reports of the base, $(wc -l </tmp/news) more"; [ ! -s /tmp/news ]; }

inside_kernel_doc() {
	local files
	export GIT_DIR=$BASE_DIR/git
	mapfile -t files < <(git diff --name-only base series | grep -E '^(drivers|include)/.*\.[ch]$')
	printf '%s\n' '/**' ' * planted() - One argument is described' ' * @a: this one' ' */' 'int planted(int a, int b)' '{' '	return a + b;' '}' >/tmp/planted.c
	/src/linux/tools/docs/kernel-doc -none -Wall /tmp/planted.c >/tmp/said 2>&1
	grep -q "Warning:.*'b'" /tmp/said || { echo "kernel-doc does not see a planted mistake"; return 1; }
	kernel_doc base "${files[@]}" >/tmp/kd.base
	kernel_doc series "${files[@]}" >/tmp/kd.series
	news /tmp/kd.base /tmp/kd.series
}

# The touched files as they are in the kernel of make check. The base says nothing of
# them, so they may say nothing; and a planted mistake is found.
inside_sparse() {
	local f o="" args=(-s O=/obj C=2 CHECK=/checkout/scripts/sparse.sh)
	[ -e /obj/vmlinux ] || { echo "no kernel is built yet"; return 0; }
	cd /src/linux || return 1
	for f in $(git --git-dir="$BASE_DIR/git" diff --name-only base series -- 'drivers/*.c'); do
		[ ! -e "/obj/${f%.c}.o" ] || o+="${f%.c}.o "
	done
	mkdir /tmp/planted
	echo 'obj-m := planted.o' >/tmp/planted/Kbuild
	printf '%s\n' 'int planted(int __user *p);' 'int planted(int __user *p)' '{' '	return *p;' '}' >/tmp/planted/planted.c
	export KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_USER=vfio KBUILD_BUILD_HOST=vfio
	make "${args[@]}" M=/tmp/planted planted.o >/tmp/said 2>&1
	grep -q '^sparse:.*dereference of noderef' /tmp/said || { echo "sparse does not see a planted mistake"; return 1; }
	# shellcheck disable=SC2086 # words
	make "${args[@]}" $o 2>&1 | tee /tmp/said
	echo "$(wc -w <<<"$o") files, $(grep -c '^sparse:' /tmp/said) reports"
	! grep -q '^sparse:' /tmp/said
}

# A function that nobody uses, an address space, a check that is not needed, planted at
# the tip: gcc, clang, sparse and coccinelle see them.
inside_planted() {
	local f=drivers/vfio/vfio_iommu_type1.c v
	moving_tree
	git checkout -q -f series
	cp $f /tmp/planted.c && rm $f
	{ cat /tmp/planted.c && printf '%s\n' 'static int planted(int __user *p)' '{' '	return *p;' '}'; } >$f
	for v in gcc clang; do kmake $v ${f%.c}.o; done >/tmp/said 2>&1
	git checkout -q -f -- $f
	grep planted /tmp/said
	grep -qE '^sparse:.*(different address spaces|dereference of noderef)' /tmp/said || { echo "sparse is not looking"; return 1; }
	[ "$(grep -c 'planted.*-Wunused-function' /tmp/said)" -ge 2 ] || { echo "gcc or clang does not see unused functions"; return 1; }
	f=drivers/vfio/planted.c
	printf '%s\n' '#include <linux/slab.h>' 'void planted(void *p);' 'void planted(void *p)' '{' '	if (p)' '		kfree(p);' '}' >$f
	cocci drivers/vfio COCCI=scripts/coccinelle/free/ifnullfree.cocci >/tmp/said 2>&1
	rm $f
	grep -q 'planted.c.*WARNING' /tmp/said || { tail -n 3 /tmp/said; echo "coccinelle is not looking"; return 1; }
}
cocci() { make -s -C "$S/src" O="$S/obj/gcc" J="$JOBS" coccicheck MODE=report "M=$1" "${@:2}"; }
all_cocci() { local d; for d in $dirs; do cocci "${d%/}" || return 1; done; }
all_docs() { rm -rf "$S/obj/docs" && make -C "$S/src" O="$S/obj/docs" SPHINXDIRS="userspace-api driver-api" htmldocs; }

# What coccicheck, or sphinx, says of the tip and did not say of the base
inside_compared() { # cocci|docs
	local t
	moving_tree
	for t in base series; do
		git checkout -q -f $t
		"all_$1" >"$S/log/$1" 2>&1 || { tail "$S/log/$1"; return 1; }
		grep -aE '^[^ ]+\.[ch]:[0-9]+|(WARNING|ERROR|CRITICAL|warning|error):' "$S/log/$1" |
			sed -E "s,$S/src/,,; s/:[0-9]+(:?[-0-9]*)?:/:/" | sort -u >"/tmp/$t.said"
	done
	news /tmp/base.said /tmp/series.said
}

# Every function that the series exports has a user outside of its own file.
inside_used() {
	local s users rc=0 all=0 tests=""
	export GIT_DIR=$BASE_DIR/git
	for s in $(git diff base series -- drivers include | sed -nE 's/^\+EXPORT_SYMBOL[A-Z_]*\(([a-z0-9_]*).*/\1/p'); do
		all=$((all + 1))
		users=$(git grep -lw "$s" series -- 'drivers/*.c' include/linux/iommu.h)
		[ "$(wc -l <<<"$users")" -ge 2 ] || { echo "$s is used nowhere"; rc=1; }
		[ "$(grep -vc kunit <<<"$users")" -ge 2 ] || tests+=" $s"
	done
	echo "$all functions; only tests use:${tests:- none}"
	return $rc
}

# 7.2 as Debian has it, of which only the touched directories are kept. What does not
# apply there is in scripts/not-in-7.2, each with its reason.
inside_older() {
	local dir=/cache/linux-7.2 p failed=""
	if [ ! -d $dir ]; then
		rm -rf $dir.tmp
		mkdir -p $dir.tmp/src && cd $dir.tmp || return 1
		apt-get -q -o APT::Update::Error-Mode=any update && apt-get -q download linux-source-7.2 || return 1
		dpkg-deb -f linux-source-7.2_*.deb Version >version
		dpkg-deb --fsys-tarfile linux-source-7.2_*.deb | tar -xO ./usr/src/linux-source-7.2.tar.xz |
			tar -xJ -C src --strip-components=1 --wildcards '*/drivers/iommu' '*/drivers/vfio' '*/include/linux' '*/include/uapi/linux' \
				'*/include/trace' '*/tools/testing/selftests/vfio' '*/Documentation/userspace-api' '*/Documentation/driver-api' '*/MAINTAINERS' || return 1
		rm linux-source-7.2_*.deb
		mv $dir.tmp $dir
	fi
	cp -r $dir/src /tmp/older && cd /tmp/older && git init -q || return 1
	for p in $(patches); do git apply "/checkout/patches/$p" || failed+="${p#*/*-}"$'\n'; done
	echo "$(cat $dir/version): all apply but these: ${failed//$'\n'/ }"
	diff <(sort <<<"${failed%$'\n'}") <(sed '/^#/d; s/ .*//; s/$/.patch/' /checkout/scripts/not-in-7.2 | sort)
}

inside_or_go_on "$@"

prepare
"$TOP/scripts/build-env.sh" || exit
"$TOP/scripts/tree.sh" apply || exit
out=$BUILD/series begin=$SECONDS failed=0 passed=0
rm -rf "$out"
mkdir -p "$out"

one() { # NAME COMMAND...: a check; its output is shown when it fails
	local start=$SECONDS name=$1
	if "${@:2}" >"$out/log" 2>&1 </dev/null; then
		say "ok      $name ($(hms $((SECONDS - start)))) $(tail -n 1 "$out/log" | cut -c1-70)"
		passed=$((passed + 1))
	else
		say "not ok  $name ($(hms $((SECONDS - start))))"
		tail -n 15 "$out/log" | cut -c1-200 | sed 's/^/        /'
		failed=$((failed + 1))
	fi
}

one "recipients, disclosure" "$TOP/scripts/send.sh" check
"$TOP/scripts/export.sh" mbox "Series Check <check@localhost>" >"$out/log" 2>&1 || { tail -n 3 "$out/log"; exit 1; }
one "git am of each mailbox, and of all patches" inside mailbox
one "quilt push -a" inside quilt
one "kernel-doc of the touched files" inside kernel_doc
one "sparse on the touched files" inside sparse

if [ "${1:-}" != set ]; then
	sets=$#
	# shellcheck disable=SC2046 # words
	[ $# != 0 ] || set -- $(set_names)
	"$TOP/scripts/checkpatch.sh" >"$out/checkpatch"
	grep -q "^$(patches | wc -l) patches checked" "$out/checkpatch" || { say "not ok  checkpatch did not look at all patches"; failed=$((failed + 1)); }
	# shellcheck disable=SC2086 # words
	{ printf '%-44s' patch && printf '%-11s' $columns && echo; } | tee "$out/table"
	enter env VARIANTS="$variants" /checkout/scripts/check-series.sh inside rows "$@" || failed=$((failed + 1))
	[ "$(grep -c '^[0-9]' "$out/table")" = "$(patches | grep -cE "^($(tr ' ' '|' <<<"$*"))/")" ] || { say "not ok  the table is not complete"; failed=$((failed + 1)); }
	if [ $sets = 0 ]; then
		one "planted mistakes are seen" inside planted
		one "what is exported is used" inside used
		one "7.2 takes it as well" inside older
		one "coccicheck" inside compared cocci
		one "htmldocs" inside compared docs
	fi
	say
	cat "$out/table"
	passed=$((passed + $(grep -ow ok "$out/table" | wc -l))) failed=$((failed + $(grep -ow FAIL "$out/table" | wc -l)))
	say "# $(hms $((SECONDS - begin))) in all"
fi
say "$passed passed, $failed failed"
[ $failed = 0 ]
