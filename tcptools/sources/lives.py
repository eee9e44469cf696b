# SPDX-License-Identifier: Apache-2.0
"""The sessions that have ended, as tracepoints report them."""

import mmap
import struct

from tcptools.csource import ENTRY_TYPED, GRAFT, Kind, Tool
from tcptools.kernel import Scope
from tcptools.options import Tcplife
from tcptools.program import load
from tcptools.session import WHO, Life

# Bytes of the ring buffer in bpf/tcplife.c, of which user space takes what there is ten times
# a second.
RING_SIZE = 1 << 22
# Sessions open at a time that began while the programs ran.
MAX_OPEN = 65536
# A record of the ring buffer: struct life of bpf/tcplife.c after a header of 8 bytes. That
# begins with the size of the rest and, until it is complete, BPF_RINGBUF_BUSY_BIT.
RECORD = struct.Struct(f"!8xQQQQ{WHO.format[1:]}12x")
BUSY = 1 << 31 | RECORD.size - 8

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
    """The sessions that have ended.

    They come through a BPF ring buffer, whose memory is read here: bcc would call a function
    for each record, which takes longer than all that is done with it.
    """

    def __init__(self, options: Tcplife, scope: Scope) -> None:
        self._programs = load(TOOL, options, scope)
        self.capabilities: tuple[int, ...] = ()  # all comes through shared memory
        self.notes, self.warnings = self._programs.notes, self._programs.warnings
        if not self._programs.kind.macros:
            self.warnings.append(
                "this kernel does not show who accepts a session: its process is the one that"
                " closes it"
            )
        # Documentation/bpf/ringbuf.rst: a page with the position of the reader, and then, to
        # be read only, a page with that of the writers and the data twice in a row, so that
        # what goes over its end is in one piece.
        ring, page = self._programs.maps["lives"], mmap.PAGESIZE
        reader = mmap.mmap(ring, page)
        writer = mmap.mmap(ring, page + 2 * RING_SIZE, prot=mmap.PROT_READ, offset=page)
        self._read, self._written = memoryview(reader).cast("Q"), memoryview(writer).cast("Q")
        self._data = memoryview(writer)[page:]
        self._read[0] = self._written[0]  # the connection of the proof
        self._programs.new_missed()

    def drain(self) -> tuple[list[Life], int]:
        """The sessions that ended since the last call, in order, and how many more there were."""
        begin, end = self._read[0], self._written[0]
        at = begin % RING_SIZE
        data = self._data[at : at + end - begin]
        headers = data.cast("I")[:: RECORD.size // 4].tolist()
        if BUSY in headers:
            data = data[: headers.index(BUSY) * RECORD.size]
        ended: list[Life] = list(RECORD.iter_unpack(data))
        self._read[0] = begin + len(data)
        return ended, self._programs.new_missed()
