# SPDX-License-Identifier: Apache-2.0
"""Shells offer what the tables of options have, under the name that a command is installed by."""

import os
import pty
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tcptools.options import Tcplife, Tcptop, name_of, visible
from tcptools.sums import FIELDS

MAKE = Path(__file__).resolve().parents[2] / "completions/make.py"
completion = runpy.run_path(str(MAKE))["completion"]

KINDS = {name_of(kind): kind for kind in (Tcptop, Tcplife)}
of_each_command = pytest.mark.parametrize("command", KINDS)
of_each_shell = pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])


def in_bash(text):
    """{flag: (help, choices)} of a completion for bash."""
    [lines] = re.findall(r"options=\(\n(.*?)\n    \)", text, re.S)
    helps = [line.split(" # ", 1) for line in lines.splitlines()]
    choices = dict(re.findall(r"^ *(\S.*)\)\n *words='(.*)'$", text, re.M))
    return {
        flag: (help, tuple(choices.get(" | ".join(flags.split()), "").split()))
        for flags, help in helps
        for flag in flags.split()
    }


def in_zsh(text):
    """The same of one for zsh."""
    found = {}
    lines = text.partition("_arguments -s -S")[2].replace("\\\n", " ")
    for word in shlex.split(lines):
        if not word.startswith("::"):
            flag, help, action = re.fullmatch(
                r"(?:\*|\([^)]*\))(-[-\w]+)[+=]?\[(.*?)\](:.*)?", word
            ).groups()
            choices = re.search(r":(?:\(|_values -s , \S+ )(.*?)\)?$", action or "")
            found[flag] = (
                re.sub(r"\\(.)", r"\1", help),
                tuple(choices[1].split() if choices else ()),
            )
    return found


def in_fish(text):
    """The same of one for fish."""
    found = {}
    for words in map(shlex.split, text.splitlines()):
        pairs = list(zip(words, words[1:]))
        if "-d" not in words:
            continue
        flags = [{"-s": "-", "-l": "--"}[a] + b for a, b in pairs if a in ("-s", "-l")]
        values = dict(pairs)
        offered = values.get("-a", "(")
        choices = () if offered.startswith("(") else tuple(offered.split())
        if several := re.search(r'"string split , (.*)"', offered):
            choices = tuple(several[1].split(","))
        found.update(dict.fromkeys(flags, (values["-d"], choices)))
    return found


@of_each_shell
@of_each_command
def test_every_option_is_offered_with_its_help_and_choices(shell, command):
    text = completion(shell, command, command)
    offered = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[shell](text)
    assert offered == {
        flag: (one.help, one.choices or one.words)
        for one in visible(KINDS[command])
        for flag in one.flags
    }
    assert "--ebpf" not in text


def test_zsh_and_fish_know_what_arguments_are_and_what_excludes_what():
    zsh = shlex.split(completion("zsh", "tcptop", "tcptop"), comments=True)
    assert "*-p+[only these processes]:PID[,PID...]:_sequence _pids" in zsh
    assert "(-4 --ipv4 -6 --ipv6)--ipv6[only IPv6 sessions]" in zsh
    assert "(- *)-h[show this help message and exit]" in zsh
    assert "::number of outputs (default\\: endless): " in zsh
    fish = [shlex.split(line) for line in completion("fish", "tcplife", "tcplife").splitlines()]
    assert any({"-s", "6", "-n", "not __fish_contains_opt -s 4 ipv4"} <= set(line) for line in fish)
    assert any({"-s", "c", "-x", "(__fish_complete_directories)"} <= set(line) for line in fish)


