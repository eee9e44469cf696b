# SPDX-License-Identifier: Apache-2.0
"""With TCPTOP_NO_SKIP set, as it is in the virtual machine, no test passes by skipping.

A reason that begins with "kernel:" (what this kernel truly does not have) is accepted, and
listed at the end.
"""

import os
from collections.abc import Generator
from typing import Any

import pytest

kernel_lacks: list[str] = []


def judge(report: Any) -> None:
    """Make a failure of a skip that has no excuse."""
    if not os.environ.get("TCPTOP_NO_SKIP") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2].replace("Skipped: ", "", 1)
    if reason.startswith("kernel:"):
        kernel_lacks.append(f"{report.nodeid}: {reason}")
    else:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} must not be skipped here: {reason}"


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    outcome = yield
    judge(outcome.get_result())


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    outcome = yield
    judge(outcome.get_result())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if kernel_lacks:
        terminalreporter.section("not in this kernel")
        for line in kernel_lacks:
            terminalreporter.line(line)
