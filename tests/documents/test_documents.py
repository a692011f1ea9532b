"""Every block of the documents is run: in a fresh checkout, in processes of its own, as written.

What has to be changed for that is in table.py. The blocks of a document are run in their order in
one checkout, so that a later one finds what an earlier one has left.
"""

from __future__ import annotations

import resource
import shutil
import textwrap
import time

import pytest

from atss_d2.data import dataset_root
from tests.documents.blocks import DOCUMENTS, Block, Entry, find_entry, read
from tests.documents.checkout import EMBEDDED, Checkout
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
    try:
        prepare(checkout, document)
        for block in read(document):
            run_block(checkout, block, find_entry(block, TABLE.get(document, ())))
    finally:
        shutil.rmtree(tmp_path)  # checkpoints of an R-50 are large


def run_block(checkout: Checkout, block: Block, entry: Entry | None) -> None:
    """Runs a block, or writes the file that it is the content of."""
    entry = Entry("") if entry is None else entry
    text = entry.apply(block)
    if entry.run_by:
        return
    if entry.save_as:
        (checkout.folder / entry.save_as).write_text(text, encoding="utf-8")
        return
    assert block.language != "yaml", f"{block} must be saved as a file: {HOW_TO}"
    for name in entry.leaves:
        (checkout.folder / name).unlink(missing_ok=True)
    start = time.perf_counter(), _cpu_seconds()
    process = checkout.run(text) if block.language == "bash" else checkout.run_python(text)
    seconds, cpu_seconds = time.perf_counter() - start[0], _cpu_seconds() - start[1]
    print(f"{block}: {seconds:.0f} s, {cpu_seconds:.0f} s of a core", flush=True)
    if process.returncode != 0:
        pytest.fail(
            f"{block} ended with {process.returncode}.\n{HOW_TO}\n\n"
            f"{textwrap.indent(text, '    ')}\n"
            f"--- standard output\n{process.stdout[-3000:]}\n"
            f"--- standard error\n{process.stderr[-5000:]}",
            pytrace=False,
        )
    for name in entry.leaves:
        assert (checkout.folder / name).is_file(), f"{block} has not written {name}"


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
