# SPDX-License-Identifier: Apache-2.0
"""A BPF ring buffer with records of one size, read where it is.

bcc would call a function for each record, which takes longer than all that is done with it.
"""

import mmap
import threading
from struct import Struct
from typing import Any

# What comes before a record: the size of the rest and, until it is complete, this bit.
HEADER = 8
BPF_RINGBUF_BUSY_BIT = 1 << 31
# Held all the time but in _barrier().
_LOCK = threading.Lock()
_LOCK.acquire()


class Ring:
    """The records of a ring buffer of `size` bytes; `record` begins with 8 for their header."""

    def __init__(self, ring_fd: int, size: int, record: Struct) -> None:
        self._size, self._record = size, record
        # Documentation/bpf/ringbuf.rst: a page with the position of the reader, and then, to
        # be read only, a page with that of the writers and the data twice in a row, so that
        # what goes over its end is in one piece.
        page = mmap.PAGESIZE
        reader = mmap.mmap(ring_fd, page)
        writer = mmap.mmap(ring_fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._read, self._written = memoryview(reader).cast("Q"), memoryview(writer).cast("Q")
        self._data = memoryview(writer)[page:]

    def forget(self) -> None:
        """Let all be that is there."""
        self._read[0] = self._written[0]

    def take(self) -> list[Any]:
        """All complete records since the last call, in order."""
        begin, end = self._read[0], self._written[0]
        _barrier()
        at, size = begin % self._size, self._record.size
        data = self._data[at : at + end - begin]
        headers = data.cast("I")[:: size // 4].tolist()
        _barrier()
        busy = BPF_RINGBUF_BUSY_BIT | size - HEADER
        if busy in headers:
            data = data[: headers.index(busy) * size]
        records = list(self._record.iter_unpack(data))
        _barrier()
        self._read[0] = begin + len(data)
        return records


def _barrier() -> None:
    """What is before this happens before what comes after, on arm64 as well.

    A release and then an acquisition are passed by no access to memory.
    """
    _LOCK.release()
    _LOCK.acquire()
