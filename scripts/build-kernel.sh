#!/bin/bash
# usage: build-kernel.sh [debug|kcsan|arm64|arm64-64k]
#
# Build the patched kernel, the selftests of VFIO and (x86_64) of iommufd, and an initramfs
# to run them from, in the cache: objects in $BASE_DIR/obj, results in $BASE_DIR/obj/boot.
# Only what changed is built again; where commit, configuration and recipe are the same,
# nothing is run.
# With a name: the same in obj-NAME. debug, kcsan: kernel-NAME.config on top, and with
# splat.ko. arm64: cross-built, kernel-arm64.config instead of kernel-x86_64.config;
# arm64-64k: kernel-arm64-64k.config on top of that.
. "$(dirname "$0")/lib.sh"
prepare
"$TOP/scripts/tree.sh" apply

variant=${1:-}
name=kernel${variant:+-$variant}
dir=obj${variant:+-$variant}
boot=$BASE_DIR/$dir/boot
obj=/obj # in the environment
[ -z "$variant" ] || obj=/cache/$(basename "$(readlink -f "$BASE_DIR")")/$dir
configs=(kernel.config) image=arch/x86/boot/bzImage arch=x86_64 targets="vfio iommu" make=() splat=
case $variant in
arm64*)
	configs+=(kernel-arm64.config) image=arch/arm64/boot/Image arch=aarch64
	make=(ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-) targets=vfio
	[ "$variant" = arm64 ] || configs+=("$name.config")
	;;
?*) configs+=(kernel-x86_64.config "$name.config") splat=splat.c ;;
*) configs+=(kernel-x86_64.config) ;;
esac
key=$(cat "$BASE_DIR/git/refs/heads/series")-$(cd "$TOP/scripts" &&
	key_of packages build-env.sh build-kernel.sh guest.sh "${configs[@]}" $splat ../lab/stress/{Makefile,*.c,*.sh,modules/*})
if [ "$(cat "$boot/key" 2>/dev/null)" = "$key" ]; then
	say "the $name is built already"
	exit 0
fi
need_room 2000 "the kernel's objects"
rm -rf "$boot" "$boot.tmp"
mkdir -p "$BASE_DIR/$dir"
about=1
[ -e "$BASE_DIR/$dir/vmlinux" ] || about=$([ -z "$variant" ] && echo 10 || echo 15)

with=(env "${make[@]}" obj="$obj" image="$image" arch="$arch" splat="$splat" targets="$targets" key="$key")
long "$name" "$about" enter "${with[@]}" bash -euc '
	export -n obj image arch splat targets key # not for make
	# Fixed, so that nothing is built again for their sake.
	export KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_USER=vfio KBUILD_BUILD_HOST=vfio
	cd /src/linux
	for file in "${@/#//checkout/scripts/}" tools/testing/selftests/vfio/config{,.$arch}; do
		if [ -e $file ]; then grep -E "^(# )?CONFIG_" $file; fi
	done | sort -u >$obj/wanted.config
	if [ ! -e $obj/.config ] || ! cmp -s $obj/wanted.config $obj/merged.config; then
		make -s O=$obj KCONFIG_ALLCONFIG=$obj/wanted.config allnoconfig
		cp $obj/wanted.config $obj/merged.config
	fi
	grep -vxFf $obj/.config $obj/wanted.config >$obj/lacking || :
	if [ -s $obj/lacking ]; then
		echo "the configuration does not take:" && cat $obj/lacking
		exit 1
	fi
	args=()
	if [[ $* = *kcsan* ]]; then
		# Races are looked for in these files alone, but there nearly all the time: in
		# all of the kernel, one between two calls is hardly ever met.
		args+=(KCSAN_SANITIZE=n)
		for file in drivers/vfio/*.c drivers/iommu/{,generic_pt/fmt/,iommufd/}*.c lib/{bitmap,find_bit}.c; do
			name=$(basename "$file" .c)
			# Not the one that boots: files go by their last name.
			[ "$name" = main ] || args+=("KCSAN_SANITIZE_$name.o=y")
		done
	fi
	make O=$obj -j "$JOBS" "${args[@]}" "${image##*/}"
	# For the test module, which fits just this kernel.
	make -s O=$obj "${args[@]}" modules_prepare
	cp $obj/vmlinux.symvers $obj/Module.symvers
	make -s O=$obj headers
	rm -rf $obj/install
	# Dependencies on headers of another series would stop make.
	rm -rf $obj/kselftest
	make -s -C tools/testing/selftests O=$obj TARGETS="$targets" FORCE_TARGETS=1 -j "$JOBS" INSTALL_PATH=$obj/install install
	# Under an emulator those of iommufd take longer than the default, too.
	[ ! -e $obj/install/iommu ] || cp $obj/install/vfio/settings $obj/install/iommu/
	make -s -C /checkout/lab/stress LINUX=/src/linux BUILD=$obj KDIR=$obj KHDR=$obj/usr/include
	if [ -n "$splat" ]; then
		# What the detectors are tried with: the modules of their own, and one of ours
		make O=$obj -j "$JOBS" "${args[@]}" modules
		rm -rf $obj/splat
		mkdir $obj/splat
		cp /checkout/scripts/splat.c $obj/splat/
		echo "obj-m := splat.o" >$obj/splat/Kbuild
		make O=$obj M=$obj/splat modules
	fi
' kernel "${configs[@]}" || die "the kernel could not be built"

long initramfs 1 enter "${with[@]}" bash -euc '
	root=/tmp/initramfs
	mkdir -p $root/usr/{bin,sbin,lib,lib64} $root/{dev,proc,sys,tmp,root,etc}
	for dir in bin sbin lib lib64; do ln -s usr/$dir $root/$dir; done
	ln -s /proc/self/mounts $root/etc/mtab
	cp -a $obj/install $root/kselftest
	if [ $arch = aarch64 ]; then
		cp -a /arm64/usr $root/
		ln -s mawk $root/bin/awk
		for tool in mount umount hostname which poweroff; do [ -e $root/bin/$tool ] || ln -s busybox $root/bin/$tool; done
	else
		/usr/lib/dracut/dracut-install -D $root -l -a bash sh awk mawk basename busybox cat chmod cp cut date dd dirname dmesg echo env \
			expr false find grep head hostname id kill ln ls mkdir mktemp mount mv nproc printf ps readlink \
			rm rmdir sed seq sleep sort stdbuf stty tail tee test timeout touch tr true umount uname uniq wc which xargs
		/usr/lib/dracut/dracut-install -D $root /usr/libexec/coreutils/libstdbuf.so
		find $obj/install/{vfio,iommu} -type f -perm /100 -print0 | xargs -0 /usr/lib/dracut/dracut-install -D $root -l
	fi
	rm -rf $root/obj $root/cache
	mkdir $root/modules
	if [ -n "$splat" ]; then find $obj -name "*.ko" -exec cp {} $root/modules/ \;; fi
	install -m 755 /checkout/scripts/guest.sh $root/init
	cd $root
	mkdir $obj/boot.tmp
	find . -print0 | sort -z | cpio --quiet -0 -o -H newc >$obj/boot.tmp/initramfs
	cp $obj/$image $obj/boot.tmp/
	echo "$key" >$obj/boot.tmp/key
	mv $obj/boot.tmp $obj/boot
' || die "the initramfs could not be made"
