"""Code blocks of the documents, and what to change in one so that a test can run it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
LANGUAGES = ("bash", "python", "yaml")  # others, such as "bibtex" and none, are not code to run

_FENCE = re.compile(r"^ {0,3}(```+|~~~+)\s*([\w+-]*)")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        document: Path below the checkout.
        language: As written behind the fence, in lower case.
        line: Number of its first line of code.
        text: The code.
    """

    document: str
    language: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line} ({self.language}: {self.text.splitlines()[0]!r})"


def parse(document: str, text: str) -> list[Block]:
    """All fenced blocks of a document in markdown, in their order."""
    blocks: list[Block] = []
    fence, language, start, lines = "", "", 0, []
    for number, line in enumerate(text.splitlines(), 1):
        match = _FENCE.match(line)
        if not fence and match:
            fence, language, start, lines = match[1], match[2].lower(), number + 1, []
        elif fence and match and match[1].startswith(fence) and not match[2]:
            blocks.append(Block(document, language, start, "\n".join(lines) + "\n"))
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        raise ValueError(f"{document}:{start - 1}: the block that begins here has no end")
    return blocks


def read(document: str) -> list[Block]:
    """The blocks of a document that are code to run."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [block for block in parse(document, text) if block.language in LANGUAGES]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a test does with a block, where it does not run it as it is written.

    Attributes:
        contains: A piece of the block that no other block of the document has.
        replace: Text -> what takes its place, everywhere in the block.
        append: Word -> words added to each command that has it.
        save_as: The block is the content of this file, which other blocks use.
        before: Python code that is run first, for names that a Python block takes for granted.
        after: Python code that is run behind the block.
        leaves: Files that are there afterwards.
        run_by: The test that runs this block instead, a path below the checkout; or the document
            whose blocks have its commands with the same words, or more.
    """

    contains: str
    replace: Mapping[str, str] = dataclasses.field(default_factory=dict)
    append: Mapping[str, str] = dataclasses.field(default_factory=dict)
    save_as: str = ""
    before: str = ""
    after: str = ""
    leaves: tuple[str, ...] = ()
    run_by: str = ""

    def text(self, block: Block) -> str:
        """The text of the block with all changes but those of ``append``.

        Raises:
            ValueError: A change finds nothing to change.
        """
        text = block.text
        for old, new in self.replace.items():
            if old not in text:
                raise ValueError(f"{block} has no {old!r} to replace: correct tests/documents/")
            text = text.replace(old, new)
        return text if block.language == "bash" else f"{self.before}{text}{self.after}"

    def commands(self, block: Block) -> list[list[str]]:
        """The words of each command of a block of bash, with all changes.

        One that is not of Python, and may be more than words, is an argument of bash.

        Raises:
            ValueError: A change finds nothing to change.
        """
        result, unused = [], set(self.append)
        for line in self.text(block).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for word in [word for word in self.append if word in words]:
                words += shlex.split(self.append[word])
                unused.discard(word)
            if words:
                result.append(words if words[0] == "python" else ["bash", "-euc", line])
        if unused:
            raise ValueError(f"{block} has no command with {unused}: correct tests/documents/")
        return result


def find_entry(block: Block, entries: tuple[Entry, ...]) -> Entry | None:
    """The entry of a block; None if it is to be run as it is written."""
    found = [entry for entry in entries if entry.contains in block.text]
    if len(found) > 1:
        raise ValueError(f"{block} has {len(found)} entries in tests/documents/: leave one")
    return found[0] if found else None
