# SPDX-License-Identifier: Apache-2.0
"""The lines above and below the table of the live view: sums, and what there is to say."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tcptools.figures import amount, spark
from tcptools.filters import SLOW, compiled
from tcptools.history import MINUTE, Picture
from tcptools.keys import KEYS, LEAVING, ORDER_NAMES, State
from tcptools.listing import Listed, texts
from tcptools.report import Rows
from tcptools.table import cut, visible, width

# The columns that a sparkline takes at least, and at most.
LEAST_SPARK, MOST_SPARK = 8, 30
# What has a place in the head first, each in the shortest of its wordings before any is longer.
IMPORTANT = ("filter", "within", "RX", "TX", "count")
OTHERS = ("given", "meaning", "order", "every")
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
    if lines and state.given:
        room = max(0, columns - width(lines[0]) - len(GAP))
        text = visible(state.given, state.encoding)
        lines[0] += GAP + _short("", text, room if width(text) <= room else max(0, room - 2))
        state = replace(state, given="")
    return [cut(line, columns) for line in [*lines, _summary(state, picture, listed, columns)]]


def _short(before: str, text: str, size: int) -> str:
    return f"{before}{text if width(text) <= size else cut(text, size).rstrip() + '..'}"


def _count(state: State, picture: Picture, listed: Listed) -> Sequence[str]:
    """How many sessions pass the filter, and what rows are; in wordings."""
    total, sessions = state.measure == "total", state.of.type == "session"
    everything = picture.everything(total)[2]
    passing = listed.passed[2] if listed.passed else 0
    if sessions and not total:
        # They have rows, too.
        everything += len(picture.quiet if state.narrowed else listed.quiet)
        passing += len(listed.quiet)
    short = f"{everything}"
    if state.narrowed:
        short = f"{passing if listed.passed else '..'} of {everything}"
    count = f"{short} session{'s' * (everything != 1)}"
    return (count, short) if sessions else (f"{count} by {state.of.by}", f"by {state.of.by}")


def _moved(state: State, picture: Picture, listed: Listed) -> dict[str, str]:
    """What all these sessions move, by what numbers show."""
    if listed.passed is None:
        return {}
    seconds, unit = (1, "") if state.measure == "total" else (picture.length, "/s")
    return {
        name: f"{name} {amount(moved / seconds)}{unit}"
        for name, moved in zip(("RX", "TX"), listed.passed)
    }


def _summary(state: State, picture: Picture, listed: Listed, columns: int) -> str:
    """One line, in which the more important parts have a place first."""
    # In the order in which they are seen; of each the wordings, the longest first.
    parts: dict[str, Sequence[str]] = {}
    if picture.number:
        parts["count"] = _count(state, picture, listed)
        moved = _moved(state, picture, listed)
        parts.update({name: (text,) for name, text in moved.items()})
    if state.given:
        text = visible(state.given, state.encoding)
        parts["given"] = [_short("", text, size) for size in (40, 12)]
    if state.within:
        row = " and ".join(f"{kind.by} {label(kind, key, state)}" for kind, key in state.within)
        last = label(*state.within[-1], state)
        parts["within"] = [
            *(_short("only ", row, size) for size in (80, 40)),
            *(_short("only ", last, size) for size in (20, 8, 2)),
        ]
    if state.filter and not listed.error:
        text = visible(state.filter, state.encoding)
        parts["filter"] = _short("filter ", text, 20), _short("/", text, 8), _short("/", text, 2)
    reverse = " reversed" * state.reverse
    parts["order"] = (f"sort {ORDER_NAMES.get(state.order, state.order)}{reverse}",)
    parts["every"] = (f"every {state.interval:g} s",)
    if picture.number and MEANINGS[state.measure]:
        parts["meaning"] = (MEANINGS[state.measure],)
    chosen: dict[str, str] = {}
    left = columns
    for names in IMPORTANT, OTHERS:
        for shortest in (True, False):
            for name in names:
                room = left + (width(chosen[name]) + len(GAP) if name in chosen else 0)
                for text in parts.get(name, ())[-shortest:]:
                    if width(text) <= room and (shortest or name in chosen):
                        chosen[name] = text
                        left = room - width(text) - len(GAP)
                        break
    size = min(MOST_SPARK, (left + len(GAP)) // 2 - 1)
    blocks = state.blocks and state.encoding != "ascii"
    # The course is that of all traffic, and so is what it stands beside.
    if "TX" in chosen and blocks and size >= LEAST_SPARK and not state.narrowed:
        for name, place in (("RX", 1), ("TX", 2)):
            values = [(moment[0], moment[place]) for moment in picture.minute]
            chosen[name] += f" {spark(values, MINUTE, size)}"
    return GAP.join(chosen[name] for name in parts if name in chosen)


def label(kind: Rows, key: Any, state: State) -> str:
    """What a row of a sum is of."""
    return " ".join(texts(kind, kind.made(key, 0, 0, 0), state.encoding)[:-1])


def status(
    state: State, picture: Picture, listed: Listed, shown: tuple[int, int], columns: int
) -> str:
    """The last line, "" if there is nothing to say; `shown` are the first row and how many."""
    if state.typing:
        return _prompt(state, listed, columns)
    noun = state.of.noun
    hidden = listed.found - max(0, min(sum(shown), listed.live) - shown[0])
    notices: list[tuple[str, ...]] = [(state.said,)] if state.said else []
    if state.paused:
        notices.append(("PAUSED, space goes on", "PAUSED"))
    if picture.note:
        # What was not counted is reported before what has no room.
        text = visible(picture.note, "ascii")
        notices.append((text, text.partition(",")[0]))
    if listed.error:
        notices.append((f"no filter: it {visible(listed.error, 'ascii')}", "no filter"))
    if listed.working:
        notices.append(("working..",))
    if hidden:
        count = f"{hidden} {noun}{'s' * (hidden != 1)} not shown"
        notices.append((count, f"{hidden} not shown", f"+{hidden}"))
    # Of the sessions that are gone, nobody knows whether they would pass.
    gone = picture.gone if state.narrowed else picture.without_row(state.of)
    received, sent, number = gone
    if state.measure == "total" and number:
        moved = amount(received + sent)
        notices.append((f"{moved} of {number} sessions that are gone not shown", f"+{moved}"))
    if state.selected is not None and not listed.working:
        place = listed.find(state.selected)
        if place is None or not shown[0] <= place < sum(shown):
            notices.append((f"the selected {noun} is quiet or left out", "selected: no row"))
    hints = [f"from row {shown[0] + 1} on"] if shown[0] else []
    # How to get out has a place before all that one can get into.
    hints += [key.hint(state) for key in sorted(KEYS, key=lambda key: key is not LEAVING)]
    return one_line(notices, hints if state.keyboard else [], columns)


def _prompt(state: State, listed: Listed, columns: int) -> str:
    """The line in which a filter is typed, of which the end is always seen."""
    text = f"/{visible(state.typed or '', state.encoding)}_"
    error = compiled(state.typed or "").error or listed.error
    hints = ["Enter keeps it, Esc undoes it, ! in front negates", "Enter keeps it", ""]
    if error:
        error = visible(error, "ascii")
        hints = [f"no expression: {error}" * (error != SLOW), error, "no filter", ""]
    for rest in (f"{GAP}{hint}" if hint else "" for hint in hints):
        if width(text) + len(rest) <= columns:
            return text + rest
    while width(text) > columns:
        text = text[1:]
    return text
