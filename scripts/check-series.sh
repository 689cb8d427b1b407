#!/bin/bash
# usage: check-series.sh | check-series.sh set
#
# What a maintainer checks before reading: every patch alone, what stands at the tip
# against the base, and the set as a mailbox and for quilt. Ends with a table, a row a
# patch, a column a check. `set` is the part that takes seconds, for make check.
#
# Every patch is built from a source tree that moves through the series, in an object
# directory for each variant below, so that only what a patch touches is compiled. What
# came of it is kept in the cache, by the trees before and after the patch.
# VARIANTS="gcc off" does fewer of them.
. "$(dirname "$0")/lib.sh"
set +e

all="gcc clang arm64 i386 off bare mod"
variants=${VARIANTS:-$all}
columns="applies $variants sparse selftests checkpatch kernel-doc"
dirs="drivers/iommu/ drivers/vfio/"
options="64BIT SMP MODULES PRINTK BUG NET MULTIUSER EVENTFD EPOLL EXPERT COMPILE_TEST DEBUG_KERNEL
	RUNTIME_TESTING_MENU FAULT_INJECTION PCI PCI_MSI ACPI X86_X2APIC X86_PAE HIGHMEM64G IRQ_REMAP
	FTRACE ENABLE_DEFAULT_TRACERS IOMMU_SUPPORT INTEL_IOMMU AMD_IOMMU ARM_SMMU_V3 IOMMUFD IOMMUFD_TEST
	IOMMU_DIRTY_LOG GENERIC_PT DEBUG_GENERIC_PT IOMMU_PT IOMMU_PT_AMDV1 IOMMU_PT_VTDSS IOMMU_PT_RISCV64 IOMMU_PT_X86_64
	IOMMU_IO_PGTABLE_LPAE KUNIT IOMMU_IO_PGTABLE_LPAE_KUNIT_TEST IOMMU_PT_KUNIT_TEST
	IOVA_BITMAP_KUNIT_TEST IOMMU_DIRTY_LOG_KUNIT_TEST VFIO VFIO_GROUP VFIO_CONTAINER VFIO_DEVICE_CDEV VFIO_PCI"

kernel='^(drivers|include)/' user='^(tools/testing/selftests|include/uapi)/'

patches() { sed '/^#/d; /^[[:space:]]*$/d' "$TOP/series.txt"; }

# ---- In the environment. $S: the moving tree (src), objects (obj), what is kept (kept).

# The options of a variant: off has iommufd, but no container, no KUnit and no tracing;
# bare has neither iommufd nor VFIO (which selects the container where there is no
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

kmake() {
	local args=(-C "$S/src" -k "O=$S/obj/$1" W=1)
	case $1 in
	gcc) args+=(C=1 "CHECK=$S/sparse") ;;
	clang) args+=(CC=clang-17) ;;
	arm64) args+=(ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-) ;;
	i386) args+=(ARCH=i386) ;;
	esac
	shift
	make "${args[@]}" "$@"
}

# A variant that is not what its name says would prove nothing.
is_true() {
	local off="" on=CONFIG_IOMMU_SUPPORT=y
	case $1 in
	off) off='CONFIG_\(IOMMU_DIRTY_LOG\|VFIO_CONTAINER\|KUNIT\|TRACEPOINTS\)=' on=CONFIG_IOMMUFD=y ;;
	bare) off='CONFIG_\(IOMMUFD_DRIVER\|VFIO\|KUNIT\)=' ;;
	mod) on=CONFIG_VFIO_IOMMU_TYPE1=m ;;
	*) on=CONFIG_VFIO_IOMMU_TYPE1=y ;;
	esac
	if ! grep -q "^$on\$" "$S/obj/$1/.config" || { [ -n "$off" ] && grep "^$off" "$S/obj/$1/.config"; }; then
		echo "error: the configuration of $1 is not what it should be"
		return 1
	fi
}

