#!/bin/bash
# Build the emulators in the cache: Debian's QEMU 10.0 with the patches of lab/qemu/
# (quilt order), which teach its emulated IOMMUs to track dirty pages, and those of qemu/,
# with which it uses the dirty log itself (make migrate), for x86_64 and aarch64, with no
# more devices than lab/qemu/*.mak name. `mutant` is the same with
# lab/migrate/mutant.patch.
# Prints nothing when they are there already, or when QEMU= names another.
. "$(dirname "$0")/lib.sh"
[ -z "${QEMU:-}" ] || exit 0
prepare_unlocked
"$TOP/scripts/build-env.sh"
[ ! -d "$QEMU_DIR" ] || exit 0
hold qemu
[ ! -d "$QEMU_DIR" ] || exit 0

need_room 2500 "QEMU's build"
tmp=$CACHE/tmp.qemu
rm -rf "$tmp"
mkdir -p "$tmp"
long QEMU 6 enter bash -euc '
	cd /cache/tmp.qemu
	apt-get -q -o APT::Update::Error-Mode=any -o Acquire::Retries=2 update
	version=$(apt-cache showsrc qemu | sed -n "s/^Version: //p" | grep "^1:10\.0\." | sort -V | tail -n 1)
	apt-get -q source --download-only "qemu=$version"
	dpkg-source --no-check -x qemu_*.dsc src
	cd src
	for series in lab/qemu qemu; do
		for patch in $(sed "/^#/d" /checkout/$series/series); do
			patch -p1 --fuzz=0 <"/checkout/$series/$patch"
		done
	done
	for arch in x86_64 aarch64; do
		cp /checkout/lab/qemu/$arch.mak configs/devices/$arch-softmmu/lab.mak
	done
	mkdir ../obj
	cd ../obj
	../src/configure --target-list=x86_64-softmmu,aarch64-softmmu --without-default-features \
		--without-default-devices --with-devices-x86_64=lab --with-devices-aarch64=lab \
		--enable-tcg --enable-fdt=system --disable-install-blobs
	ninja -j "$JOBS" qemu-system-x86_64 qemu-system-aarch64
	./qemu-system-x86_64 --version
	cp qemu-system-x86_64 good
	patch -d ../src -p1 --fuzz=0 </checkout/lab/migrate/mutant.patch
	ninja -j "$JOBS" qemu-system-x86_64
	strip -o mutant qemu-system-x86_64
' || die "QEMU could not be built"
mkdir "$tmp/out"
mv "$tmp/obj/good" "$tmp/out/qemu-system-x86_64"
mv "$tmp/obj/qemu-system-aarch64" "$tmp/obj/mutant" "$tmp/out/"
mv "$tmp/out" "$QEMU_DIR"
