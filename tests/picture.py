#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The pictures of the README, from real runs of the live view: `make picture`."""

import html
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import pyte
from vm import CHECKOUT, PYTHON
from wcwidth import wcswidth

sys.path.insert(0, str(CHECKOUT))

from tcptools.screen import LEAVE

COLUMNS, LINES = 84, 18
# By the name of the picture: arguments of tcptop, and what is typed.
VIEWS = {
    "tcptop": ("2 8", ""),
    "units": ("--by unit 2 8", ""),
    "details": ("2 40", "\\033[B\\r"),
}
CGROUPS = "/sys/fs/cgroup/system.slice"
# Seconds until it surely runs, in emulation; and what is written between two of them, for printf.
DELAY, END = 60, r"\0\0"
FONT_SIZE, LINE_HEIGHT, CHARACTER = 14, 18, 8.43  # pixels
FRONT, GROUND, BOLD, BAR = "#d5d8d6", "#1d1f21", "#ffffff", "#5fb3b3"


def capture() -> list[bytes]:
    """What each of VIEWS writes to a terminal of a guest with a server's traffic."""
    script = f"stty rows {LINES} cols {COLUMNS}; exec {PYTHON} tcptop.py -c {CGROUPS} "
    runs = [
        f"(sleep {DELAY}; printf '{keys}'; sleep {DELAY}) | TERM=xterm LANG=C.UTF-8 script -qec"
        f" {shlex.quote(script + arguments)} /dev/null"
        for arguments, keys in VIEWS.values()
    ]
    server = [PYTHON, "tests/guest/server.py", "sh", "-c", f"; printf '{END}'; ".join(runs)]
    run = [sys.executable, "tests/vm.py", "run", "--", *server]
    return subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout.split(b"\0\0")


def styled(row: Mapping[int, Any]) -> Iterator[tuple[int, str, str, str]]:
    """The parts of a line: where each begins, its text, its colours of text and ground."""
    begin = 0
    for _, group in groupby(range(COLUMNS), lambda column: row[column][1:]):
        columns = list(group)
        cell = row[begin]
        front, ground = (FRONT if cell.fg == "default" else cell.fg), GROUND
        if cell.bold:
            front = BOLD
        if cell.reverse:
            front, ground = ground, (BAR if cell.fg == "cyan" else front)
        # A wide character is followed by a cell without any.
        yield begin, "".join(row[column].data for column in columns), front, ground
        begin += len(columns)


def drawn(screen: pyte.Screen) -> str:
    """A terminal as SVG."""
    width, height = int(COLUMNS * CHARACTER) + 20, LINES * LINE_HEIGHT + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
        f'<rect width="100%" height="100%" rx="6" fill="{GROUND}"/>',
        f'<g font-family="monospace" font-size="{FONT_SIZE}">',
    ]
    for number in range(LINES):
        top = number * LINE_HEIGHT + 10
        for begin, text, front, ground in styled(screen.buffer[number]):
            left, room = 10 + begin * CHARACTER, wcswidth(text) * CHARACTER
            if ground != GROUND:
                box = f'x="{left:.1f}" y="{top}" width="{room:.1f}" height="{LINE_HEIGHT}"'
                lines.append(f'<rect {box} fill="{ground}"/>')
            words = text.rstrip()
            if words:
                size = f'textLength="{wcswidth(words) * CHARACTER:.1f}" xml:space="preserve"'
                place = f'x="{left:.1f}" y="{top + LINE_HEIGHT - 5}" fill="{front}"'
                lines.append(f"<text {place} {size}>{html.escape(words)}</text>")
    return "\n".join([*lines, "</g>", "</svg>"])


def main() -> None:
    """Draw the last frame of each."""
    for name, output in zip(VIEWS, capture()):
        screen = pyte.Screen(COLUMNS, LINES)
        pyte.ByteStream(screen).feed(output.split(LEAVE.encode(), 1)[0])
        (CHECKOUT / f"man/{name}.svg").write_text(drawn(screen) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