# Modules that use the dirty log or an IOVA bitmap find these exported, in a namespace
# that they import. modpost would say so, but only with a whole kernel.
modules_link() {
	local o used exported missing rc=0
	exported=$(find drivers/iommu -name '*.o' -print0 | xargs -0 nm 2>/dev/null | sed -n 's/.* __export_symbol_//p')
	for o in drivers/vfio/vfio_iommu_type1.o drivers/iommu/{iommu-dirty-log-kunit,iommufd/iova_bitmap_kunit}.o; do
		[ -e "$o" ] || continue
		used=$(nm -u "$o" | grep -oE '(iommu_dirty_log|iova_bitmap)_.*')
		missing=$(comm -23 <(sort <<<"$used") <(sort <<<"$exported"))
		if [ -n "$missing" ]; then
			echo "error: $o: not exported: ${missing//$'\n'/ }"
			rc=1
		fi
		! grep -q iova_bitmap_ <<<"$used" || grep -qa import_ns=IOMMUFD "$o" || {
			echo "error: $o: imports no namespace IOMMUFD"
			rc=1
		}
	done
	return $rc
}

# build VARIANT COMMIT KEPT: compile what differs; keep `ok` or `FAIL` and what was said
# that was not said of the base. The base itself has no KEPT of its own: it says what it says.
build() {
	local v=$1 c=$2 kept=$3 log=$S/log/$1 rc=0
	mkdir -p "$S/obj/$v"
	{
		if [ "$v" = selftests ]; then
			# Objects left from an earlier run need headers of later patches.
			rm -rf "$S/obj/$v/kselftest"
			make -s -C "$S/src" O="$S/obj/$v" ARCH=x86 headers &&
				make -s -C "$S/src/tools/testing/selftests" O="$S/obj/$v" TARGETS=vfio INSTALL_PATH="$S/obj/$v/install" install || rc=1
		else
			if [ ! -e "$S/obj/$v/.config" ] || git diff --name-only "$c~" "$c" 2>/dev/null | grep -q Kconfig ||
				! fragment "$v" | cmp -s "$S/obj/$v/fragment"; then
				fragment "$v" >"$S/obj/$v/fragment"
				kmake "$v" -s KCONFIG_ALLCONFIG="$S/obj/$v/fragment" allnoconfig
			fi
			is_true "$v" || rc=1
			# shellcheck disable=SC2086 # words
			kmake "$v" $dirs || rc=1
			[ "$v" != mod ] || (cd "$S/obj/$v" && modules_link) || rc=1
		fi
	} >"$log" 2>&1
	grep -aE '(^|: )(warning|error|fatal error): |^make.*\*\*\*' "$log" | sed -E 's/:[0-9]+(:[0-9]+)?:/:/' | sort -u >"$log.said"
	if [ "$c" = base ]; then
		cp "$log.said" "$kept.tmp"
	else
		comm -13 "$S/kept/base-$v-$BASE" "$log.said" >"$log.new"
		# sparse has a column of its own
		if [ "$v" = gcc ]; then
			grep '^sparse:' "$log.new" >"$log.sparse"
			sed -i '/^sparse:/d' "$log.new"
			{ if [ -s "$log.sparse" ]; then echo FAIL; else echo ok; fi; cat "$log.sparse"; } >"${kept/gcc/sparse}"
		fi
		[ $rc = 0 ] || tail -n 3 "$log" >>"$log.new"
		{ if [ -s "$log.new" ] || [ $rc != 0 ]; then echo FAIL; else echo ok; fi; cat "$log.new"; } >"$kept.tmp"
	fi
	mv "$kept.tmp" "$kept"
}

# Bring the moving tree to a commit. Files that the commit changes become new files, so
# that everything that needs them is compiled again, whatever was compiled before.
move() {
	git read-tree -u --reset "$1" || exit 1
	[ "$1" = base ] || git diff --name-only --diff-filter=AM -z "$1~" "$1" |
		(cd "$S/src" && xargs -0 -r rm -f -- && git diff --name-only --diff-filter=AM -z "$1~" "$1" |
			xargs -0 -r git checkout-index -q -f -u --)
}

# sparse 0.6.4 knows neither of these, and misses mistakes without a word where it does
# not understand a static assert.
sparse_wrapper() {
	printf '%s\n' '#!/bin/sh' 'sparse -D__typeof_unqual__=__typeof__ "-D_Static_assert(...)=struct __sparse_sa" "$@" 2>&1 |' \
		'	sed "s/^/sparse: /" >&2' >"$1"
	chmod 755 "$1"
}

# key COMMIT: what a build of it depends on
key() { git rev-parse "$1:drivers" "$1:include" "$1~:drivers" "$1~:include" 2>&1; }
hash() { sha256sum | cut -c1-16; }

