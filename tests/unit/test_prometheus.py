# SPDX-License-Identifier: Apache-2.0
"""Counters for Prometheus: its own parser reads them, they only grow, and their sum is exact."""

import errno
import os
import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import session
from prometheus_client.parser import text_string_to_metric_families

from tcptools import VERSION, Failure, sums
from tcptools.options import Tcptop
from tcptools.parser import parse
from tcptools.prometheus import LONGEST, Exporter, Removed, Series, Textfile, label_value
from tcptools.sums import FIELDS, Sums

RECEIVED, SENT = "tcptop_received_bytes_total", "tcptop_sent_bytes_total"
SESSIONS, MISSED = "tcptop_sessions", "tcptop_missed_events_total"
LIMITED, BUILD = "tcptop_series_limited_total", "tcptop_build_info"


def samples(text):
    """{name of a sample: {its labels: its value}}, as Prometheus' parser reads them."""
    found = {}
    text = text.decode() if isinstance(text, bytes) else text
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for one in family.samples:
            values = found.setdefault(one.name, {})
            labels = tuple(one.labels.items())
            assert labels not in values, "twice"
            assert one.timestamp is None
            values[labels] = one.value
            kind = "counter" if one.name.endswith("_total") else "gauge"
            assert family.type == kind
    return found


def labels(**values):
    return tuple(values.items())


def comms(names, kind=None, size=1):
    """Rows of processes with these names."""
    kind = kind or Sums(["comm"], lambda _: "-")
    return kind.of(
        [session(size, 2 * size, comm=name, ports=(1, i)) for i, name in enumerate(names)]
    )


def test_the_text(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1763690000.1234)
    kind = Sums(["unit", "comm"], lambda _: "ssh.service")
    series = Series(kind, 500)
    series.add(kind.of([session(1201, 220160), session(1, 0, ports=(22, 1))]), 3)
    assert series.page().decode() == (
        "# HELP tcptop_received_bytes_total Bytes that processes took from TCP.\n"
        "# TYPE tcptop_received_bytes_total counter\n"
        'tcptop_received_bytes_total{unit="other",comm="other"} 0\n'
        'tcptop_received_bytes_total{unit="ssh.service",comm="sshd"} 1202\n'
        "# HELP tcptop_sent_bytes_total Bytes that processes handed to TCP.\n"
        "# TYPE tcptop_sent_bytes_total counter\n"
        'tcptop_sent_bytes_total{unit="other",comm="other"} 0\n'
        'tcptop_sent_bytes_total{unit="ssh.service",comm="sshd"} 220160\n'
        "# HELP tcptop_sessions TCP sessions that moved bytes in the last interval.\n"
        "# TYPE tcptop_sessions gauge\n"
        'tcptop_sessions{unit="other",comm="other"} 0\n'
        'tcptop_sessions{unit="ssh.service",comm="sshd"} 2\n'
        "# HELP tcptop_missed_events_total Events that were not counted.\n"
        "# TYPE tcptop_missed_events_total counter\n"
        "tcptop_missed_events_total 3\n"
        "# HELP tcptop_series_limited_total Rows of an interval that were summed up as other,"
        " for want of series.\n"
        "# TYPE tcptop_series_limited_total counter\n"
        "tcptop_series_limited_total 0\n"
        "# HELP tcptop_start_time_seconds When the counters were 0.\n"
        "# TYPE tcptop_start_time_seconds gauge\n"
        "tcptop_start_time_seconds 1763690000.123\n"
        "# HELP tcptop_build_info The version of tcptop.\n"
        "# TYPE tcptop_build_info gauge\n"
        f'tcptop_build_info{{version="{VERSION}"}} 1\n'
    )


