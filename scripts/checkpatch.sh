#!/bin/bash
# Run checkpatch.pl --strict --codespell over every patch; anything that it says and
# that scripts/checkpatch.waivers does not waive fails.
. "$(dirname "$0")/lib.sh"
prepare
enter bash -uc '
	cd /src/linux
	for patch in $(sed "/^#/d; /^[[:space:]]*$/d" /checkout/series.txt); do
		perl scripts/checkpatch.pl --strict --codespell --terse --show-types --no-summary \
			/checkout/patches/$patch 2>&1
	done
' >"$BUILD/checkpatch.out"
# /checkout/patches/0001-x.patch:12: WARNING:TYPE: message
rc=0
while IFS= read -r line; do
	patch=${line%%.patch:*}.patch
	patch=${patch##*/}
	while read -r type glob _; do
		# shellcheck disable=SC2053 # a glob
		[[ $line == *":$type: "* && $patch == $glob ]] && continue 2
	done < <(grep -v '^#' "$TOP/scripts/checkpatch.waivers")
	say "${line#/checkout/}"
	rc=1
done <"$BUILD/checkpatch.out"
exit $rc
