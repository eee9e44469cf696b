# SPDX-License-Identifier: Apache-2.0
"""Which programs are tried, and what is said where none can be used."""

import errno
import os

import pytest

from tcptools import Failure, kernel, program
from tcptools.kernel import Scope
from tcptools.options import Tcptop
from tcptools.sources import traffic

FENTRY, KPROBE = (
    next(kind for kind in traffic.tool(Tcptop()).kinds if kind.probe == probe)
    for probe in ("fentry", "kprobe")
)


@pytest.mark.parametrize(
    "kinds, number, is_for_root, named",
    [
        ([KPROBE], errno.EACCES, True, True),
        ([FENTRY, KPROBE], errno.EACCES, True, True),
        ([FENTRY], errno.EACCES, True, False),  # the verifier's
        ([KPROBE], errno.EACCES, False, False),
        ([KPROBE], errno.EPERM, True, False),
    ],
)
def test_a_sysctl_is_blamed_for_kprobes_alone(monkeypatch, kinds, number, is_for_root, named):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    for where, name, made in (
        (program, "wanted_kinds", lambda *_: kinds),
        (program, "text", lambda *_: ""),
        (program, "compiled", refuse),
        (kernel, "kprobes_are_for_root", lambda: is_for_root),
    ):
        monkeypatch.setattr(where, name, made)
    options = Tcptop()
    with pytest.raises(Failure) as error:
        program.load(traffic.tool(options), options, Scope(None, {}))
    assert ("kernel.perf_event_paranoid" in error.value.args[0]) is named
