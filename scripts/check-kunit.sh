#!/bin/bash
# Run the KUnit tests of drivers/iommu under User Mode Linux; objects in the cache.
. "$(dirname "$0")/lib.sh"
prepare
enter bash -euc '
	cd /src/linux
	config=drivers/iommu/.kunitconfig
	[ -e $config ] || config=drivers/iommu/generic_pt/.kunitconfig
	exec env PYTHONUNBUFFERED=1 ./tools/testing/kunit/kunit.py run --build_dir=/obj/kunit --jobs="$JOBS" --kunitconfig $config
'
