# SPDX-License-Identifier: Apache-2.0
RELEASE = bookworm
ARCH = amd64
RELEASES = bullseye bookworm trixie sid trixie-rt bookworm/arm64 trixie/arm64
PYTHON = /usr/bin/python3
VM = $(PYTHON) tests/vm.py
SOURCES = *.py tcptools tests completions
RUN = $(VM) run --release $(RELEASE) --arch $(ARCH)
PEERS = nethogs,bandwhich,bpftrace
GUEST = $(RUN) --timeout 3900

# Where to install: distributions add a suffix to the commands' names.
PREFIX = /usr/local
SUFFIX =
SBIN = $(DESTDIR)$(PREFIX)/sbin
SHARE = $(DESTDIR)$(PREFIX)/share
LIBRARY = $(SHARE)/tcptop$(SUFFIX)
BASH = $(SHARE)/bash-completion/completions
ZSH = $(SHARE)/zsh/site-functions
FISH = $(SHARE)/fish/vendor_completions.d

.PHONY: help run test lint unit exporter hosts guest service compare soak stress examples picture \
    bench peers matrix deb install uninstall

help: # show the targets
	@sed -n 's/^\([a-z]*\):.*# \(.*\)/\1\t\2/p' Makefile | expand -t 12

$(PYTHON):
	apt-get -q update && apt-get -q install -y --no-install-recommends python3

run: $(PYTHON) # show tcptop with some traffic to look at; ARGS= are its options
	@$(VM) demo -- $(or $(ARGS),-C 1 5)

test: lint unit # lint, unit, guest, and a short bench and comparison
	$(MAKE) guest
	$(MAKE) bench ARGS='--runs 1 --rows 200 --only kprobe' # so that it keeps working
	$(MAKE) peers RELEASE=$(RELEASE) PEERS= ARGS=--short

lint: $(PYTHON) # styles, types, manual pages
	$(VM) tool -- ruff check $(SOURCES)
	$(VM) tool -- ruff format --check $(SOURCES)
	$(VM) tool -- mypy --strict tcptop.py tcplife.py tcptools
	$(VM) tool -- mypy --strict completions/make.py
	MYPYPATH=tests/unit $(VM) tool -- mypy tests/*.py tests/e2e/churning.py
	$(VM) tool -- clang-format --dry-run -Werror bpf/*.[ch]
	mandoc -T lint -W warning man/*.8
	! MANROFFSEQ= LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l man/*.8 2>&1 >/dev/null | grep .

unit: $(PYTHON) # the tests that need no bcc; some take root
	$(VM) tool -- pytest -q tests/unit

exporter: $(PYTHON) # counters of known traffic, as Debian's Prometheus and node_exporter see them
	$(VM) install prometheus prometheus-node-exporter
	$(VM) tool -- pytest -q -s -p no:cacheprovider tests/e2e

hosts: $(PYTHON) # a thousand hosts and one Prometheus; ARGS= are options of tests/hosts.py
	$(VM) install prometheus
	$(PYTHON) tests/hosts.py $(ARGS)

guest: $(PYTHON) # the tests that trace, in a virtual machine; RELEASE=, ARCH=
	$(GUEST) -- sh tests/guest/all.sh

service: deb # the package under systemd, from apt install to what Prometheus has of each unit
	$(GUEST) --systemd --with dbus,prometheus,prometheus-node-exporter,systemd-sysv -- \
	    env SERVICE_SECONDS=$(or $(SERVICE_SECONDS),60) \
	    $(PYTHON) -m pytest -x -q -s -p no:cacheprovider tests/service

# The table of exactness: the same traffic, watched by Debian's tcptop-bpfcc as well; and
# where the lines of tcplife and tcplife-bpfcc differ. Without iter, see tests/guest/all.sh.
compare: $(PYTHON) # exactness beside Debian's tcptop-bpfcc and tcplife-bpfcc
	$(GUEST) -- env TCPTOP_COMPARE=1 TCPTOP_KINDS=fentry,kprobe,classic \
	    python3 -m pytest -s -q -p no:cacheprovider \
	    tests/guest/test_exact.py tests/guest/compare_life.py

soak: $(PYTHON) # a great many short sessions; one or two hours
	$(RUN) --timeout 7200 -- $(PYTHON) tests/soak.py $(ARGS)

# On a kernel that preempts, e.g. RELEASE=trixie-rt.
stress: $(PYTHON) # short sessions while the kernel skips probes; ARGS= of tests/stress.py
	$(RUN) --append preempt=full --timeout 7200 -- $(PYTHON) tests/stress.py $(ARGS)

examples: $(PYTHON) # the worked examples, anew from real runs
	$(VM) run --traffic --rw man -- $(PYTHON) tests/guest/examples.py

picture: $(PYTHON) # the pictures of the README, anew
	$(VM) tool -- python tests/picture.py

# The guest's nanoseconds are instructions.
bench: $(PYTHON) # what tracing costs, in instructions; ARGS= are options of tests/bench.py
	$(GUEST) --icount -- $(PYTHON) tests/bench.py $(ARGS)

# A guest of its own, with packages that the tests do not need.
peers: RELEASE = sid
peers: $(PYTHON) # tcptop and others beside the same traffic, tables; RELEASE=, ARGS= of tests/peers.py
	@$(RUN) --icount --with '$(PEERS)' --timeout 7200 -- $(PYTHON) tests/peers.py $(ARGS)

# The package, built here, on the kernel, Python and bcc of each release, without headers.
# After the release comes the kernel, if it is not the usual one, and the architecture.
matrix: deb # the package, tested on the kernels of RELEASES
	$(PYTHON) tests/matrix.py $(RELEASES)

deb: $(PYTHON) # dist/tcptop-bpfcc_VERSION_all.deb
	$(VM) install debhelper dh-python dpkg-dev lintian
	rm -rf dist
	mkdir -p dist/tcptop
	tar -c --exclude-vcs --exclude=./dist --exclude=__pycache__ . | tar -x -C dist/tcptop
	cd dist/tcptop && dpkg-buildpackage -us -uc -b
	rm -r dist/tcptop
	lintian --allow-root --fail-on error,warning dist/*.changes

install: # below PREFIX, in DESTDIR, with SUFFIX
	rm -rf $(LIBRARY)
	install -d $(SBIN) $(LIBRARY) $(SHARE)/man/man8 $(ZSH) $(BASH) $(FISH)
	tar -c --exclude=__pycache__ tcptop.py tcplife.py tcptools bpf | tar -x --no-same-owner -C $(LIBRARY)
	set -e; for tool in tcptop tcplife; do \
	    name=$$tool$(SUFFIX); \
	    ln -sf ../share/tcptop$(SUFFIX)/$$tool.py $(SBIN)/$$name; \
	    install -m 644 man/$$tool.8 $(SHARE)/man/man8/$$name.8; \
	    complete="$(PYTHON) -B completions/make.py"; \
	    $$complete bash $$tool $$name >$(BASH)/$$name; \
	    $$complete zsh $$tool $$name >$(ZSH)/_$$name; \
	    $$complete fish $$tool $$name >$(FISH)/$$name.fish; \
	done

uninstall: # take that away
	rm -rf $(LIBRARY)
	set -e; for name in tcptop$(SUFFIX) tcplife$(SUFFIX); do rm -f $(SBIN)/$$name \
	    $(SHARE)/man/man8/$$name.8 $(BASH)/$$name $(ZSH)/_$$name $(FISH)/$$name.fish; done
