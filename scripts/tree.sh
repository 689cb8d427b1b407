#!/bin/bash
# usage: tree.sh apply | branch
#
# apply:  put the base tree into the cache (once), apply the series to it with git am,
#         and bring the tree that is built ($BASE_DIR/src) to the result, touching only
#         files that differ from what it held before.
# branch: that, and a clone in build/linux with a branch `series`, one commit a patch:
#         the place to edit in. `make export` writes the branch back into patches/.
. "$(dirname "$0")/lib.sh"
prepare
"$TOP/scripts/env.sh"

# Same name and date everywhere, so that a commit has the same hash everywhere.
who=(env GIT_COMMITTER_NAME=series GIT_COMMITTER_EMAIL=series@localhost)
when=(GIT_AUTHOR_NAME=base GIT_AUTHOR_EMAIL=base@localhost
	GIT_AUTHOR_DATE="2026-01-01 00:00:00 +0000" GIT_COMMITTER_DATE="2026-01-01 00:00:00 +0000")
name=${BASE_DIR##*/}

# In the environment: commit what lies in /cache/tmp.base/src. Debian's .gitignore
# hides everything (it ends in /*), hence -f; the threshold of 1 makes git write one
# pack instead of 95,000 files.
commit_base='
	export GIT_DIR=/cache/tmp.base/git GIT_WORK_TREE=/cache/tmp.base/src
	cd "$GIT_WORK_TREE"
	if grep -qx "/\*" .gitignore; then force=-f; else force=; fi
	git init -q -b base
	git config --unset core.worktree
	git -c core.bigFileThreshold=1 add -A $force
	git commit -q -m "$1"'

# The version of linux-source-7.3 that series.txt names, or else the newest.
fetch_debian='
	cd /cache/tmp.base
	apt-get -q -o APT::Update::Error-Mode=any -o Acquire::Retries=2 update
	apt-get -q download linux-source-7.3="$1" || apt-get -q download linux-source-7.3
	dpkg-deb -f linux-source-7.3_*.deb Version >version
	dpkg -x linux-source-7.3_*.deb deb
	sha256sum deb/usr/src/linux-source-7.3.tar.xz | cut -d" " -f1 >sha256
	tar -C src --strip-components=1 -xJf deb/usr/src/linux-source-7.3.tar.xz
	rm -r deb linux-source-7.3_*.deb
	set -- "linux-source-7.3 $(cat version)"'

get_base() {
	local real=$name
	hold import
	need_room 6000 "the kernel tree"
	tmp=$CACHE/tmp.base
	rm -rf "$tmp"
	mkdir -p "$tmp/src" "$tmp/obj" "$tmp/kunit"
	if [ -z "${KERNEL:-}" ]; then
		long "kernel source" 3 enter "${who[@]}" "${when[@]}" bash -euc "$fetch_debian$commit_base" base "${name#linux-}" ||
			die "the kernel source could not be fetched: is there a network, and has the archive still a linux-source-7.3? (KERNEL=DIR takes a tree of yours)"
		real=linux-$(cat "$tmp/version")
	else
		if [ -e "$KERNEL/.git" ]; then
			user_git diff --quiet HEAD || warn "changes in $KERNEL that are not committed are left out"
			user_git rev-parse HEAD >"$tmp/commit"
			user_git archive HEAD
		else
			tar -C "$KERNEL" -c .
		fi | tar -x -C "$tmp/src"
		long "copy of $KERNEL" 2 enter "${who[@]}" "${when[@]}" bash -euc "$commit_base" base "$KERNEL" ||
			die "$KERNEL could not be copied"
	fi
	[ -d "$CACHE/$real" ] || mv "$tmp" "$CACHE/$real"
	[ "$real" = "$name" ] || ln -sfn "$real" "$BASE_DIR"
}

[ -d "$BASE_DIR" ] || get_base
real=$(basename "$(readlink -f "$BASE_DIR")")
sum=$(series_header base-sha256)
if [ "$real" != "$name" ]; then
	warn "the base is $real; the series was made on $name"
elif [ -z "${KERNEL:-}" ] && [ -n "$sum" ] && [ "$sum" != "$(cat "$BASE_DIR/sha256")" ]; then
	die "$name: its tarball has SHA-256 $(cat "$BASE_DIR/sha256"), series.txt says $sum"
fi

# git am in an empty work tree with an index of its own: it needs the files it touches
# only, and what is built is not disturbed. An `am` that stopped leaves no trace.
enter "${who[@]}" bash -euc '
	export GIT_DIR=/cache/$1/git GIT_WORK_TREE=/tmp/am
	mkdir /tmp/am && cd /tmp/am
	rm -rf "$GIT_DIR/rebase-apply"
	git update-ref --no-deref HEAD base
	export GIT_INDEX_FILE=/tmp/index
	git read-tree base
	patches=$(sed "/^#/d; /^[[:space:]]*$/d; s,^,/checkout/patches/," /checkout/series.txt)
	[ -z "$patches" ] || git am --committer-date-is-author-date $patches || {
		rm -rf "$GIT_DIR/rebase-apply"
		exit 1
	}
	git branch -f series HEAD
	unset GIT_INDEX_FILE
	export GIT_WORK_TREE=/src/linux
	cd /src/linux
	# A copy by hard links (check-series) changes the ctime of a file, and nothing else.
	git -c core.trustctime=false reset -q --hard series
' apply "$real" >"$LOGS/apply.log" 2>&1 </dev/null || {
	grep -E '^(error|fatal|Patch failed|sed)' "$LOGS/apply.log" | head -n 3 | sed 's/^/    /' >&2
	die "the series does not apply to $real (build/logs/apply.log)"
}
say "the series applies: $(grep -c '^Applying: ' "$LOGS/apply.log") patches on $real"
[ "$1" = branch ] || exit 0

enter bash -euc '
	from=/cache/$1/git to=/checkout/build/linux
	if [ ! -d $to ]; then
		rm -rf $to.tmp
		git clone -q --no-checkout --branch series $from $to.tmp
		git -C $to.tmp remote remove origin
		git -C $to.tmp fetch -q $from base:base
		git -C $to.tmp checkout -q series
		mv $to.tmp $to
	else
		cd $to
		if [ -n "$(git status --porcelain -uno)" ] || [ "$(git rev-parse series)" != "$(git rev-parse made)" ]; then
			echo "error: build/linux has changes of yours: run make export, or remove build/linux" >&2
			exit 1
		fi
		git checkout -q --detach
		git fetch -q -f $from base:base series:series
		git checkout -q series
	fi
	git -C $to update-ref refs/made series
' branch "$real"
patches_key >"$MADE_FROM"
chown -R --reference="$TOP" "$BUILD"
say "build/linux: branch series on branch base, one commit a patch; edit there, then make export"
