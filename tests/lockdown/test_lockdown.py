# SPDX-License-Identifier: Apache-2.0
"""For a guest that was booted with lockdown=confidentiality."""

import pathlib
import re
import subprocess
import sys

TCPTOP = pathlib.Path(__file__).resolve().parents[2] / "tcptop.py"


def test_lockdown_is_one_line():
    locked = pathlib.Path("/sys/kernel/security/lockdown").read_text(encoding="ascii")
    assert "[confidentiality]" in locked
    result = subprocess.run(
        [sys.executable, str(TCPTOP), "1", "1"], check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"tcptop: this kernel is locked down .*\n", result.stderr)
