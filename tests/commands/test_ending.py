"""What a training run ends with, looked at as its output; and which images are the worst."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from atss_d2.commands.ending import _an_image_folder, print_ending
from atss_d2.data import register_coco
from atss_d2.visualization.report import _Counts, best_f1
from tests import toy
from tests.drawn_set import write_set

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("toy_data")


class Trained:
    """A run with best checkpoint and report, in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.output_dir = folder / "my output"
        self.config_file = toy.write_config(folder / "config.py", self.output_dir)
        overrides = ["train.best_checkpoint.enabled=True", "train.report.enabled=True"]
        overrides += ["train.max_iter=80", "train.eval_period=20", "train.report.num_pictures=3"]
        command = [sys.executable, "train_net.py", "--config-file", str(self.config_file)]
        self.process = subprocess.run(
            [*command, *overrides], capture_output=True, text=True, cwd=ROOT, timeout=600
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def test_the_console_is_short_and_has_no_warnings(trained):
    assert trained.process.returncode == 0, trained.process.stderr
    # What torch 2.4 says where there is a CUDA toolkit, but no GPU.
    printed = re.sub(r"No CUDA runtime is found, using CUDA_HOME=.*\n", "", trained.process.stderr)
    assert printed == ""
    before, _, _ = trained.process.stdout.partition("Starting training")
    assert len(before.splitlines()) < 35, before
    for noise in ("Environment info", "ReLU", "copypaste", "Average Precision", "Serializ"):
        assert noise not in trained.process.stdout
    log = (trained.output_dir / "log.txt").read_text()
    for detail in ("Environment info", "copypaste", "Average Precision", "ToyBackbone"):
        assert detail in log
    assert len(re.findall(r"Evaluation: \S", trained.process.stdout)) == 4
    assert re.search(r"Evaluation: AP \d+\.\d  AP50 \d+\.\d", trained.process.stdout)


def test_the_ending_has_results_places_and_the_next_command(trained):
    _, _, ending = trained.process.stdout.partition("Boxes of the validation set")
    for text in ("AP50", "AP of each class", "bright", "dark", "Score threshold of the best F1"):
        assert text in ending
    for name in ("learning_curve.png", "pictures", "model_best.pth", "model_final.pth"):
        assert str(trained.output_dir / name) in ending
    pictures = sorted(path.name for path in (trained.output_dir / "pictures").iterdir())
    assert [name[:4] for name in pictures] == ["001_", "002_", "003_"]


def test_the_next_command_runs_as_it_is_printed(trained, monkeypatch):
    line = next(x for x in trained.process.stdout.splitlines() if "tools/demo.py" in x)
    program, script, *arguments = shlex.split(line)
    assert shutil.which("python") != sys.executable or program == "python"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(script, run_name="__main__")
    assert (trained.output_dir / "detections" / "detections.json").is_file()


def test_names_with_brackets_and_colons_are_shown_as_they_are(capsys, tmp_path):
    names = ["[/b]", "[red]x[/red]", ":smile:", "Ünïcode"]
    cfg = OmegaConf.create(
        {
            "train": {"output_dir": str(tmp_path / "[b] :car:"), "max_iter": 5},
            "dataloader": {"test": {"dataset": {"names": "not_registered"}}},
        }
    )
    boxes = {"AP": 1.0, **{f"AP-{name}": 2.0 for name in names}}
    print_ending(cfg, "[i]/config.py", {"bbox": boxes})
    printed = capsys.readouterr().out
    for text in (*names, str(tmp_path / "[b] :car:" / "model_final.pth"), "[i]/config.py"):
        assert text in printed


def test_images_in_folders_below_the_root_are_found_by_the_next_command(tmp_path):
    content = write_set(tmp_path, 2)
    (tmp_path / "images" / "a").mkdir()
    for image in content["images"]:
        name = image["file_name"]
        image["file_name"] = f"a/{name}"
        (tmp_path / "images" / name).rename(tmp_path / "images" / "a" / name)
    (tmp_path / "train.json").write_text(json.dumps(content))
    name = f"in_folders_{tmp_path.name}"
    register_coco(name, tmp_path / "train.json", tmp_path / "images")
    cfg = OmegaConf.create({"dataloader": {"test": {"dataset": {"names": name}}}})
    assert _an_image_folder(cfg) == str(tmp_path / "images" / "a")


# The threshold of the best F1


def counts(scores, is_hit, num_objects):
    return _Counts(torch.tensor(scores), torch.tensor(is_hit, dtype=torch.bool), num_objects)


def test_the_best_threshold_by_hand():
    # Shown down to 0.8: 2 hits of 2, F1 = 4 / 6; to 0.3: 3 hits of 4, 6 / 8; all: 3 of 5, 6 / 9.
    images = [counts([0.9, 0.5], [1, 0], 2), counts([0.8, 0.3, 0.1], [1, 1, 0], 2)]
    threshold, f1 = best_f1(images)
    assert (threshold, f1) == (pytest.approx(0.3, abs=0.011), pytest.approx(6 / 8))
    assert threshold <= 0.3
    assert images[0].f1(0.3) == pytest.approx(2 / 4)
    assert images[0].num_mistakes(0.3) == 2
    assert counts([], [], 0).f1(0.5) == 1.0
    assert best_f1([]) == (0.5, 0.0)
    assert best_f1([counts([0.9], [0], 1)]) == (0.5, 0.0)


def test_the_best_threshold_against_trying_all():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        images = []
        for _ in range(4):
            scores = torch.randint(1, 20, (6,), generator=generator) / 20  # many are equal
            is_hit = torch.rand(6, generator=generator) < scores
            images.append(_Counts(scores, is_hit, int(is_hit.sum()) + 1))
        if not any(c.is_hit.any() for c in images):
            continue

        def f1(threshold, images=images):
            hits = sum(int((c.is_hit & (c.scores >= threshold)).sum()) for c in images)
            shown = sum(int((c.scores >= threshold).sum()) for c in images)
            return 2 * hits / (shown + sum(c.num_objects for c in images))

        threshold, best = best_f1(images)
        assert best == pytest.approx(max(f1(i / 20) for i in range(1, 20)))
        assert f1(threshold) == pytest.approx(best)
