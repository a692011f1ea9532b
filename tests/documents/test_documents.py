"""Every block of the documents is run: in a fresh checkout, as written.

What has to be changed for that is in table.py. The blocks of a document are run in their order in
one checkout, so that a later one finds what an earlier one has left.
"""

from __future__ import annotations

import shutil

import pytest

from atss_d2.data import dataset_root
from tests.documents.blocks import DOCUMENTS, Block, Entry, find_entry, read
from tests.documents.checkout import EMBEDDED, Checkout
from tests.documents.session import Session
from tests.documents.table import TABLE

HOW_TO = (
    "It was run as it is written. If it cannot be, add an Entry to tests/documents/table.py that "
    "says what to change in it; if what it needs is missing, let the document's fixture in "
    "tests/documents/needs.py make it."
)

needs_embedded_data = pytest.mark.skipif(
    not all((dataset_root() / name).is_dir() for name in EMBEDDED),
    reason="needs the embedded data: python tools/prepare_data.py",
)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if read(name)])
@needs_embedded_data
def test_the_blocks_of(document, tmp_path):
    from tests.documents.needs import prepare

    checkout = Checkout(tmp_path)
    session = Session(checkout.folder, checkout.environment)
    try:
        prepare(checkout, document)
        for block in read(document):
            entry = find_entry(block, TABLE.get(document, ())) or Entry("")
            if not entry.run_by:
                run_block(checkout, session, block, entry)
    finally:
        session.close()
        shutil.rmtree(tmp_path)  # checkpoints of an R-50 are large


def run_block(checkout: Checkout, session: Session, block: Block, entry: Entry) -> None:
    """Runs a block, or writes the file that it is the content of."""
    if entry.save_as:
        (checkout.folder / entry.save_as).write_text(entry.text(block), encoding="utf-8")
        return
    assert block.language != "yaml", f"{block} must be saved as a file: {HOW_TO}"
    if block.language == "python":
        commands = [["python", "-c", entry.text(block)]]
    else:
        commands = entry.commands(block)
        commands += [["python", "-c", entry.after]] if entry.after else []
    for program, *words in commands:
        process = session.run(words) if program == "python" else checkout.run(program, *words)
        if process.returncode != 0:
            pytest.fail(
                f"{block} ended with {process.returncode}.\n{HOW_TO}\n\n    {[program, *words]}\n"
                f"--- standard output\n{process.stdout[-3000:]}\n"
                f"--- standard error\n{process.stderr[-5000:]}",
                pytrace=False,
            )
    for name in entry.leaves:
        assert (checkout.folder / name).is_file(), f"{block} has not written {name}"
