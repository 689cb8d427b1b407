#!/bin/bash
# usage: send.sh check [SET...] | send.sh dry-run "Name <mail>" [SET...]
#
# check:   the To: and Cc: lines of each set's cover letter have everybody whom
#          get_maintainer.pl names for its patches (more is right), and the letter has
#          the line of disclosure that Documentation/process/generated-content.rst asks for.
# dry-run: that, and what b4 would send, one file a message in build/send/SET, with the
#          recipients that get_maintainer.pl names for each patch. Sends nothing: there
#          is no mail server in the environment, and b4 is told to write files.
. "$(dirname "$0")/lib.sh"
. "$TOP/scripts/sets.sh"

named() { # get_maintainer.pl of these patches, in the tree at the tip
	(cd /src/linux && perl scripts/get_maintainer.pl --nogit --nogit-fallback --nofixes --norolestats "$@") | tr -d '"'
}
trailers() { grep -E '^(To|Cc): ' "$TOP/patches/$1/cover-letter"; }

inside_check() { # SET...
	local name line rc=0
	for name; do
		if [ ! -s "$TOP/patches/$name/cover-letter" ]; then
			echo "$name has no cover letter"
			rc=1
			continue
		fi
		# A mailbox is a mailbox, whatever name stands before it.
		named "$TOP/patches/$name"/*.patch >/tmp/named
		trailers "$name" >/tmp/trailers
		while read -r line; do
			grep -qiF "$(grep -oE '[^ <>]+@[^ <>]+' <<<"$line")" /tmp/trailers || { echo "$name: the cover letter lacks $line" && rc=1; }
		done </tmp/named
		grep -q '^Disclosure: ' "$TOP/patches/$name/cover-letter" || { echo "$name: the cover letter lacks a line \"Disclosure: ...\"" && rc=1; }
	done
	[ $rc != 0 ] || echo "the cover letters of $# sets have everybody"
	return $rc
}

# Each set as `b4 prep` would have it: cover letter and tracking in git's configuration.
inside_dry_run() { # "Name <mail>" SET...
	local name who=$1 mail out patch prefix revision
	mail=${who##*<}
	sets_in /tmp/sets
	unset GIT_DIR GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL GIT_COMMITTER_DATE
	for name in "${@:2}"; do
		out=$BUILD/send/$name
		rm -rf "$out" /tmp/send
		mkdir -p "$out"
		git clone -q --no-checkout --branch "$name" /tmp/sets /tmp/send
		cd /tmp/send
		git config user.name "${who% <*}"
		git config user.email "${mail%>}"
		git update-ref refs/heads/below "HEAD~$(set_count "$name")"
		git update-ref --no-deref HEAD below
		git symbolic-ref HEAD refs/heads/b4/series
		git update-ref refs/heads/b4/series below
		git read-tree below
		git am -q --empty=drop "$BUILD/$name.mbox"
		# b4 wants a work tree that is as clean as the empty one here is not.
		git ls-files -z | git update-index -z --skip-worktree --stdin
		git config b4.prep-cover-strategy branch-description
		git config sendemail.smtpserver /bin/false
		git config branch.b4/series.description "$(cat "$TOP/patches/$name/cover-letter")"
		prefix=$(set_field "$name" prefix) revision=$(set_field "$name" revision)
		git config branch.b4/series.b4-tracking "{\"series\": {\"revision\": ${revision:-1},
			\"change-id\": \"$(set_field "$name" change-id)\", \"prefixes\": [${prefix:+\"$prefix\"}], \"base-branch\": \"below\"}}"
		b4 --offline-mode -n --no-stdin send --no-sign -o "$out" >/tmp/b4.out 2>&1 || { cat /tmp/b4.out; return 1; }
		echo "$name: $(tail -n 1 /tmp/b4.out)"
		echo "  The cover letter names, for all of it:"
		trailers "$name" | sed 's/^/    /'
		echo "  get_maintainer.pl names, patch by patch:"
		for patch in "$TOP/patches/$name"/*.patch; do
			printf '    %.4s  %s\n' "${patch##*/}" "$(named "$patch" | sed 's/ <.*//; s/@.*//' | paste -sd, | sed 's/,/, /g')"
		done
	done
}

inside_or_go_on "$@"

prepare
"$TOP/scripts/build-env.sh"
mode=${1:-} who=
[ "$mode" != dry-run ] || { who=${2:-}; shift; }
[ $# = 0 ] || shift
# shellcheck disable=SC2046 # words
[ $# != 0 ] || set -- $(set_names)
case $mode in
check) inside check "$@" ;;
dry-run)
	"$TOP/scripts/export.sh" mbox "$who" "$@"
	inside dry_run "$who" "$@"
	inside check "$@"
	say "nothing was sent; the messages are in build/send"
	;;
*) die 'usage: send.sh check [SET...] | dry-run "Name <mail>" [SET...]' ;;
esac