inside_tree() {
	S=/cache/$1/series
	export S GIT_DIR=/cache/$1/git GIT_INDEX_FILE=$S/index GIT_WORK_TREE=$S/src
	export GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=core.trustctime GIT_CONFIG_VALUE_0=false \
		GIT_CONFIG_KEY_1=core.checkStat GIT_CONFIG_VALUE_1=minimal
	mkdir -p "$S"/{obj,kept,log}
	if [ ! -d "$S/src" ]; then
		# Links cost nothing, and git never writes into a file that is there.
		cp -al "/cache/$1/src" "$S/src.tmp" || exit
		cp "/cache/$1/git/index" "$S/index"
		mv "$S/src.tmp" "$S/src"
	fi
	sparse_wrapper "$S/sparse"
	BASE=$({ git rev-parse "base^{tree}"; fragment gcc; fragment off; fragment bare; fragment mod; echo "$2"; } | hash)
	export BASE
	export -f build kmake fragment is_true modules_link
	export options dirs
}

# rows BASE ENV: a line for each patch and column into /checkout/build/series/cells
inside_rows() {
	inside_tree "$@"
	out=/checkout/build/series
	local c n=0 v k ks todo files f r name names cells said
	todo=
	for v in $variants selftests; do
		[ -e "$S/kept/base-$v-$BASE" ] || todo+="$v "
	done
	if [ -n "$todo" ]; then
		say "  building the base: $todo"
		move base
		xargs -n 1 -P "$JOBS" <<<"$todo" bash -c 'build "$1" base "$S/kept/base-$1-$BASE"' build
	fi
	# Objects that an earlier run left of files that the series adds: the first patches do
	# not have them yet, and for the later ones they prove nothing.
	while read -r f; do
		rm -f "$S"/obj/*/"${f%.c}.o"
	done < <(git diff --name-only --diff-filter=A base series -- 'drivers/*.c')
	mapfile -t names < <(patches)
	for c in $(git rev-list --reverse base..series); do
		name=${names[n]%.patch} n=$((n + 1)) todo=
		files=$(git diff --name-only "$c~" "$c")
		k=$({ echo "$BASE"; key "$c"; } | hash)
		ks=$({ echo "$BASE"; git rev-parse "$c:include/uapi" "$c~:include/uapi" "$c:tools/testing/selftests" "$c~:tools/testing/selftests"; } | hash)
		if grep -qE "$kernel" <<<"$files"; then
			for v in $variants; do [ -e "$S/kept/$v-$k" ] || todo+="$v "; done
		fi
		if grep -qE "$user" <<<"$files"; then
			[ -e "$S/kept/selftests-$ks" ] || todo+="selftests "
		fi
		if [ -n "$todo" ]; then
			move "$c"
			C=$c K=$k KS=$ks xargs -n 1 -P "$JOBS" <<<"$todo" bash -c \
				'k=$K; [ "$1" != selftests ] || k=$KS; build "$1" "$C" "$S/kept/$1-$k"' build
			# What nobody compiled, nobody has checked.
			[ "$variants" != "$all" ] || while read -r f; do
				ls "$S"/obj/*/"${f%.c}.o" >/dev/null 2>&1 || printf 'FAIL\n%s is compiled in no variant\n' "$f" >"$S/kept/gcc-$k"
			done < <(grep -E '^drivers/.*\.c$' <<<"$files")
		fi
		said=$out/said/$name
		: >"$said"
		cells=
		for v in $columns; do
			cell "$v" "$c" "$name" "$k" "$ks" "$files" >$out/cell
			r=$(head -n 1 $out/cell)
			[ "$r" != FAIL ] || sed "1d; s/^/$v: /" $out/cell >>"$said"
			cells+=" $r"
		done
		# shellcheck disable=SC2086 # words
		row "$name" $cells | tee -a $out/table
		cut -c1-200 "$said" | head -n 12 | sed 's/^/      /'
	done
}

