"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(
    word: str, known: Iterable[str], *, num: int = 3, cutoff: float = 0.6, otherwise: str = ""
) -> str:
    """Returns "did you mean a, b?" with the names closest to a word.

    Args:
        word: The word that was typed.
        known: The valid names.
        num: Maximum number of names.
        cutoff: Minimum similarity of a name, 0..1.
        otherwise: Returned if no name is similar.
    """
    near = difflib.get_close_matches(word, list(known), n=num, cutoff=cutoff)
    return f"did you mean {', '.join(near)}?" if near else otherwise
