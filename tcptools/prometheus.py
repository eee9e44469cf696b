# SPDX-License-Identifier: Apache-2.0
"""Counters for Prometheus: a file for the textfile collector of node_exporter.

The format is version 0.0.4 of Prometheus' text format, without timestamps. A series that is there
stays until the end, and what comes when there are enough is added to one more: to move what was
counted from one series to another would be to count it twice, for whoever takes rates.
"""

import errno
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Optional

from tcptools import VERSION, Failure
from tcptools.report import Rows, plain
from tcptools.sums import OTHER

# Characters of a label's value; the longest name that Kubernetes allows a container has 385.
LONGEST = 400
# What series are of, and what a row of Rows says of it: name, type, help.
OF_SERIES = (
    ("tcptop_received_bytes_total", "counter", "Bytes that processes took from TCP."),
    ("tcptop_sent_bytes_total", "counter", "Bytes that processes handed to TCP."),
    ("tcptop_sessions", "gauge", "TCP sessions that moved bytes in the last interval."),
)


def label_value(value: object) -> str:
    """A value between quotes. Names are chosen by those who bear them, so it may hold anything."""
    text = str(value)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    lines = [plain.__wrapped__(line) for line in text.split("\n")]
    return "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)


def _head(name: str, kind: str, text: str) -> bytes:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()


class Series:
    """What rows have moved since the start, as at most so many series and one for the rest.

    Every counter only grows, and the sum of all is that of all rows.
    """

    def __init__(self, rows: Rows, limit: int) -> None:
        self._rows, self._limit = rows, limit
        labels = self._members(rows.rest(0, 0, 0))
        # Bytes received, bytes sent, and sessions of the last interval, by labels as written:
        # in UTF-8, because one character can make a text of Python's four times as large.
        self._rest = [0, 0, 0]
        self._sums = {self._written(dict.fromkeys(labels, OTHER)): self._rest}
        # Those sums by the keys of the last interval's rows, None for want of series: the next one
        # has most of them again.
        self._known: dict[Any, Optional[list[int]]] = {}
        self._missed = self._limited = 0
        self._start = time.time()

    def _members(self, row: Any) -> dict[str, Any]:
        """The values by which a row is told from others."""
        members = self._rows.members(row)
        return {n: v for n, v in members.items() if n not in ("sessions", "rx_bytes", "tx_bytes")}

    @staticmethod
    def _written(labels: dict[str, Any]) -> bytes:
        return ",".join(f'{name}="{label_value(value)}"' for name, value in labels.items()).encode()

    def _of(self, row: Any) -> Optional[list[int]]:
        """The sums that a row belongs to, None if there are too many."""
        labels = self._written(self._members(row))
        if labels not in self._sums and len(self._sums) > self._limit:
            return None
        return self._sums.setdefault(labels, [0, 0, 0])

    def add(self, rows: Sequence[Any], missed: int) -> None:
        """Add an interval: its rows, and how many events were missed."""
        for sums in self._sums.values():
            sums[2] = 0
        known, self._known = self._known, {}
        for row in rows:
            key = row[2]
            found = self._known[key] = known[key] if key in known else self._of(row)
            self._limited += found is None
            sums = self._rest if found is None else found
            sums[0] += row[0]
            sums[1] += row[1]
            sums[2] += self._rows.count((row,))
        self._missed += missed

    def page(self) -> bytes:
        """All of them, for Prometheus."""
        page = bytearray()
        for place, (name, kind, text) in enumerate(OF_SERIES):
            page += _head(name, kind, text)
            line = name.encode() + b"{%b} %d\n"
            for labels, sums in self._sums.items():
                page += line % (labels, sums[place])
        for name, kind, text, value in (
            (
                "tcptop_missed_events_total",
                "counter",
                "Events that were not counted.",
                self._missed,
            ),
            (
                *("tcptop_series_limited_total", "counter"),
                "Rows of an interval that were summed up as other, for want of series.",
                self._limited,
            ),
        ):
            page += _head(name, kind, text) + f"{name} {value}\n".encode()
        page += _head("tcptop_start_time_seconds", "gauge", "When the counters were 0.")
        page += f"tcptop_start_time_seconds {self._start:.3f}\n".encode()
        page += _head("tcptop_build_info", "gauge", "The version of tcptop.")
        page += f'tcptop_build_info{{version="{VERSION}"}} 1\n'.encode()
        return bytes(page)