# cell COLUMN COMMIT NAME KEY KEY-OF-SELFTESTS FILES: ok, FAIL or -, and what was said
cell() {
	case $1 in
	applies) verdict "$(git diff --check "$2~" "$2")" ;;
	checkpatch) verdict "$(grep "^patches/$3\.patch:" /checkout/build/series/checkpatch)" ;;
	kernel-doc) kernel_doc "$2" "$6" ;;
	selftests) if grep -qE "$user" <<<"$6"; then cat "$S/kept/selftests-$5"; else echo -; fi ;;
	*) if grep -qE "$kernel" <<<"$6"; then cat "$S/kept/$1-$4"; else echo -; fi ;;
	esac
}
verdict() { if [ -z "$1" ]; then echo ok; else printf 'FAIL\n%s\n' "$1"; fi; }

# kernel_doc COMMIT FILES: ok, FAIL or -, and what it says that it did not say of the base
kernel_doc() {
	local f new="" any=-
	while read -r f; do
		any=ok
		for t in base "$1"; do
			mkdir -p "/tmp/kd/$t/${f%/*}"
			git show "$t:$f" >"/tmp/kd/$t/$f" 2>/dev/null || : >"/tmp/kd/$t/$f"
			(cd "/tmp/kd/$t" && /src/linux/tools/docs/kernel-doc -none -Wall "$f" 2>&1) |
				sed -E 's/:[0-9]+/:/' | sort -u >"/tmp/kd/$t.said"
		done
		new+=$(comm -13 /tmp/kd/base.said "/tmp/kd/$1.said")
	done < <(grep -E '^(drivers|include)/.*\.[ch]$' <<<"$2")
	[ -z "$new" ] || any=FAIL
	printf '%s\n%s\n' $any "$new"
}

row() {
	local name=$1
	shift
	printf '%-32s' "${name:0:30}"
	printf '%-11s' "$@" | sed 's/ *$//'
	echo
}

# ---- At the tip

# A planted mistake: what looks for such must see it.
inside_awake() {
	inside_tree "$@"
	move series
	cd "$S/src" || exit
	f=drivers/vfio/vfio_iommu_type1.c
	cp $f /tmp/planted.c
	printf '%s\n' 'static int planted(int __user *p)' '{' '	return *p;' '}' >>/tmp/planted.c
	rm $f
	cp /tmp/planted.c $f
	for v in gcc clang; do kmake $v ${f%.c}.o; done >/tmp/said 2>&1
	rm $f
	git checkout-index -q -f -u -- $f
	grep planted /tmp/said
	grep -q '^sparse:.*different address spaces\|^sparse:.*dereference of noderef' /tmp/said || { echo "sparse is not looking"; return 1; }
	[ "$(grep -c 'planted.*-Wunused-function' /tmp/said)" -ge 2 ] || { echo "gcc or clang does not see unused functions"; return 1; }
}

# Every function that the series exports has a user outside of its own file; those that
# only tests use are named.
inside_used() {
	inside_tree "$@"
	local s users rc=0 all=0 tests=""
	for s in $(git diff base series -- drivers include | sed -nE 's/^\+EXPORT_SYMBOL[A-Z_]*\(([a-z0-9_]*).*/\1/p'); do
		all=$((all + 1))
		users=$(git grep -lw "$s" series -- 'drivers/*.c')
		if [ "$(wc -l <<<"$users")" -lt 2 ]; then
			echo "$s is used nowhere"
			rc=1
		elif [ "$(grep -vc kunit <<<"$users")" -lt 2 ]; then
			tests+=" $s"
		fi
	done
	echo "$all functions; only tests use:${tests:- none}"
	return $rc
}

# cocci DIR [VARIABLE=...]: what coccicheck reports of a directory of the moving tree
cocci() {
	local d=$1
	shift
	make -s -C "$S/src" O="$S/obj/gcc" J="$JOBS" coccicheck MODE=report M="$d" "$@"
}

# coccicheck, in the directories that the series touches; a planted mistake first
inside_cocci() {
	inside_tree "$@"
	local t k d f=drivers/vfio/planted.c
	move series
	printf '%s\n' '#include <linux/slab.h>' 'void planted(void *p);' 'void planted(void *p)' '{' '	if (p)' '		kfree(p);' '}' >"$S/src/$f"
	cocci "${f%/*}" COCCI="$S/src/scripts/coccinelle/free/ifnullfree.cocci" >/tmp/planted 2>&1
	rm "$S/src/$f"
	grep -q 'planted.c.*WARNING' /tmp/planted || { tail -n 3 /tmp/planted; echo "coccinelle is not looking"; return 1; }
	for t in base series; do
		k=$S/kept/cocci-$(git rev-parse $t:drivers $t:include | hash)
		[ ! -e "$k" ] || continue
		move $t
		for d in $dirs; do
			cocci "${d%/}" || return 1
		done >"$S/log/cocci" 2>&1 || { tail -n 3 "$S/log/cocci"; return 1; }
		grep -aE '^[^ ]+\.[ch]:[0-9]+' "$S/log/cocci" | sed -E "s,^$S/src/,,; s/:[0-9]+(:?[-0-9]*)?:/:/" | sort -u >"$k.tmp"
		mv "$k.tmp" "$k"
	done
	news cocci drivers include
}

