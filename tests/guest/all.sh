#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All tests that need a guest, in one boot: it takes its time under emulation. Arguments are
# options of pytest.
set -e
options=$*
# shellcheck disable=SC2086
pytest() { env --default-signal=INT python3 -m pytest -q -p no:cacheprovider $options "$@"; }

# Two at a time, because emulation keeps one processor busy with each. The shell has what
# runs in the background ignore SIGINT, which the tests send.
pytest tests/guest/test_command.py >/tmp/command 2>&1 &
status=0
pytest tests/guest/test_exact.py tests/guest/test_life.py || status=$?

# A kernel that may preempt a probe skips others meanwhile. Linux 5.12 and later can switch.
preempt=/sys/kernel/debug/sched/preempt
if [ -e $preempt ]; then
    echo full >$preempt
    pytest tests/guest/test_exact.py tests/guest/test_life.py || status=$?
fi
wait $! || status=$?
cat /tmp/command
[ $status = 0 ]

# There is no way back from this.
mountpoint -q /sys/kernel/security || mount -t securityfs securityfs /sys/kernel/security
echo confidentiality >/sys/kernel/security/lockdown
pytest tests/lockdown
