#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All tests on the installed package, and what is there before and after it.
set -e
reference() {
    for name in tcptop-bpfcc tcplife-bpfcc; do
        sha256sum /usr/sbin/$name /usr/share/man/man8/$name.8.gz
    done
}
before=$(reference)
echo "matrix: Linux $(uname -r)"
python3 -c 'import bcc, sys; print("matrix: Python %d.%d" % sys.version_info[:2]);
print("matrix: bcc", bcc.__version__)'

dpkg -i dist/tcptop-bpfcc_*_all.deb
[ "$(readlink -f /usr/sbin/tcptop-bpfcc)" = /usr/share/tcptop-bpfcc/tcptop.py ]
[ -n "$(find /usr/lib/modules/*/build/ -name Makefile 2>/dev/null)" ] && exit 1 # no headers
status=0
TCPTOP=/usr/sbin/tcptop-bpfcc TCPLIFE=/usr/sbin/tcplife-bpfcc sh tests/guest/all.sh \
    --deselect=tests/guest/test_command.py::test_without_btf_headers_serve || status=$?

dpkg --purge tcptop-bpfcc
[ "$(reference)" = "$before" ]
[ -z "$(find /usr /etc /var/lib -name '*tcp[tl]*' -newer /run/vm/script)" ]
exit $status
