# SPDX-License-Identifier: Apache-2.0
"""For a guest that was booted with lockdown=confidentiality."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The installed command may be tested in the place of the tree's.
COMMAND = os.environ.get("TCPTOP", f"{sys.executable} {ROOT / 'tcptop.py'}").split()


def test_lockdown_is_one_line():
    locked = pathlib.Path("/sys/kernel/security/lockdown").read_text(encoding="ascii")
    assert "[confidentiality]" in locked
    for options, status, said in (
        (["--probe", "kprobe"], 1, "this kernel is locked down .*"),
        ([], 0, r"not traced \(this kernel is locked down .*\); socket diagnosis instead: .*"),
    ):
        result = subprocess.run(
            [*COMMAND, *options, "1", "1"], check=False, capture_output=True, text=True
        )
        assert result.returncode == status
        assert re.fullmatch(rf"tcptop: {said}\n", result.stderr)
