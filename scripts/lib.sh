# Shared by the scripts beside it: paths, messages, long steps, the lock on the cache.
# shellcheck shell=bash disable=SC2034
set -euo pipefail
umask 022
export LC_ALL=C

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/vfio-dirty-log}
case $CACHE in /*) ;; *) CACHE=$PWD/$CACHE ;; esac
JOBS=${JOBS:-$(nproc)}
# What a kernel says on its console when something is wrong
COMPLAINTS='BUG:|WARNING:|Oops:|Kernel panic|general protection|blocked for more than|blocked in I/O wait|rcu.*stall|soft lockup|UBSAN:|KASAN:|list_(add|del) corruption'
BUILD=$TOP/build
LOGS=$BUILD/logs

key_of() { cat -- "$@" | sha256sum | cut -c1-12; }
# What a script makes stands in it from its first function or long step on.
recipe_of() { sed -n '/^long \|^[a-z]*() {$/,$p' "$TOP/scripts/$1"; }
ENV_DIR=$CACHE/env-$(recipe_of build-env.sh | key_of "$TOP/scripts/packages" -)
QEMU_DIR=$CACHE/qemu-$(recipe_of build-qemu.sh | key_of "$TOP/scripts/packages" - "$TOP"/lab/qemu/*.mak "$TOP"/{lab/qemu,qemu}/{series,*.patch} "$TOP/lab/migrate/mutant.patch")

# The base tree in the cache: git (repository), src (the tree that is built), obj.
# Named by the version in series.txt, or by what KERNEL= holds.
series_header() { sed -n "s/^# $1: *//p" "$TOP/series.txt" 2>/dev/null | head -n 1; }
user_git() { git -c safe.directory='*' -C "$KERNEL" "$@"; }
base_name() {
	if [ -z "${KERNEL:-}" ]; then
		series_header base | awk '{ v = $2 } END { print "linux-" (v ? v : "newest") }'
	elif [ -e "$KERNEL/.git" ]; then
		echo "linux-user-$(user_git rev-parse --short=12 'HEAD^{tree}')"
	else
		echo "linux-user-$(cd "$KERNEL" && find . -type f -printf '%P %s %T@\n' | sort | sha256sum | cut -c1-12)"
	fi
}

# Whether the tree is another one than series.txt was made on.
other_base() { [ -n "${KERNEL:-}" ] || [ "$(basename "$(readlink -f "$BASE_DIR")")" != "$(base_name)" ]; }

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
if [ -n "${KERNEL:-}" ]; then
	[ -f "$KERNEL/Kbuild" ] || die "KERNEL=$KERNEL is not a kernel tree"
	KERNEL=$(realpath -- "$KERNEL")
fi
export BASE_DIR=${BASE_DIR:-$CACHE/$(base_name)}

hms() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# What build/linux was made from, or written back to; it stands in there.
MADE_FROM=$BUILD/linux/.git/made-from
patches_key() { find "$TOP/patches" -name '*.patch' -print0 | sort -z | xargs -0 -r cat | key_of -; }
# The patches in their order, SET/FILE
patches() { sed '/^#/d; /^[[:space:]]*$/d' "$TOP/series.txt"; }

# need_room MEGABYTES WHAT: stop before a step that the disk cannot hold.
need_room() {
	local free
	free=$(($(df --output=avail -k "$CACHE" | tail -n 1) / 1024))
	[ "$free" -ge "$1" ] || die "no room for $2: $1 MB needed in $CACHE, $free MB free (CACHE= moves it)"
}

# What every script needs: root, directories, and the base tree in the cache to itself.
prepare() {
	prepare_unlocked
	hold "${BASE_DIR##*/}"
}
prepare_unlocked() {
	[ "$(id -u)" = 0 ] || die "needs root (a chroot and a private mount namespace): run it as root or with sudo"
	mkdir -p "$LOGS" "$CACHE" 2>/dev/null || die "cannot create $LOGS and $CACHE"
}

# hold NAME: a part of the cache to ourselves, until this process ends. The scripts that
# it starts inherit the lock.
hold() {
	local fd
	[[ ${HELD:-} != *" $CACHE/$1 "* ]] || return 0
	exec {fd}>"$CACHE/$1.lock"
	if ! flock -n "$fd"; then
		say "waiting for another run that uses $CACHE/$1"
		flock "$fd"
	fi
	export HELD="${HELD:-} $CACHE/$1 "
}

