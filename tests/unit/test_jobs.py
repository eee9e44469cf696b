# SPDX-License-Identifier: Apache-2.0
"""Job control and signals, while the live view is on the terminal."""

import contextlib
import fcntl
import os
import signal
import sys
import termios
import time

import pytest
from terminals import CHECKOUT, sizes, until

from tcptools.command import ENDING
from tcptools.screen import LEAVE

SHOWING = """
import sys
sys.path.insert(0, sys.argv[1])
from tcptools.command import Command, Wake
from tcptools.live import Live
from tcptools.report import Interval
from tcptools.screen import Screen
from tcptools.session import IDENTITY
sessions = [(7 << 10, 0, IDENTITY.pack(2, 1, 22, 50000, b"", b"", "\\u732b-sshd".encode(), 0, 0))]
this = Command("tcptop")
now = Interval(0.0, 1.0, "03:53:20", "", 0)
with Screen(this, Live()) as view:
    while True:
        view.show(now, sessions)
        if view.wait(float(sys.argv[2])) is Wake.ENDED:
            break
"""


class Shell:
    """A shell's job control: one job at a time on a terminal of its own."""

    def __init__(self, terminal, **environment):
        self.terminal = terminal
        self.environment = {**os.environ, "LC_ALL": "C.UTF-8", **environment}
        reading, self.commands = os.pipe()
        self.process = os.fork()
        if self.process:
            os.close(reading)
            return
        with contextlib.suppress(BaseException):
            os.close(self.commands)
            os.close(terminal.master)
            os.setsid()
            fcntl.ioctl(terminal.slave, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            with open(reading) as commands:
                self._serve(commands)
        os._exit(0)

    def _serve(self, commands):
        slave = self.terminal.slave
        job, stopped = 0, False
        for command in map(str.strip, commands):
            if command in ("run", "background"):
                job = os.fork()
                if not job:
                    os.setpgid(0, 0)
                    if command == "run":
                        os.tcsetpgrp(slave, os.getpid())
                    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                    for fd in range(3):
                        os.dup2(slave, fd)
                    seconds = "3600" if command == "run" else "0.05"
                    arguments = [sys.executable, "-c", SHOWING, CHECKOUT, seconds]
                    os.execve(sys.executable, arguments, self.environment)
            elif command == "fg":
                os.tcsetpgrp(slave, job)
                if stopped:  # what runs may have been told to stop by now
                    os.killpg(job, signal.SIGCONT)
            elif command == "bg":
                os.killpg(job, signal.SIGCONT)
                stopped = False
            elif command == "kill":
                os.killpg(job, signal.SIGTERM)
                os.killpg(job, signal.SIGCONT)
            if command in ("background", "bg"):
                continue
            _, status = os.waitpid(job, os.WUNTRACED)
            os.tcsetpgrp(slave, os.getpgrp())
            stopped = os.WIFSTOPPED(status)
            word = "stopped" if stopped else f"ended {status}"
            os.write(slave, f"\n{word}\n".encode())

    def do(self, command):
        os.write(self.commands, command.encode() + b"\n")

    def send(self, *numbers):
        """Send signals to the job in the foreground."""
        for number in numbers:
            os.killpg(os.tcgetpgrp(self.terminal.master), number)

    def end(self):
        os.close(self.commands)
        os.kill(self.process, signal.SIGKILL)  # Its job, if any is left, hangs up.
        os.waitpid(self.process, 0)


@pytest.fixture
def shell(terminal):
    shell = Shell(terminal)
    yield shell
    shell.end()


def showing(seen):
    return sizes(seen) == [7] and seen[-1].startswith("h help")


def until_mode(terminal, mode, same):
    """Wait until the keyboard's mode is the same as that, or another."""
    end = time.monotonic() + 60
    while (terminal.mode() == mode) is not same:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ctrl_z_gives_the_terminal_to_the_shell(terminal, shell):
    mode = terminal.mode()
    shell.do("run")
    until(terminal, showing)
    for size in ((80, 24), (70, 20)):
        terminal.type(b"\x1a")
        seen = until(terminal, lambda seen: "stopped" in seen)
        assert seen[0] == "$ tcptop" and sizes(seen) == []
        assert terminal.mode() == mode and not terminal.emulator.cursor.hidden
        terminal.resize(*size)
        shell.do("fg")
        seen = until(terminal, showing)
        assert len(seen) == size[1] and terminal.mode() != mode
        assert terminal.emulator.cursor.hidden
    terminal.type(b"q")
    seen = until(terminal, lambda seen: "ended 0" in seen)
    assert sizes(seen) == [7] and terminal.mode() == mode


def test_a_stopped_job_can_be_ended(terminal, shell):
    mode = terminal.mode()
    shell.do("run")
    until(terminal, showing)
    terminal.type(b"\x1a")
    until(terminal, lambda seen: "stopped" in seen)
    shell.do("kill")
    until(terminal, lambda seen: "ended 0" in seen)
    assert terminal.mode() == mode


def test_a_job_in_the_background_leaves_the_terminal_alone(terminal, shell):
    mode = terminal.mode()
    shell.do("background")
    time.sleep(0.2)
    assert terminal.seen()[:2] == ["$ tcptop", ""] and terminal.mode() == mode
    shell.do("fg")
    until(terminal, showing)
    terminal.type(b"\x1a")
    until(terminal, lambda seen: "stopped" in seen)
    shell.do("bg")
    time.sleep(0.1)
    assert sizes(terminal.seen()) == [] and terminal.mode() == mode
    shell.do("fg")
    until(terminal, showing)
    terminal.type(b"q")
    until(terminal, lambda seen: "ended 0" in seen)
    assert terminal.mode() == mode


def test_a_job_that_ends_in_the_background_wipes_nothing(terminal, shell):
    shell.do("run")
    until(terminal, showing)
    terminal.type(b"\x1a")
    until(terminal, lambda seen: "stopped" in seen)
    shell.do("bg")
    shell.do("kill")
    seen = until(terminal, lambda seen: "ended 0" in seen)
    assert seen[0] == "$ tcptop" and sizes(seen) == [7]


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_gives_the_terminal_back(terminal, shell, number):
    mode = terminal.mode()
    shell.do("run")
    until(terminal, showing)
    shell.send(number)
    seen = until(terminal, lambda seen: "ended 0" in seen)
    assert terminal.mode() == mode and not terminal.emulator.cursor.hidden
    assert seen[0] == "$ tcptop" and sizes(seen) == [7], "with the last interval"
    assert terminal.raw.count(LEAVE.encode()) == 1


def test_a_full_terminal_does_not_keep_a_signal_from_working(terminal, shell):
    mode = terminal.mode()
    terminal.fill()
    shell.do("run")
    until_mode(terminal, mode, same=False)
    shell.send(signal.SIGTERM)
    until_mode(terminal, mode, same=True)
    assert terminal.ended() == 0


def test_a_second_signal_ends_at_once_on_a_full_terminal(terminal, shell):
    mode = terminal.mode()
    terminal.fill()
    shell.do("run")
    until_mode(terminal, mode, same=False)
    shell.send(signal.SIGTERM, signal.SIGINT)
    until_mode(terminal, mode, same=True)
    # Which of the two comes second is not for us to say.
    assert terminal.ended() in (signal.SIGINT, signal.SIGTERM)


def test_a_locale_that_is_not_utf_8(terminal):
    shell = Shell(terminal, LC_ALL="C", LANG="C")
    shell.do("run")
    seen = until(terminal, showing)
    assert seen[2].split()[1] == "?-sshd"
    terminal.type(b"q")
    seen = until(terminal, lambda seen: "ended 0" in seen)
    assert terminal.raw.isascii()
    shell.end()


def test_utf_8(terminal, shell):
    shell.do("run")
    assert until(terminal, showing)[2].split()[1] == "猫-sshd"
