# SPDX-License-Identifier: Apache-2.0
"""Every key, typed at the terminal of a whole tcptop whose kernel is a list of sessions."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import termios
import time
from unittest import mock

import pytest
from terminals import CHECKOUT, HEAD, pressed, screen_on, session, sizes, some, until

from tcptools import filters, listing
from tcptools.command import Wake
from tcptools.keys import HELP, KEYS

# tcptop with sessions of 1, 2, 3... KB an interval, of which each interval has all.
TCPTOP = """
import sys
first = sys.argv.pop(1)
sys.path[:0] = [sys.argv[1] + "/tests/unit", sys.argv[1]]
import tcptop
from terminals import some

class Traffic:
    warnings = notes = ()
    cgroup_path = None
    capabilities = ()
    losses = "lost"
    def __init__(self, options, scope):
        pass
    def drain(self):
        return some(30), 0

tcptop.sources.sessions = Traffic

tcptop.command.kernel.scope = lambda options, load=True: None
exec(first)
sys.exit(tcptop.main(sys.argv[2:]))
"""


@contextlib.contextmanager
def tcptop(terminal, *arguments, first=""):
    """A running tcptop on a terminal; `first` is Python that comes before it."""
    files = {"stdin": terminal.slave, "stdout": terminal.slave, "stderr": terminal.slave}
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm"}
    command = [sys.executable, "-c", TCPTOP, first, CHECKOUT, *arguments]
    with subprocess.Popen(command, env=environment, **files) as process:
        try:
            yield process
        finally:
            process.kill()


def begun(terminal):
    """Wait for the view: what is typed before is echoed."""
    until(terminal, lambda _: not termios.tcgetattr(terminal.slave)[3] & termios.ICANON)


def rates(seen):
    """The rates of the rows on the screen, as they stand there."""
    return [line.split()[-2] for line in seen if "50000" in line]


def test_every_key_of_a_whole_tcptop(terminal):  # noqa: PLR0915 - there are many keys
    """One after the other; what one does is seen before the next is typed."""
    used = set()

    def key(name, condition):
        [sent] = [key.sent[0] for key in KEYS if key.name == name]
        used.add(name)
        return typed(sent, condition)

    def typed(text, condition):
        terminal.type(text.encode())
        return until(terminal, lambda seen: condition(seen, "\n".join(seen)))

    def selected():
        """The PID or address of the selected row."""
        found = [
            line
            for line, cells in enumerate(terminal.emulator.display)
            if terminal.emulator.buffer[line][0].fg == "cyan"
        ]
        assert len(found) <= 1
        name = terminal.emulator.display[found[0]].split()[0] if found else None
        return int(name) if name and name.isdecimal() else name

    mode = terminal.mode()
    with tcptop(terminal, "-S", "0.2") as process:
        seen = until(terminal, lambda seen: "30 sessions  RX " in seen[0])
        assert seen[1].split() == ["PID", "COMM", "LADDR", "RADDR", "RX/s▼", "TX/s▼"]
        assert seen[2].split()[:2] == ["1030", "sshd"] and len(rates(seen)) == 21
        key("down", lambda *_: selected() == 1030)
        key("down", lambda *_: selected() == 1029)
        key("up", lambda *_: selected() == 1030)
        key("PgDn", lambda *_: selected() == 1009)
        key("PgUp", lambda *_: selected() == 1030)
        key("End", lambda *_: selected() == 1001)
        key("Home", lambda *_: selected() == 1030)
        key("Enter", lambda _, text: "command  " in text and "unit" in text and "socket" in text)
        key("Enter", lambda _, text: "RADDR" in text)
        key("Esc", lambda *_: selected() is None)
        key("s", lambda seen, _: "sort TX  " in seen[0])
        key("left", lambda seen, _: "sort RX  " in seen[0])
        key("right", lambda seen, _: "sort TX  " in seen[0])
        seen = key("r", lambda seen, _: "sort TX reversed  " in seen[0])
        seen = typed("ss", lambda seen, _: "sort RX+TX  " in seen[0])
        key("t", lambda seen, _: seen[1].endswith("RX▼    TX▼") and "since the start" in seen[0])
        key("t", lambda seen, _: seen[1].endswith("RX_KB▼ TX_KB▼") and sizes(seen)[0] == 30)
        key("t", lambda seen, _: seen[1].endswith("RX/s▼  TX/s▼"))
        key("b", lambda seen, _: seen[1].split()[:3] == ["PID", "COMM", "SESSIONS"])
        typed("bb", lambda seen, _: seen[1].split()[0] == "RADDR" and "10.0.0.2 " in seen[2])
        key("B", lambda seen, _: seen[0].startswith("30 sessions by unit"))
        typed("b", lambda seen, _: seen[0].startswith("30 sessions by remote"))
        typed("j", lambda *_: selected() == "10.0.0.2")
        key("o", lambda seen, _: "only remote 10.0.0.2" in seen[0] and "LADDR" in seen[1])
        typed("\033", lambda *_: selected() == "10.0.0.2")
        typed("bb", lambda seen, _: "LADDR" in seen[1])
        key("/", lambda seen, _: seen[-1].startswith("/_"))
        typed("103", lambda seen, _: "1 of 30 sessions" in seen[0] and len(rates(seen)) == 1)
        typed("\n", lambda seen, _: "Esc ends the filter" in seen[-1])
        key("Esc", lambda seen, _: "filter 103" not in seen[0])
        key("+", lambda seen, _: "every 0.5 s" in seen[0])
        key("-", lambda seen, _: "every 0.2 s" in seen[0])
        key("space", lambda seen, _: seen[-1].startswith("PAUSED"))
        key("space", lambda seen, _: not seen[-1].startswith("PAUSED"))
        key("h, ?", lambda seen, _: seen[: len(HELP)] == HELP)
        typed("x", lambda seen, _: "RADDR" in seen[1])
        terminal.type(b"q")
        assert process.wait(60) == 0
    assert terminal.seen()[-2:] == ["10 sessions not shown", ""]
    assert terminal.mode() == mode and not terminal.emulator.cursor.hidden
    assert {key.name for key in KEYS} - used == {"q"}


def test_an_interval_that_is_made_shorter_ends_sooner(terminal):
    with tcptop(terminal, "-S", "3600", "9"):
        begun(terminal)
        for _ in range(20):
            terminal.type(b"-")
        seen = until(terminal, lambda seen: "30 sessions" in seen[0])
        assert "every 0.1 s" in seen[0]


@pytest.mark.parametrize(
    "arguments, hurries",
    [(("1000",), True), (("2", "9"), False), (("--exit-over", "1000000", "2"), False)],
    ids=("endless", "counted", "with an alarm"),
)
def test_who_looks_need_not_wait_for_the_first_rows(terminal, arguments, hurries):
    """Unless what is asked for is so many intervals of this length, or what is moved in one."""
    began = time.monotonic()
    with tcptop(terminal, "-S", *arguments):
        until(terminal, lambda seen: any("30 sessions" in line for line in seen))
    assert hurries or time.monotonic() - began >= 2


def test_without_the_library_for_widths_it_rolls(terminal):
    with tcptop(terminal, "-S", "0.2", "2", first="sys.modules['wcwidth'] = None") as process:
        assert process.wait(60) == 0
        terminal.seen()
    assert b"\033[?1049h" not in terminal.raw
    assert terminal.raw.count(b"tcptop: no live view without the library wcwidth") == 1
    assert terminal.raw.count(b"1030    sshd") == 2


def test_a_longer_interval_counts_from_its_beginning():
    import tcptop

    now = 100.0
    with mock.patch.object(tcptop.time, "monotonic", lambda: now):
        pace = tcptop.Pace(1.0, 0.25)
        assert pace.left() == 0.25, "the first one is shorter"
        now = 100.25
        assert pace.end() == 0.25 and pace.left() == 1.0
        now = 101.25
        assert pace.end() == 1.0 and pace.left() == 1.0
        now = 101.75
        pace.change(5.0)
        assert pace.left() == 4.5
        pace.change(0.2)
        assert pace.left() == pytest.approx(0.1), "the next one that is due"
        now = 101.85
        assert pace.end() == pytest.approx(0.6)


def test_the_count_of_outputs_is_that_of_outputs(terminal):
    """Keys and other intervals are none."""
    with tcptop(terminal, "-S", "3600", "1") as process:
        begun(terminal)
        terminal.type(b"-" * 20)
        assert process.wait(60) == 0
    seen = terminal.seen()
    assert seen[0].startswith("30 sessions") and len(rates(seen)) == 20
    assert seen[-2:] == ["10 sessions not shown", ""], "what has no room above the prompt"


def test_what_the_command_line_says_is_how_the_view_begins(terminal):
    with tcptop(terminal, "-S", "-s", "received", "--by", "remote,lport", "--cumulative", "0.1"):
        seen = until(terminal, lambda seen: "since the start" in seen[0])
        assert "sort RX " in seen[0]
        assert seen[1].split() == ["RADDR", "LPORT", "SESSIONS", "RX▼", "TX"]


def test_filters_of_the_command_line_are_repeated(terminal):
    with tcptop(terminal, "-S", "-p", "181", "-p", "209", "-L", "ssh", "-6", "-c", "x y"):
        until(terminal, lambda seen: "TX " in seen[0] and "  -p 181,209 -..  sort" in seen[0])
        terminal.resize(120, 24)
        until(terminal, lambda seen: "  -p 181,209 -c 'x y' -L 22 -6  " in seen[0])


def test_a_process_that_is_not_there_is_not_taken_for_one_that_moves_nothing(terminal):
    with tcptop(terminal, "-S", "-p", f"{os.getpid()},4194305", "0.1"):
        until(terminal, lambda seen: seen[-1].startswith("no process 4194305, 9 sessions not "))


def test_warnings_are_repeated_shortly(terminal):
    """The view hides them."""
    first = (
        "Traffic.warnings = ['not traced (try sudo); less: more', 'it took too long, so it ended']"
    )
    with tcptop(terminal, "-S", "0.1", first=first):
        seen = until(terminal, lambda seen: "30 sessions" in seen[0])
        assert seen[-1].startswith("not traced, it took too long, 9 sessions not shown, h help")


def test_a_window_that_shrinks(terminal):
    with screen_on(terminal) as view:
        view.show(HEAD, some(50))
        pressed(view, terminal, b"jjj")
        for columns in range(80, 39, -1):
            terminal.resize(columns, 10)
            signal.raise_signal(signal.SIGWINCH)
            assert view.wait(0) is Wake.TIME
            seen = terminal.seen()
            assert {"COMM", "RADDR"} <= set(seen[2].split()) and seen[2].endswith("TX/s▼")
            assert sizes(seen) == [50, 49, 48, 47, 46, 45]


def test_without_colours_only_the_selection_stands_out(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with screen_on(terminal) as view:
        view.show(HEAD, some(3))
        view.show(HEAD, some(2) + [session(9)])
        pressed(view, terminal, b"jj")
    assert set(re.findall(rb"\033\[[\d;]*m", terminal.raw)) == {b"\033[m", b"\033[7m"}


def test_colours(terminal):
    with screen_on(terminal) as view:
        view.show(HEAD, some(3))
        view.show(HEAD, some(2) + [session(9)])
        pressed(view, terminal, b"jjss")
        buffer = terminal.emulator.buffer
        assert buffer[2][0].reverse and buffer[2][79].reverse, "a bar"
        heading = terminal.emulator.display[2]
        assert buffer[2][heading.index("RX/s▼")].bold and not buffer[2][0].bold
        assert buffer[3][0].bold, "it is new"
        assert [buffer[4][column].fg for column in (0, 79)] == ["cyan", "cyan"]
        assert b"\033[2m1003" in terminal.raw, "one that is quiet"


def test_a_font_without_blocks(terminal, monkeypatch):
    for name, there in (("linux", False), ("xterm", True)):
        monkeypatch.setenv("TERM", name)
        with screen_on(terminal) as view:
            view.show(HEAD, some(1))
            assert ("\u2588" in terminal.seen()[1]) is there


def test_a_filter_goes_on_while_keys_are_waited_for(terminal, monkeypatch):
    """What takes longer than a key may wait is done in pieces."""
    monkeypatch.setattr(listing, "SHORT_PATIENCE", 0)
    monkeypatch.setattr(filters, "STRIDE", 1)
    with screen_on(terminal) as view:
        view.show(HEAD, some(30))
        seen = pressed(view, terminal, b"/102\n")
        assert view._live.working and "working.." in seen[-1]
        waits = 0
        while view._live.working:
            assert view.wait(1) is Wake.TIME
            waits += 1
        assert waits < 10, "it goes on without a break, not once a wait"
        assert sizes(terminal.seen()) == list(range(29, 19, -1))
        view.show(HEAD, some(30))
        assert not view._live.working, "an interval is drawn when it is complete"


def test_a_sum_goes_on_while_keys_are_waited_for(terminal, monkeypatch):
    monkeypatch.setattr(listing, "SHORT_PATIENCE", 0)
    monkeypatch.setattr(listing, "PORTION", 1)
    with screen_on(terminal) as view:
        view.show(HEAD, some(30))
        seen = pressed(view, terminal, b"b")
        assert "working.." in seen[-1] and seen[3] == "", "a part of a sum is not seen"
        end = time.monotonic() + 60
        while view._live.working:
            assert view.wait(0.01) is Wake.TIME and time.monotonic() < end
        seen = terminal.seen()
        assert "SESSIONS" in seen[2] and "1030 " in seen[3]
        pressed(view, terminal, b"bb")
        while view._live.working:
            assert view.wait(0.01) is Wake.TIME and time.monotonic() < end
        assert terminal.seen()[3].split() == ["10.0.0.2", "30", "465K", "0"]