# The touched books: what sphinx says of the tip and did not say of the base
inside_docs() {
	inside_tree "$@"
	local t k
	for t in base series; do
		k=$S/kept/docs-$(git rev-parse $t:Documentation $t:include $t:drivers/vfio | hash)
		[ ! -e "$k" ] || continue
		move $t
		rm -rf "$S/obj/docs"
		make -C "$S/src" O="$S/obj/docs" SPHINXDIRS="userspace-api driver-api" htmldocs >"$S/log/docs" 2>&1 ||
			{ tail "$S/log/docs"; return 1; }
		grep -E '(WARNING|ERROR|CRITICAL|warning|error):' "$S/log/docs" | sed -E "s,$S/src/,,; s/:[0-9]+(:[0-9]+)?:/:/" | sort -u >"$k.tmp"
		rm -rf "$S/obj/docs"
		mv "$k.tmp" "$k"
	done
	news docs Documentation include drivers/vfio
}

news() {
	local what=$1 a b
	shift
	a=$S/kept/$what-$(git rev-parse "${@/#/base:}" | hash) b=$S/kept/$what-$(git rev-parse "${@/#/series:}" | hash)
	comm -13 "$a" "$b" | tee /tmp/news
	echo "$(wc -l <"$a") reports of the base, $(wc -l </tmp/news) more"
	[ ! -s /tmp/news ]
}

# The fast part of that: the touched files as they are in the kernel of make check. The
# base says nothing of them, so they may say nothing; and a planted mistake is found.
inside_sparse() {
	local f o=""
	[ -e /obj/vmlinux ] || { echo "no kernel is built yet"; return 0; }
	cd /src/linux || return 1
	for f in $(GIT_DIR=/cache/$1/git git diff --name-only base series -- 'drivers/*.c'); do
		[ ! -e "/obj/${f%.c}.o" ] || o+="${f%.c}.o "
	done
	sparse_wrapper /tmp/sparse
	mkdir /tmp/planted
	echo 'obj-m := planted.o' >/tmp/planted/Kbuild
	printf '%s\n' 'int planted(int __user *p);' 'int planted(int __user *p)' '{' '	return *p;' '}' >/tmp/planted/planted.c
	export KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_USER=vfio KBUILD_BUILD_HOST=vfio
	make -s O=/obj C=2 CHECK=/tmp/sparse M=/tmp/planted planted.o >/tmp/said 2>&1
	grep -q '^sparse:.*dereference of noderef' /tmp/said || { echo "sparse does not see a planted mistake"; return 1; }
	# shellcheck disable=SC2086 # words
	make -s O=/obj C=2 CHECK=/tmp/sparse $o 2>&1 | tee /tmp/said
	echo "$(wc -w <<<"$o") files, $(grep -c '^sparse:' /tmp/said) reports"
	! grep -q '^sparse:' /tmp/said
}

inside_kernel_doc() {
	export GIT_DIR=/cache/$1/git
	printf '%s\n' '/**' ' * planted() - One argument is described' ' * @a: this one' ' */' 'int planted(int a, int b)' '{' '	return a + b;' '}' >/tmp/planted.c
	/src/linux/tools/docs/kernel-doc -none -Wall /tmp/planted.c >/tmp/said 2>&1
	grep -q "Warning:.*'b'" /tmp/said || { echo "kernel-doc does not see a planted mistake"; return 1; }
	kernel_doc series "$(git diff --name-only base series)" | tee /tmp/said
	[ "$(head -n 1 /tmp/said)" = ok ]
}

# ---- The set

same_tree() {
	git diff --quiet "$1" series || {
		echo "what was applied is not the series"
		return 1
	}
}

