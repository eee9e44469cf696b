# SPDX-License-Identifier: Apache-2.0
"""tcptop --prometheus from its start to its end, by socket diagnosis."""

import contextlib
import os
import re
import stat
import subprocess
import time

import pytest
from diagnosed import COMM, PATIENCE, TCPTOP, Ledger

SIZE = 123_457


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tcptop.prom"


@contextlib.contextmanager
def started(file, *arguments):
    """A running tcptop that has written its file once."""
    command = [*TCPTOP, "--probe", "diag", "--prometheus", str(file), "-p", str(os.getpid())]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *arguments], **pipes) as process:
        limit = time.monotonic() + PATIENCE
        while not file.exists():
            assert time.monotonic() < limit and process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        yield process


def moved(file):
    """The bytes received and sent by this process."""
    ours = rf'_bytes_total{{.*comm="{re.escape(COMM)}"}} (\d+)$'
    text = file.read_text()
    return [
        sum(map(int, re.findall(f"^tcptop_{way}{ours}", text, re.M)))
        for way in ("received", "sent")
    ]


def traffic():
    """A session that has moved bytes."""
    ledger = Ledger()
    one, other = ledger.pair()
    return ledger, one, other


def test_the_last_interval_is_written_at_the_end(file, alone):
    ledger, one, other = traffic()
    with started(file, "600") as process:
        assert moved(file) == [0, 0]
        ledger.move(one, other, SIZE)
        process.terminate()
        out, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "")
    assert complaints == ""
    assert moved(file) == [SIZE, SIZE]
    assert os.listdir(file.parent) == [file.name]


def test_a_reader_that_goes_away_keeps_no_byte_from_the_file(file, alone):
    ledger, one, other = traffic()
    with started(file, "-C", "600") as process:
        assert process.stdout.readline().startswith("Tracing")
        ledger.move(one, other, SIZE)
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""
    assert moved(file) == [SIZE, SIZE]


def test_without_a_form_standard_output_may_go_away(file, alone):
    ledger, one, other = traffic()
    with started(file, ".1") as process:
        process.stdout.close()
        time.sleep(0.5)
        ledger.move(one, other, SIZE)
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert moved(file) == [SIZE, SIZE]


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_only_a_regular_file_is_replaced(file, kind):
    if kind == "device":
        if os.geteuid():
            pytest.skip("takes root")
        os.mknod(file, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    else:
        os.mkfifo(file)
    before = os.lstat(file)
    with started(file, ".1", "1") as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert errors == f"tcptop: cannot write {file}: it is not a regular file\n"
    assert os.path.samestat(os.lstat(file), before) and os.listdir(file.parent) == [file.name]


def test_json_is_of_the_same_sums(file, alone):
    ledger, one, other = traffic()
    with started(file, "--json", "600") as process:
        ledger.move(one, other, SIZE)
        process.terminate()
        out, _ = process.communicate(timeout=PATIENCE)
    row, interval = out.splitlines()
    assert f'"comm":"{COMM}","sessions":2,"rx_bytes":{SIZE},"tx_bytes":{SIZE}' in row
    assert row.startswith('{"type":"sum"') and '"unit":' in row and '"missed":0' in interval
    assert moved(file) == [SIZE, SIZE]


def test_output_since_the_start_counts_nothing_twice(file, alone):
    ledger, one, other = traffic()
    with started(file, "--cumulative", "--json", ".2") as process:
        ledger.move(one, other, SIZE)
        for _ in range(4):
            assert process.stdout.readline()
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert moved(file) == [SIZE, SIZE]


def test_nothing_is_left_of_privileges_but_what_is_needed(file, alone):
    with started(file, "600") as process, open(f"/proc/{process.pid}/status") as status:
        found = dict(re.findall(r"^(\w+):\s*([0-9a-f]+)$", status.read(), re.M))
        process.kill()
    assert found["NoNewPrivs"] == "1" and int(found["CapInh"], 16) == 0
    assert int(found["CapEff"], 16) & (1 << 38 | 1 << 39 | 1 << 1 | 1 << 16) == 0
    if os.geteuid() == 0:
        assert int(found["CapBnd"], 16) == 0


@pytest.mark.parametrize(
    "path, reason",
    [
        ("none/a.prom", "No such file or directory"),
        ("file/a.prom", "Not a directory"),
        ("directory", "it is not a regular file"),
    ],
)
def test_what_cannot_be_written_is_an_error_at_the_start(tmp_path, path, reason):
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    done = subprocess.run(
        [*TCPTOP, "--probe", "diag", "--prometheus", f"{tmp_path}/{path}"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"tcptop: cannot write {tmp_path}/{path}: {reason}\n"
