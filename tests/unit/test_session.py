# SPDX-License-Identifier: Apache-2.0
"""Records of the kernel become sessions; sessions have an order and printable parts."""

import ctypes
import random
import socket

import pytest

from session import AF_INET, AF_INET6, SORT_ORDERS, Session, address, layout, name, ranked

FIELDS = [
    ("rx_bytes", ctypes.c_ulonglong),
    ("tx_bytes", ctypes.c_ulonglong),
    ("pid", ctypes.c_uint),
    ("family", ctypes.c_ushort),
    ("lport", ctypes.c_ushort),
    ("rport", ctypes.c_ushort),
    ("laddr", ctypes.c_ubyte * 16),
    ("raddr", ctypes.c_ubyte * 16),
    ("comm", ctypes.c_char * 16),
]


def structure(fields):
    return type("struct", (ctypes.Structure,), {"_fields_": fields})


def decode(record, block):
    return [Session._make(fields) for fields in layout(record, Session._fields).iter_unpack(block)]


def session(rx=0, tx=0, pid=1, lport=1, rport=1, comm=b""):
    return Session(rx, tx, pid, AF_INET, lport, rport, bytes(16), bytes(16), comm)


def filled(record):
    """A record with another value in every field, as wide as the field allows."""
    return record(
        0xF1F2F3F4F5F6F7F8, 1 << 40, 0xFFFFFFFE, AF_INET6, 22, 65535,
        (ctypes.c_ubyte * 16)(*range(16)), (ctypes.c_ubyte * 16)(*range(240, 256)),
        b"sixteen bytes ok",
    )  # fmt: skip


EXPECTED = Session(
    0xF1F2F3F4F5F6F7F8, 1 << 40, 0xFFFFFFFE, AF_INET6, 22, 65535,
    bytes(range(16)), bytes(range(240, 256)), b"sixteen bytes ok",
)  # fmt: skip


def test_records_are_decoded_one_after_the_other():
    record = structure(FIELDS)
    assert ctypes.sizeof(record) == 80, "8+8+4+3*2+3*16 bytes, padded to a multiple of 8"
    block = bytes(filled(record)) + bytes(80) + bytes(filled(record))
    zero = Session(0, 0, 0, 0, 0, 0, bytes(16), bytes(16), bytes(16))
    assert decode(record, block) == [EXPECTED, zero, EXPECTED]
    assert decode(record, b"") == []
    assert decode(record, memoryview(block)[:80]) == [EXPECTED]


def test_the_size_is_that_of_the_structure():
    record = structure(FIELDS)
    assert layout(record, Session._fields).size == ctypes.sizeof(record)


def test_holes_are_skipped_whether_named_or_not():
    """bcc names the holes that it fills itself __pad_1, __pad_2, ..."""
    named = structure([*FIELDS[:6], ("__pad_6", ctypes.c_char * 6), *FIELDS[6:]])
    value = named(rx_bytes=5, rport=7, comm=b"x")
    setattr(value, "__pad_6", b"hidden")
    (decoded,) = decode(named, bytes(value))
    assert (decoded.rx_bytes, decoded.rport, decoded.comm) == (5, 7, b"x" + bytes(15))
    assert decoded.laddr == bytes(16)

    unnamed = structure([*FIELDS[:4], ("lport", ctypes.c_uint), *FIELDS[5:]])
    assert unnamed.lport.offset == unnamed.family.offset + 4, "two bytes of nothing"
    (decoded,) = decode(unnamed, bytes(unnamed(family=2, lport=22, rport=7)))
    assert (decoded.family, decoded.lport, decoded.rport) == (2, 22, 7)


@pytest.mark.parametrize(
    "fields",
    [
        FIELDS[:-1],
        FIELDS[1:2] + FIELDS[:1] + FIELDS[2:],
        [*FIELDS, ("more", ctypes.c_uint)],
        [("received", ctypes.c_ulonglong), *FIELDS[1:]],
    ],
    ids=["one less", "two exchanged", "one more", "one renamed"],
)
def test_other_fields_are_refused(fields):
    with pytest.raises(TypeError, match="the structure has"):
        layout(structure(fields), Session._fields)


def test_arrays_of_structures_and_scalars():
    part = structure([("bytes", ctypes.c_ulonglong), ("pid", ctypes.c_uint)])
    whole = structure([("born", ctypes.c_uint), ("parts", part * 2), ("flag", ctypes.c_ubyte)])
    value = whole(1, (part * 2)(part(1 << 40, 3), part(4, 5)), 6)
    assert layout(whole, ("born", "parts", "flag")).unpack(bytes(value)) == (1, 1 << 40, 3, 4, 5, 6)
    assert layout(ctypes.c_ulonglong).unpack(bytes(ctypes.c_ulonglong(1 << 63))) == (1 << 63,)


def test_half_a_record_is_refused():
    with pytest.raises(Exception, match="multiple"):
        decode(structure(FIELDS), bytes(81))


def test_sort_orders():
    both, sent, received = session(40, 40, 1), session(0, 70, 2), session(60, 0, 3)
    some = [sent, received, both]
    assert list(SORT_ORDERS) == ["all", "sent", "received"]
    assert ranked(some, "all", 3) == [both, sent, received]
    assert ranked(some, "sent", 3) == [sent, both, received]
    assert ranked(some, "received", 3) == [received, both, sent]


def test_ranked_gives_no_more_than_asked_for():
    some = [session(size) for size in range(10)]
    assert [s.rx_bytes for s in ranked(some, "all", 3)] == [9, 8, 7]
    assert len(ranked(some, "all", 99)) == 10
    assert ranked([], "all", 5) == []


def test_ties_keep_their_places_whatever_order_they_come_in():
    some = [session(7, 0, pid, lport, rport)
            for pid in (1, 2) for lport in (5, 6) for rport in (8, 9)]  # fmt: skip
    mixed = list(some)
    random.Random(11).shuffle(mixed)
    assert mixed != some
    assert ranked(mixed, "all", 8) == some
    assert ranked(mixed, "sent", 3) == some[:3], "all sent nothing"


def test_address():
    assert address(AF_INET, bytes([10, 0, 0, 1]) + b"\xff" * 12) == "10.0.0.1"
    assert address(AF_INET6, socket.inet_pton(AF_INET6, "fe80::1")) == "fe80::1"
    mapped = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7])
    assert address(AF_INET6, mapped) == "::ffff:192.0.2.7"


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
    ],
)
def test_name(comm, text):
    assert name(comm) == text
