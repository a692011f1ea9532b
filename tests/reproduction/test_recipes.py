"""The recipes, their quoted numbers, runs, states, results and the table; no training."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ablations import ROWS
from reproduction import __main__ as command
from reproduction.jobs import EvaluationRun, collect, plan, state, table
from reproduction.recipes import quoted_aps, recipes, select

ROOT = Path(__file__).resolve().parents[2]
BASE, TTA = (f"coco/atss_dcnv2_X_101_32x8d_FPN_2x{x}" for x in ("", "_tta"))


def test_the_zoo_and_the_tables_are_recipes_and_the_document_quotes_the_same():
    names = [recipe.name for recipe in recipes()]
    num_configs = len(list((ROOT / "configs" / "coco").glob("*.py")))
    assert names[num_configs:] == [row.name for row in ROWS]
    assert "coco/gfl_R_50_FPN_1x" in names[:num_configs]
    by_name = {recipe.name: recipe for recipe in recipes()}
    lines = (ROOT / "docs" / "training.md").read_text().splitlines()
    rows = [[x.strip(" `") for x in line.split("|")[1:-1]] for line in lines if "`coco/" in line]
    rows = [row for row in rows if len(row) == 4]
    assert len(rows) == 10
    for name, _, val2017, test_dev in rows:
        recipe = by_name[name]
        quoted = [None if not x else float(x) for x in (val2017, test_dev)]
        assert [recipe.quoted_ap, recipe.quoted_test_dev] == quoted, name
    assert by_name[TTA].evaluates == BASE
    assert (by_name[TTA].quoted_ap, by_name[TTA].quoted_test_dev) == (None, 50.6)
    assert by_name["coco/tood_R_50_FPN_1x"].quoted_ap == 42.5
    assert by_name["table4/k9"].config == "ablations/table4/k9"


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        ("Quoted COCO val2017 box AP: 39.3 (authors' release).", {"val2017": 39.3}),
        (
            "Quoted COCO box AP: val2017 43.5 (a), test-dev 43.6 (paper, Table 8).",
            {"val2017": 43.5, "test-dev": 43.6},
        ),
        ("Quoted COCO box AP: test-dev 50.6 with 26 passes, 47.7 without.", {"test-dev": 50.6}),
        ("No number.", {}),
    ],
)
def test_reading_a_header(line, quoted):
    assert quoted_aps(f"ATSS.\n\n{line}\n") == quoted


def test_a_misspelled_recipe():
    with pytest.raises(ValueError, match="no recipe fits 'coco/atss_R_50'.*coco/atss_R_50_FPN_1x"):
        select(["coco/atss_R_50"])


def write_metrics(run, *rows):
    run.folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "metrics.json").write_text(text + '{"cut off')


def test_how_far_runs_are_and_what_they_gave(tmp_path):
    selected = select(["coco/atss_R_50_FPN_1x", "table3/retinanet_atss", "table4/k9"])
    runs = plan(selected, seeds=(0, 1), output=tmp_path)
    first, second = [run for run in runs if run.row.name == "coco/atss_R_50_FPN_1x"]
    assert state(first) == ""
    ap = {"iteration": 44999, "bbox/AP": 30.0}
    write_metrics(first, ap, {"iteration": 45019, "total_loss": 1.0})
    assert state(first) == "at 45020 of 90000"
    assert collect(runs) == []
    # The last iteration is done, but a kill came before its evaluation.
    write_metrics(first, ap, {"iteration": 89999, "total_loss": 1.0})
    (first.folder / "model_final.pth").touch()
    assert collect(runs) == []
    last = {"iteration": 89999, "bbox/AP": 39.25, "bbox/AP50": 57.5}
    write_metrics(first, ap, {"iteration": 89999, "total_loss": 1.0}, last)
    write_metrics(second, {**last, "iteration": 90000, "bbox/AP": 39.75})
    (second.folder / "model_final.pth").touch()
    assert collect(runs) == [first, second]
    assert (state(first), collect(runs)) == ("finished", [])
    lines = {line.split("|")[1].strip(): line for line in table(selected, runs).splitlines()}
    cells = [x.strip() for x in lines["coco/atss_R_50_FPN_1x"].split("|")[1:-1]]
    assert cells[1:7] == ["39.3", "", "39.5", "+0.2", "2", "57.5"]
    assert cells[-1] == "finished"
    # Rows whose config is another row's share its runs.
    assert re.sub(r"^\S+", "", lines["table4/k9"]) != ""
    assert {row.name for row in selected} <= set(lines)


def test_an_evaluation_comes_after_its_training_and_reads_the_log(tmp_path):
    trained, evaluated = plan(select([TTA]), output=tmp_path)
    assert isinstance(evaluated, EvaluationRun)
    assert (trained.row.name, evaluated.row.name) == (BASE, TTA)
    arguments = evaluated.arguments(num_gpus=8)
    assert "--resume" not in arguments
    assert arguments.index("--eval-only") < arguments.index(f"train.seed={evaluated.seed}")
    assert arguments[-1] == f"train.init_checkpoint={trained.folder}/model_final.pth"
    evaluated.folder.mkdir(parents=True)
    log = evaluated.folder / "log.txt"
    log.write_text("[11/26] d2: copypaste: Task: bbox\n")
    assert collect([evaluated]) == []
    before = "[11/26 14:00:00 d2.evaluation.testing]: copypaste: "
    lines = ("Task: bbox", "AP,AP50", "47.7,66.0", "Task: bbox_TTA", "AP,AP50", "50.55,68.9")
    log.write_text("".join(f"{before}{line}\n" for line in lines))
    assert collect([evaluated]) == [evaluated]
    assert json.loads((evaluated.folder / "results.json").read_text())["metrics"]["AP"] == 50.55


def test_the_commands_can_be_pasted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["coco/atss_R_50_FPN_1x", "--print", "--output", str(tmp_path)]
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--nproc", "8", "optimizer.lr=0.02"]) == 0
    one, eight = capsys.readouterr().out.splitlines()
    assert one.startswith("python train_net.py --config-file configs/coco/atss_R_50_FPN_1x.py")
    assert "--num-gpus" not in one + eight
    assert eight.startswith("python -m torch.distributed.run --standalone --nproc-per-node=8 train")
    assert eight.endswith("optimizer.lr=0.02")


def test_the_script_runs_from_any_folder(tmp_path):
    script = ROOT / "tools" / "reproduce.py"
    found = subprocess.run(
        [sys.executable, script, "table4/k9", "--print"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "--config-file configs/ablations/table4/k9.py --resume" in found.stdout
    assert found.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what to do"),
        (["--canary", "a", "b"], "leave out the recipes"),
        (["coco/*", "--nproc", "0"], "--nproc must be >= 1, got 0"),
    ],
)
def test_a_wrong_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
