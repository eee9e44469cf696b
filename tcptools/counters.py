# SPDX-License-Identifier: Apache-2.0
"""From TCP's counters, as socket diagnosis tells them, to the bytes that a process has moved."""

from tcptools.sockdiag import (
    CLOSE_WAIT,
    CLOSING,
    FIN_WAIT1,
    FIN_WAIT2,
    LAST_ACK,
    PAIR,
    QUEUES,
    Reading,
)

# The peer's FIN has come: it is read if nothing is unread, and counted as a byte.
PEER_DONE = frozenset((CLOSE_WAIT, LAST_ACK, CLOSING))
# Our FIN stands in the send queue as a byte, until it is acknowledged.
WE_DONE = frozenset((FIN_WAIT1, LAST_ACK, CLOSING))


def received_by(state: int, unread: int, received: int) -> int:
    """The bytes that a process has read.

    tcpi_bytes_received counts the peer's FIN (tcp_rcv_nxt_update(), net/ipv4/tcp_input.c), and
    so does idiag_rqueue until it is read (tcp_diag_get_info(), net/ipv4/tcp_diag.c).
    """
    return received - unread - (not unread and state in PEER_DONE)


def sent_by(reading: Reading, state: int, over: bool = False) -> int:
    """The bytes that TCP has accepted from a process; `over`: and our FIN has been acknowledged.

    tcpi_bytes_sent has no FIN, but tcpi_notsent_bytes has it (write_seq - snd_nxt in
    tcp_get_info(), net/ipv4/tcp.c). What is dropped on this host is sent again without being
    retransmitted, so it is counted twice; then what is acknowledged and waits for that is the
    truth, to the SYN of the one who connected, and a FIN that was sent after the state was read.
    What could not be sent again for want of memory is counted as if it had been
    (__tcp_retransmit_skb()): no less was sent than what was acknowledged, but for the same two.
    """
    _, _, queues, progress, unsent, sending = reading
    sent, again = PAIR.unpack(sending)
    acknowledged = PAIR.unpack(progress)[0]
    fin = state in WE_DONE or state == FIN_WAIT2
    most: int = acknowledged + QUEUES.unpack(queues)[1] - fin
    total: int = max(acknowledged - 2, sent - again + unsent - (unsent > 0 and fin))
    return total if total <= most else most - 1 - (over or not fin)
