#!/bin/bash
# usage: migrate.sh [short]
#
# Migrate a virtual machine whose network card is assigned to it with vfio-pci, from one
# QEMU to another, both in the guest that make run boots; it is the QEMU that build-qemu.sh
# builds. See lab/migrate/migrate.c and lab/migrate/guest.sh.
# short: two migrations, for make check.
# PLAN=FILE: other ones, a line each, as in lab/migrate/plan (lab/migrate/guest.sh has
# their meaning).
# Prints TAP; the figures go to build/migrate.tsv and, of the whole plan, migrate.svg.
. "$(dirname "$0")/lib.sh"
prepare
: >"$LOGS/migrate.tap"
if [ -n "${QEMU:-}" ]; then
	say "skip    a migration: it needs the QEMU that build-qemu.sh builds"
	exit 0
fi
"$TOP/scripts/build-qemu.sh"
"$TOP/scripts/build-kernel.sh"

plan=${PLAN:-$TOP/lab/migrate/plan${1:+.$1}}
mkdir -p "$BASE_DIR/obj/migrate"
cp "$plan" "$BASE_DIR/obj/migrate/plan"
[ -e "$BASE_DIR/obj/boot/initramfs" ] || die "build-kernel.sh made no initramfs"
long "migration's initramfs" 1 enter bash -euc '
	qemu=$1
	dir=/obj/migrate
	rm -rf $dir/module
	mkdir $dir/module
	cp /checkout/lab/migrate/igb_migration.c $dir/module/
	echo "obj-m := igb_migration.o" >$dir/module/Kbuild
	cd /src/linux
	make -s O=/obj M=$dir/module modules
	root=/tmp/root
	mkdir -p $root/migrate $root/usr/{lib,lib64}
	for lib in lib lib64; do ln -s usr/$lib $root/$lib; done
	cd /checkout/lab/migrate
	gcc -m32 -march=i586 -Os -Wall -Werror -ffreestanding -fno-pic -fno-stack-protector -fno-builtin \
		-nostdlib -static -Wl,-T,firmware.lds,--build-id=none,-z,noexecstack -o /tmp/firmware entry.S firmware.c
	objcopy -O binary /tmp/firmware $root/migrate/firmware
	gcc -O2 -Wall -Werror -static -o $root/migrate/migrate migrate.c
	gcc -O2 -Wall -Werror -shared -fPIC -o $root/migrate/fail_clear.so fail_clear.c
	cp guest.sh $dir/plan $dir/module/igb_migration.ko $root/migrate/
	strip -o $root/migrate/qemu "$qemu/qemu-system-x86_64"
	cp "$qemu/mutant" $root/migrate/
	/usr/lib/dracut/dracut-install -D $root -l "$qemu/mutant"
	rm -rf $root/cache
	cd $root
	find . -print0 | sort -z | cpio --quiet -0 -o -H newc | cat /obj/boot/initramfs - >$dir/initramfs
' migrate "/cache/${QEMU_DIR##*/}" || die "the initramfs of the migration could not be made"

rc=0
for log in hw pessimistic no-flush; do
	grep -q "^$log" "$plan" || continue
	args=("$log" migrate) variant=
	if [ $log = no-flush ]; then
		# The kernel of make mutants, with one fault from the start
		variant=mutants
		if [ ! -e "$BASE_DIR/obj-mutants/boot/bzImage" ]; then
			say "skip    a kernel that does not flush: make mutants builds it"
			continue
		fi
		n=$(cd "$TOP/lab/mutants" && printf '%s\n' *.diff | grep -n '^type1-clear-no-flush' | cut -d: -f1)
		args=(hw migrate only=no-flush "mutant=$n")
	fi
	LIMIT=${LIMIT:-7200} VARIANT=$variant boot "$LOGS/migrate-$log.tap" "${args[@]}" || rc=1
	cat "$LOGS/migrate-$log.tap" >>"$LOGS/migrate.tap"
done
{
	printf 'name\tmode\tleaf\tpattern\tseed\toutcome\tfloor\tpages\trounds\tstopped\tframes\tread_clear\tread\tclear\n'
	sed -n 's/^row\t//p' "$LOGS/migrate.tap"
} >"$BUILD/migrate.tsv"
if [ "$plan" = "$TOP/lab/migrate/plan" ]; then enter gnuplot /checkout/lab/migrate/figure.gnuplot || rc=1; fi
exit $rc
