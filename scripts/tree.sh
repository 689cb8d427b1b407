#!/bin/bash
# usage: tree.sh apply | branch
#
# apply:  put the base tree into the cache (once), apply the series to it with git am,
#         and bring the tree that is built ($BASE_DIR/src) to the result, touching only
#         files that differ from what it held before.
# branch: that, and a clone in build/linux with a branch `series`, one commit a patch:
#         the place to edit in. `make export` writes the branch back into patches/.
. "$(dirname "$0")/lib.sh"

# In the environment, in /cache/tmp.base: the linux-source that series.txt names, or else
# the newest version of it, or of a later kernel, that the archive has.
inside_fetch() { # VERSION
	local package=linux-source-7.3
	cd /cache/tmp.base
	apt-get -q -o APT::Update::Error-Mode=any -o Acquire::Retries=2 update
	if ! apt-get -q download $package="$1" && ! apt-get -q download $package; then
		package=$(apt-cache search --names-only '^linux-source-[0-9.]+$' | cut -d' ' -f1 | sort -V | tail -n 1)
		printf '%s\n' linux-source-7.3 "$package" | sort -VC || { echo "the archive has no linux-source of 7.3 or later"; return 1; }
		apt-get -q download "$package"
	fi
	dpkg-deb -f linux-source-*.deb Version >version
	dpkg -x linux-source-*.deb deb
	sha256sum deb/usr/src/linux-source-*.tar.xz | cut -d" " -f1 >sha256
	tar -C src --strip-components=1 -xJf deb/usr/src/linux-source-*.tar.xz
	rm -r deb linux-source-*.deb
	inside_commit "linux-source-7.3 $(cat version)"
}

# Commit what lies in /cache/tmp.base/src. Debian's .gitignore hides everything (it ends in
# /*), hence -f; the threshold of 1 makes git write one pack instead of 95,000 files. Same
# name and date everywhere, so that a commit has the same hash everywhere.
inside_commit() { # MESSAGE
	export GIT_DIR=/cache/tmp.base/git GIT_WORK_TREE=/cache/tmp.base/src
	export GIT_AUTHOR_NAME=base GIT_AUTHOR_EMAIL=base@localhost GIT_COMMITTER_NAME=series GIT_COMMITTER_EMAIL=series@localhost
	export GIT_AUTHOR_DATE="2026-01-01 00:00:00 +0000" GIT_COMMITTER_DATE="2026-01-01 00:00:00 +0000"
	cd "$GIT_WORK_TREE"
	git init -q -b base
	git config --unset core.worktree
	if grep -qx '/\*' .gitignore; then set -- "$1" -f; fi
	git -c core.bigFileThreshold=1 add -A "${@:2}"
	git commit -q -m "$1"
}

