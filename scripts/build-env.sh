#!/bin/bash
# Make the build environment in the cache: a Debian 13 root with the packages of
# scripts/packages. Nothing is installed or configured on the host: mmdebstrap is
# fetched through a private apt state and run from where it was unpacked. Mirror
# and fetch options (proxies, ...) come from the host's apt, or from MIRROR=.
. "$(dirname "$0")/lib.sh"
prepare_unlocked
[ ! -d "$ENV_DIR" ] || exit 0
hold environment
[ ! -d "$ENV_DIR" ] || exit 0

need_room 6000 "the build environment"
tmp=$CACHE/tmp.env
rm -rf "$tmp"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$tmp/lists/partial" "$tmp/archives/partial"

say "making the build environment (Debian 13, kept in $CACHE)"
for tool in apt-get dpkg perl unshare; do
	command -v $tool >/dev/null || die "$tool is missing: the environment is made with apt, dpkg, perl and util-linux"
done
[ -r $keyring ] || die "$keyring is missing: install debian-archive-keyring (2023.3+deb12u2 on Debian 12, 2025.1 or newer elsewhere)"

apt_config=$tmp/apt.conf
{
	apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets'
	echo "Dir::State::Lists \"$tmp/lists\"; Dir::Cache \"$tmp\"; Dir::Etc::SourceParts \"/dev/null\";"
	echo "Dir::Etc::SourceList \"$tmp/sources.list\"; APT::Sandbox::User \"root\";"
} >"$apt_config"

# The first of the host's mirrors that has trixie and its backports.
mirrors=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | sort -u)}
mirror=
for m in $mirrors; do
	for suite in trixie trixie-backports; do
		echo "deb [signed-by=$keyring] $m $suite main"
	done >"$tmp/sources.list"
	if APT_CONFIG=$apt_config apt-get -o APT::Update::Error-Mode=any -o Acquire::Retries=2 update >"$LOGS/mirror.log" 2>&1; then
		mirror=$m
		break
	elif grep -q NO_PUBKEY "$LOGS/mirror.log"; then
		die "the host's debian-archive-keyring does not know Debian 13: install 2023.3+deb12u2 on Debian 12, 2025.1 or newer elsewhere"
	fi
done
[ -n "$mirror" ] || die "no Debian mirror with trixie and trixie-backports within reach (tried: ${mirrors//$'\n'/ }); is there a network? MIRROR= names another"

(cd "$tmp" && APT_CONFIG=$apt_config apt-get download mmdebstrap && dpkg -x mmdebstrap_*.deb mmdebstrap) >"$LOGS/mmdebstrap.log" 2>&1 ||
	die "cannot fetch mmdebstrap; see build/logs/mmdebstrap.log"

grep '^Acquire::' "$apt_config" >"$tmp/aptopts"
packages() { sed -n "/^#/d; $1" "$TOP/scripts/packages" | tr '\n' ' '; }
export PATH=$tmp/mmdebstrap/usr/bin:$PATH DEBIAN_FRONTEND=noninteractive
unset APT_CONFIG
debootstrap() {
	unshare --mount --pid --fork --kill-child --propagation private \
		mmdebstrap --mode=root --format=directory --aptopt="$tmp/aptopts" "${@:2}" trixie "$1" \
		"deb [signed-by=$keyring] $mirror trixie main" \
		"deb [signed-by=$keyring] $mirror trixie-backports main" \
		"deb-src [signed-by=$keyring] $mirror trixie main"
}
long environment 4 debootstrap "$tmp/root" --variant=minbase --architectures=amd64 \
	--dpkgopt=force-unsafe-io --include="$(packages '/^arm64:/!p')" ||
	die "the build environment could not be made"
long "arm64 userland" 1 debootstrap "$tmp/root/arm64" --variant=extract --architectures=arm64 \
	--include="$(packages 's/^arm64: //p')" || die "the userland for arm64 could not be fetched"

cd "$tmp/root" || exit
# Of arm64's, what the guest runs, and the one library that the tests are linked with
rm -rf arm64/usr/{share,include,src} arm64/usr/lib/aarch64-linux-gnu/{gconv,security}
mkdir -p usr/lib/aarch64-linux-gnu
ln -s /arm64/usr/lib/aarch64-linux-gnu/libuuid.so.1 usr/lib/aarch64-linux-gnu/libuuid.so
mkdir -p checkout cache src/linux obj
: >etc/resolv.conf
printf '[safe]\n\tdirectory = *\n[gc]\n\tauto = 0\n[core]\n\tabbrev = 12\n[init]\n\tdefaultBranch = base\n' >etc/gitconfig
mv "$tmp/root" "$ENV_DIR"
