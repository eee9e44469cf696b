# SPDX-License-Identifier: Apache-2.0
"""The unit tests need neither root nor bcc: they import the modules of this checkout."""

import os
import sys

import pytest
from hypothesis import settings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

# No directory of examples is left in the checkout; a slow machine is no failure.
settings.register_profile("unit", database=None, deadline=None, max_examples=100)
settings.load_profile("unit")


@pytest.fixture
def terminal():
    from terminals import Terminal  # which imports this checkout

    terminal = Terminal()
    yield terminal
    terminal.close()