# On every way out: end the long step that runs, remove what is half made.
long_pid=
tmp=
finish() {
	if [ -n "$long_pid" ]; then
		# TERM first: a script among them ends its own.
		for signal in TERM TERM KILL; do
			kill -$signal -- "-$long_pid" 2>/dev/null || break
			sleep 1
		done
		wait "$long_pid" 2>/dev/null || :
	fi
	[ -z "$tmp" ] || rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# long NAME MINUTES COMMAND...: run a step that takes long, its output in
# build/logs/NAME.log; print what it is, how far it is, and of about how much.
long() {
	local name=$1 about=$2 log start pid last rc=0 tick=0
	shift 2
	log=$LOGS/${name//[^a-zA-Z0-9.-]/-}.log
	start=$SECONDS
	say "  $name: started (about $about min; log: ${log#"$TOP/"})"
	set -m # a process group of its own, for finish
	"$@" >"$log" 2>&1 </dev/null &
	set +m
	pid=$!
	long_pid=$pid
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		tick=$((tick + 1))
		if [ $((tick % 30)) = 0 ]; then
			last=$(tail -c 300 "$log" | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c1-60 || :)
			say "  $name: $(hms $((SECONDS - start))) of about $about:00  $last"
		fi
	done
	wait "$pid" || rc=$?
	long_pid=
	if [ "$rc" != 0 ]; then
		tail -n 25 "$log" | sed 's/^/    /' >&2
		warn "$name failed after $(hms $((SECONDS - start))); the whole log is ${log#"$TOP/"}"
		return "$rc"
	fi
	say "  $name: done in $(hms $((SECONDS - start)))"
}

# boot OUT ARGUMENT...: vm.sh with these arguments, what it prints in the file OUT as well.
# The emulated machine loses an interrupt now and then, and stops dead while it waits for a
# timer or loses its last words (1 of 86 boots on a busy host), or QEMU dies of an assertion
# of its own (iotlb_to_section, while a device changes its IOMMU domain): one more boot
# decides whether it was that; OUT.failed is there then. A test that fails, or a kernel that
# complains, gets no second one.
boot() {
	local out=$1 try
	shift
	rm -f "$out.failed"
	for try in 1 2; do
		if "$TOP/scripts/vm.sh" "$@" 2>&1 | tee "$out"; then
			return 0
		elif [ $try = 2 ] || ! grep -qE 'said nothing for|did not finish$|^qemu.*Assertion .* failed' "$out" ||
			grep -qE '^(# )?not ok|the kernel complained' "$out"; then
			return 1
		fi
		mv "$out" "$out.failed"
	done
}

# unexpected_skips IOMMU-LOG TAP: the tests in it that were skipped, in whole or in part,
# though the guest has all that they need. igb has SR-IOV on the arm64 machine alone; which
# log there is and how large the leaves are decides on others, and they say so.
unexpected_skips() {
	local may='# SKIP the IOMMU has no leaf larger than a page here'
	# iommufd's, whose IOMMU is a mock: variants that a case has nothing to do in
	may+='|# SKIP no entry is larger than the alignment of a range|# SKIP Skipping test for variant no_viommu'
	[[ $1 = smmuv3-* ]] || may+='|vfio_pci_sriov_uapi_test #'
	if [[ $1 = *-hw ]]; then
		may+="|# SKIP the log is the hardware's"
	else
		may+='|# SKIP the log is pessimistic|^vfio_dirty_log_(precopy|perf|split)_test #'
	fi
	sed -nE 's/^(# )?ok [0-9]+ (selftests: vfio: )?(.*)/\3/p' "$2" | grep '# SKIP' | grep -vE "$may" || :
	grep -iE '(#|:)( |[a-z_.]*:)*without (a second group|large pages)' "$2" || :
}

# can_log IOMMU: whether the emulator that QEMU= names has a machine with that IOMMU, and
# can make it track dirty pages: status 0; 1 if it cannot, 2 if it has no such machine.
can_log() {
	local device=intel-iommu,x-ssads machine=q35
	case $1 in
	amd) device=amd-iommu,x-hd ;;
	smmuv3) device=arm-smmuv3,x-httu machine=virt ;;
	esac
	[ -n "${QEMU:-}" ] || return 0
	"$QEMU" -machine help | grep "^$machine " >/dev/null || return 2
	"$QEMU" -device "${device%,*},help" | grep "${device#*,}" >/dev/null
}

# enter COMMAND...: run a command in the environment, as in-chroot.sh has it.
enter() { "$TOP/scripts/in-chroot.sh" "$@"; }

# inside FUNCTION [ARG...]: a script runs its own inside_FUNCTION in the environment, if it
# ends its functions with a line `inside_or_go_on "$@"`.
inside() { enter "/checkout/scripts/${0##*/}" inside "$@"; }
inside_or_go_on() {
	[ "${1:-}" = inside ] || return 0
	"inside_$2" "${@:3}"
	exit
}