def test_counters_are_since_the_start_and_sessions_of_the_last_interval():
    kind = Sums(["comm"], lambda _: "-")
    series = Series(kind, 500)
    for names, missed in (([b"a", b"a", b"b"], 1), ([b"b"], 2), ([], 0)):
        series.add(comms(names, kind, 5), missed)
        found = samples(series.page())
        if names == [b"b"]:
            assert found[SESSIONS][labels(comm="b")] == 1
    assert found[RECEIVED] == {labels(comm="other"): 0, labels(comm="a"): 10, labels(comm="b"): 10}
    assert found[SENT][labels(comm="a")] == 20
    assert set(found[SESSIONS].values()) == {0}
    assert found[MISSED] == {(): 3}
    assert found[BUILD] == {labels(version=VERSION): 1}


def test_a_series_stays_and_what_comes_later_is_in_other():
    series = Series(Sums(["comm"], lambda _: "-"), 2)
    for names in ([b"a", b"b"], [b"c"], [b"c", b"d", b"a"]):
        series.add(comms(names), 0)
    found = samples(series.page())
    assert found[RECEIVED] == {labels(comm="other"): 3, labels(comm="a"): 2, labels(comm="b"): 1}
    assert found[SESSIONS] == {labels(comm="other"): 2, labels(comm="a"): 1, labels(comm="b"): 0}
    assert found[LIMITED] == {(): 3}


def test_who_is_called_other_is_in_other_and_takes_no_room():
    series = Series(Sums(["comm"], lambda _: "-"), 1)
    series.add(comms([b"other", b"a"]), 0)
    found = samples(series.page())
    assert found[RECEIVED] == {labels(comm="other"): 1, labels(comm="a"): 1}
    assert found[LIMITED] == {(): 0}


def test_numbers_are_other_too():
    by = list(FIELDS)
    series = Series(Sums(by, lambda _: "-"), 1)
    [rest] = samples(series.page())[RECEIVED]
    assert {value for _, value in rest} == {"other"}
    assert [name for name, _ in rest] == [
        "pid", "comm", "unit", "user", "laddr", "raddr", "lport", "rport", "family",
    ]  # fmt: skip


def test_labels_that_look_the_same_are_one_series():
    series = Series(Sums(["comm"], lambda _: "-"), 9)
    series.add(comms([b"a\x1b", b"a\xff", b"a\x07", b"a?"]), 0)
    assert samples(series.page())[RECEIVED][labels(comm="a?")] == 4


@pytest.mark.parametrize(
    "value, written",
    [
        ("plain", "plain"),
        ('a"b', r"a\"b"),
        ("a\\", r"a\\"),
        ("a\nb\\n", r"a\nb\\n"),
        ("\x1b[2J\r\0\u2028", "?[2J???"),
        ("a\ud800\ufffd", "a??"),
        ("жук 猫", "жук 猫"),
        (443, "443"),
        ("x" * LONGEST, "x" * LONGEST),
        ("x" * (LONGEST + 1), "x" * (LONGEST - 3) + "..."),
    ],
)
def test_label_values(value, written):
    assert label_value(value) == written


@given(st.text(), st.binary(max_size=16))
def test_any_name_can_be_read_again(unit, comm):
    kind = Sums(["unit", "comm"], lambda _: unit)
    series = Series(kind, 1)
    series.add(kind.of([session(3, 4, comm=comm)]), 0)
    text = series.page().decode()
    assert len(text) < 3 * 4 * LONGEST + 2000
    assert all(line.isprintable() for line in text.split("\n"))
    found = samples(text)[RECEIVED]
    [(shown, _)] = {key: value for key, value in found.items() if value == 3}.items()
    if len(unit) <= LONGEST:
        expected = "".join(
            c if c == "\n" or (c.isprintable() and c != "\ufffd") else "?" for c in unit
        )
        assert dict(shown)["unit"] == expected


