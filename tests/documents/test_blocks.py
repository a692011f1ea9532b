"""No block of a document is overlooked, and table.py has nothing that no document has."""

from __future__ import annotations

import re

import pytest

import atss_d2_cli
from tests.documents.blocks import DOCUMENTS, LANGUAGES, ROOT, Block, Entry, find_entry, parse, read
from tests.documents.table import TABLE

BLOCKS = [block for document in DOCUMENTS for block in read(document)]
NOT_CODE = ("", "bibtex", "sh", "yml")  # "sh" and "yml" need SLURM and Kubernetes
_COMMAND = re.compile(r"^(?:\$ |python |make |pip |atss-d2 |git )", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_all_languages_are_known(document):
    for block in parse(document, (ROOT / document).read_text()):
        assert block.language in (*LANGUAGES, *NOT_CODE), f"{block}: name its language as others do"
        if block.language == "":
            assert not _COMMAND.search(block.text), f"{block} has commands: mark it as bash"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#]+)[)#]", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link


@pytest.mark.parametrize("document", TABLE)
def test_every_entry_has_its_block(document):
    assert document in DOCUMENTS
    for entry in TABLE[document]:
        found = [block for block in read(document) if entry.contains in block.text]
        assert len(found) == 1, (
            f"{document} has {len(found)} blocks with {entry.contains!r}, which an entry of "
            "tests/documents/table.py is for: correct the entry, or remove it with its block"
        )


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.document}:{block.line}")
def test_every_block_can_be_prepared(block):
    """At most one entry, all of its changes find their place, and other tests exist."""
    entry = find_entry(block, TABLE.get(block.document, ()))
    if entry is None:
        assert block.language != "yaml", f"{block}: say in table.py which file it is (save_as)"
        return
    entry.commands(block) if block.language == "bash" else entry.text(block)
    assert not (entry.save_as and entry.run_by), f"{block}: the entry says two things"
    if entry.save_as:
        others = [x.text for x in read(block.document) if x is not block]
        assert any(entry.save_as in text for text in others), f"no block uses {entry.save_as}"
    elif entry.run_by and block.language == "bash":  # with the same words, or more, elsewhere
        others = [x for x in read(entry.run_by) if x.language == "bash"]
        known = [set(words) for x in others for words in Entry("").commands(x)]
        for words in entry.commands(block):
            assert any(known_words >= set(words) for known_words in known), words
    elif entry.run_by:
        text = (ROOT / entry.run_by).read_text()
        assert block.document.rpartition("/")[2] in text, f"{entry.run_by} does not read {block}"


def test_every_command_of_the_package_is_in_a_document():
    text = "".join(block.text for block in BLOCKS if block.language == "bash")
    doors = {}
    for path in (ROOT / "train_net.py", *(ROOT / "tools").glob("*.py")):
        if match := re.search(r'run\("([a-z-]+)"\)', path.read_text()):
            doors[match[1]] = path.name
    assert doors.keys() == atss_d2_cli.COMMANDS.keys()
    for name in doors.values():
        assert f"{name} " in text, name
    assert "python -m ablations" in text


# The parser and the changes themselves

TEXT = """
# A document
```bash
one \\
    two  # not `three`
```
  ````Python title="x"
```
x = 1
```
````
Inline ``` is nothing
~~~
plain
~~~
"""


def test_blocks_are_found():
    blocks = parse("a.md", TEXT)
    assert [(x.language, x.line, x.text) for x in blocks] == [
        ("bash", 4, "one \\\n    two  # not `three`\n"),
        ("python", 8, "```\nx = 1\n```\n"),
        ("", 14, "plain\n"),
    ]
    with pytest.raises(ValueError, match="a.md:1: the block that begins here has no end"):
        parse("a.md", "```bash\nls\n")


COMMANDS = """\
# train.py is not a command here
python train.py a \\
    b=1  # explained
python train.py  c
python other.py train.py.bak 'x # y' z
make all
"""


def test_words_are_added_to_every_command_that_has_a_word():
    block = Block("a.md", "bash", 1, COMMANDS)
    entry = Entry("train", append={"train.py": "n=2"}, replace={"all": "-n all"})
    assert entry.commands(block) == [
        ["python", "train.py", "a", "b=1", "n=2"],
        ["python", "train.py", "c", "n=2"],
        ["python", "other.py", "train.py.bak", "x # y", "z"],
        ["bash", "-euc", "make -n all"],
    ]


@pytest.mark.parametrize(
    "entry",
    [Entry("a", replace={"gone": "x"}), Entry("a", append={"gone.py": "x"})],
    ids=["replace", "append"],
)
def test_a_change_that_finds_nothing_is_an_error(entry):
    with pytest.raises(ValueError, match=r"a\.md:1 .*'gone"):
        entry.commands(Block("a.md", "bash", 1, COMMANDS))


def test_two_entries_for_a_block_are_an_error():
    block = Block("a.md", "bash", 1, COMMANDS)
    assert find_entry(block, (Entry("elsewhere"),)) is None
    with pytest.raises(ValueError, match="has 2 entries"):
        find_entry(block, (Entry("train"), Entry("make")))
