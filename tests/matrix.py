#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The tests on the installed package in a guest of each release given, as a table."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "tests/vm.py", "run", "--no-headers", "--timeout", "3600"]


def main() -> int:
    """Run all; the exit status is 0 only if all passed. What they printed is in dist/."""
    failed = 0
    print("| guest | Linux | Python | bcc | tests | |\n|---|---|---|---|---|---|", flush=True)
    for guest in sys.argv[1:]:
        release, _, arch = guest.partition("/")
        command = [*COMMAND, "--release", release, "--arch", arch or "amd64"]
        command += ["--", "sh tests/guest/installed.sh"]
        run = subprocess.run(
            command,
            cwd=ROOT,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        (ROOT / "dist" / f"{guest.replace('/', '-')}.log").write_text(run.stdout, encoding="utf-8")
        found = dict(re.findall(r"^matrix: (\w+) (\S+)$", run.stdout, re.M))
        tests = ", ".join(re.findall(r"^(\d+ (?:passed|failed).*) in \d", run.stdout, re.M))
        versions = " | ".join(found.get(what, "?") for what in ("Linux", "Python", "bcc"))
        print(f"| {guest} | {versions} | {tests} | {run.returncode or 'passed'} |", flush=True)
        failed += run.returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
