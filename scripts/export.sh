#!/bin/bash
# usage: export.sh | export.sh check | export.sh mbox "Name <mail>" [SET...]
#
# (nothing): write the branch `series` of build/linux back: patches/, series.txt, and, for
#            reading, the files that the series adds and a diff of each that it changes
#            (drivers/, include/, tools/, Documentation/, MAINTAINERS.snippet).
# check:     apply the series, export that, and compare with what is here, byte for byte.
# mbox:      build/SET.mbox: a set (or all of them) as its submitter would send it, with
#            its cover letter, signed off, threaded.
#
# Each set is formatted on the base and the sets that it needs, and nothing else (sets.sh).
# patches/SET/cover-letter is kept as it is. In series.txt the lines up to the first empty
# one and those of the sets are kept; the patches are written anew below their set.
. "$(dirname "$0")/lib.sh"
. "$TOP/scripts/sets.sh"
out=$BUILD/export.tmp
shown="drivers include tools Documentation"

# format SET ARGUMENT...: git format-patch of a set
format() {
	local name=$1 prefix revision
	shift
	prefix=$(set_field "$name" prefix) revision=$(set_field "$name" revision)
	git format-patch --quiet --numbered --no-signature --no-renames --abbrev=12 --stat=72 --base=base \
		--subject-prefix="PATCH${prefix:+ $prefix}${revision:+ v$revision}" "$@" "$(set_range "$name")"
}

inside_export() { # REPOSITORY
	local name f
	sets_in /tmp/sets "$1"
	export GIT_INDEX_FILE=/tmp/index
	awk '/^$/ { exit } { print }' "$TOP/series.txt" >"$out/series.txt"
	for name in $(set_names); do
		{ echo && set_line "$name"; } >>"$out/series.txt"
		[ "$(set_count "$name")" != 0 ] || continue
		format "$name" --zero-commit --no-thread -o "$out/patches/$name"
		(cd "$out/patches" && ls "$name"/*) >>"$out/series.txt"
		[ ! -e "$TOP/patches/$name/cover-letter" ] || cp "$TOP/patches/$name/cover-letter" "$out/patches/$name/"
	done
	git diff --no-renames --diff-filter=A --name-only -z base series |
		xargs -0 -r git --work-tree="$out" checkout series --
	git diff --no-renames --diff-filter=a --name-only base series | while read -r f; do
		case $f in
		MAINTAINERS) git diff -U0 base series -- "$f" | sed -n '/^+++/d; s/^+//p' >"$out/$f.snippet" ;;
		*) mkdir -p "$out/${f%/*}" && git diff --no-renames --abbrev=12 base series -- "$f" >"$out/$f.diff" ;;
		esac
	done
	f=$(cd "$out" && find . -mindepth 1 -maxdepth 1 -printf '%f\n' | grep -vxE "${shown// /|}|patches|series.txt|MAINTAINERS.snippet") || :
	[ -z "$f" ] || die "export.sh does not know where $f belongs"
}

# The recipients stand at the end of the letter, and become headers of all messages.
inside_mbox() { # "Name <mail>" SET...
	local who=$1 name cover to line
	sets_in /tmp/sets
	export GIT_COMMITTER_NAME="${who% <*}" GIT_COMMITTER_EMAIL="${who##*<}"
	GIT_COMMITTER_EMAIL=${GIT_COMMITTER_EMAIL%>}
	unset GIT_COMMITTER_DATE
	for name in "${@:2}"; do
		cover=$TOP/patches/$name/cover-letter to=()
		[ -s "$cover" ] || die "patches/$name/cover-letter is not there"
		while read -r line; do
			case $line in To:*) to+=("--to=${line#*: }") ;; *) to+=("--cc=${line#*: }") ;; esac
		done < <(grep -E '^(To|Cc): ' "$cover")
		sed -E '/^(To|Cc): /d' "$cover" >/tmp/cover
		format "$name" --cover-letter --cover-from-description=subject --description-file=/tmp/cover \
			"${to[@]}" --signoff --from="$who" --thread=shallow --stdout |
			sed "s/^base-commit: .*/base-commit: $(cat "$BASE_DIR/commit" 2>/dev/null || git rev-parse base)/" >"$BUILD/$name.mbox"
		say "build/$name.mbox: $(grep -c '^Subject: \[' "$BUILD/$name.mbox") messages"
	done
}
inside_or_go_on "$@"

mode=${1:-write}
if [ "$mode" = write ]; then prepare_unlocked; else prepare; fi
repo=/cache/$(basename "$(readlink -f "$BASE_DIR")")/git
case $mode in
write)
	[ -d "$BUILD/linux" ] || die "there is no build/linux: make tree makes it"
	[ -z "$(git -c safe.directory='*' -C "$BUILD/linux" status --porcelain -uno)" ] ||
		die "build/linux has changes that are not committed"
	[ ! -e "$MADE_FROM" ] || [ "$(cat "$MADE_FROM")" = "$(patches_key)" ] ||
		die "patches/ has changed since build/linux was made: move that away, run make tree, and pick your commits from it"
	repo=/checkout/build/linux/.git
	"$TOP/scripts/build-env.sh"
	;;
check) "$TOP/scripts/tree.sh" apply ;;
mbox)
	[[ ${2:-} =~ ^[^\<]+\ \<[^@\ ]+@[^\ ]+\>$ ]] || die 'SIGNOFF="Name <mail>" is needed'
	who=$2
	shift 2
	# shellcheck disable=SC2046 # words
	[ $# != 0 ] || set -- $(set_names)
	"$TOP/scripts/tree.sh" apply
	for name; do
		set_line "$name" >/dev/null || die "there is no set $name: $(set_names | tr '
' ' ')"
	done
	inside mbox "$who" "$@" || die "the mailbox could not be formatted"
	exit
	;;
*) die "usage: export.sh [check | mbox 'Name <mail>' [SET...]]" ;;
esac

tmp=$out # removed at the end
rm -rf "$out"
mkdir -p "$out"
inside export "$repo" || die "the series could not be formatted"
differ=0
for part in patches series.txt $shown MAINTAINERS.snippet; do
	if [ "$mode" = check ]; then
		[ -e "$TOP/$part" ] || [ -e "$out/$part" ] || continue
		diff -rN "$TOP/$part" "$out/$part" >>"$out/diff" || { say "make export would change $part"; differ=1; }
		continue
	fi
	rm -rf "${TOP:?}/$part"
	[ -e "$out/$part" ] || continue
	chown -R --reference="$TOP" "$out/$part"
	mv "$out/$part" "$TOP/$part"
done
if [ "$mode" = check ]; then
	head -n 20 "$out/diff"
	exit $differ
fi
git -c safe.directory='*' -C "$BUILD/linux" update-ref refs/made series
patches_key >"$MADE_FROM"
say "exported $(patches | wc -l) patches in $(set_names | wc -l) sets"
