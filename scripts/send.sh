#!/bin/bash
# usage: send.sh check | send.sh dry-run "Name <mail>"
#
# check:   the To: and Cc: lines of the cover letter are those that get_maintainer.pl
#          names for the patches.
# dry-run: that, and what b4 would send, one file a message in build/send, with the
#          recipients that get_maintainer.pl names for each patch. Sends nothing: there
#          is no mail server in the environment, and b4 is told to write files.
. "$(dirname "$0")/lib.sh"

recipients() { # in the environment, at the tip: NUMBER<tab>To|Cc<tab>ADDRESS
	local gm="perl scripts/get_maintainer.pl --nogit --nogit-fallback --nofixes --norolestats"
	cd /src/linux
	sed '/^#/d; /^[[:space:]]*$/d' "$TOP/series.txt" | while read -r p; do
		$gm --nol --nor "$TOP/patches/$p" | sed "s/^/${p%%-*}\tTo\t/"
		$gm --nom "$TOP/patches/$p" | sed "s/^/${p%%-*}\tCc\t/"
	done | tr -d '"'
}

trailers() { sed -n '1,/^$/d; /^[^ ].* ([0-9]*):$/q; /^\(To\|Cc\): /p' "$TOP/patches/0000-cover-letter.patch" | tr -d '"' | sort -u; }

inside_check() {
	recipients >/checkout/build/recipients
	# Who is in To: for one patch need not be in Cc: for another.
	awk -F'\t' '{ if ($2 == "To") to[$3]; all[$3] } END { for (a in all) print ((a in to) ? "To: " : "Cc: ") a }' \
		/checkout/build/recipients | sort -u >/tmp/wanted
	trailers | diff /tmp/wanted - >/tmp/diff || {
		echo "the cover letter lacks (<) or has too many (>) of these:"
		cat /tmp/diff
		return 1
	}
	echo "$(wc -l </tmp/wanted) recipients"
}

# The branch as `b4 prep` would have it: cover letter and tracking in git's configuration.
inside_dry_run() {
	local cover=/checkout/patches/0000-cover-letter.patch out=/checkout/build/send
	rm -rf $out
	git clone -q --shared --no-checkout --branch series "/cache/$1/git" /tmp/send
	cd /tmp/send
	git fetch -q origin base:base
	git config user.name "${2% <*}"
	mail=${2##*<}
	git config user.email "${mail%>}"
	git update-ref --no-deref HEAD base
	git symbolic-ref HEAD refs/heads/b4/series
	git update-ref refs/heads/b4/series base
	git read-tree base
	git am -q --empty=drop /checkout/build/series.mbox
	# b4 wants a work tree that is as clean as the empty one here is not.
	git ls-files -z | git update-index -z --skip-worktree --stdin
	git config b4.prep-cover-strategy branch-description
	git config sendemail.smtpserver /bin/false
	git config branch.b4/series.description "$(
		git mailinfo /tmp/body /dev/null <$cover | sed -n 's/^Subject: //p'
		echo
		sed -n '1,/^$/d; /^[^ ].* ([0-9]*):$/q; p' $cover
	)"
	git config branch.b4/series.b4-tracking "{\"series\": {\"revision\": $(series_header revision),
		\"change-id\": \"$(series_header change-id)\", \"prefixes\": [], \"base-branch\": \"base\"}}"
	mkdir $out
	b4 --offline-mode -n --no-stdin send --no-sign -o $out >/tmp/b4.out 2>&1 || { cat /tmp/b4.out; return 1; }
	tail -n 1 /tmp/b4.out
	echo
	echo "Everybody whom the cover letter names gets all of it:"
	trailers | sed 's/^/  /'
	echo
	echo "get_maintainer.pl names, patch by patch:"
	awk -F'\t' '
		{ sub(/ <.*/, "", $3); sub(/@.*/, "", $3); if (!($1 in n)) { n[$1]; order[++k] = $1 } list[$1, $2] = list[$1, $2] (list[$1, $2] ? ", " : "") $3 }
		END { for (i = 1; i <= k; i++) printf "  %s  To: %s  Cc: %s\n", order[i], list[order[i], "To"], list[order[i], "Cc"] }' /checkout/build/recipients
}

if [ "${1:-}" = inside ]; then
	"inside_$2" "${@:3}"
	exit
fi

prepare
"$TOP/scripts/env.sh"
base=$(basename "$(readlink -f "$BASE_DIR")")
case ${1:-} in
check) enter /checkout/scripts/send.sh inside check ;;
dry-run)
	"$TOP/scripts/export.sh" mbox "${2:-}"
	enter /checkout/scripts/send.sh inside check
	enter /checkout/scripts/send.sh inside dry_run "$base" "$2"
	say "nothing was sent; the messages are in build/send"
	;;
*) die 'usage: send.sh check | dry-run "Name <mail>"' ;;
esac
