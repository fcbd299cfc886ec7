# KOS: everything a user or a CI job calls. From a fresh clone `make run` and `make test` need nothing else.
#
# How the kernel itself is compiled is in scripts/kernel.mk; what this machine needs, and how it gets that,
# is in scripts/setup. `V=1` shows every command, `CC=clang` takes the other compiler.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

override V := $(filter-out 0,$(V))
Q := $(if $(V),,@)

VENV := .venv
STAMP := $(VENV)/.stamp
PYTHON := $(VENV)/bin/python
JOBS ?= $(shell nproc)
MINUTES ?= 10

# What the whole test suite is run with; `make test TEST_ARGS="-x tests/test_setup.py"` runs a part of it.
TEST_ARGS ?= -n auto --dist loadfile
PYTEST := $(VENV)/bin/python -m pytest

C_SOURCES = find $(wildcard kernel arch host tests) -name '*.[ch]' -print0

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## install what this machine lacks, and the Python side in .venv

# The stamp holds the path of the tree it was made in. A tree that was moved or copied, a Python or a QEMU that
# has gone since: each makes the stamp stale, whatever its time says.
ifneq ($(shell [ -x $(VENV)/bin/python ] && command -v qemu-system-x86_64 >/dev/null && cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): force
endif
$(STAMP): pyproject.toml scripts/setup
	$(Q)scripts/setup

.PHONY: force
force:

# The build runs in a make of its own: it starts when set-up has ended, takes all cores, and two at once
# take turns.
.PHONY: build
build: setup ## compile the kernel: build/kos.elf and build/kos.abi.json
	$(Q)mkdir -p build
	$(Q)flock build/.lock $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS)) image build/stubs

.PHONY: image
image: build/kos.elf build/kos.abi.json
	@:

# The stubs and the reference page are in the repository: whoever reads it there needs no build.
build/stubs: build/kos.abi.json scripts/stubs.py
	$(Q)$(PYTHON) scripts/stubs.py build/kos.abi.json host/kos/rpc/calls.py docs/calls.md
	$(Q)touch $@

.PHONY: run
run: build ## boot the kernel and show it at work; on a terminal, stay in its console
	$(Q)$(VENV)/bin/kos run $(RUN_ARGS)

.PHONY: test
test: build ## run the whole test suite
	$(Q)$(PYTEST) $(TEST_ARGS)

.PHONY: unit
unit: setup ## run the tests that need no machine: kernel C compiled for this host
	$(Q)$(PYTEST) -n auto tests/test_units.py

.PHONY: mutants
mutants: setup ## mutate kernel/mm, and see whether the tests that need no machine notice
	$(Q)$(PYTHON) scripts/mutants.py $(MUTANTS_ARGS)

.PHONY: lint
lint: setup ## check format, style and types
	$(Q)$(VENV)/bin/ruff check
	$(Q)$(VENV)/bin/ruff format --check
	$(Q)$(VENV)/bin/mypy
	$(Q)$(C_SOURCES) | xargs -0r $(VENV)/bin/clang-format --dry-run -Werror

.PHONY: format
format: setup ## rewrite the sources in the project's format
	$(Q)$(VENV)/bin/ruff check --fix --quiet || true
	$(Q)$(VENV)/bin/ruff format
	$(Q)$(C_SOURCES) | xargs -0r $(VENV)/bin/clang-format -i

.PHONY: bench
bench: build ## measure the kernel
	$(Q)$(VENV)/bin/kos bench --json build/bench.json $(BENCH_ARGS)
	$(Q)cat build/bench.json

.PHONY: bench-linux
bench-linux: setup ## measure Linux in the same QEMU, for `make bench` to print beside KOS
	$(Q)mkdir -p build
	$(Q)flock build/.linux.lock $(PYTHON) scripts/linux-bench/linux_bench.py $(BENCH_ARGS)

.PHONY: soak
soak: build ## run the soak tests for MINUTES (default 10)
	$(Q)KOS_TEST_MINUTES=$(MINUTES) $(PYTEST) -m soak

.PHONY: fuzz
fuzz: build ## ten million inputs for the decoders, then fuzz machines for MINUTES (default 10)
	$(Q)KOS_TEST_MINUTES=$(MINUTES) $(PYTEST) -m fuzz

# The kernel that counts is another one: slower, and larger. Left out are the tests that boot no kernel
# of ours (setup, units, doctor), guests of their own (qemu), kernels that they build (docs), that
# compare generated files (generated), and those marked `plain`.
COVERAGE_BUILD := build/coverage
COVERAGE_ARGS = $(TEST_ARGS) -m "not plain" \
	$(foreach name,setup units doctor qemu docs generated,--ignore=tests/test_$(name).py)

.PHONY: coverage-kernel
coverage-kernel: setup
	$(Q)mkdir -p build
	$(Q)flock build/.lock $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS)) \
		BUILD=$(COVERAGE_BUILD) COVERAGE=1 $(COVERAGE_BUILD)/kos.abi.json

.PHONY: coverage
coverage: build coverage-kernel ## measure which lines and branches of the kernel the tests reach
	$(Q)rm -rf $(COVERAGE_BUILD)/counts
	$(Q)KOS_KERNEL=$(CURDIR)/$(COVERAGE_BUILD)/kos.elf KOS_COVERAGE=$(CURDIR)/$(COVERAGE_BUILD)/counts \
		$(PYTEST) $(COVERAGE_ARGS)
	$(Q)$(PYTHON) scripts/coverage_report.py $(COVERAGE_BUILD)

.PHONY: package
package: build ## make the wheel: build/dist/kos-*.whl
	$(Q)$(VENV)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/dist .

.PHONY: clean
clean: ## remove what was built
	$(Q)rm -rf build

.PHONY: distclean
distclean: clean ## remove what was built and what setup made in this tree
	$(Q)rm -rf $(VENV) host/kos.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	$(Q)find $(wildcard host tests scripts) -name __pycache__ -prune -exec rm -rf {} +

# After the targets above, so that the first of them stays the default.
include scripts/kernel.mk