@of_each_shell
def test_the_installed_name_is_what_is_completed(shell):
    result = subprocess.run(
        [sys.executable, "-B", MAKE, shell, "tcptop", "tcptop-bpfcc"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    expected = {
        "bash": lines[-1] == "    complete -F _tcptop_bpfcc tcptop-bpfcc",
        "zsh": lines[0] == "#compdef tcptop-bpfcc",
        "fish": all(line.startswith("complete -c tcptop-bpfcc ") for line in lines[3:]),
    }
    assert expected[shell]


@pytest.mark.parametrize(
    "arguments", [[], ["tcsh", "tcptop", "x"], ["zsh", "top", "x"], ["fish", "tcptop", "a;b"]]
)
def test_anything_else_is_refused(arguments):
    result = subprocess.run(
        [sys.executable, "-B", MAKE, *arguments], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "usage: make.py {bash,zsh,fish} {tcptop,tcplife} NAME\n"


def candidates(*words):
    """What bash offers in place of the last word of tcptop's command line."""
    script = """
        eval "$COMPLETION"
        compopt() { echo "readline: $*"; }
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
        _tcptop
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    result = subprocess.run(
        ["bash", "--norc", "-uc", script, "bash", "tcptop", *words],
        env={**os.environ, "COMPLETION": completion("bash", "tcptop", "tcptop")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    return result.stdout.split()


def test_bash_offers_options():
    flags = [flag for one in visible(Tcptop) for flag in one.flags]
    assert candidates("-") == flags
    assert candidates("-C", "5", "--no") == ["--noclear", "--nosummary"]
    assert candidates("-4", "") == candidates("--nothing") == candidates("-r", "") == []


def test_bash_offers_choices():
    assert candidates("--sort", "") == ["all", "sent", "received"]
    assert candidates("--sort", "=") == ["all", "sent", "received"], "--sort="
    assert candidates("--sort", "=", "rec") == ["received"]
    assert candidates("-Cs", "s") == ["sent"]
    assert candidates("--probe", "f") == ["fentry"]


def test_bash_offers_what_is_listed_also_after_a_comma():
    assert candidates("--by", "") == list(FIELDS)
    assert candidates("-b", "unit,co") == ["unit,comm"]
    assert candidates("--by", "=", "lport,r") == ["lport,remote", "lport,rport"]
    assert "unit,unit" not in candidates("-Cb", "unit,"), "which is an error"


def test_bash_offers_processes_also_after_a_comma():
    mine = str(os.getpid())
    assert mine in candidates("-p", "")
    assert f"1,{mine}" in candidates("--pid", "=", f"1,{mine[:1]}")
    assert candidates("-p", f"*,7,{mine}")[:1] == [f"*,7,{mine}"]


def test_bash_leaves_paths_to_readline():
    assert candidates("--mntnsmap", "") == ["readline:", "-o", "default"]
    assert candidates("-vc", "") == ["readline:", "-o", "dirnames"]


def typed(keys, directory):
    """The arguments that tcptop gets when these keys are typed in bash in a directory."""
    child, terminal = pty.fork()
    if not child:
        os.chdir(directory)
        os.environ.update(
            COMPLETION=completion("bash", "tcptop", "tcptop"), INPUTRC="/dev/null", PS1="ready$ "
        )
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        for line in (
            'eval "$COMPLETION"; tcptop() { printf "<%s>" "$@"; echo end; }',
            f"tcptop {keys}",
        ):
            read_until(terminal, b"ready$ ")
            os.write(terminal, line.encode() + b"\n")
        return re.findall("<(.*?)>", read_until(terminal, b"end").decode())
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def read_until(terminal, text):
    """What a terminal shows up to a text."""
    found = b""
    while text not in found:
        found += os.read(terminal, 4096)
    return found


def test_bash_completes_paths_on_a_terminal(tmp_path):
    (tmp_path / "a map").touch()
    (tmp_path / "unit.slice").mkdir()
    (tmp_path / "unit.txt").touch()
    assert typed("--cgroupmap a\t -S", tmp_path) == ["--cgroupmap", "a map", "-S"]
    assert typed("-c un\t --max\t5", tmp_path) == ["-c", "unit.slice/", "--max-sessions", "5"]


@pytest.mark.parametrize("shell, check", [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
@of_each_command
def test_the_shell_itself_can_read_it(shell, check, command, tmp_path):
    if not shutil.which(shell) and shell != "bash":
        pytest.skip(f"{shell} is not installed here; its text is checked above all the same")
    file = tmp_path / command
    file.write_text(completion(shell, command, command), encoding="utf-8")
    result = subprocess.run([shell, check, file], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_fish_completes():
    if not shutil.which("fish"):
        pytest.skip("fish is not installed here; its text is checked above all the same")
    script = completion("fish", "tcptop", "tcptop")
    script += 'complete -C "tcptop -6 --ip"; complete -C "tcptop -s r"; '
    script += 'complete -C "tcptop -b unit,co"'
    result = subprocess.run(["fish", "-Nc", script], capture_output=True, text=True, check=True)
    offered = [line.split("\t")[0] for line in result.stdout.splitlines()]
    assert offered == ["--ipv6", "received", "unit,comm"], "--ipv4 is excluded"