# An empty work tree at the base: git am needs the files that it touches only.
am_tree() {
	export GIT_COMMITTER_NAME=check GIT_COMMITTER_EMAIL=check@localhost
	cd / && rm -rf /tmp/am
	git clone -q --shared --no-checkout --branch series "/cache/$1/git" /tmp/am && cd /tmp/am || exit
	git fetch -q origin base:base
	git update-ref --no-deref HEAD base
	git read-tree base
}

inside_am() {
	am_tree "$1"
	git am -q --empty=drop "${2:-/checkout/build/series/mbox}" && same_tree HEAD && echo "$(git rev-list --count base..HEAD) patches"
}

# Complete, in order, with its cover letter; what b4 makes of it is the series.
inside_b4() {
	am_tree "$1"
	local n
	n=$(patches | wc -l)
	mkdir /tmp/b4
	cover=$(sed -n 's/^Message-I[dD]: *<\(.*\)>/\1/p' /checkout/build/series/mbox | head -n 1)
	b4 --offline-mode -n --no-stdin am -m /checkout/build/series/mbox -o /tmp/b4 "$cover" >/tmp/b4.out 2>&1 || { cat /tmp/b4.out; return 1; }
	cat /tmp/b4.out
	! grep -E 'ERROR|missing' /tmp/b4.out || return 1
	grep -q "^Total patches: $n\$" /tmp/b4.out || { echo "not $n patches"; return 1; }
	ls /tmp/b4/*.cover >/dev/null || return 1
	inside_am "$1" /tmp/b4/*.mbx
}

inside_shazam() {
	am_tree "$1"
	b4 --offline-mode -n --no-stdin shazam -m /checkout/build/series/mbox >/tmp/b4.out 2>&1 || { cat /tmp/b4.out; return 1; }
	same_tree HEAD && echo "$(git rev-list --count base..HEAD) patches"
}

inside_quilt() {
	am_tree "$1"
	local files
	export GIT_DIR=/tmp/am/.git
	mapfile -t files < <(git diff --name-only base series)
	mkdir /tmp/quilt
	cd /tmp/quilt || exit
	git diff --name-only -z --diff-filter=a base series | xargs -0 git archive base -- | tar -x
	QUILT_PATCHES=/checkout/patches QUILT_SERIES=/checkout/series.txt quilt push -a --fuzz=0 >/tmp/quilt.out 2>&1 || { tail /tmp/quilt.out; return 1; }
	for f in "${files[@]}"; do
		git show "series:$f" | cmp - "$f" || return 1
	done
	tail -n 1 /tmp/quilt.out
	echo "$(grep -c '^Applying patch' /tmp/quilt.out) patches, ${#files[@]} files as in the series"
}

# A letter that b4 and a mail client thread: one root, everything else answers it, all
# numbered in order.
inside_thread() {
	python3 - <<-'P'
		import mailbox, re, sys
		n, root, ids = 0, None, set()
		box = list(mailbox.mbox("/checkout/build/series/mbox"))
		for m in box:
		    got = re.match(r"\[PATCH(?: v(\d+))? (\d+)/(\d+)\] ", re.sub(r"\s+", " ", m["Subject"]))
		    assert got, m["Subject"]
		    assert int(got[2]) == n and int(got[3]) == len(box) - 1, f"{m['Subject']}: expected number {n}"
		    assert m["Message-ID"] not in ids, "a Message-ID twice"
		    ids.add(m["Message-ID"])
		    if n == 0:
		        root = m["Message-ID"]
		        assert m["In-Reply-To"] is None
		    else:
		        assert m["In-Reply-To"] == root and m["References"].split()[-1] == root, m["Subject"]
		    n += 1
		print(f"{n} messages, one thread")
	P
}

# 7.2 as Debian has it, of which only the touched directories are kept. What does not
# apply there is in scripts/check-series.7.2, each with its reason.
inside_older() {
	local dir=/cache/linux-7.2 p failed="" expected
	if [ ! -d $dir ]; then
		rm -rf $dir.tmp
		mkdir -p $dir.tmp/src && cd $dir.tmp || return 1
		apt-get -q -o APT::Update::Error-Mode=any update && apt-get -q download linux-source-7.2 || return 1
		dpkg-deb -f linux-source-7.2_*.deb Version >version
		dpkg-deb --fsys-tarfile linux-source-7.2_*.deb | tar -xO ./usr/src/linux-source-7.2.tar.xz |
			tar -xJ -C src --strip-components=1 --wildcards \
				'*/drivers/iommu' '*/drivers/vfio' '*/include/linux' '*/include/uapi/linux' '*/include/trace' \
				'*/tools/testing/selftests/vfio' '*/Documentation/userspace-api' '*/Documentation/driver-api' '*/MAINTAINERS' || return 1
		rm linux-source-7.2_*.deb
		mv $dir.tmp $dir
	fi
	cp -r $dir/src /tmp/older && cd /tmp/older && git init -q || return 1
	while read -r p; do
		git apply "/checkout/patches/$p" 2>>/tmp/older.said || failed+="${p#*-} "
	done < <(patches)
	expected=$(sed '/^#/d; s/ .*//; s/$/.patch/' /checkout/scripts/check-series.7.2 | tr '\n' ' ')
	cat /tmp/older.said
	echo "$(cat $dir/version): of $(patches | wc -l) patches all apply but ${failed:-none}"
	[ "$failed" = "$expected" ]
}

