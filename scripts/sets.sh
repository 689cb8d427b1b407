# The sets of the series, as series.txt names them: for what runs in the environment. A
# set's line is
#   # NAME [prefix=RFC] [revision=N] [needs=SET,...] [change-id=ID]
# and its patches stand below it, in the folder NAME. `needs` are the sets, in order, that
# it stands on; a set without it stands on the base alone.
# shellcheck shell=bash

set_names() { sed -nE 's/^# ([0-9]+-[a-z][^ ]*)( .*)?$/\1/p' "$TOP/series.txt"; }
set_line() { grep -E "^# $1( |\$)" "$TOP/series.txt"; }
set_field() { set_line "$1" | tr ' ' '\n' | sed -n "s/^$2=//p" | tr ',' ' '; }

# set_map: a line for each commit of base..series, "SET COMMIT". A commit is in the set
# that has a patch of its subject, or of its change, and else in that of the one before.
set_map() {
	local p slug c id name was order=0
	declare -A by_slug by_id rank
	for name in $(set_names); do rank[$name]=$((order++)); done
	name=$(set_names | head -n 1)
	while read -r p; do
		slug=${p##*/} slug=${slug#*-} slug=${slug%.patch}
		[ -n "${rank[${p%%/*}]:-}" ] || die "series.txt: $p is in no set that it has a line for"
		[ "${by_slug[$slug]:-${p%%/*}}" = "${p%%/*}" ] || die "series.txt: two sets have a patch $slug"
		by_slug[$slug]=${p%%/*}
		[ -e "$TOP/patches/$p" ] || continue
		id=$(git patch-id --stable <"$TOP/patches/$p")
		[ -z "$id" ] || by_id[${id%% *}]=${p%%/*}
	done < <(patches)
	for c in $(git rev-list --reverse base..series); do
		slug=$(git show -s --format=%f "$c")
		id=$(git diff-tree -p --no-renames "$c" | git patch-id --stable)
		was=$name
		name=${by_slug[${slug:0:52}]:-${by_id[${id%% *}]:-}}
		if [ -z "$name" ]; then
			name=$was
			echo "new in $name: $(git show -s --format=%s "$c")" >&2
		elif [ "${rank[$name]}" -lt "${rank[$was]}" ]; then
			die "\"$(git show -s --format=%s "$c")\" belongs to $name, but stands behind a patch of $was (move it, or its line in series.txt)"
		fi
		echo "$name $c"
	done
}

# sets_in DIR [REPOSITORY]: DIR becomes GIT_DIR, a clone in which each set has a branch:
# the base, the sets that it needs, and itself. What does not apply is named.
sets_in() {
	local name part new
	[ -d "$1" ] || git clone -q --bare --shared "${2:-$BASE_DIR/git}" "$1"
	export GIT_DIR=$1
	# Same name and date everywhere, so that a commit has the same hash everywhere.
	export GIT_COMMITTER_NAME=series GIT_COMMITTER_EMAIL=series@localhost GIT_COMMITTER_DATE="2026-01-01 00:00:00 +0000"
	set_map >/tmp/set-map
	for name in $(set_names); do
		git update-ref "refs/heads/$name" base
		for part in $(set_field "$name" needs) "$name"; do
			[ "$(set_count "$part")" != 0 ] || continue
			git update-ref refs/heads/part "$(set_commits "$part" | tail -n 1)"
			new=$(git replay --onto "$name" "$(set_commits "$part" | head -n 1)~..part" |
				sed -nE 's,^update refs/heads/part ([^ ]*) .*,\1,p') || set_conflict "$name" "$part"
			git update-ref "refs/heads/$name" "$new"
		done
	done
}
set_commits() { sed -n "s/^$1 //p" /tmp/set-map; }
set_count() { set_commits "$1" | wc -l; }
set_range() { echo "$1~$(set_count "$1")..$1"; }

# set_conflict NAME PART: name the patch of PART that does not apply to the branch NAME
set_conflict() {
	local c
	export GIT_INDEX_FILE=/tmp/conflict
	git read-tree "$1"
	for c in $(set_commits "$2"); do
		git diff-tree -p --full-index "$c" | git apply --cached || die "$1: \"$(git show -s --format=%s "$c")\" needs a set that its line in series.txt does not name"
	done
	die "$1: $2 cannot be put on what it needs"
}

# bare_tree COMMIT: an empty work tree in /tmp/am with the index of COMMIT: git am needs
# the files that it touches only.
bare_tree() {
	rm -rf /tmp/am /tmp/am.index
	mkdir /tmp/am && cd /tmp/am || return
	export GIT_WORK_TREE=/tmp/am GIT_INDEX_FILE=/tmp/am.index
	git update-ref --no-deref HEAD "$1" && git read-tree "$1"
}
