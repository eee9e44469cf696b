# SPDX-License-Identifier: Apache-2.0
"""Run the commands of man/*_example.txt and write these to /out, with what they print now.

Runs in a guest with traffic: `make examples`. A command is a line that begins with "    # ",
with those that begin with "    > " as its continuation; what is indented below is its output.
"""

import os
import pathlib
import re
import subprocess
import sys

INDENT = " " * 4
TIMED_OUT = 124  # by timeout(1), as is meant
OUTPUT = re.compile(r"^(?:    (?![#>] ).*\n|\n(?=\n*    (?![#>] )))+", re.M)
COMMAND = re.compile(r"^    # .*\n(?:    > .*\n)*", re.M)


def output(command):
    """What a command prints, indented."""
    line = "\n".join(part[len(INDENT) + 2 :] for part in command.splitlines())
    run = subprocess.run(
        ["bash", "-c", line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if run.returncode not in (0, TIMED_OUT) and not run.stdout:
        sys.exit(f"{line}: status {run.returncode}")
    return "".join(f"{INDENT}{line}".rstrip() + "\n" for line in run.stdout.splitlines())


def main():
    tools = pathlib.Path("/tmp/bin")
    tools.mkdir()
    for tool in ("tcptop", "tcplife"):
        (tools / tool).symlink_to(pathlib.Path(f"{tool}.py").resolve())
    os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"  # libbpf-tools has one, too
    web = pathlib.Path("/sys/fs/cgroup/web")
    web.mkdir()
    server = subprocess.check_output(["pgrep", "-f", "^python3 -m http"], text=True).split()[0]
    (web / "cgroup.procs").write_text(server)

    for path in sorted(pathlib.Path("man").glob("*_example.txt")):
        text = OUTPUT.sub("", path.read_text())
        made = COMMAND.sub(lambda found: found[0] + output(found[0]), text)
        (pathlib.Path("/out") / path.name).write_text(made)


if __name__ == "__main__":
    main()
