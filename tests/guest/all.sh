#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All tests that need a guest, in one boot: it takes its time under emulation. Arguments are
# options of pytest.
set -e
options=$*
# shellcheck disable=SC2086
pytest() { python3 -m pytest -q -p no:cacheprovider $options "$@"; }

# No other tcptop starts meanwhile: before Linux 5.11 it takes the lock of every socket, as if it
# used it, and what a skipped probe left is credited to it.
exact() { pytest tests/guest/test_exact.py tests/guest/test_life.py; }

status=0
exact || status=$?
pytest tests/guest/test_command.py || status=$?
pytest tests/guest/test_privileges.py || status=$?
pytest tests/guest/test_corners.py || status=$?
pytest tests/guest/test_units.py || status=$?
pytest tests/guest/test_kinds.py || status=$?

# A kernel that may preempt a probe skips others meanwhile. Linux 5.12 and later can switch.
preempt=/sys/kernel/debug/sched/preempt
if [ -e $preempt ]; then
    echo full >$preempt
    exact || status=$?
fi
[ $status = 0 ]

# There is no way back from this.
mountpoint -q /sys/kernel/security || mount -t securityfs securityfs /sys/kernel/security
echo confidentiality >/sys/kernel/security/lockdown
pytest tests/lockdown