names = st.binary(min_size=1, max_size=2)
intervals = st.lists(
    st.tuples(
        st.lists(st.tuples(names, st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=8),
        st.integers(0, 3),
    ),
    max_size=12,
)


@given(intervals, st.integers(1, 5), st.sampled_from([1, 3, 65536]))
def test_the_sum_is_exact_at_any_time_and_no_counter_ever_falls(some, limit, kept):
    before_kept, sums.KEPT = sums.KEPT, kept
    try:
        kind = Sums(["comm", "family"], lambda _: "-")
        series = Series(kind, limit)
        received = sent = all_missed = 0
        before = samples(series.page())
        for moved, missed in some:
            made = [session(rx, tx, comm=c, ports=(1, i)) for i, (c, rx, tx) in enumerate(moved)]
            series.add(kind.of(made), missed)
            received += sum(rx for _, rx, _ in moved)
            sent += sum(tx for _, _, tx in moved)
            all_missed += missed
            now = samples(series.page())
            assert sum(now[RECEIVED].values()) == received
            assert sum(now[SENT].values()) == sent
            assert sum(now[SESSIONS].values()) == len(moved)
            assert now[MISSED][()] == all_missed
            for name, values in before.items():
                if name.endswith("_total"):
                    assert all(now[name][key] >= value for key, value in values.items())
            assert now[RECEIVED].keys() == now[SENT].keys() == now[SESSIONS].keys()
            assert before[RECEIVED].keys() <= now[RECEIVED].keys(), "a series stays"
            assert len(now[RECEIVED]) <= limit + 1
            before = now
    finally:
        sums.KEPT = before_kept


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not here")
def test_promtool_finds_nothing():
    series = Series(Sums(["comm"], lambda _: "-"), 9)
    series.add(comms([b'a\n"\\', b"\xff\x1b", "жук".encode()]), 1)
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=series.page().decode(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The file


def test_a_file_is_replaced_whole_and_everyone_may_read_it(tmp_path):
    path = tmp_path / "a.prom"
    file = Textfile(str(path))
    assert not path.exists()
    old = os.umask(0o077)
    try:
        file.replace(b"first\n")
        with open(path, encoding="utf-8") as opened:
            file.replace(b"second\n")
            assert opened.read() == "first\n", "who reads it has all of the one before"
    finally:
        os.umask(old)
    assert path.read_text() == "second\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["a.prom"]


def test_a_file_in_the_working_directory_that_is_renamed(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    file = Textfile("a.prom")
    monkeypatch.chdir("/")
    os.rename(tmp_path / "d", tmp_path / "e")
    file.replace(b"text\n")
    assert (tmp_path / "e/a.prom").read_text() == "text\n"


@pytest.mark.parametrize(
    "path, reason",
    [
        ("none/a.prom", "No such file or directory"),
        ("file/a.prom", "Not a directory"),
        ("", "Is a directory"),
    ],
)
def test_a_directory_that_is_none(tmp_path, path, reason):
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match=f"^cannot write {tmp_path}/{path}: {reason}$"):
        Textfile(f"{tmp_path}/{path}")


def test_what_is_in_the_way_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "a.prom").mkdir()
    with pytest.raises(
        Failure, match=f"^cannot write {tmp_path}/a.prom: it is not a regular file$"
    ):
        Textfile(f"{tmp_path}/a.prom")
    assert os.listdir(tmp_path) == ["a.prom"]


@pytest.mark.parametrize("number, starts", [(errno.EROFS, False), (errno.ENOSPC, True)])
def test_a_start_where_no_file_can_be_made(tmp_path, monkeypatch, number, starts):
    """Told before anything is compiled, unless it may pass."""
    path, kind, opened = f"{tmp_path}/a.prom", Sums(["comm"], lambda _: "-"), os.open

    def refused(name, flags, *rest, **named):
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return opened(name, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refused)
    said = f"cannot write {path}: {os.strerror(number)}"
    if not starts:
        with pytest.raises(Failure, match=f"^{said}$"):
            Textfile(path)
        return
    exporter = Exporter(Textfile(path), Series(kind, 9))
    assert [exporter.begin(), exporter.add(comms([b"a"], kind), 0)] == [said, ""]
    monkeypatch.undo()
    assert exporter.add(comms([b"a"], kind), 0) == ""
    found = samples((tmp_path / "a.prom").read_text())
    assert found[RECEIVED][labels(comm="a")] == 2


def test_a_link_is_replaced_rather_than_followed(tmp_path):
    (tmp_path / "a.prom").symlink_to("victim")
    (tmp_path / f".a.prom.{os.getpid()}").symlink_to("victim")
    file = Textfile(f"{tmp_path}/a.prom")
    file.replace(b"text\n")
    assert os.listdir(tmp_path) == ["a.prom"]
    assert not (tmp_path / "a.prom").is_symlink()


def test_a_write_that_fails_is_a_warning_once_and_nothing_is_lost(tmp_path, monkeypatch):
    kind = Sums(["comm"], lambda _: "-")
    exporter = Exporter(Textfile(f"{tmp_path}/a.prom"), Series(kind, 9))
    assert exporter.begin() == ""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))  # the disk is full
    said = [exporter.add(comms([b"a"], kind), 1) for _ in range(3)]
    assert said == [f"cannot write {tmp_path}/a.prom: No space left on device", "", ""]
    assert os.listdir(tmp_path) == ["a.prom"]
    assert labels(comm="a") not in samples((tmp_path / "a.prom").read_text())[RECEIVED]
    monkeypatch.undo()
    assert exporter.add(comms([b"a"], kind), 1) == ""
    found = samples((tmp_path / "a.prom").read_text())
    assert (found[RECEIVED][labels(comm="a")], found[MISSED][()]) == (4, 4)


