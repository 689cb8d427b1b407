#!/bin/bash
# usage: in-chroot.sh COMMAND [ARG...]
#
# Run a command inside the build environment. Everything has the same path there
# on every host and for every checkout, so that objects built for one checkout
# serve the next: /checkout (this tree), /cache, /src/linux and /obj (below
# $BASE_DIR, see tree.sh). The root is read-only;
# mounts and processes end with the command. No root yet: see build-env.sh.
. "$(dirname "$0")/lib.sh"

[ -d "$ENV_DIR" ] || die "no build environment in $CACHE yet: make tree makes it"
BASE_NAME=$(basename "$(readlink -f "$BASE_DIR")")
export TOP CACHE ENV_DIR JOBS BASE_DIR BASE_NAME
exec unshare --mount --pid --fork --kill-child --propagation private bash -euc '
	r=$ENV_DIR
	mount --bind "$r" "$r"
	cd / && cd "$r"
	mount -o remount,bind,ro "$r"
	# A /dev of its own: nothing that runs here as root can harm the nodes of the host.
	mount -t tmpfs -o mode=755 tmpfs "$r/dev"
	for d in null zero full random urandom tty; do
		: >"$r/dev/$d"
		mount --bind "/dev/$d" "$r/dev/$d"
	done
	mkdir "$r/dev/shm" "$r/dev/pts"
	mount -t tmpfs tmpfs "$r/dev/shm"
	mount -t devpts -o newinstance,ptmxmode=666 devpts "$r/dev/pts"
	ln -s pts/ptmx "$r/dev/ptmx"
	ln -s /proc/self/fd "$r/dev/fd"
	for d in stdin:0 stdout:1 stderr:2; do ln -s "/proc/self/fd/${d#*:}" "$r/dev/${d%:*}"; done
	mount -t proc proc "$r/proc"
	mount -t sysfs -o ro sysfs "$r/sys"
	for d in tmp run root var/tmp var/cache/apt var/lib/apt/lists; do mount -t tmpfs tmpfs "$r/$d"; done
	if [ -e /etc/resolv.conf ]; then mount --bind /etc/resolv.conf "$r/etc/resolv.conf"; fi
	mount --bind "$TOP" "$r/checkout"
	mount --bind "$CACHE" "$r/cache"
	if [ -d "$BASE_DIR" ]; then
		mount --bind "$BASE_DIR/src" "$r/src/linux"
		mount --bind "$BASE_DIR/obj" "$r/obj"
	fi
	cd /
	exec chroot "$r" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TERM=dumb \
		JOBS="$JOBS" CACHE=/cache BASE_DIR="/cache/$BASE_NAME" "$@"
' in-chroot "$@"
