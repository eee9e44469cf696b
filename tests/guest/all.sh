#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All tests that need a guest, in one boot: it takes its time under emulation. Arguments are
# options of pytest.
set -e
options=$*
# shellcheck disable=SC2086
pytest() { python3 -m pytest -q -p no:cacheprovider $options "$@"; }

# Kinds by turns: what iterates over sockets takes the lock of each, as if it used it, and so may be
# credited with what a skipped probe left, or with what a socket with helpers moved.
PROBES=fentry,kprobe
probes() { TCPTOP_KINDS=$PROBES pytest "$@"; }

status=0
probes tests/guest/test_exact.py || status=$?
pytest tests/guest/test_life.py || status=$?
TCPTOP_KINDS=classic,iter,diag pytest tests/guest/test_exact.py || status=$?
for file in command corners units privileges; do
    probes tests/guest/test_$file.py || status=$?
done
pytest tests/guest/test_kinds.py || status=$?
# What a socket's owner can do to its numbers, with the other kinds as well.
TCPTOP_KINDS=classic,iter pytest tests/guest/test_corners.py \
    -k "reset or fast_open or undone or both or urgent or mark_of" || status=$?
TCPTOP_KINDS=diag pytest tests/guest/test_corners.py -k fast_open_that_waits || status=$?

# A kernel that may preempt a probe skips others meanwhile. Linux 5.12 and later can switch.
preempt=/sys/kernel/debug/sched/preempt
if [ -e $preempt ]; then
    echo full >$preempt
    # One after the other, so that tcplife has the tracers of the first beside it.
    probes tests/guest/test_exact.py tests/guest/test_life.py || status=$?
    probes tests/guest/test_corners.py -k "reader_of_maps or undone or reset" || status=$?
fi
[ $status = 0 ]

# There is no way back from this.
mountpoint -q /sys/kernel/security || mount -t securityfs securityfs /sys/kernel/security
echo confidentiality >/sys/kernel/security/lockdown
pytest tests/lockdown
