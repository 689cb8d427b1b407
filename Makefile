# The front door; see README. Each target makes what it lacks.
#
# CACHE=DIR    where the environment, QEMU, the base tree and the objects are kept
#              (default: ${XDG_CACHE_HOME:-~/.cache}/vfio-dirty-log)
# KERNEL=DIR   a kernel tree of yours instead of Debian's linux-source-7.3
# QEMU=FILE    an emulator of yours instead of the one that is built
# IOMMU=vtd|amd|smmuv3   make run: whose IOMMU (default: Intel's)
# ONLY="vtd-hw ..."      make check: these lanes only (scripts/check.sh)
# SET=N-NAME   check-series, mbox, send-dry-run: this set only (default: all, one by one)
# MIRROR=URL   a Debian mirror, where the host's apt knows none
# JOBS=N       parallel jobs (default: as many as there are processors)

export CACHE KERNEL QEMU IOMMU MIRROR JOBS
.PHONY: help run check check-series check-hostile bench migrate mutants tree export mbox send-dry-run

help:
	@echo 'make run      build everything, boot it, show the dirty log of a real DMA device'
	@echo 'make check    every check and test; the last line counts them'
	@echo 'make check-series [SET=...]   every set alone, every patch of it: a table, a row a patch'
	@echo 'make check-hostile   the dirty log under debug kernels: starved, fuzzed, raced'
	@echo 'make bench    what the log costs, beside mainline; what a migration sends'
	@echo 'make migrate  a virtual machine with an assigned card moves from one QEMU to another'
	@echo 'make mutants  faults planted in the kernel, and the tests that have to find them'
	@echo 'make tree     base + series as a git branch in build/linux: edit there'
	@echo 'make export   that branch back into patches/, series.txt and the exported files'
	@echo 'make mbox [SET=6-dirty-log] SIGNOFF="Name <mail>"   build/SET.mbox, as one would send it'
	@echo 'make send-dry-run [SET=...] SIGNOFF="Name <mail>"   what b4 would send to whom; sends nothing'
	@sed -n '/^# [A-Z]*=/,/^$$/s/^# \{0,1\}//p' Makefile

run:
	@scripts/demo.sh

check:
	@scripts/check.sh

check-series:
	@scripts/check-series.sh $(SET)

bench:
	@scripts/bench.sh

migrate:
	@scripts/migrate.sh

mutants:
	@scripts/mutants.sh

check-hostile:
	@scripts/check-hostile.sh

tree:
	@scripts/tree.sh branch

export:
	@scripts/export.sh

mbox:
	@scripts/export.sh mbox "$(SIGNOFF)" $(SET)

send-dry-run:
	@scripts/send.sh dry-run "$(SIGNOFF)" $(SET)
