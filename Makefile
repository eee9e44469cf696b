# SPDX-License-Identifier: Apache-2.0
RELEASE = bookworm
RELEASES = bullseye bookworm trixie sid
PYTHON = /usr/bin/python3
VM = $(PYTHON) tests/vm.py
SOURCES = *.py tests
GUEST = $(VM) run --release $(RELEASE) --timeout 1500

.PHONY: run test lint unit guest compare soak bench matrix

$(PYTHON):
	apt-get -q update && apt-get -q install -y --no-install-recommends python3

run: $(PYTHON)
	@$(VM) demo -- $(or $(ARGS),-C 1 5)

test: lint unit
	$(MAKE) guest

lint: $(PYTHON)
	$(VM) tool -- ruff check $(SOURCES)
	$(VM) tool -- ruff format --check $(SOURCES)
	$(VM) tool -- mypy *.py tests/vm.py
	$(VM) tool -- clang-format --dry-run -Werror bpf/*.c

unit: $(PYTHON)
	$(VM) tool -- pytest -q tests/unit

guest: $(PYTHON)
	$(GUEST) -- sh tests/guest/all.sh

# The table of exactness: the same traffic, watched by Debian's tcptop-bpfcc as well.
compare: $(PYTHON)
	$(GUEST) -- env TCPTOP_COMPARE=1 python3 -m pytest -s -q -p no:cacheprovider \
	    tests/guest/test_exact.py

# A great many short sessions; it takes an hour.
soak: $(PYTHON)
	$(VM) run --release $(RELEASE) --timeout 7200 -- $(PYTHON) tests/soak.py $(ARGS)

# One CPU whose nanoseconds are instructions.
bench: $(PYTHON)
	$(GUEST) --icount -- $(PYTHON) tests/bench.py $(ARGS)

matrix: $(PYTHON)
	for release in $(RELEASES); do $(MAKE) guest RELEASE=$$release || exit 1; done
