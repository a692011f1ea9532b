"""Decodes a JSON file piece by piece, for files that do not fit into memory as Python objects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from json.decoder import JSONDecodeError
from typing import IO, Any

_CHUNK = 1 << 24  # characters
_CUT = 32  # characters before the end of a piece in which something may be cut off
_SPACE, _COLON, _COMMA_OR_END, _OBJECT, _ARRAY, _EMPTY = (
    re.compile(rf"[ \t\n\r]*{x}[ \t\n\r]*") for x in ("", ":", r"[,\]}]", r"\{", r"\[", r"\]")
)


class Unusual(Exception):
    """The file is not what its reader is made for; the message is a clause about "it"."""


class JsonStream:
    """A JSON file of which only a piece is in memory.

    Attributes:
        num_constants: Number of ``NaN`` and ``Infinity`` so far, which are not JSON.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text, self._at = "", 0
        self.num_constants = 0
        self._decode = json.JSONDecoder(parse_constant=self._count).scan_once

    def _count(self, literal: str) -> float:
        self.num_constants += 1
        return float(literal)

    def _read_on(self) -> bool:
        """Forgets what was decoded and reads the next piece; returns whether there was one."""
        left = len(self._text) - self._at  # as much again, or a long value takes quadratic time
        more = self._file.read(max(_CHUNK, left))
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

    def _find(self, pattern: re.Pattern) -> re.Match | None:
        """Goes behind what a pattern matches here, and returns it; None if it does not match."""
        while True:
            found = pattern.match(self._text, self._at)
            if found and found.end() < len(self._text):
                break
            # Only space is left of the piece, or the file ends here.
            if not found and _SPACE.match(self._text, self._at).end() < len(self._text):
                return None
            if not self._read_on():
                found = pattern.match(self._text, self._at)
                break
        self._at = found.end() if found else self._at
        return found

    def match(self, pattern: re.Pattern) -> str:
        """Returns the text that a pattern matches here, without spaces, and goes behind it."""
        found = self._find(pattern)
        if not found:
            raise Unusual("is not JSON, or ends in the middle of it")
        return found.group().strip()

    def value(self) -> Any:
        """Returns the value that starts here."""
        num_constants = self.num_constants
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                if end < len(self._text):  # else a number may continue
                    self._at = end
                    return value
            except StopIteration as error:
                self._require_cut(error.value)
            except JSONDecodeError as error:
                if not error.msg.startswith("Unterminated string"):
                    self._require_cut(error.pos)
            self.num_constants = num_constants
            if not self._read_on():
                raise Unusual("ends in the middle of a value")

    def _require_cut(self, position: int) -> None:
        if position < len(self._text) - _CUT:
            raise Unusual("is not JSON")

    def items(self) -> Iterator[str]:
        """Yields the keys of an object; the caller takes the value after each."""
        if not self._find(_OBJECT):
            raise Unusual("is not an object of images, annotations and categories")
        separator = ","
        while separator == ",":
            key = self.value()
            if not isinstance(key, str):
                raise Unusual("has a key that is not a string")
            self.match(_COLON)
            yield key
            separator = self.match(_COMMA_OR_END)
        if separator != "}":
            raise Unusual("has an object that is not closed")

    def starts_array(self) -> bool:
        """Returns whether an array starts here, and goes into it."""
        return self._find(_ARRAY) is not None

    def elements(self) -> Iterator[Any]:
        """Yields the values of the array that was started."""
        if self._find(_EMPTY):
            return
        separator = ","
        while separator == ",":
            yield self.value()
            separator = self.match(_COMMA_OR_END)
        if separator != "]":
            raise Unusual("has an array that is not closed")

    def end(self) -> None:
        """Checks that nothing follows."""
        self._find(_SPACE)
        if self._at < len(self._text) or self._read_on():
            raise Unusual("holds more than one value")


def read_arrays(stream: JsonStream, takers: Mapping[str, Callable[[Iterator[Any]], Any]]) -> None:
    """Reads an object that has arrays.

    Args:
        stream: The file, at its start.
        takers: For each array's key a function that takes its elements, all of them.

    Raises:
        Unusual: The file is not JSON, an array is missing or not an array, or a key is there twice.
    """
    keys = set()
    for key in stream.items():
        taker = takers.get(key, _drop)
        if key in keys:
            raise Unusual(f"has two keys {key!r}")
        keys.add(key)
        if stream.starts_array():
            taker(stream.elements())
        elif key in takers:
            raise Unusual(f"has no list {key!r}")
        else:
            stream.value()
    stream.end()
    for key in takers:
        if key not in keys:
            raise Unusual(f"has no list {key!r}")


def _drop(elements: Iterator[Any]) -> None:
    for _ in elements:
        pass
