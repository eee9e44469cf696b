# SPDX-License-Identifier: Apache-2.0
RELEASE = bookworm
RELEASES = bullseye bookworm trixie sid
PYTHON = /usr/bin/python3
VM = $(PYTHON) tests/vm.py
SOURCES = *.py tests
GUEST = $(VM) run --release $(RELEASE) --timeout 1500

# Where to install: distributions add a suffix to the command's name.
PREFIX = /usr/local
SUFFIX =
NAME = tcptop$(SUFFIX)
SHARE = $(DESTDIR)$(PREFIX)/share
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
	$(VM) tool -- clang-format --dry-run -Werror bpf/*.c
	mandoc -T lint -W warning man/*.8
	! MANROFFSEQ= LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l man/*.8 2>&1 >/dev/null | grep .

unit: $(PYTHON)
	$(VM) tool -- pytest -q tests/unit

guest: $(PYTHON)
	$(GUEST) -- sh tests/guest/all.sh

# The table of exactness: the same traffic, watched by Debian's tcptop-bpfcc as well.
compare: $(PYTHON)
	$(GUEST) -- env TCPTOP_COMPARE=1 python3 -m pytest -s -q -p no:cacheprovider \
	    tests/guest/test_exact.py

# A great many short sessions; it takes one or two hours.
soak: $(PYTHON)
	$(VM) run --release $(RELEASE) --timeout 7200 -- $(PYTHON) tests/soak.py $(ARGS)

# What the documents show, anew from real runs.
examples: $(PYTHON)
	mkdir -p dist
	$(VM) run --traffic -- $(PYTHON) tests/guest/examples.py >dist/examples
	mv dist/examples man/tcptop_example.txt

picture: $(PYTHON)
	mkdir -p dist
	$(VM) tool -- python tests/picture.py >dist/picture
	mv dist/picture man/tcptop.svg

# The guest's nanoseconds are instructions; with CPUS=2 those of both.
bench: CPUS = 1
bench: $(PYTHON)
	$(GUEST) --icount --cpus $(CPUS) -- $(PYTHON) tests/bench.py $(ARGS)

# The package, built here, on the kernel, Python and bcc of each release, without headers.
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
	install -d $(DESTDIR)$(PREFIX)/sbin $(SHARE)/$(NAME) $(SHARE)/man/man8 $(ZSH) \
	    $(SHARE)/bash-completion/completions
	install -m 644 *.py $(SHARE)/$(NAME)
	chmod +x $(SHARE)/$(NAME)/tcptop.py
	cp -r bpf $(SHARE)/$(NAME)
	ln -sf ../share/$(NAME)/tcptop.py $(DESTDIR)$(PREFIX)/sbin/$(NAME)
	install -m 644 man/tcptop.8 $(SHARE)/man/man8/$(NAME).8
	sed '$$s/tcptop$$/$(NAME)/' completions/tcptop.bash \
	    >$(SHARE)/bash-completion/completions/$(NAME)
	sed '1s/tcptop$$/$(NAME)/' completions/_tcptop >$(ZSH)/_$(NAME)

uninstall:
	rm -rf $(SHARE)/$(NAME)
	rm -f $(DESTDIR)$(PREFIX)/sbin/$(NAME) $(SHARE)/man/man8/$(NAME).8 $(ZSH)/_$(NAME) \
	    $(SHARE)/bash-completion/completions/$(NAME)
