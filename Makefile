# SPDX-License-Identifier: Apache-2.0
ARGS = -C 1 5
RELEASE = bookworm
RELEASES = bullseye bookworm trixie sid
PYTHON = /usr/bin/python3
VM = $(PYTHON) tests/vm.py
SOURCES = *.py tests
GUEST = $(VM) run --release $(RELEASE) --timeout 1500
PYTEST = python3 -m pytest -q -p no:cacheprovider

.PHONY: run test lint unit guest guest-command guest-exact guest-preempt guest-lockdown matrix

$(PYTHON):
	apt-get -q update && apt-get -q install -y --no-install-recommends python3

run: $(PYTHON)
	@$(VM) demo -- $(ARGS)

test: lint unit
	$(MAKE) guest

lint: $(PYTHON)
	$(VM) tool -- ruff check $(SOURCES)
	$(VM) tool -- ruff format --check $(SOURCES)
	$(VM) tool -- mypy *.py tests/vm.py
	$(VM) tool -- clang-format --dry-run -Werror bpf/*.c

unit: $(PYTHON)
	$(VM) tool -- pytest -q tests/unit

# Two guests at a time: emulation keeps one processor busy with each.
guest: $(PYTHON)
	$(VM) build $(RELEASE)
	$(MAKE) -j2 -Otarget guest-command guest-exact guest-preempt guest-lockdown

guest-command:
	$(GUEST) -- $(PYTEST) tests/guest/test_command.py

guest-exact:
	$(GUEST) -- $(PYTEST) tests/guest/test_exact.py

guest-preempt:
	$(GUEST) --append preempt=full -- $(PYTEST) tests/guest/test_exact.py

guest-lockdown:
	$(GUEST) --append lockdown=confidentiality -- $(PYTEST) tests/lockdown

matrix: $(PYTHON)
	for release in $(RELEASES); do $(MAKE) guest RELEASE=$$release || exit 1; done
