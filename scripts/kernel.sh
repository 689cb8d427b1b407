#!/bin/bash
# usage: kernel.sh [debug|kcsan]
#
# Build the patched kernel, VFIO's selftests and an initramfs to run them from, in the
# cache: objects in $BASE_DIR/obj, results in $BASE_DIR/obj/boot. Only what changed is
# built again; where commit, configuration and recipe are the same, nothing is run.
# With a name: the same in obj-NAME, kernel-NAME.config on top, and with splat.ko.
. "$(dirname "$0")/lib.sh"
prepare
"$TOP/scripts/tree.sh" apply

variant=${1:-}
name=kernel${variant:+-$variant}
dir=obj${variant:+-$variant}
boot=$BASE_DIR/$dir/boot
# In the environment
obj=/obj configs=(/checkout/scripts/kernel.config)
if [ -n "$variant" ]; then
	obj=/cache/$(basename "$(readlink -f "$BASE_DIR")")/$dir
	configs+=("/checkout/scripts/$name.config")
fi
key=$(cat "$BASE_DIR/git/refs/heads/series")-$(key_of "$TOP"/scripts/{packages,env.sh,kernel.config,kernel.sh,guest.sh} \
	${variant:+"$TOP/scripts/$name.config" "$TOP/scripts/splat.c"})
if [ "$(cat "$boot/key" 2>/dev/null)" = "$key" ]; then
	say "the $name is built already"
	exit 0
fi
need_room 2000 "the kernel's objects"
rm -rf "$boot" "$boot.tmp"
mkdir -p "$BASE_DIR/$dir"
about=1
[ -e "$BASE_DIR/$dir/vmlinux" ] || about=$([ -z "$variant" ] && echo 10 || echo 15)

long "$name" "$about" enter bash -euc '
	obj=$1
	shift
	# Fixed, so that nothing is built again for their sake.
	export KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_USER=vfio KBUILD_BUILD_HOST=vfio
	cd /src/linux
	for file in "$@" tools/testing/selftests/vfio/config{,.x86_64}; do
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
	make O=$obj -j "$JOBS" "${args[@]}" bzImage
	# For the test module, which fits just this kernel.
	make -s O=$obj "${args[@]}" modules_prepare
	cp $obj/vmlinux.symvers $obj/Module.symvers
	make -s O=$obj headers
	rm -rf $obj/install
	make -s -C tools/testing/selftests O=$obj KDIR=$obj TARGETS=vfio -j "$JOBS" INSTALL_PATH=$obj/install install
	if [ $# -gt 1 ]; then
		rm -rf $obj/splat
		mkdir $obj/splat
		cp /checkout/scripts/splat.c $obj/splat/
		echo "obj-m := splat.o" >$obj/splat/Kbuild
		make O=$obj M=$obj/splat modules
	fi
' kernel "$obj" "${configs[@]}" || die "the kernel could not be built"

long initramfs 1 enter bash -euc '
	obj=$1
	root=/tmp/initramfs
	mkdir -p $root/usr/{bin,sbin,lib,lib64} $root/{dev,proc,sys,tmp,root,etc}
	for dir in bin sbin lib lib64; do ln -s usr/$dir $root/$dir; done
	ln -s /proc/self/mounts $root/etc/mtab
	/usr/lib/dracut/dracut-install -D $root -l -a bash sh awk mawk basename busybox cat chmod cp cut date dd dirname dmesg echo env \
		expr false find grep head hostname id kill ln ls mkdir mktemp mount mv nproc printf ps readlink \
		rm rmdir sed seq sleep sort stdbuf stty tail tee test timeout touch tr true umount uname uniq wc which xargs
	/usr/lib/dracut/dracut-install -D $root /usr/libexec/coreutils/libstdbuf.so
	cp -a $obj/install $root/kselftest
	find $obj/install/vfio -type f -perm /100 -print0 | xargs -0 /usr/lib/dracut/dracut-install -D $root -l
	rm -rf $root/obj $root/cache
	if [ -e $obj/splat/splat.ko ]; then cp $obj/splat/splat.ko $root/; fi
	install -m 755 /checkout/scripts/guest.sh $root/init
	cd $root
	mkdir $obj/boot.tmp
	find . -print0 | sort -z | cpio --quiet -0 -o -H newc >$obj/boot.tmp/initramfs
	cp $obj/arch/x86/boot/bzImage $obj/boot.tmp/
	echo "$2" >$obj/boot.tmp/key
	mv $obj/boot.tmp $obj/boot
' initramfs "$obj" "$key" || die "the initramfs could not be made"
