# SPDX-License-Identifier: Apache-2.0
"""What is given up is gone, as the kernel has it; in a child, for there is no way back."""

import os
import re
import subprocess
import sys

import pytest

from tcptools import privileges
from tcptools.privileges import (
    CAP_BPF,
    CAP_DAC_READ_SEARCH,
    CAP_SYS_ADMIN,
    CAP_SYS_NICE,
    CAP_SYS_PTRACE,
    permitted,
)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="there is nothing to give up")


def after(needed, then="", before=""):
    """What /proc/self/status says in a child that has given up all but these, and its output."""
    code = (
        "from tcptools import privileges, syscalls\nimport os, resource\n"
        f"{before}\nprivileges.give_up({needed!r})\n{then}\n"
        "print(open('/proc/self/status').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    status = dict(re.findall(r"^(\w+):\s*([0-9a-f]+)$", done.stdout, re.M))
    sets = {name[3:]: int(value, 16) for name, value in status.items() if name.startswith("Cap")}
    return sets, status["NoNewPrivs"], done.stdout


def test_nothing_is_left():
    sets, no_new, _ = after(())
    assert sets.pop("Bnd") in ((0,) if os.geteuid() == 0 else range(1 << 64))
    assert sets == {"Inh": 0, "Prm": 0, "Eff": 0, "Amb": 0}
    assert no_new == "1"


@as_root
def test_what_is_needed_stays_if_it_was_there():
    wanted = [CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, 40, 63]
    sets, _, _ = after(wanted)
    expected = permitted() & sum(1 << number for number in wanted)
    assert expected >> CAP_SYS_PTRACE & 1
    assert (sets["Prm"], sets["Eff"], sets["Bnd"], sets["Inh"]) == (expected, expected, 0, 0)


@as_root
@pytest.mark.parametrize("needs_it", [False, True])
def test_bpf_stays_where_maps_need_it(needs_it):
    before = f"privileges._maps_need_it = lambda: {needs_it}"
    sets, _, _ = after((CAP_BPF,), before=before)
    assert sets["Prm"] == sets["Eff"]
    assert sets["Eff"] & ~(1 << CAP_SYS_NICE) == needs_it << CAP_BPF


@as_root
def test_before_linux_5_8_it_is_sys_admin():
    before = (
        "privileges._maps_need_it = lambda: True\n"
        "real = privileges.permitted\n"
        f"privileges.permitted = lambda: real() & ~(1 << {CAP_BPF})"
    )
    sets, _, _ = after((CAP_BPF,), before=before)
    assert sets["Eff"] & ~(1 << CAP_SYS_NICE) == 1 << CAP_SYS_ADMIN


@as_root
@pytest.mark.parametrize("needed", [(), (CAP_BPF,)])
def test_no_program_can_be_loaded_and_no_file_be_had(needed, tmp_path):
    other = tmp_path / "other"
    other.touch()
    os.chown(other, 12345, 12345)
    os.chmod(other, 0o600)
    then = (
        # r0 = 0; exit: of a kind that traces, BPF_PROG_TYPE_KPROBE
        "try: syscalls.load_program('x', bytes.fromhex('b7000000000000009500000000000000'), 2)\n"
        "except OSError as error: print('refused', error.errno)\n"
        f"try: open({str(other)!r})\n"
        "except OSError as error: print('refused', error.errno)\n"
    )
    _, _, output = after(needed, then)
    assert re.findall(r"refused (\d+)", output) == ["1", "13"]


@as_root
@pytest.mark.parametrize("limited", [False, True])
def test_work_on_maps_is_not_preempted(limited):
    before = ""
    then = (
        "with syscalls.undisturbed(): print('policy', os.sched_getscheduler(0))\n"
        "print('policy', os.sched_getscheduler(0))"
    )
    if limited:
        before = "def fails(*_): raise ValueError\nresource.setrlimit = fails"
    sets, _, output = after((CAP_BPF,), then, before)
    limited = limited or not permitted() >> 24 & 1  # CAP_SYS_RESOURCE
    assert sets["Eff"] >> CAP_SYS_NICE & 1 == limited
    first = re.findall(r"policy (\d+)", output)
    if subprocess.run(["chrt", "-f", "1", "true"], check=False, capture_output=True).returncode:
        pytest.skip("kernel: no real-time priorities in this container")
    assert first == [str(os.SCHED_FIFO), str(os.SCHED_OTHER)]


def test_a_refusal_is_an_error(monkeypatch):
    monkeypatch.setattr(privileges._libc, "capset", lambda *_: -1)
    with pytest.raises(privileges.Failure, match=r"^privileges cannot be given up: "):
        privileges._set(0, 0)
