# SPDX-License-Identifier: Apache-2.0
"""Records of the kernel become sessions; sessions have an order and printable parts."""

import ctypes
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import session

from session import AF_INET, AF_INET6, IDENTITY, SORT_ORDERS, identify, layout, ranked


def structure(*fields):
    return type("struct", (ctypes.Structure,), {"_fields_": list(fields)})


# struct identity and struct session of bpf/tcptop.c, on which every guest test depends.
WHO = structure(
    ("family", ctypes.c_ubyte),
    ("unused", ctypes.c_ubyte * 3),
    ("pid", ctypes.c_uint),
    ("lport", ctypes.c_ushort),
    ("rport", ctypes.c_ushort),
    ("laddr", ctypes.c_ubyte * 16),
    ("raddr", ctypes.c_ubyte * 16),
    ("comm", ctypes.c_char * 16),
)
RECORD = structure(
    ("rx_bytes", ctypes.c_ulonglong), ("tx_bytes", ctypes.c_ulonglong), ("identity", WHO)
)


def decode(block):
    return list(layout(RECORD, "rx_bytes", "tx_bytes", "identity").iter_unpack(block))


def test_records_are_decoded_one_after_the_other():
    assert ctypes.sizeof(WHO) == IDENTITY.size
    assert ctypes.sizeof(RECORD) == 80, "8+8+60 bytes, padded to a multiple of 8"
    one = session(0xF1F2F3F4F5F6F7F8, 1 << 40)
    record = RECORD(one[0], one[1], WHO.from_buffer_copy(one[2]))
    block = bytes(record) + bytes(80) + bytes(record)
    assert decode(block) == [one, (0, 0, bytes(60)), one]
    assert decode(b"") == []
    assert decode(memoryview(block)[:80]) == [one]


def test_half_a_record_is_refused():
    with pytest.raises(struct.error, match="multiple"):
        decode(bytes(81))


PART = structure(("bytes", ctypes.c_ulonglong), ("pid", ctypes.c_uint))
WHOLE = structure(("born", ctypes.c_uint), ("parts", PART * 2), ("flag", ctypes.c_ubyte))


@pytest.mark.parametrize(
    "paths, expected",
    [
        (["born", "flag"], (1, 6)),
        (["parts.0.pid"], (3,)),
        (["parts.1.bytes", "parts.1.pid", "flag"], (4, 5, 6)),
        (["parts.1"], (bytes(PART(4, 5)),)),
        ([], ()),
    ],
)
def test_parts_of_a_structure(paths, expected):
    value = WHOLE(1, (PART * 2)(PART(1 << 40, 3), PART(4, 5)), 6)
    of_whole = layout(WHOLE, *paths)
    assert of_whole.size == ctypes.sizeof(WHOLE)
    assert of_whole.unpack(bytes(value)) == expected


def test_what_is_not_there_is_refused():
    with pytest.raises(AttributeError):
        layout(WHOLE, "parts.1.tgid")


@given(
    st.sampled_from([AF_INET, AF_INET6]),
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
    st.binary(max_size=16),
)
def test_identity(family, pid, ports, ipv4, ipv6, comm):
    addresses = ipv4 if family == AF_INET else ipv6
    packed = (address.packed for address in addresses)
    who = identify(IDENTITY.pack(family, pid, *ports, *packed, comm))
    assert (who.family, who.pid, (who.lport, who.rport)) == (family, pid, ports)
    parsed = tuple(type(a)(text) for a, text in zip(addresses, (who.laddr, who.raddr)))
    assert parsed == addresses
    assert who.comm == comm.split(b"\0")[0].decode("utf-8", "replace")


@pytest.mark.parametrize("laddr", ["10.0.0.1", "fe80::1", "::ffff:192.0.2.7"])
def test_address(laddr):
    assert identify(session(laddr=laddr, raddr=laddr)[2]).laddr == laddr


@pytest.mark.parametrize(
    "comm, text",
    [
        (b"sshd" + bytes(12), "sshd"),
        (b"left\0over" + bytes(7), "left"),
        (bytes(16), ""),
        (b"exactly 16 bytes", "exactly 16 bytes"),
        ("жук".encode() + bytes(10), "жук"),
        (b"a\xffb", "a\ufffdb"),
        (b"a\x1b[2J", "a\x1b[2J"),
        ("猫猫猫猫猫".encode() + b"\xe7", "猫猫猫猫猫\ufffd"),  # cut within a character
    ],
)
def test_comm(comm, text):
    assert identify(session(comm=comm)[2]).comm == text


def test_sort_orders():
    both, sent, received = session(40, 40, 1), session(0, 70, 2), session(60, 0, 3)
    some = [sent, received, both]
    assert list(SORT_ORDERS) == ["all", "sent", "received"]
    assert ranked(some, "all", 3) == [both, sent, received]
    assert ranked(some, "sent", 3) == [sent, both, received]
    assert ranked(some, "received", 3) == [received, both, sent]


def test_ranked_gives_no_more_than_asked_for():
    some = [session(size) for size in range(10)]
    assert [s[0] for s in ranked(some, "all", 3)] == [9, 8, 7]
    assert len(ranked(some, "all", 99)) == 10
    assert ranked([], "all", 5) == []


def test_ties_keep_their_places_whatever_order_they_come_in():
    some = [session(7, 0, pid, b"x", laddr, "10.0.0.1", ports)
            for pid in (2, 259) for ports in ((5, 9), (5, 256), (261, 1))
            for laddr in ("10.0.0.9", "10.0.1.2")]  # fmt: skip
    mixed = list(some)
    random.Random(11).shuffle(mixed)
    assert mixed != some
    assert ranked(mixed, "all", 12) == some
    assert ranked(mixed, "sent", 3) == some[:3], "all sent nothing"
