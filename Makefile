# SPDX-License-Identifier: Apache-2.0
RELEASE = bookworm
ARCH = amd64
RELEASES = bullseye bookworm trixie sid trixie-rt bookworm/arm64 trixie/arm64
PYTHON = /usr/bin/python3
VM = $(PYTHON) tests/vm.py
SOURCES = *.py tests
RUN = $(VM) run --release $(RELEASE) --arch $(ARCH)
GUEST = $(RUN) --timeout 3000

# Where to install: distributions add a suffix to the commands' names.
PREFIX = /usr/local
SUFFIX =
SBIN = $(DESTDIR)$(PREFIX)/sbin
SHARE = $(DESTDIR)$(PREFIX)/share
LIBRARY = $(SHARE)/tcptop$(SUFFIX)
BASH = $(SHARE)/bash-completion/completions
ZSH = $(SHARE)/zsh/site-functions

.PHONY: run test lint unit guest compare soak examples picture bench matrix deb install uninstall

$(PYTHON):
	apt-get -q update && apt-get -q install -y --no-install-recommends python3

run: $(PYTHON)
	@$(VM) demo -- $(or $(ARGS),-C 1 5)

test: lint unit
	$(MAKE) guest
	$(MAKE) bench ARGS='--runs 1 --rows 200 --only kprobe' # so that it keeps working

lint: $(PYTHON)
	$(VM) tool -- ruff check $(SOURCES)
	$(VM) tool -- ruff format --check $(SOURCES)
	$(VM) tool -- mypy *.py tests/*.py
	$(VM) tool -- clang-format --dry-run -Werror bpf/*.[ch]
	mandoc -T lint -W warning man/*.8
	! MANROFFSEQ= LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l man/*.8 2>&1 >/dev/null | grep .

unit: $(PYTHON)
	$(VM) tool -- pytest -q tests/unit

guest: $(PYTHON)
	$(GUEST) -- sh tests/guest/all.sh

# The table of exactness: the same traffic, watched by Debian's tcptop-bpfcc as well; and
# where the lines of tcplife and tcplife-bpfcc differ.
compare: $(PYTHON)
	$(GUEST) -- env TCPTOP_COMPARE=1 python3 -m pytest -s -q -p no:cacheprovider \
	    tests/guest/test_exact.py tests/guest/compare_life.py

# A great many short sessions; it takes one or two hours.
soak: $(PYTHON)
	$(RUN) --timeout 7200 -- $(PYTHON) tests/soak.py $(ARGS)

# What the documents show, anew from real runs.
examples: $(PYTHON)
	$(VM) run --traffic --rw man -- $(PYTHON) tests/guest/examples.py

picture: $(PYTHON)
	mkdir -p dist
	$(VM) tool -- python tests/picture.py >dist/picture
	mv dist/picture man/tcptop.svg

# The guest's nanoseconds are instructions.
bench: $(PYTHON)
	$(GUEST) --icount -- $(PYTHON) tests/bench.py $(ARGS)

# The package, built here, on the kernel, Python and bcc of each release, without headers.
# After the release comes the kernel, if it is not the usual one, and the architecture.
matrix: deb
	$(PYTHON) tests/matrix.py $(RELEASES)

# dist/tcptop-bpfcc_VERSION_all.deb
deb: $(PYTHON)
	$(VM) install debhelper dh-python dpkg-dev lintian
	rm -rf dist
	mkdir -p dist/tcptop
	tar -c --exclude-vcs --exclude=./dist --exclude=__pycache__ . | tar -x -C dist/tcptop
	cd dist/tcptop && dpkg-buildpackage -us -uc -b
	rm -r dist/tcptop
	lintian --allow-root --fail-on error,warning dist/*.changes

install:
	install -d $(SBIN) $(LIBRARY) $(SHARE)/man/man8 $(ZSH) $(BASH)
	install -m 644 *.py $(LIBRARY)
	cp -r bpf $(LIBRARY)
	set -e; for tool in tcptop tcplife; do \
	    chmod +x $(LIBRARY)/$$tool.py; \
	    ln -sf ../share/tcptop$(SUFFIX)/$$tool.py $(SBIN)/$$tool$(SUFFIX); \
	    install -m 644 man/$$tool.8 $(SHARE)/man/man8/$$tool$(SUFFIX).8; \
	    sed '$$s/ tcp[a-z]*/&$(SUFFIX)/g' completions/tcptop.bash >$(BASH)/$$tool$(SUFFIX); \
	    sed "1s/$$tool\$$/&$(SUFFIX)/" completions/_$$tool >$(ZSH)/_$$tool$(SUFFIX); \
	done

uninstall:
	rm -rf $(LIBRARY)
	set -e; for tool in tcptop tcplife; do rm -f $(SBIN)/$$tool$(SUFFIX) \
	    $(SHARE)/man/man8/$$tool$(SUFFIX).8 $(BASH)/$$tool$(SUFFIX) $(ZSH)/_$$tool$(SUFFIX); done
