# SPDX-License-Identifier: Apache-2.0
"""A run in a guest cannot pass by skipping: only what its kernel lacks may be left out."""

import os

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("TCPTOP_NO_SKIP"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if not reason.startswith("Skipped: kernel:"):
            report.outcome = "failed"
            report.longrepr = f"skipped where nothing may be skipped: {reason}"
