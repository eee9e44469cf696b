#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""tcplife: which TCP sessions ended, how long they lived and what they moved."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Optional

import command
import lives
from command import Stop, complain, say
from probes import TCPLIFE, Lives

# Seconds between two looks at what has ended.
INTERVAL = 0.1

EXAMPLES = """\
examples:
  tcplife                 every session that ends, as it ends
  tcplife -tT             with the time of its end
  tcplife -D 80,443       only sessions with remote ports 80 and 443
  tcplife -w -p 181       one process, in columns wide enough for IPv6
  tcplife -s >log         as CSV, for later
"""


def create_parser() -> argparse.ArgumentParser:
    """The command line: spec, help and usage errors."""
    parser = command.create_parser(
        "tcplife", "Show TCP sessions that end: how long they lived and what they moved.", EXAMPLES
    )
    add = parser.add_argument
    add("-T", "--time", action="store_true", help="include the local time (HH:MM:SS)")
    add("-t", "--timestamp", action="store_true",
        help="include the seconds since the first session shown")  # fmt: skip
    add("-w", "--wide", action="store_true", help="columns wide enough for IPv6 addresses")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("-s", "--csv", action="store_true", help="CSV instead of columns")
    form.add_argument("--json", action="store_true", help="JSON lines instead of columns")
    return parser


def run(options: argparse.Namespace, stop: Stop) -> None:
    """Trace, and tell of every session that ends, until a signal comes."""
    tracer = Lives(options)
    command.tell_notes(options, tracer)
    text = lives.Text(options)
    say(text.header())
    stopped = False
    while not stopped:
        stopped = stop.wait(INTERVAL)
        ended, missed = tracer.fetch()
        if ended:
            # What the monotonic clock has to be set forward by to tell the time.
            epoch = time.time_ns() - time.monotonic_ns()
            say("".join(text.lines(ended, epoch)))
        if missed:
            complain(options.prog, f"{missed} sessions not shown: too many began or ended at once")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The exit status."""
    return command.main(create_parser(), TCPLIFE, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
