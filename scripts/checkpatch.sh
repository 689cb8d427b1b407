#!/bin/bash
# Run checkpatch.pl --strict --codespell over every patch; anything that it says and
# that scripts/checkpatch.waivers does not waive fails.
. "$(dirname "$0")/lib.sh"
prepare
# What it says of a patch is kept in the cache, by the patch and the tools that said it.
enter bash -uc '
	cd /src/linux
	mkdir -p /cache/checkpatch
	sed "/^#/d; /^[[:space:]]*$/d; s,^,/checkout/patches/," /checkout/series.txt |
		xargs -P "$JOBS" -I {} bash -uc "
			kept=/cache/checkpatch/\$(cat {} scripts/checkpatch.pl - <<<$1 | sha256sum | cut -c1-16)
			if [ ! -e \$kept ]; then
				perl scripts/checkpatch.pl --strict --codespell --terse --show-types {} >\$kept.\$\$ 2>&1
				mv \$kept.\$\$ \$kept
			fi
			cat \$kept"
' checkpatch "${ENV_DIR##*/}" | sort -V >"$BUILD/checkpatch.out" || :
rc=0 checked=0
while IFS= read -r line; do
	# total: 0 errors, 0 warnings, 0 checks, 12 lines checked
	if [[ $line == "total: "*" lines checked" ]]; then
		checked=$((checked + 1))
		continue
	fi
	# /checkout/patches/0001-x.patch:12: WARNING:TYPE: message
	patch=${line%%.patch:*}.patch
	patch=${patch##*/}
	while read -r type glob _; do
		# shellcheck disable=SC2053 # a glob
		[[ $line == *":$type: "* && $patch == $glob ]] && continue 2
	done < <(grep -v '^#' "$TOP/scripts/checkpatch.waivers")
	say "${line#/checkout/}"
	rc=1
done <"$BUILD/checkpatch.out"
say "$checked patches checked"
[ "$checked" = "$(patches | wc -l)" ] || rc=1
exit $rc
