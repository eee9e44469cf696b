# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of one session's socket now: one request of socket diagnosis."""

import struct
from contextlib import closing, suppress
from typing import NamedTuple, Optional

from tcptools import Failure
from tcptools.kernel import network_namespace_of
from tcptools.session import FAMILY, LADDR, LPORT, PID, RADDR, RPORT
from tcptools.sockdiag import ID as ID_BEGIN
from tcptools.sockdiag import NAMES_END, QUEUES, Inquiry

# enum of include/net/tcp_states.h.
STATES = (
    "", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
    "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV",
)  # fmt: skip
# After ports and addresses: any interface, and INET_DIAG_NOCOOKIE twice.
ANY = bytes(4) + b"\xff" * 8
# struct tcp_info of include/uapi/linux/tcp.h: tcpi_snd_mss, tcpi_rtt and tcpi_rttvar in
# microseconds, tcpi_snd_cwnd in segments, tcpi_total_retrans, tcpi_notsent_bytes,
# tcpi_bytes_retrans.
INFO = struct.Struct("=16xI48xII4xI16xI40xI60xQ")


class Diagnosis(NamedTuple):
    """A socket now. Times are in microseconds; window and retransmitted in segments; unread,
    unacknowledged (of which `unsent`) and resent in bytes; mss are the bytes of a segment."""

    state: str
    unread: int
    unacknowledged: int
    mss: int
    rtt: int
    variation: int
    window: int
    retransmitted: int
    unsent: int
    resent: int


def diagnose(identity: bytes) -> Optional[Diagnosis]:
    """A session's socket; None if there is none any more, or nobody who could be asked.

    Raises OSError if its network namespace is not known: another one may have the same addresses.
    """
    pid = int.from_bytes(identity[PID], "big")
    names = b"".join(identity[part] for part in (LPORT, RPORT, LADDR, RADDR))
    with network_namespace_of(pid), suppress(OSError, Failure), closing(Inquiry()) as inquiry:
        for block in inquiry.again([(identity[FAMILY][0], names + ANY)]):
            # Where the session has gone, the kernel finds the socket that listens there.
            if bytes(block.data[ID_BEGIN:NAMES_END]) == names:
                [reading] = block.readings()
                unread, unacknowledged, _, _ = QUEUES.unpack(reading[2])
                info = INFO.unpack_from(block.data, block.layout.info)
                state = STATES[reading[0]] if reading[0] < len(STATES) else "?"
                return Diagnosis(state, unread, unacknowledged, *info)
    return None


def facts(identity: bytes) -> list[tuple[str, str]]:
    """The same as names and texts; the first name is "socket" if there is none."""
    try:
        found = diagnose(identity)
    except OSError:
        return [("socket", "not known, as its process has gone or may not be looked into")]
    if not found:
        return [("socket", "closed, or not found")]
    window = f"{found.window} segments of {found.mss} bytes"
    unsent = f", {found.unsent:,} of them not sent" if found.unsent else ""
    return [
        ("state", found.state),
        ("RTT", f"{found.rtt / 1000:.3f} ms, varies by {found.variation / 1000:.3f} ms"),
        ("cwnd", window),
        ("resent", f"{found.retransmitted:,} segments, {found.resent:,} bytes"),
        ("unacked", f"{found.unacknowledged:,} bytes{unsent}"),
        ("unread", f"{found.unread:,} bytes"),
    ]