def test_a_directory_that_is_removed_ends_it(tmp_path):
    """Another of its name is not found again, and so it would be written for nobody."""
    kind = Sums(["comm"], lambda _: "-")
    (tmp_path / "there").mkdir()
    exporter = Exporter(Textfile(f"{tmp_path}/there/a.prom"), Series(kind, 9))
    shutil.rmtree(tmp_path / "there")
    (tmp_path / "there").mkdir()
    with pytest.raises(Removed, match=r"/there/a\.prom: its directory is another one now$"):
        exporter.add(comms([b"a"], kind), 0)


def test_a_directory_that_is_another_one_now_ends_it(tmp_path):
    kind = Sums(["comm"], lambda _: "-")
    (tmp_path / "there").mkdir()
    exporter = Exporter(Textfile(f"{tmp_path}/there/a.prom"), Series(kind, 9))
    os.rename(tmp_path / "there", tmp_path / "away")
    assert exporter.begin() == "", "who moves it may put it back"
    (tmp_path / "there").mkdir()
    with pytest.raises(Removed, match=r"/there/a\.prom: its directory is another one now$"):
        exporter.add(comms([b"a"], kind), 0)
    assert os.listdir(tmp_path / "there") == []


def test_another_writer_of_the_file_is_reported(tmp_path):
    kind = Sums(["comm"], lambda _: "-")
    one, other = (Textfile(f"{tmp_path}/a.prom") for _ in range(2))
    first = Exporter(one, Series(kind, 9))
    assert (first.begin(), first.add([], 0)) == ("", "")
    os.unlink(tmp_path / "a.prom")
    assert first.add([], 0) == "", "to remove it is no crime"
    second = Exporter(other, Series(kind, 9))
    assert second.begin() == ""
    assert first.add([], 0) == f"{tmp_path}/a.prom is written by another process, too"
    assert second.add([], 0) == f"{tmp_path}/a.prom is written by another process, too"


# Options


def test_options():
    assert parse(Tcptop, []).series == 500
    found = parse(Tcptop, ["--prometheus", "a.prom", "--series", "7"])
    assert (found.prometheus, found.series, found.by) == ("a.prom", 7, ())
    assert found.sums == ("unit", "comm") and found.has_units and found.silent
    found = parse(Tcptop, ["--prometheus", "a.prom", "-b", "remote"])
    assert found.sums == ("remote",) and not found.has_units
    for form in ("-C", "--json", "--csv"):
        assert not parse(Tcptop, ["--prometheus", "a.prom", form]).silent
    assert parse(Tcptop, []).sums == () and not parse(Tcptop, ["-S"]).silent
