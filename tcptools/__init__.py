# SPDX-License-Identifier: Apache-2.0
"""What tcptop and tcplife stand on; docs/how-it-works.md draws how data go through it."""

VERSION = "1.1.0"


class Failure(Exception):
    """What was asked for cannot be done: one line for the user, with a way out; and for -v, as
    further arguments, what was tried."""
