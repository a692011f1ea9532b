"""Lists every block of the documents and what the tests do with it: python -m tests.documents"""

from __future__ import annotations

from tests.documents.blocks import DOCUMENTS, Block, find_entry, read
from tests.documents.table import TABLE


def treatment(block: Block) -> str:
    """In a few words."""
    entry = find_entry(block, TABLE.get(block.document, ()))
    if entry is None:
        return "as written"
    if entry.run_by:
        return f"run by {entry.run_by}"
    if entry.save_as:
        return f"saved as {entry.save_as}, which other blocks use"
    parts = [f"{old!r} -> {new!r}" for old, new in entry.replace.items()]
    parts += [f"{program} + {words}" for program, words in entry.append.items()]
    return "; ".join(parts) or "as written"


if __name__ == "__main__":
    for document in DOCUMENTS:
        for block in read(document):
            print(f"{block}\n    {treatment(block)}")