# git am in an empty work tree with an index of its own: it needs the files it touches
# only, and what is built is not disturbed. An `am` that stopped leaves no trace; what does
# not apply is named.
inside_apply() {
	local p files
	. "$TOP/scripts/sets.sh"
	mapfile -t files < <(patches | sed "s,^,$TOP/patches/,")
	export GIT_DIR=$BASE_DIR/git GIT_COMMITTER_NAME=series GIT_COMMITTER_EMAIL=series@localhost
	bare_tree base
	rm -rf "$GIT_DIR/rebase-apply" "$GIT_DIR/applied"
	if [ ${#files[@]} != 0 ] && ! git am --committer-date-is-author-date "${files[@]}"; then
		rm -rf "$GIT_DIR/rebase-apply"
		git read-tree base
		patches | while read -r p; do git apply --cached "$TOP/patches/$p" 2>/dev/null || echo "error: does not apply: $p"; done
		exit 1
	fi
	git branch -f series HEAD
	unset GIT_INDEX_FILE
	export GIT_WORK_TREE=/src/linux
	cd /src/linux
	# A copy by hard links (check-series) changes the ctime of a file, a copy of the cache its
	# inode as well: what is the same is not written, and built, again.
	git -c core.trustctime=false update-index -q --refresh || :
	git -c core.trustctime=false reset -q --hard series
	echo "$1 $(git rev-parse base series)" >"$GIT_DIR/applied"
}

inside_branch() {
	local from=$BASE_DIR/git to=$BUILD/linux
	if [ ! -d "$to" ]; then
		rm -rf "$to.tmp"
		git clone -q --no-checkout --branch series "$from" "$to.tmp"
		git -C "$to.tmp" remote remove origin
		git -C "$to.tmp" fetch -q "$from" base:base
		git -C "$to.tmp" checkout -q series
		mv "$to.tmp" "$to"
	else
		cd "$to"
		if [ -n "$(git status --porcelain -uno)" ] || [ "$(git rev-parse series)" != "$(git rev-parse made)" ]; then
			die "build/linux has changes of yours: run make export, or remove build/linux"
		fi
		git checkout -q --detach
		git fetch -q -f "$from" base:base series:series
		git checkout -q series
	fi
	git -C "$to" update-ref refs/made series
}
inside_or_go_on "$@"

get_base() {
	local real=$name
	hold import
	need_room 6000 "the kernel tree"
	tmp=$CACHE/tmp.base
	rm -rf "$tmp"
	mkdir -p "$tmp/src" "$tmp/obj"
	if [ -z "${KERNEL:-}" ]; then
		long "kernel source" 3 inside fetch "${name#linux-}" ||
			die "the kernel source could not be fetched: is there a network, and has the archive still a linux-source of 7.3 or later? (KERNEL=DIR takes a tree of yours)"
		real=linux-$(cat "$tmp/version")
	else
		if [ -e "$KERNEL/.git" ]; then
			user_git diff --quiet HEAD || warn "changes in $KERNEL that are not committed are left out"
			user_git rev-parse HEAD >"$tmp/commit"
			user_git archive HEAD
		else
			tar -C "$KERNEL" -c .
		fi | tar -x -C "$tmp/src"
		long "copy of $KERNEL" 2 inside commit "$KERNEL" || die "$KERNEL could not be copied"
	fi
	[ -d "$CACHE/$real" ] || mv "$tmp" "$CACHE/$real"
	[ "$real" = "$name" ] || ln -sfn "$real" "$BASE_DIR"
}

prepare
"$TOP/scripts/build-env.sh"
name=${BASE_DIR##*/}
[ -d "$BASE_DIR" ] || get_base
real=$(basename "$(readlink -f "$BASE_DIR")")
sum=$(series_header base-sha256)
if [ "$real" != "$name" ]; then
	warn "the base is $real; the series was made on $name"
elif [ -z "${KERNEL:-}" ] && [ -n "$sum" ] && [ "$sum" != "$(cat "$BASE_DIR/sha256")" ]; then
	die "$name: its tarball has SHA-256 $(cat "$BASE_DIR/sha256"), series.txt says $sum"
fi

# What was applied last is not applied again.
key=$(cat "$TOP/series.txt" "$TOP/scripts/tree.sh" | key_of -)-$(patches_key)
heads=$BASE_DIR/git/refs/heads
if [ "$(cat "$BASE_DIR/git/applied" 2>/dev/null)" != "$key $(cat "$heads/base" "$heads/series" 2>/dev/null)" ]; then
	inside apply "$key" >"$LOGS/apply.log" 2>&1 </dev/null || {
		grep -E '^(error: does not apply|fatal|Patch failed|sed)' "$LOGS/apply.log" | head -n 20 | sed 's/^/    /' >&2
		die "the series does not apply to $real (build/logs/apply.log)"
	}
fi
say "the series applies: $(patches | wc -l) patches on $real"
[ "$1" = branch ] || exit 0
inside branch
patches_key >"$MADE_FROM"
chown -R --reference="$TOP" "$BUILD"
say "build/linux: branch series on branch base, one commit a patch; edit there, then make export"
