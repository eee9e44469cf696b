# SPDX-License-Identifier: Apache-2.0
"""Records of the kernel become sessions; sessions have an order and printable parts."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import session

from tcptools.session import AF_INET, AF_INET6, IDENTITY, SORT_ORDERS, identify, ranked


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
    who = identify(IDENTITY.pack(family, pid, *ports, *packed, comm, 7, 9))
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
