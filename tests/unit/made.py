# SPDX-License-Identifier: Apache-2.0
"""Sessions as the kernel would hand them over."""

import socket

from tcptools.report import PLAIN, Interval
from tcptools.session import AF_INET, AF_INET6, IDENTITY, NO_CGROUP, NO_UID


def session(
    rx=0, tx=0, pid=181, comm=b"sshd", laddr="10.0.0.1", raddr="10.0.0.2", ports=(22, 6684),
    uid=NO_UID, cgroup=NO_CGROUP,
):  # fmt: skip
    """A Session; its address family is that of its addresses."""
    family = AF_INET6 if ":" in laddr else AF_INET
    packed = [socket.inet_pton(family, text) for text in (laddr, raddr)]
    return rx, tx, IDENTITY.pack(family, pid, *ports, *packed, comm, uid, cgroup)


def interval(loadavg="", length=1.0, clock="03:53:20"):
    """An Interval that has ended."""
    return Interval(1763690000.0, length, clock, loadavg, 0)


def row(one):
    """Its line in a table."""
    return PLAIN.table([one])[-1]
