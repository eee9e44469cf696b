#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""tcplife: which TCP sessions ended, how long they lived and what they moved."""

import os
import sys

# Modules come from beside this file and from Python's own directories, never from the caller's.
_HERE = os.path.dirname(os.path.realpath(__file__))
if __name__ == "__main__":
    if __spec__ and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # python -m: the working directory
    sys.path[:] = [path for path in sys.path if path]
    if _HERE not in sys.path:
        sys.path.insert(0, _HERE)

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is worth a traceback before the start

import time
from collections.abc import Sequence
from typing import Optional

from tcptools import command, life, privileges, sources
from tcptools.command import Command, Wake
from tcptools.kernel import Scope
from tcptools.options import Tcplife
from tcptools.screen import window as size_of_window

# Seconds between two looks at what has ended.
INTERVAL = 0.1


def run(options: Tcplife, scope: Scope) -> None:
    """Watch, and report every session that ends, until a signal comes."""
    lives = sources.ended(options, scope)
    this = Command("tcplife")
    privileges.give_up(lives.capabilities)
    command.report_notes(this, lives.warnings, lives.notes if options.verbose else [])
    text = life.Text(options)
    window = os.isatty(1) and options.form == "text"
    this.say("" if window else text.header())
    woken = Wake.TIME
    while woken is not Wake.ENDED:
        woken = this.wait(INTERVAL)
        ended, missed = lives.drain()
        # What the clock of lives has to be set forward by to tell the time.
        epoch = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if window:
            this.say("".join(text.window(ended, epoch, *size_of_window(1))))
        elif ended:
            this.say("".join(text.lines(ended, epoch)))
        if missed:
            this.complain(f"{missed} {lives.losses}")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The exit status."""
    return command.main(Tcplife, sources.program, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
