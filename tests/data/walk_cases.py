"""Runs train_net.py on every case of the catalogue and prints what came of it, as a table.

    python -m tests.data.walk_cases                # all, about a second of a core each
    python -m tests.data.walk_cases 'box*' 'json*' # some
    python -m tests.data.walk_cases --yaml 'box*'  # with Detectron2's trainer of yaml configs
    python -m tests.data.walk_cases --fresh 'box*' # each in a fresh interpreter, about 6 s

The command runs in a fork of this process, where its libraries are imported already.
A case fails if training ends in another way than the catalogue says, hangs, or prints a traceback.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from atss_d2.commands import train  # noqa: F401  (imported before the fork)
from tests import toy
from tests.data.cases import CASES, FINE, STOPS, WARNS, Case, Sample
from tests.data.trying import write_config

_LIMIT = 300  # seconds
ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from atss_d2_cli import run
from atss_d2.data import register_coco
from tests import toy
folder = Path({folder!r})
for part in ("train", "val"):
    register_coco(f"case_{{part}}", folder / f"{{part}}.json", folder / part)
if __name__ == "__main__":
    run("train")
"""


class Ended(NamedTuple):
    """A process that has ended."""

    returncode: int
    stdout: str
    stderr: str


def run_script(script: Path, arguments: list[str], folder: Path, *, fresh: bool) -> Ended | None:
    """Runs a script in another process; None if it does not end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["ATSS_D2_CACHE"] = str(folder / "cache")
    if fresh:
        command = [sys.executable, str(script), *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, env=environment, timeout=_LIMIT
            )
        except subprocess.TimeoutExpired:
            return None
        return Ended(done.returncode, done.stdout, done.stderr)
    out, err = folder / "stdout", folder / "stderr"
    child = multiprocessing.get_context("fork").Process(
        target=_be_the_script, args=(script, arguments, folder, environment, out, err)
    )
    child.start()
    child.join(_LIMIT)
    if child.is_alive():
        child.kill()
        return None
    return Ended(child.exitcode, out.read_text(), err.read_text())


def _be_the_script(script, arguments, folder, environment, out, err) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def walk(
    case: Case, folder: Path, *, yaml: bool = False, fresh: bool = True
) -> tuple[str, str, str]:
    """Trains on a case.

    Args:
        case: The case.
        folder: An empty folder for it.
        yaml: With a yaml config.
        fresh: In a fresh interpreter, not in a fork of this one.

    Returns:
        What came of it, what is wrong with that ("" if nothing), and the sentence or warning.
    """
    sample = Sample(folder / "sample")
    case.change(sample)
    sample.write()
    output = sample.folder / "output"
    if yaml:
        text = toy.yaml_config(output).replace("toy_train", "case_train")
        config, script = folder / "config.yaml", folder / "train.py"
        config.write_text(text.replace("toy_val", "case_val"))
        script.write_text(_SCRIPT.format(root=str(ROOT), folder=str(sample.folder)))
    else:
        config, script = folder / "config.py", ROOT / "train_net.py"
        write_config(sample, config)
    process = run_script(script, ["--config-file", str(config)], folder, fresh=fresh)
    if process is None:
        return "hangs", "did not end", ""
    printed = process.stdout + process.stderr
    if "Traceback" in printed:
        return "traceback", "a traceback", printed.rstrip().splitlines()[-1]
    if process.returncode:
        sentence = process.stderr.rstrip().splitlines()[-1]
        outcome, said = STOPS, sentence
        if process.returncode != 1 or (output / "metrics.json").exists():
            return outcome, f"exit code {process.returncode}, or after an iteration", sentence
    else:
        warnings = [
            line
            for line in process.stdout.splitlines()
            if "WARNING" in line and " atss_d2." in line
        ]
        outcome, said = (WARNS if warnings else FINE), "\n".join(warnings)
        if not (output / "model_final.pth").is_file():
            return outcome, "no model was written", said
    if outcome != case.outcome:
        return outcome, f"should be: {case.outcome}", said
    if not re.search(case.says, said):
        return outcome, f"does not say {case.says!r}", said
    return outcome, "", said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--yaml", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args(argv)
    chosen = [n for n in CASES if any(fnmatch.fnmatch(n, p) for p in args.patterns)]
    outcomes, faults = Counter(), 0
    for name in chosen:
        if not CASES[name].trains:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome, fault, said = walk(CASES[name], Path(folder), yaml=args.yaml, fresh=args.fresh)
            said = said.replace(folder, "")
        outcomes[outcome] += 1
        faults += bool(fault)
        print(
            f"{'FAULT ' + fault if fault else 'ok'} | {name} | {outcome} | {said[:200]}", flush=True
        )
    print(f"{sum(outcomes.values())} cases: {dict(outcomes)}; {faults} not as they should be")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
