# SPDX-License-Identifier: Apache-2.0
"""How a command lives and ends: signals, waiting, standard output and error, exit status."""

import enum
import locale
import math
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Optional

from tcptools import Failure, kernel
from tcptools.csource import Tool, first_text
from tcptools.kernel import Scope
from tcptools.options import Options, name_of
from tcptools.parser import parse
from tcptools.report import plain

# What ends an interval early.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Seconds for which an output that nobody takes is waited for once the end has come.
PATIENCE = 1.0
# Bytes that a pipe takes at once if poll(2) says that it takes any (pipe(7), PIPE_BUF).
PIECE = 4096
# Files that this may have open at once: those of libbcc and bpf(2) are about fifty.
FILES = 256


class OutputError(Exception):
    """Standard output takes no more, for this reason."""


class Wake(enum.Enum):
    """Why a wait is over."""

    TIME = "the time has passed"
    TYPED = "a key was typed"
    CHANGED = "the interval is to be another"
    RESIZED = "the window has another size"
    ENDED = "a signal says that it is enough"


class Command:
    """A command that runs: it waits and writes so that a signal is obeyed whatever blocks.

    The first of ENDING makes waits return; the second ends the process at once. Signals that
    were ignored when the command started stay so.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ended = self._resized = False
        self._end_time = math.inf
        # On a terminal: what gives it back, and what takes it again.
        self._leave: Optional[Callable[[], None]] = None
        self._resume: Optional[Callable[[], None]] = None
        self._output = _unblocking(1)
        self._waits: dict[Optional[int], select.poll] = {}  # by the keyboard
        self._encoding = terminal_encoding() if os.isatty(1) else "utf-8"
        self._wakeup, wakeup = os.pipe()
        for fd in (self._wakeup, wakeup):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._end)

    def _end(self, number: int, _: Any) -> None:
        if self.ended:
            if self._leave:
                self._leave()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.ended, self._end_time = True, time.monotonic()

    def _resize(self, *_: Any) -> None:
        self._resized = True

    def hold_terminal(self, leave: Callable[[], None], resume: Callable[[], None]) -> None:
        """Have the terminal given back while the process is stopped, or before it dies.

        From now on wait() also ends for a window that changes its size.
        """
        self._leave, self._resume = leave, resume
        signal.signal(signal.SIGWINCH, self._resize)
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, self._stop)

    def release_terminal(self) -> None:
        """The terminal has been given back."""
        signal.signal(signal.SIGWINCH, signal.SIG_DFL)
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        self._leave = self._resume = None

    def _stop(self, number: int, _: Any) -> None:
        """Ctrl-Z: the shell gets its terminal for as long as we are stopped."""
        if not self._leave or not self._resume:
            return
        self._leave()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._stop)
        self._resume()

    def wait(self, seconds: float, keyboard: Optional[int] = None) -> Wake:
        """Wait for so long, or for something to do before; `keyboard` is a file descriptor.

        Raises BrokenPipeError as soon as nobody reads our output any more.
        """
        end = time.monotonic() + seconds
        while True:
            if self.ended:
                return Wake.ENDED
            if self._resized:
                self._resized = False
                return Wake.RESIZED
            left = max(0.0, end - time.monotonic())
            if keyboard not in self._waits:  # to make one takes longer than to use it
                self._waits[keyboard] = self._polls({self._output: 0, keyboard: select.POLLIN})
            ready = self._poll(self._waits[keyboard], left)
            if ready.get(self._output):
                raise BrokenPipeError
            if ready.get(keyboard):
                return Wake.TYPED
            if not ready and time.monotonic() >= end:
                return Wake.TIME

    def _polls(self, events: dict[Optional[int], int]) -> select.poll:
        """What waits for events of files, by descriptor, or a signal."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        for fd, wanted in events.items():
            if fd is not None:
                poll.register(fd, wanted)
        return poll

    def _poll(self, poll: select.poll, seconds: float) -> dict[Optional[int], int]:
        """Wait for that; what has come."""
        # Rounded up, or the rest of a millisecond would be waited for in a busy loop.
        ready: dict[Optional[int], int] = dict(poll.poll(math.ceil(seconds * 1000)))
        if ready.pop(self._wakeup, 0):
            with suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
        return ready

    def say(self, text: str) -> None:
        """Write to standard output, at once; see write()."""
        self.write(text.encode(self._encoding, "replace"))

    def write(self, data: bytes, patience: float = math.inf, piece: int = PIECE) -> None:
        """Write to standard output, at most `piece` bytes in one call.

        Raises OutputError if it takes no more, or nothing for `patience` seconds; once a signal
        has come that are PATIENCE at most. BrokenPipeError is that the reader has gone.
        """
        rest, last = memoryview(data), time.monotonic()
        while rest:
            left = patience - (time.monotonic() - last)
            if self.ended:
                left = min(left, max(last, self._end_time) + PATIENCE - time.monotonic())
            if left < 0:
                raise OutputError("nobody takes it")
            # Each its own: a signal may come meanwhile, and its handler writes, too.
            if not self._poll(self._polls({self._output: select.POLLOUT}), min(left, 3600)):
                continue
            try:
                rest = rest[os.write(self._output, rest[:piece]) :]
                last = time.monotonic()
            except BlockingIOError:
                pass
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(error.strerror) from None

    def complain(self, text: str) -> None:
        """See complain()."""
        complain(self.name, text)


