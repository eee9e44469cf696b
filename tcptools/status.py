# SPDX-License-Identifier: Apache-2.0
"""The lines above and below the table of the live view: sums, and what there is to say."""

from collections.abc import Sequence

from tcptools.figures import amount, spark
from tcptools.history import MINUTE, Picture
from tcptools.keys import KEYS, State
from tcptools.listing import Listed
from tcptools.table import cut, visible, width

# The columns that a sparkline takes at least, and at most.
LEAST_SPARK, MOST_SPARK = 8, 30
# What lies between the parts of a head line.
GAP = "  "
MEANINGS = {"rate": "", "interval": "KB of the interval", "total": "bytes since the start"}


def one_line(notices: Sequence[Sequence[str]], hints: Sequence[str], columns: int) -> str:
    """A status line that is not wider than so many columns: no part of it is cut.

    Each of the notices, the most important first, comes in one of its wordings, of which the
    first is the longest. What has no room at all is left out, hints before notices.
    """
    # The last one is put shortly first; none is for the second time before all are.
    places = range(len(notices))
    chosen = [0 for _ in places]
    while len(", ".join(notices[i][chosen[i]] for i in places)) > columns:
        long = [i for i in places if chosen[i] + 1 < len(notices[i])]
        if not long:
            break
        chosen[min(reversed(long), key=lambda i: chosen[i])] += 1
    line = ""
    for part in filter(None, [*(notices[i][chosen[i]] for i in places), *hints]):
        longer = f"{line}, {part}" if line else part
        line = longer if len(longer) <= columns else line
    return line


def head(state: State, picture: Picture, listed: Listed, columns: int) -> list[str]:
    """The lines above the table: the load average, if wanted; and what there is in sum."""
    lines = [visible(line, state.encoding) for line in picture.head.splitlines()]
    return [cut(line, columns) for line in [*lines, _summary(state, picture, listed, columns)]]


def _summary(state: State, picture: Picture, listed: Listed, columns: int) -> str:
    """One line, in which the more important parts have a place first."""
    count = len(picture.sessions)
    order = f"sorted by {state.order}{' reversed' * state.reverse}"
    parts = {"order": order, "every": f"every {state.interval:g} s"}
    if picture.number:
        last = picture.minute[-1]
        parts = {
            "count": f"{count} session{'s' * (count != 1)}",
            "in": f"in {amount(last.received)}/s",
            "out": f"out {amount(last.sent)}/s",
            **parts,
            "meaning": MEANINGS[state.measure],
        }
    if state.filter and not listed.error:
        text = visible(state.filter, state.encoding)
        parts["filter"] = f"filter {cut(text, 20)}{'..' * (width(text) > 20)}"
        if not listed.working:
            parts["filter"] += f": {listed.found} of {listed.everything}"
    left, kept = columns, set()
    for name in ("in", "out", "filter", "count", "meaning", "order", "every"):
        if parts.get(name) and width(parts[name]) <= left:
            kept.add(name)
            left -= width(parts[name]) + len(GAP)
    size = min(MOST_SPARK, (left + len(GAP)) // 2 - 1)
    if picture.number and state.blocks and state.encoding != "ascii" and size >= LEAST_SPARK:
        for name, place in (("in", 1), ("out", 2)):
            values = [(moment[0], moment[place]) for moment in picture.minute]
            parts[name] += f" {spark(values, MINUTE, size)}"
    return GAP.join(parts[name] for name in parts if name in kept)


def status(
    state: State, picture: Picture, listed: Listed, shown: tuple[int, int], columns: int
) -> str:
    """The last line, "" if there is nothing to say; `shown` are the first row and how many."""
    if state.typing:
        return _prompt(state, listed, columns)
    noun = state.of.noun
    hidden = listed.found - max(0, min(sum(shown), listed.live) - shown[0])
    notices: list[tuple[str, ...]] = []
    if state.paused:
        notices.append(("PAUSED, space goes on", "PAUSED"))
    if picture.note:
        # What was not counted is reported before what has no room.
        text = visible(picture.note, "ascii")
        notices.append((text, text.partition(",")[0]))
    if listed.error:
        notices.append((f"the filter {visible(listed.error, 'ascii')}", "no filter"))
    if listed.working:
        notices.append(("working..",))
    if hidden:
        count = f"{hidden} {noun}{'s' * (hidden != 1)} not shown"
        notices.append((count, f"{hidden} not shown", f"+{hidden}"))
    received, sent, number = picture.without_row(state.of)
    if state.measure == "total" and number:
        moved = amount(received + sent)
        notices.append((f"{moved} of {number} sessions that are gone not shown", f"+{moved}"))
    hints = [f"from row {shown[0] + 1} on"] if shown[0] else []
    hints += [key.hint(state) for key in KEYS]
    return one_line(notices, hints if state.keyboard else [], columns)


def _prompt(state: State, listed: Listed, columns: int) -> str:
    """The line in which a filter is typed, of which the end is always seen."""
    text = f"/{visible(state.filter, state.encoding)}_"
    error = f"  {visible(listed.error, 'ascii')}" if listed.error else ""
    for rest in (error or f"{GAP}Enter keeps it, Esc ends it, ! in front negates", error, ""):
        if width(text) + len(rest) <= columns:
            return text + rest
    while width(text) > columns:
        text = text[1:]
    return text
