# SPDX-License-Identifier: Apache-2.0
"""The sessions that have ended, as the kernel tells anyone who listens: nothing is attached."""

import struct
import time

from tcptools.kernel import Scope
from tcptools.options import Tcplife
from tcptools.polled import Polled
from tcptools.session import Life

# Sessions open at a time that are remembered, as in bpf/tcplife.c.
MAX_OPEN = 65536
# Looks at what is open take this part of the time at most.
SHARE = 0.05
# Ports and addresses of inet_diag_sockid, as a Life has them.
NAMES = struct.Struct("!HH16s16s")


class Ends(Polled):
    """The sessions that have ended, from the notices of sock_diag(7).

    Who had a session is known if a look saw it alive. Its beginning is estimated from how long ago
    it did something when it was met first, so it may be earlier, but not than the look before.
    """

    losses = "sessions not shown: aborted, or too many at once"
    whole = True

    def __init__(self, options: Tcplife, scope: Scope) -> None:
        super().__init__(options, scope, MAX_OPEN)
        self._next_look = 0.0

    def drain(self) -> tuple[list[Life], int]:
        """The sessions that ended since the last call, in order, and how many more there were."""
        began = time.monotonic()
        asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - began  # in all suspends since the boot
        looks = began >= self._next_look
        ended: list[Life] = []
        for tcp, end, received, acknowledged, waiting in self.look(looks)[1]:
            pid, task = self.task(tcp)
            if not tcp.began or not task.passes:
                continue  # it was there before the start
            lport, rport, laddr, raddr = NAMES.unpack(tcp.names)
            times = (int((tcp.began + asleep) * 1e9), int((end + asleep) * 1e9))
            # What is received may be FIN as well, and what is acknowledged SYN and FIN.
            got = max(tcp.rx, received - 1)
            sent = min(tcp.tx, max(0, acknowledged - (waiting > 0)))
            who = (tcp.family, pid, lport, rport, laddr, raddr, task.name)
            ended.append((*times, got, sent, *who))
        if looks:
            self._next_look = time.monotonic() + (time.monotonic() - began) / SHARE
        return ended, self.missed()
