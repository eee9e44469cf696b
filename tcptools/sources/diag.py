# SPDX-License-Identifier: Apache-2.0
"""What processes move over sessions, as the kernel tells anyone who asks: nothing is attached."""

import struct
from typing import Optional

from tcptools.kernel import Scope
from tcptools.options import Tcptop
from tcptools.polled import Polled
from tcptools.session import IDENTITY, NO_UID, Session

# struct identity of bpf/common.h, with the user and the cgroup that made the socket; its ports and
# addresses are as in inet_diag_sockid.
PACKED = struct.Struct("!B3xI36s16sIQ")
assert PACKED.size == IDENTITY.size


class Diag(Polled):
    """What processes move over sessions, from sock_diag(7)."""

    losses = "events not counted, of sessions aborted or too many at once"

    def __init__(self, options: Tcptop, scope: Scope) -> None:
        super().__init__(options, scope, options.max_sessions)
        # Sockets were looked at some time ago, but what has moved since was before the start.
        self.drain()

    def drain(self) -> tuple[list[Session], int]:
        """The sessions since the last call, and how many events were missed in that time."""
        sums: dict[bytes, tuple[int, int]] = {}
        for tcp, rx, tx in self.look()[0]:
            pid, task = self.task(tcp)
            if not task.passes:
                continue
            identity = tcp.identity
            if not identity or tcp.task != (pid, task.name):
                uid = tcp.uid if tcp.inode else NO_UID
                identity = PACKED.pack(tcp.family, pid, tcp.names, task.name, uid, tcp.cgroup)
                tcp.identity, tcp.task = identity, (pid, task.name)
            before = sums.get(identity, (0, 0))
            sums[identity] = (before[0] + rx, before[1] + tx)
        rows = [(rx, tx, identity) for identity, (rx, tx) in sums.items()]
        # There are no more sockets alive than that, but more may have ended.
        kept, excess = rows[: self._most], len(rows[self._most :])
        return kept, self.missed() + excess

    def cgroup_path(self, _: int) -> Optional[str]:
        """None: no notice tells of cgroups."""
        return None
