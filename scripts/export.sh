#!/bin/bash
# usage: export.sh | export.sh check | export.sh mbox "Name <mail>" [FILE]
#
# (nothing): write the branch `series` of build/linux back: patches/, series.txt, and, for
#            reading, the files that the series adds (drivers/, include/, tools/,
#            Documentation/, MAINTAINERS.snippet).
# check:     apply the series, export that, and compare with what is here, byte for byte.
# mbox:      the series as its submitter would send it, signed off, threaded.
#
# The cover letter's own text is what stands in patches/0000-cover-letter.patch above the
# shortlog; shortlog, diffstat and counts are written anew. In series.txt the lines up to
# the first empty one are kept as they are; a later comment stays before its patch.
. "$(dirname "$0")/lib.sh"
mode=${1:-write}
if [ "$mode" = write ]; then prepare_unlocked; else prepare; fi
repo=/cache/$(basename "$(readlink -f "$BASE_DIR")")/git
tmp=$BUILD/export.tmp
rm -rf "$tmp"

case $mode in
write)
	[ -d "$BUILD/linux" ] || die "there is no build/linux: make tree makes it"
	[ -z "$(git -c safe.directory='*' -C "$BUILD/linux" status --porcelain -uno)" ] ||
		die "build/linux has changes that are not committed"
	[ ! -e "$MADE_FROM" ] || [ "$(cat "$MADE_FROM")" = "$(patches_key)" ] ||
		die "patches/ has changed since build/linux was made: move that away, run make tree, and pick your commits from it"
	repo=/checkout/build/linux/.git
	"$TOP/scripts/env.sh"
	;;
check) "$TOP/scripts/tree.sh" apply ;;
mbox)
	[[ ${2:-} =~ ^[^\<]+\ \<[^@\ ]+@[^\ ]+\>$ ]] || die 'SIGNOFF="Name <mail>" is needed'
	"$TOP/scripts/tree.sh" apply
	;;
*) die "usage: export.sh [check | mbox 'Name <mail>']" ;;
esac
mkdir -p "$tmp"

# In the environment: format the series from $1 into /checkout/build/export.tmp.
enter bash -euo pipefail -c '
	out=/checkout/build/export.tmp
	export GIT_DIR=$1 GIT_INDEX_FILE=/tmp/index
	revision=$(sed -n "s/^# revision: *//p" /checkout/series.txt)
	prefix=PATCH
	[ "${revision:-1}" = 1 ] || prefix="PATCH v$revision"

	# The cover letter: who and when from its header, subject and text from its body.
	cover=/checkout/patches/0000-cover-letter.patch
	args=()
	if [ -f $cover ]; then
		git mailinfo /tmp/msg /dev/null <$cover >/tmp/info
		field() { sed -n "s/^$1: //p" /tmp/info; }
		export GIT_COMMITTER_NAME="$(field Author)" GIT_COMMITTER_EMAIL="$(field Email)"
		export GIT_COMMITTER_DATE="$(field Date)"
		{
			field Subject
			awk "!body { body = /^\$/; next } { line[++n] = \$0 }
				END {
					for (i = 1; i <= n; i++)
						if (line[i] ~ /^[^ ].* \([0-9]+\):\$/ && line[i + 1] ~ /^  [^ ]/)
							break
					while (i > 1 && line[i - 1] == \"\")
						i--
					print \"\"
					for (j = 1; j < i; j++)
						print line[j]
				}" $cover
		} >/tmp/cover
		args=(--cover-letter --cover-from-description=subject --description-file=/tmp/cover)
	fi
	args+=(--quiet --numbered --no-signature --no-renames --abbrev=12 --stat=72 --subject-prefix="$prefix")

	if [ -n "$2" ]; then
		export GIT_COMMITTER_NAME="${2% <*}" GIT_COMMITTER_EMAIL="${2##*<}"
		GIT_COMMITTER_EMAIL=${GIT_COMMITTER_EMAIL%>}
		unset GIT_COMMITTER_DATE
		git format-patch "${args[@]}" --signoff --from="$2" --thread=shallow --stdout base..series >$out/mbox
		exit
	fi

	git format-patch "${args[@]}" --zero-commit --no-thread -o $out/patches base..series
	awk "FNR == NR { new[++n] = \$0; slug = substr(\$0, 6); has[slug] = 1; next }
		head != 2 && /^#/ { print; head = 1; next }
		head != 2 && /^\$/ { if (head) print; head = 2; next }
		{ head = 2 }
		/^#/ || /^\$/ { pend = pend \$0 \"\n\"; next }
		{ slug = substr(\$0, 6); if (slug in has) { above[slug] = pend; pend = \"\" } }
		END { for (i = 1; i <= n; i++) printf \"%s%s\n\", above[substr(new[i], 6)], new[i] }" \
		<(cd $out/patches && ls | grep -v ^0000-) /checkout/series.txt >$out/series.txt
	for dir in drivers include tools Documentation; do mkdir $out/$dir; done
	git diff --no-renames --diff-filter=A --name-only -z base series |
		xargs -0 -r git --work-tree=$out checkout series --
	git diff --no-renames -U0 base series -- MAINTAINERS | sed -n "/^+++/d; s/^+//p" >$out/MAINTAINERS.snippet
	find $out -mindepth 1 -empty -delete
' export "$repo" "${2:-}" || die "the series could not be formatted"

parts="patches series.txt drivers include tools Documentation MAINTAINERS.snippet"
case $mode in
write)
	for part in $parts; do
		rm -rf "${TOP:?}/$part"
		[ -e "$tmp/$part" ] || continue
		chown -R --reference="$TOP" "$tmp/$part"
		mv "$tmp/$part" "$TOP/$part"
	done
	git -c safe.directory='*' -C "$BUILD/linux" update-ref refs/made series
	patches_key >"$MADE_FROM"
	say "exported $(grep -vc '^#\|^$' "$TOP/series.txt") patches"
	;;
check)
	differ=0
	for part in $parts; do
		[ -e "$TOP/$part" ] || [ -e "$tmp/$part" ] || continue
		diff -rN "$TOP/$part" "$tmp/$part" >>"$tmp/diff" || { say "make export would change $part"; differ=1; }
	done
	head -n 20 "$tmp/diff"
	exit $differ
	;;
mbox)
	to=${3:-$BUILD/series.mbox}
	mv "$tmp/mbox" "$to"
	say "${to#"$TOP/"}: $(grep -c '^Subject: \[' "$to") messages"
	;;
esac
