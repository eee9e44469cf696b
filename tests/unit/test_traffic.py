# SPDX-License-Identifier: Apache-2.0
import ctypes
import errno
import os
import time

import pytest

from tcptools import kernel, syscalls
from tcptools.sources import traffic


def test_entries_of_one_session_become_one():
    assert traffic.joined([(1, 2, b"a"), (3, 4, b"b"), (5, 6, b"a")]) == [
        (6, 8, b"a"),
        (3, 4, b"b"),
    ]


@pytest.mark.parametrize(
    "iterate, limit, reason",
    [
        (lambda _: b"", 60, ""),
        (lambda _: time.sleep(60), 0.2, "the search for open sockets took too long"),
        (lambda _: os.stat("/nonexistent"), 60, "the search for open sockets failed"),
    ],
)
def test_the_search_for_open_sockets_has_a_limit(iterate, limit, reason, monkeypatch):
    monkeypatch.setattr(traffic, "SEARCH_LIMIT", limit)
    monkeypatch.setattr(syscalls, "iterate", iterate)
    monkeypatch.setattr(kernel, "network_namespaces", lambda: iter([None]))
    source = traffic.Traffic.__new__(traffic.Traffic)
    began = time.monotonic()
    assert source._search(0) == reason
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number, ends", [(errno.ENOENT, True), (errno.ENOMEM, False)])
def test_only_no_more_entries_is_the_end_of_a_map(number, ends, monkeypatch):
    class Libbpf:
        """A map with two entries of a byte, which has both in its first block."""

        @staticmethod
        def bpf_map_lookup_and_delete_batch(_fd, _start, _place, _keys, values, count, _options):
            values[:2] = b"ab"
            ctypes.cast(count, ctypes.POINTER(ctypes.c_uint32))[0] = 2
            ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(syscalls, "libbpf", Libbpf)
    take = syscalls.take(-1, 4, 1)
    if ends:
        assert [bytes(block) for block in take] == [b"ab"]
    else:
        with pytest.raises(OSError) as caught:
            list(take)
        assert caught.value.errno == errno.ENOMEM
