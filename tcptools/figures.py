# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them: amounts with a unit, and sparklines."""

from collections.abc import Sequence
from typing import Optional

UNITS = "KMGTPE"
BLOCKS = "▁▂▃▄▅▆▇█"


def amount(number: float) -> str:
    """Bytes with a unit of 1024, in at most five characters: 1023, 1.0K, 13.4M. Rounded down."""
    if number < 1024:
        return str(int(number))
    for unit in UNITS:
        number /= 1024
        if number < 1024 or unit == UNITS[-1]:
            break
    tenths = int(number * 10) / 10
    return f"{tenths:.1f}{unit}" if tenths < 100 else f"{int(number)}{unit}"


def exact(number: int) -> str:
    """Bytes, all digits of them."""
    return f"{number:,} byte{'s' * (number != 1)}"


def spark(values: Sequence[tuple[float, float]], seconds: float, width: int) -> str:
    """The course of values over so many seconds up to now, in so many characters.

    Each value comes with the seconds that it holds for, the latest is the last. A character stands
    for their average in its time; the highest block for the highest of these, the lowest for
    nothing at all, and a space for a time of which nothing is known.
    """
    step = seconds / width
    sums, times = [0.0] * width, [0.0] * width
    end = 0.0  # seconds ago
    for length, value in reversed(values):
        begin, left = min(end + length, seconds), end
        while begin - left > 1e-9:
            place = min(int(left / step + 1e-9), width - 1)
            part = min(begin, (place + 1) * step) - left
            part = part if part > 1e-9 else begin - left
            sums[place] += value * part
            times[place] += part
            left += part
        end += length
    means = [total / time if time > step / 100 else None for total, time in zip(sums, times)]
    highest = max((mean for mean in means if mean is not None), default=0.0)
    return "".join(_block(mean, highest) for mean in reversed(means))


def _block(mean: Optional[float], highest: float) -> str:
    if mean is None:
        return " "
    if not mean:
        return BLOCKS[0]
    return BLOCKS[max(1, min(len(BLOCKS) - 1, int(mean / highest * (len(BLOCKS) - 1) + 0.5)))]
