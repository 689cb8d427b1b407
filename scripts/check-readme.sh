#!/bin/bash
# Every patch, function and test case in README's map exists, and the patch has the function.
. "$(dirname "$0")/lib.sh"
rows=0 rc=0
while IFS=$'\t' read -r behaviour patch function program case; do
	rows=$((rows + 1))
	files=("$TOP/patches/${patch%%/*}"-*/"$(printf %04d "${patch#*/}")"-*.patch)
	grep -qw "$function" "${files[@]}" 2>/dev/null || { say "$behaviour: $patch has no $function"; rc=1; }
	[ -n "$(find "$TOP"/{tools,drivers,lab} -name "$program.*" -exec grep -lwe "$case" {} +)" ] ||
		{ say "$behaviour: $program has no $case"; rc=1; }
done < <(sed '1,/^Behaviour .* Test$/d; /^$/,$d' "$TOP/README" | sed -E 's/ +([0-9]+\/[0-9]+) +([^ ]+) +([^ ]+) +([^ ]+)$/\t\1\t\2\t\3\t\4/')
say "$rows rows of README's map"
[ "$rows" -gt 0 ] && exit $rc