def report_notes(command: Command, *groups: Sequence[str]) -> None:
    """Write what is less exact here to standard error, and what -v wants to know."""
    for group in groups:
        command.complain("\n".join(group))


def complain(name: str, text: str) -> None:
    """Write lines to standard error under a command's name, unless that takes nothing."""
    if not text:  # which is most often
        return
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    lines = [f"{name}: {plain(line)}\n" for line in text.splitlines()]
    data = "".join(lines).encode("utf-8", "replace")
    with suppress(OSError):
        while data and poll.poll(PATIENCE * 1000):
            data = data[os.write(2, data[:PIECE]) :]


def _unblocking(fd: int) -> int:
    """A terminal opened anew, so that a write never blocks; anything else as it is.

    What poll(2) says of a terminal is true of the first byte only. The flag O_NONBLOCK would be
    that of others, too, who have the same open file.
    """
    try:
        if os.isatty(fd):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        pass
    return fd


def terminal_encoding() -> str:
    """The encoding for a terminal: ASCII where its user's locale is not known to be UTF-8.

    There, some bytes of UTF-8 are control codes. Python may have changed LC_CTYPE in its own
    environment (PEP 538), so what it was started with is asked for.
    """
    with open("/proc/self/environ", "rb") as environment:
        variables = dict(part.partition(b"=")[::2] for part in environment.read().split(b"\0"))
    for name in (b"LC_ALL", b"LC_CTYPE", b"LANG"):
        if variables.get(name):
            found = variables[name].decode("ascii", "replace").partition("@")[0]
            codeset = locale.normalize(found).partition(".")[2]
            return "utf-8" if codeset.lower().replace("-", "") == "utf8" else "ascii"
    return "ascii"


def close_output() -> None:
    """Have standard output take everything, and show nothing of it."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _open_standard_files() -> None:
    """Let no file of ours become standard input, output or error because that is closed."""
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # what is written to 1 is an error still


def _allow_files() -> None:
    """Have more files, where a low limit does not let us and its owner may raise it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        for limit in ((FILES, max(FILES, hard)), (hard, hard)):
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
                return


def _parsed(kind: type[Options], arguments: Optional[Sequence[str]]) -> Options:
    """The command line. Raises OutputError if what --help says cannot be written."""
    try:
        return parse(kind, arguments)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror) from None


def main(
    kind: type[Options],
    tool: Callable[[Options], Tool],
    run: Callable[[Options, Scope], Optional[int]],
    arguments: Optional[Sequence[str]] = None,
) -> int:
    """Parse the command line, look up what it names, and run; the exit status, 0 if None."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is to be shown before the start
    _open_standard_files()
    name = name_of(kind)
    try:
        options = _parsed(kind, arguments)
        _allow_files()
        if options.ebpf:
            text = first_text(tool(options), options, kernel.scope(options, load=False))
            Command(name).say(text)
            return 0
        return run(options, kernel.scope(options)) or 0
    except Failure as error:
        reason, *tried = error.args
        # It may be that there is no room for another file, as a Command would need.
        complain(name, "\n".join(tried) if options.verbose else "")
        complain(name, " ".join(reason.splitlines()))
        return 1
    except BrokenPipeError:
        return 0  # the reader has seen enough
    except OutputError as error:
        complain(name, f"cannot write the output: {error}")
        return 1
    except OSError as error:
        what = f"cannot use {error.filename}" if error.filename else "the kernel refuses"
        complain(name, " ".join(f"{what}: {error.strerror or error}".splitlines()))
        return 1
    finally:
        # Nothing may be flushed at exit into what takes no more.
        close_output()
