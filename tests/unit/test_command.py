# SPDX-License-Identifier: Apache-2.0
"""Commands obey signals whatever blocks, and read nothing from where they are called."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcptools import VERSION
from tcptools.command import ENDING, Command, Wake

ROOT = Path(__file__).resolve().parents[2]
TCPTOP = [sys.executable, str(ROOT / "tcptop.py")]
# Seconds in which anything that is to happen must have happened, on a busy machine.
PATIENCE = 60
# A command without a program in the kernel: what it does, given as Python.
BODY = """
import os, sys
sys.path.insert(0, {root!r})
from tcptools import command, options
def run(_, scope):
    this = command.Command("tcptop")
    this.complain("ready")
{body}
sys.exit(command.main(options.Tcptop, None, run, []))
"""


@contextlib.contextmanager
def running(body, **settings):
    """A running command that has come to its body."""
    text = "".join(f"    {line}\n" for line in body.splitlines())
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    code = BODY.format(root=str(ROOT), body=text)
    with subprocess.Popen([sys.executable, "-c", code], **settings) as process:
        try:
            assert process.stderr.readline() == b"tcptop: ready\n"
            yield process
        finally:
            process.kill()


def end_of(process):
    """Its exit status and what it complained of since it was ready."""
    return process.wait(PATIENCE), process.stderr.read().decode()


WAIT = 'woken = this.wait(1000)\nthis.say(f"{woken.name}\\n")'
FLOOD = 'this.say("x" * (1 << 20))'


def test_a_resize_ends_no_wait_but_the_live_view():
    with running(WAIT) as process:
        process.send_signal(signal.SIGWINCH)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"ENDED\n"


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_ends_the_wait(number):
    with running(WAIT) as process:
        process.send_signal(number)
        assert process.stdout.read() == b"ENDED\n"
        assert end_of(process) == (0, "")


def ignore():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_a_signal_that_was_ignored_stays_ignored():
    with running(WAIT, preexec_fn=ignore) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert end_of(process) == (0, "")


def test_a_full_pipe_does_not_keep_a_signal_from_working():
    with running(FLOOD) as process:
        time.sleep(0.2)  # until it is full
        process.send_signal(signal.SIGINT)
        assert end_of(process) == (1, "tcptop: cannot write the output: nobody takes it\n")


def test_a_slow_reader_gets_everything_after_a_signal():
    with running(FLOOD) as process:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"x" * (1 << 20)
        assert end_of(process) == (0, "")


def test_the_second_signal_ends_at_once():
    with running(f"command.PATIENCE = 1000\n{FLOOD}") as process:
        for _ in range(2):
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        assert end_of(process) == (-signal.SIGINT, "")


def test_a_reader_that_leaves_is_noticed_while_there_is_nothing_to_write():
    with running(WAIT) as process:
        process.stdout.close()
        assert end_of(process) == (0, "")


def test_any_number_of_files():
    many = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))\n"
    many += "kept = [os.open('/dev/null', 0) for _ in range(1500)]\n"
    again = "this = command.Command('tcptop')\nthis.complain('again')\n"
    with running(many + again + WAIT) as process:
        assert process.stderr.readline() == b"tcptop: again\n"
        process.send_signal(signal.SIGTERM)
        assert end_of(process) == (0, "")


@pytest.mark.parametrize(
    "body, reason",
    [
        ("raise command.Failure('too few', 'tried')", "too few"),
        ("os.pipe()", "the kernel refuses: Too many open files"),
    ],
)
def test_no_room_for_files_is_no_traceback(body, reason):
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
    with running(limit + body) as process:
        assert end_of(process) == (1, f"tcptop: {reason}\n")


def test_a_pipe_that_does_not_block():
    out, into = os.pipe()
    os.set_blocking(into, False)
    with running(FLOOD, stdout=into) as process, open(out, "rb") as reader:
        os.close(into)
        time.sleep(0.2)
        assert reader.read() == b"x" * (1 << 20)
        assert end_of(process) == (0, "")


def test_a_wait_takes_its_time():
    command = Command("tcptop")
    began = time.monotonic()
    assert command.wait(0.2) is Wake.TIME
    assert 0.2 <= time.monotonic() - began < 10
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def shell(line, **settings):
    """Run a shell's command line; a CompletedProcess with text."""
    command = ["sh", "-c", line, "sh", *TCPTOP]
    settings = {"capture_output": True, "text": True, "timeout": PATIENCE, **settings}
    return subprocess.run(command, check=False, **settings)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "2>/dev/full", "<&-", "<&- >&- 2>&-"])
def test_closed_standard_files_are_no_traceback(redirection):
    result = shell(
        f'"$@" --version {redirection}; "$@" -p x {redirection}; "$@" -c "" {redirection}'
    )
    assert "Traceback" not in result.stderr
    assert result.returncode == 2


def test_an_output_that_is_closed_from_the_start():
    with running('os.close(1); this.say("x")') as process:
        assert end_of(process) == (1, "tcptop: cannot write the output: Bad file descriptor\n")


MODULES = (
    "argparse bpf btf bcc command csource ctypes enum gc json kernel life locale options program"
    " report resource screen select session signal socket struct table tcptools time wcwidth"
)


@pytest.mark.parametrize("module", [False, True], ids=["script", "python -m"])
@pytest.mark.parametrize("safe", ["", "1"])
def test_nothing_is_imported_from_the_working_directory(tmp_path, module, safe):
    for name in MODULES.split():
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from here')\n")
    command = [sys.executable, "-m", "tcptop", "--version"] if module else [*TCPTOP, "--version"]
    path = {"PYTHONPATH": str(ROOT)} if module else {}
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **path, "PYTHONSAFEPATH": safe},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, f"tcptop {VERSION}\n", "")


def test_a_working_directory_that_is_gone(tmp_path):
    result = shell(f'mkdir {tmp_path}/a; cd {tmp_path}/a; rmdir {tmp_path}/a; "$@" --version')
    assert (result.returncode, result.stdout, result.stderr) == (0, f"tcptop {VERSION}\n", "")


def test_ctrl_c_while_modules_load_is_no_traceback(tmp_path):
    (tmp_path / "resource.py").write_text(
        "import sys, time\nsys.stderr.write('loading\\n')\nsys.stderr.flush()\ntime.sleep(1000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(TCPTOP, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        assert end_of(process) == (-signal.SIGINT, "")