case ${1:-} in
inside)
	what=$2
	shift 2
	"inside_$what" "$@"
	exit
	;;
esac

# ---- On the host

prepare
"$TOP/scripts/env.sh" || exit
"$TOP/scripts/tree.sh" apply || exit
base=$(basename "$(readlink -f "$BASE_DIR")")
out=$BUILD/series
rm -rf "$out"
mkdir -p "$out/said"
begin=$SECONDS failed=0 passed=0

# one NAME INSIDE [ARG...]: a check of the whole
one() {
	local start=$SECONDS name=$1
	shift
	if enter /checkout/scripts/check-series.sh inside "$1" "$base" "${@:2}" >"$out/$1.log" 2>&1 </dev/null; then
		say "ok      $name ($(hms $((SECONDS - start)))) $(tail -n 1 "$out/$1.log" | cut -c1-70)"
		passed=$((passed + 1))
	else
		say "not ok  $name ($(hms $((SECONDS - start))))"
		tail -n 15 "$out/$1.log" | cut -c1-200 | sed 's/^/        /'
		failed=$((failed + 1))
	fi
}

"$TOP/scripts/export.sh" mbox "Series Check <check@localhost>" "$out/mbox" || exit
one "git am of the mailbox" am
one "threading, numbers, prefixes" thread
one "b4 am" b4
one "b4 shazam" shazam
one "quilt push -a" quilt
one "kernel-doc of the touched files" kernel_doc
one "sparse on the touched files" sparse
if "$TOP/scripts/send.sh" check >"$out/recipients.log" 2>&1; then
	say "ok      To and Cc are get_maintainer.pl's: $(tail -n 1 "$out/recipients.log")"
	passed=$((passed + 1))
else
	say "not ok  To and Cc are get_maintainer.pl's"
	sed 's/^/        /' "$out/recipients.log"
	failed=$((failed + 1))
fi

if [ "${1:-}" != set ]; then
	key=${ENV_DIR##*/}
	"$TOP/scripts/checkpatch.sh" >"$out/checkpatch"
	grep -q "^$(patches | wc -l) patches checked" "$out/checkpatch" || { say "not ok  checkpatch did not look at all patches"; failed=$((failed + 1)); }
	# shellcheck disable=SC2086 # words
	row patch $columns | tee "$out/table"
	enter env VARIANTS="$variants" /checkout/scripts/check-series.sh inside rows "$base" "$key"
	[ "$(wc -l <"$out/table")" = $(($(patches | wc -l) + 1)) ] || { say "not ok  the table is not complete"; failed=$((failed + 1)); }
	one "a planted mistake is seen" awake "$key"
	one "what is exported is used" used "$key"
	one "7.2 takes it as well" older
	one "coccicheck" cocci "$key"
	one "htmldocs" docs "$key"
	say
	cat "$out/table"
	passed=$((passed + $(sed 1d "$out/table" | grep -ow ok | wc -l)))
	failed=$((failed + $(sed 1d "$out/table" | grep -ow FAIL | wc -l)))
	say "# $(hms $((SECONDS - begin))) in all; build/series/said has what was said of a patch"
fi
say "$passed passed, $failed failed"
[ $failed = 0 ]
