# SPDX-License-Identifier: Apache-2.0
"""The TCP sockets of a network namespace, polled: how far each has moved since the last look."""

import time
from collections.abc import Callable, Iterable, Sequence
from operator import le
from typing import NamedTuple, Optional

from tcptools.counters import WE_DONE, received_by, sent_by
from tcptools.notices import LATE, Notice, Notices
from tcptools.owners import Owner
from tcptools.privileges import CAP_NET_ADMIN, without
from tcptools.sockdiag import (
    AGES,
    BEGINNINGS,
    ESTABLISHED,
    FAMILY,
    FIN_WAIT1,
    ID,
    NAMES_END,
    PAIR,
    QUEUES,
    STATES,
    Block,
    Inquiry,
    Parser,
    Reading,
    is_blank,
)
from tcptools.tasks import NOBODY, UNKNOWN

NAMES = NAMES_END - ID
# Milliseconds: a socket that was at rest for so long, and while it was waited for the answer, did
# not change while it was looked at.
AT_REST = 50
# How often a socket that moves meanwhile is looked at again.
LOOKS = 3
# Seconds for which a socket that is not found any more is kept, to hear of its end; and where
# there is no room.
KEPT_GONE, KEPT_SHORT = 600.0, 2.0


def done(ages: Iterable[int], now: float) -> list[int]:
    """Of ages in milliseconds, those of what a socket has ever done.

    The kernel has times in jiffies, of which there were 0 five minutes after the boot
    (INITIAL_JIFFIES), for what was never done as well.
    """
    never = int((now - 300) * 1000)
    near = int(LATE * 1000)
    return [age for age in ages if near < (never - age) % (1 << 32) < (1 << 32) - near]


class Tcp:
    """A socket: what is known of its connection, and how much of that has been reported."""

    __slots__ = (
        "acknowledged", "began", "cgroup", "check", "family", "identity", "inode", "names", "owner",
        "reading", "received", "rx", "seen", "task", "turn", "tx", "uid", "wait",
    )  # fmt: skip

    def __init__(self, family: int, names: bytes) -> None:
        self.family, self.names = family, names  # ports and addresses as in inet_diag_sockid
        self.reading: Optional[Reading] = None
        self.rx = self.tx = self.acknowledged = self.received = self.turn = 0
        # When it was there already, in seconds of the monotonic clock; 0 if before the start.
        self.began = 0.0
        self.inode = self.uid = self.cgroup = 0
        self.owner: Optional[Owner] = None
        # The process that had it last, and what was known of that one.
        self.seen = (NOBODY, UNKNOWN)
        self.task, self.identity = (0, b""), b""  # the process it was reported for, and how
        self.check = self.wait = 0.0  # when to look for its owner again, and how long after that

    def is_over(self, family: int, names: bytes, acknowledged: int, received: int) -> bool:
        """Whether the socket has another connection now, which has moved so much."""
        # IPV6_ADDRFORM makes one of IPv4 of a socket of IPv6, of the same ports.
        same = self.names == names if self.family == family else self.names[:4] == names[:4]
        return not same or received < self.received or acknowledged < self.acknowledged


class Movement(NamedTuple):
    """Bytes that were received and sent on a socket since the last look."""

    socket: Tcp
    rx: int
    tx: int


class End(NamedTuple):
    """A session that has ended, when (monotonic clock, seconds), and bytes that TCP has counted.

    received: with one more for the peer's FIN; acknowledged: for each of our SYN and FIN; waiting:
    of what was not acknowledged, with our FIN.
    """

    socket: Tcp
    time: float
    received: int
    acknowledged: int
    waiting: int


