# SPDX-License-Identifier: Apache-2.0
"""Reading the memory of a BPF ring buffer."""

import struct

import pytest

from tcptools.ring import Ring
from tcptools.sources.lives import RECORD, RING_SIZE

HEADER = struct.Struct("@II")
BUSY = 1 << 31
SIZE = RECORD.size
# Where the kernel began to write: at the start, and so that the third record goes over the end.
POSITIONS = [0, 3 * RING_SIZE - 2 * SIZE - 8]


class Memory(Ring):
    """With memory of its own, as the kernel would map it."""

    def __init__(self, position):
        self._size, self._record = RING_SIZE, RECORD
        self._read = memoryview(bytearray(struct.pack("@Q", position))).cast("Q")
        self._written = memoryview(bytearray(self._read)).cast("Q")
        self._data = memoryview(bytearray(2 * RING_SIZE))

    def _put(self, position, text):
        for at, byte in enumerate(text, position):
            for half in (0, RING_SIZE):
                self._data[half + at % RING_SIZE] = byte

    def reserve(self, number):
        """The place of a record that is being written."""
        position = self._written[0]
        self._put(position, RECORD.pack(number, *[0] * 7, b"", b"", b""))
        self._put(position, HEADER.pack(BUSY | SIZE - HEADER.size, 0))
        self._written[0] += SIZE
        return position

    def submit(self, position):
        self._put(position, HEADER.pack(SIZE - HEADER.size, 0))

    def numbers(self):
        return [record[0] for record in self.take()]


@pytest.mark.parametrize("position", POSITIONS)
def test_every_record_is_read_once(position):
    ring = Memory(position)
    assert ring.numbers() == []
    for number in range(5):
        ring.submit(ring.reserve(number))
    assert ring.numbers() == [0, 1, 2, 3, 4]
    assert ring.numbers() == []


@pytest.mark.parametrize("position", POSITIONS)
def test_a_record_that_is_being_written_is_waited_for(position):
    ring = Memory(position)
    places = [ring.reserve(number) for number in range(4)]
    for place in (places[0], places[2], places[3]):
        ring.submit(place)
    assert ring.numbers() == [0]
    assert ring.numbers() == []
    ring.submit(places[1])
    assert ring.numbers() == [1, 2, 3]
