# SPDX-License-Identifier: Apache-2.0
"""The sessions that have ended, as tracepoints report them."""

import struct
from contextlib import closing

from tcptools import Failure, kernel
from tcptools.btf import Btf
from tcptools.csource import ENTRY_TYPED, GRAFT, Kind, Tool
from tcptools.kernel import Scope
from tcptools.options import Tcplife
from tcptools.program import load
from tcptools.ring import Ring
from tcptools.session import WHO, Life

# Bytes of the ring buffer in bpf/tcplife.c, of which user space takes what there is ten times
# a second.
RING_SIZE = 1 << 22
# Sessions open at a time that began while the programs ran.
MAX_OPEN = 65536
# A record of the ring buffer: struct life of bpf/tcplife.c after a header of 8 bytes.
RECORD = struct.Struct(f"!8xQQQQ{WHO.format[1:]}12x")

TOOL = Tool(
    files=("common.h", "tcplife.c"),
    # Where accept(2) is seen: security_sock_graft() is there with CONFIG_SECURITY_NETWORK. A
    # kprobe needs perf_event_open(2), which Debian keeps from those who have no more than CAP_BPF
    # and CAP_PERFMON.
    kinds=(
        Kind("tracepoint", (GRAFT, ENTRY_TYPED)),
        Kind("tracepoint", (GRAFT,)),
        Kind("tracepoint"),
    ),
    entries={"lives": RING_SIZE, "open": MAX_OPEN},
    maps=("lives",),
)


class Lives:
    """The sessions that have ended."""

    losses = "sessions not shown: too many began or ended at once"

    def __init__(self, options: Tcplife, scope: Scope) -> None:
        if kernel.realtime():
            with closing(Btf()) as btf:
                if btf.ring_buffers_sleep():
                    raise Failure("in this real-time kernel ring buffers sleep, before Linux 6.12")
        self._programs = load(TOOL, options, scope)
        self.capabilities: tuple[int, ...] = ()  # all comes through shared memory
        self.notes, self.warnings = self._programs.notes, self._programs.warnings
        if not self._programs.kind.macros:
            self.warnings.append(
                "this kernel does not show who accepts a session: its process is the one that"
                " closes it"
            )
        self._ring = Ring(self._programs.maps["lives"], RING_SIZE, RECORD)
        self._ring.forget()  # the connection of the proof
        self._programs.new_missed()

    def drain(self) -> tuple[list[Life], int]:
        """The sessions that ended since the last call, in order, and how many more there were."""
        return self._ring.take(), self._programs.new_missed()
