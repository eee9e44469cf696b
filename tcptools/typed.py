# SPDX-License-Identifier: Apache-2.0
"""What is typed at a terminal: bytes into keys. Pure functions."""

import re

# What is one key: a function key of Linux' console, a sequence of ECMA-48 (CSI), of a keypad
# (SS3), each also if it is interrupted; a character. Whatever else comes after an escape is a key
# of its own, as nobody waits after Esc until it can be told from Alt.
_KEY = re.compile(
    rb"\033\[\[[^\033]|\033\[[0-?]*[ -/]*[@-~]|\033O[0-9;]*[@-~]|\033\[[ -?]+|\033O[0-9;]+"
    rb"|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}|.",
    re.DOTALL,
)
_BEGINNING = re.compile(
    rb"\033(?:\[\[?|\[[0-?]*[ -/]*|O[0-9;]*)?"
    rb"|[\xc2-\xf4]|[\xe0-\xf4][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{2}"
)


def decode(typed: bytes, complete: bool = False) -> tuple[list[str], bytes]:
    """The keys in what was typed, and the bytes at its end that are the beginning of one.

    If it is `complete`, because no more came for a while, such a beginning is a key, too. A
    character is its own key; whatever else one key sends is one, so that no letter in it is.
    """
    keys = []
    while typed and (complete or not _BEGINNING.fullmatch(typed)):
        found = _KEY.match(typed)
        assert found, "any byte is a key"
        keys.append(found[0].decode("utf-8", "replace"))
        typed = typed[found.end() :]
    return keys, typed