class Sockets:
    """The sockets of the network namespace that this is made in.

    existing, used: how many there were when this was made, and had moved something; ends: those
    that had ended at the last look; unowned: those whose inode is new, so that their owners are to
    be looked for; missed: events that could not be counted, since whoever reads it sets it to 0.
    """

    def __init__(
        self, families: Sequence[int], bytecode: bytes, passes: Callable[[bytes], bool], most: int
    ) -> None:
        self._families, self._passes, self._most = families, passes, most
        self._inquiry = Inquiry(bytecode)
        self._notices = Notices(families, most)
        self._parser = Parser()
        self._known: dict[int, Tcp] = {}  # by cookie
        self._gone: dict[int, float] = {}  # when those that are not found were missed first
        self._turn, self._full, self._excess = 0, False, 0
        self._now = self._rest = 0.0
        self._movements: list[Movement] = []
        self._doubtful: list[tuple[Tcp, Reading, bytes]] = []
        self.ends: list[End] = []
        self.unowned: list[Tcp] = []
        self.missed = 0
        # A connection that did nothing after the first of these ended before the start, and of one
        # that did nothing after the second it is not known any more whether it was reported.
        self._start = self._horizon = 0.0
        self._starting = True
        for _ in range(2):  # a dump may pass one by
            self.look()
        self.existing = len(self._known)
        self.used = sum(tcp.rx > 0 or tcp.tx > 0 for tcp in self._known.values())
        self._starting, self.missed = False, 0
        self._start = time.monotonic() + LATE

    def close(self) -> None:
        """Look no more."""
        self._notices.close()
        self._inquiry.close()

    def look(self, dump: bool = True) -> list[Movement]:
        """What has moved since the last look; without a dump, on sockets that have ended."""
        self._movements, self.ends = [], []
        if dump:
            # Who has it is told the keys of sockets (TCP_MD5SIG) as well, and nothing of those that
            # come after one with many (inet_diag_dump_icsk(), net/ipv4/inet_diag.c).
            with without(CAP_NET_ADMIN):
                self._look_at_all()
        for notice in self._notices.new():
            self._ended(notice)
        self.missed += self._notices.missed()
        movements, self._movements = self._movements, []
        return [] if self._starting else movements

    def _look_at_all(self) -> None:
        """Take in what a dump says of those that are alive."""
        self._turn += 1
        self._excess, self._now = 0, time.monotonic()
        known, turn = self._known.get, self._turn
        states = STATES | BEGINNINGS if self._starting else STATES
        for family in self._families:
            for block in self._inquiry.dump(family, states):
                self._rest = AT_REST + 1000 * (time.monotonic() - self._now)
                for number, reading in enumerate(block.readings()):
                    tcp = known(reading[1])
                    if tcp is not None and tcp.reading == reading:
                        tcp.turn = turn
                    else:
                        self._changed(tcp, reading, block, number)
        if self._doubtful:
            self._look_again()
        self.missed += self._excess
        if self._full or self._excess:
            # Who did nothing after this may have been there when there was no room.
            self._horizon = time.monotonic() + LATE
        self._full = self._excess > 0
        self._forget()

    def _changed(self, tcp: Optional[Tcp], reading: Reading, block: Block, number: int) -> None:
        """Take in a reading that is not the one before."""
        if block.is_over(number):
            return  # a notice will tell of it
        state, cookie, queues, progress, unsent, sending = reading
        unread, waiting, uid, inode = QUEUES.unpack(queues)
        acknowledged, received = PAIR.unpack(progress)
        if BEGINNINGS & 1 << state and not received and not PAIR.unpack(sending)[0]:
            return
        who, family = block.id(number), block.family(number)
        names = who[:NAMES]
        if tcp is None or tcp.is_over(family, names, acknowledged, received):
            if names[2:4] == b"\0\0" or not self._passes(names):
                return
            # A socket may be disconnected and connected again; its end before is not known.
            self.missed += tcp is not None
            if tcp is None and len(self._known) >= self._most:
                self._excess += 1
                return
            unsure = self._full and tcp is None
            tcp = self._known[cookie] = Tcp(family, names)
            if not self._starting:
                ages = done(block.ages(number), time.monotonic())
                tcp.began = self._now - max(ages, default=0) / 1000
            if unsure:
                # It may have been there when there was no room.
                self.missed += 1
                tcp.rx, tcp.tx = received_by(state, unread, received), sent_by(reading, state)
        tcp.turn = self._turn
        if tcp.names != names:
            tcp.family, tcp.names, tcp.identity = family, names, b""
        if inode and inode != tcp.inode:
            tcp.inode, tcp.uid, tcp.cgroup, tcp.owner = inode, uid, block.cgroup(number), None
            self.unowned.append(tcp)
        # The state and the queues are read before the socket is locked and all else is
        # (inet_sk_diag_fill(), net/ipv4/inet_diag.c); what came or went meanwhile is in the latter.
        if (
            (received != tcp.received and min(block.ages(number)[1:]) < self._rest)
            or (waiting and block.ages(number)[2] < self._rest)
            or (unsent and state not in WE_DONE)
        ):
            self._doubtful.append((tcp, reading, who))
        else:
            self._settle(tcp, reading)

    def _settle(self, tcp: Tcp, reading: Reading) -> None:
        """Count what a reading says; it may have to be less than what it said before."""
        tcp.reading = reading
        tcp.acknowledged, tcp.received = PAIR.unpack(reading[3])
        state, unread = reading[0], QUEUES.unpack(reading[2])[0]
        self._credit(tcp, received_by(state, unread, tcp.received), sent_by(reading, state))

    def _credit(self, tcp: Tcp, rx: int, tx: int) -> None:
        """Report what is more than has been reported."""
        rx, tx = max(0, rx - tcp.rx), max(0, tx - tcp.tx)
        if rx or tx:
            tcp.rx += rx
            tcp.tx += tx
            self._movements.append(Movement(tcp, rx, tx))

    def _look_again(self) -> None:
        """Have a second look at sockets that may have moved during the first.

        What was received by the first less what is unread in the second has certainly been read,
        and what was acknowledged by the first and waits for that in the second was sent. That is
        not all where more is acknowledged meanwhile, and so these are looked at once more.
        """
        for _ in range(LOOKS):
            found: dict[int, Reading] = {}
            asked = [(tcp.family, who) for tcp, _, who in self._doubtful]
            for block in self._inquiry.again(asked):
                for number, reading in enumerate(block.readings()):
                    if not block.is_over(number):
                        found[reading[1]] = reading
            doubtful, self._doubtful = self._doubtful, []
            for tcp, first, who in doubtful:
                second = found.get(first[1])
                if self._starting:  # or some of it would be new later
                    unread, received = QUEUES.unpack(first[2])[0], PAIR.unpack(first[3])[1]
                    rx = received_by(first[0], unread, received)
                    self._credit(tcp, rx, sent_by(first, first[0]))
                # Else its end will be told, or it has another connection.
                if second and all(map(le, PAIR.unpack(first[3]), PAIR.unpack(second[3]))):
                    self._settle(tcp, (second[0], first[1], second[2], *first[3:]))
                    if second[3] != first[3]:
                        self._doubtful.append((tcp, second, who))
                if second != first:
                    tcp.reading = None  # the next one is taken in, whatever it is
        self._doubtful = []

    def _ended(self, notice: Notice) -> None:
        """Count what the last reading of a socket says; its state and inode are gone by then."""
        layout = self._parser.layout(notice.data)
        if not layout:
            return
        reading = layout.reading.unpack(notice.data)
        _, cookie, queues, progress, unsent, _ = reading
        names = notice.data[ID:NAMES_END]
        tcp = self._known.pop(cookie, None)
        if self._starting:
            return
        if names[2:4] == b"\0\0" or is_blank(notice.data[layout.info :]):
            # Never connected; or undone by its owner, which leaves no counters (tcp_disconnect()).
            self.missed += tcp is not None
            return
        acknowledged, received = PAIR.unpack(progress)
        if tcp and tcp.is_over(notice.data[FAMILY], names, acknowledged, received):
            self.missed += 1
            tcp = None
        stamps = AGES.unpack_from(notice.data, layout.info)
        ages = done(stamps, notice.time)
        if not tcp:
            if not (received or acknowledged or done(stamps[1:2], notice.time)):
                return  # connect() has failed
            active = notice.time - min(ages, default=0) / 1000
            if not self._passes(names) or active < self._start:
                return
            if active < self._horizon:
                self.missed += 1
                return
            tcp = Tcp(notice.data[FAMILY], names)
            tcp.began = notice.time - max(ages, default=0) / 1000
        unread, waiting = QUEUES.unpack(queues)[:2]
        # If nothing is unread, the last byte may be the peer's FIN; if something is not sent, ours.
        rx = received - unread - (not unread)
        state = FIN_WAIT1 if unsent else ESTABLISHED
        self._credit(tcp, rx, sent_by(reading, state, over=not unsent))
        # One that was reset, or ended by both sides, is not found before it is closed.
        end = min(notice.time, self._gone.get(cookie, notice.time))
        if end < notice.time - min(ages, default=0) / 1000:
            end = notice.time  # a dump has passed it by
        self.ends.append(End(tcp, end, received, acknowledged, waiting))

    def _forget(self) -> None:
        """Forget sockets that are not there any more and whose end nobody tells."""
        now, turn, before = time.monotonic(), self._turn, self._gone
        gone = [cookie for cookie, tcp in self._known.items() if tcp.turn != turn]
        self._gone = {cookie: before.get(cookie, now) for cookie in gone}
        limit = now - (KEPT_SHORT if self._full else KEPT_GONE)
        for cookie, since in list(self._gone.items()):
            if since < limit:
                del self._known[cookie], self._gone[cookie]
                self._horizon = max(self._horizon, since)
