#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A picture of the live view for the README, from a real run: `make picture`, as SVG on stdout."""

import html
import subprocess
import sys

import pyte
from vm import CHECKOUT, PYTHON

sys.path.insert(0, str(CHECKOUT))

from tcptools.screen import LEAVE

COLUMNS, LINES = 84, 20
FONT_SIZE, LINE_HEIGHT, CHARACTER = 14, 18, 8.43  # pixels


def capture() -> bytes:
    """What tcptop writes to a terminal of a guest with some traffic."""
    live = f"stty rows {LINES} cols {COLUMNS}; exec {PYTHON} tcptop.py 2 4"
    command = ["env", "TERM=xterm", "script", "-qec", live, "/dev/null"]
    run = [sys.executable, "tests/vm.py", "run", "--traffic", "--", *command]
    return subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    """Draw the last frame."""
    screen = pyte.Screen(COLUMNS, LINES)
    pyte.ByteStream(screen).feed(capture().split(LEAVE.encode(), 1)[0])
    width, height = int(COLUMNS * CHARACTER) + 20, LINES * LINE_HEIGHT + 20
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">\n'
        f'<rect width="100%" height="100%" rx="6" fill="#1d1f21"/>\n'
        f'<g font-family="monospace" font-size="{FONT_SIZE}" fill="#d5d8d6">'
    )
    for number, line in enumerate(screen.display, 1):
        text = line.rstrip()
        if text:
            print(
                f'<text x="10" y="{number * LINE_HEIGHT + 6}" xml:space="preserve"'
                f' textLength="{len(text) * CHARACTER:.1f}">{html.escape(text)}</text>'
            )
    print("</g>\n</svg>")


if __name__ == "__main__":
    main()