class Removed(Failure):
    """The directory of a file has been removed, or is another one now."""


class Textfile:
    """A file that always holds one whole text: each is written beside it, and renamed."""

    def __init__(self, path: str) -> None:
        """Raises Failure if there is no such directory, or no file can be made there."""
        directory, self._name = os.path.split(path)
        self._path, self._beside = path, f".{self._name}.{os.getpid()}"
        try:
            if not self._name:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            # Kept open, and files are named relative to it: no other is written, see replace().
            self._directory = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY)
            self._identity()
            self._try()
        except OSError as error:
            raise Failure(f"cannot write {path}: {error.strerror}") from None
        self.is_own = os.stat(self._directory).st_uid == os.geteuid()
        # What tells our last file from that of another writer.
        self._last: Optional[tuple[int, int]] = None

    def _try(self) -> None:
        """Make a file and remove it; a disk that is full now may have room later."""
        try:
            os.close(self._made())
            os.unlink(self._beside, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def replace(self, data: bytes) -> None:
        """Have the file hold this. Raises Failure, and then it is as it was; Removed, for good."""
        if self._is_elsewhere():
            raise Removed(f"cannot write {self._path}: its directory is another one now")
        try:
            found = self._identity()
            others = self._last and found and self._last != found
            self._write(data)
            self._last = self._identity()
        except OSError as error:
            removed = False
            with suppress(OSError):
                removed = not os.stat(self._directory).st_nlink
                os.unlink(self._beside, dir_fd=self._directory)
            raise (Removed if removed else Failure)(
                f"cannot write {self._path}: {error.strerror}"
            ) from None
        if others:
            raise Failure(f"{self._path} is written by another process, too")

    def _is_elsewhere(self) -> bool:
        """Whether the whole path leads to another directory: it was moved, or mounted over."""
        directory = os.path.dirname(self._path)
        with suppress(OSError):  # it is not there at all, or we may not look any more
            return os.path.isabs(directory) and not os.path.samestat(
                os.stat(directory), os.stat(self._directory)
            )
        return False

    def _identity(self) -> Optional[tuple[int, int]]:
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        # A device, say, is not to be replaced; a link is, rather than followed.
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return found.st_ino, found.st_mtime_ns

    def _made(self) -> int:
        """The descriptor of a new file beside it."""
        here = self._directory
        with suppress(FileNotFoundError):
            os.unlink(self._beside, dir_fd=here)  # of a process that had our PID and was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(self._beside, flags, 0o600, dir_fd=here)

    def _write(self, data: bytes) -> None:
        here, fd = self._directory, self._made()
        try:
            os.fchmod(fd, 0o644)  # whatever the umask is
            if os.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        os.rename(self._beside, self._name, src_dir_fd=here, dst_dir_fd=here)


class Exporter:
    """Series in a file."""

    def __init__(self, file: Textfile, series: Series) -> None:
        self._file, self._series, self._complaint = file, series, ""

    def begin(self) -> str:
        """Write the file with nothing in it, as add() does."""
        return self._write()

    def add(self, rows: Sequence[Any], missed: int) -> str:
        """Add an interval and write the file; what went wrong, if that is not as it was before.

        Nothing that was added is lost then: the next output has it. Raises Removed.
        """
        self._series.add(rows, missed)
        return self._write()

    def _write(self) -> str:
        before, self._complaint = self._complaint, ""
        try:
            self._file.replace(self._series.page())
        except Removed:
            raise
        except Failure as error:
            self._complaint = str(error)
        return self._complaint if self._complaint != before else ""
