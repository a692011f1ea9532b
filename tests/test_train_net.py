"""train_net.py as a user runs it, with a toy detector."""

import json
import logging
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import detectron2.engine
import pytest
import torch
import yaml
from detectron2.engine import launch

from atss_d2 import Predictor
from atss_d2.commands import train as train_net
from atss_d2.config import load_config
from atss_d2.engine import leave_process_group
from tests import toy

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "train_net.py"


@pytest.fixture(scope="module", autouse=True)
def restored_logger(toy_data):
    yield
    # What main() does to the logger would hide messages from later tests.
    logger = logging.getLogger("atss_d2")
    logger.handlers.clear()
    logger.propagate = True


def command_line(*argv) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def parse(*argv):
    return train_net.get_parser().parse_args([str(arg) for arg in argv])


def read_detections(output_dir: Path) -> list[dict]:
    return json.loads((output_dir / "inference/coco_instances_results.json").read_text())


# A run that is killed and resumed, looked at by many tests


class Finished:
    def __init__(self, folder: Path) -> None:
        self.seen = folder / "seen"
        self.output_dir = folder / "output"
        self.config_file = toy.write_config(folder / "config.py", self.output_dir)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOY_SEEN", str(self.seen))
            patch.setenv("TOY_KILL_AT", "6")
            self.killed = command_line("--config-file", self.config_file)
            self.seen_before = toy.seen_images(self.seen)
            self.checkpoint_before = (self.output_dir / "last_checkpoint").read_text()
            Path(f"{self.seen}.0").unlink()
            patch.delenv("TOY_KILL_AT")
            self.resumed = command_line("--config-file", self.config_file, "--resume")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


def test_runs_without_a_gpu_until_it_is_killed(finished):
    assert finished.killed.returncode == -signal.SIGKILL, finished.killed.stderr
    if not torch.cuda.is_available():
        assert "No GPU is available: running on the CPU" in finished.killed.stdout
    assert "eta:" in finished.killed.stdout  # Detectron2's console lines
    assert list(finished.seen_before) == list(range(7))
    assert finished.checkpoint_before == "model_0000003.pth"


def test_resumes_after_sigkill(finished):
    assert finished.resumed.returncode == 0, finished.resumed.stderr
    assert "Starting training from iteration 4" in finished.resumed.stdout
    seen = toy.seen_images(finished.seen)
    assert list(seen) == list(range(4, 12))
    for i in (4, 5, 6):  # what the killed process did after its checkpoint is done once more
        assert seen[i] == finished.seen_before[i]
    metrics = toy.read_metrics(finished.output_dir)
    schedule = load_config(finished.config_file).lr_multiplier
    schedule = detectron2.config.instantiate(schedule)
    expected = [0.02 * schedule(i / 12) for i in range(12)]
    assert [metrics[i]["lr"] for i in range(12)] == pytest.approx(expected)


def test_no_warnings_that_a_user_could_not_act_on(finished):
    for process in (finished.killed, finished.resumed):
        assert "DeprecationWarning" not in process.stderr
        assert "FutureWarning" not in process.stderr


def test_files_of_a_run(finished):
    files = {path.name for path in finished.output_dir.iterdir()}
    assert {
        "config.yaml",
        "last_checkpoint",
        "log.txt",
        "metrics.json",
        "model_0000003.pth",
        "model_0000007.pth",
        "model_0000011.pth",
        "model_final.pth",
    } <= files
    assert "config.yaml.pkl" not in files  # the config can be read again
    assert any("tfevents" in name for name in files)
    assert read_detections(finished.output_dir)


def test_evaluation_alone_gives_the_same_results(finished, tmp_path):
    weights = finished.output_dir / "model_final.pth"
    overrides = [f"train.init_checkpoint={weights}", f"train.output_dir={tmp_path}"]
    # The config that the run has saved is as good as the one that it was started with.
    saved = finished.output_dir / "config.yaml"
    results = train_net.run(parse("--config-file", saved, "--eval-only", *overrides))
    expected = toy.read_metrics(finished.output_dir)[12]
    assert results["bbox"]["AP"] == pytest.approx(expected["bbox/AP"])
    assert results["bbox"]["AP50"] > 0
    assert read_detections(tmp_path) == read_detections(finished.output_dir)


def test_evaluation_of_the_last_checkpoint(finished):
    args = ["--config-file", finished.config_file, "--eval-only"]
    results = train_net.run(parse(*args, "--resume"))
    assert results["bbox"]["AP50"] > 0
    # Without --resume it is train.init_checkpoint that is evaluated, here none.
    args.append(f"train.output_dir={finished.output_dir.parent / 'untrained'}")
    with pytest.raises(SystemExit, match=r"no checkpoint is named, .*train\.init_checkpoint=FILE"):
        train_net.run(parse(*args))
    # With --resume, but before there is a checkpoint, as well.
    with pytest.raises(SystemExit, match=r"no checkpoint is named"):
        train_net.run(parse(*args[:-1], "--resume", args[-1]))


def test_saved_config_is_equal(finished):
    saved = load_config(finished.output_dir / "config.yaml")
    again = finished.output_dir.parent / "again.yaml"
    detectron2.config.LazyConfig.save(saved, str(again))
    assert again.read_text() == (finished.output_dir / "config.yaml").read_text()
    original = finished.output_dir.parent / "original.yaml"
    cfg = load_config(finished.config_file)
    cfg.categories = [{"id": i + 1, "name": name} for i, name in enumerate(toy.CLASSES)]
    detectron2.config.LazyConfig.save(cfg, str(original))
    assert yaml.unsafe_load(original.read_text()) == yaml.unsafe_load(again.read_text())


def test_predictor_takes_the_saved_config(finished):
    predictor = Predictor(
        finished.output_dir / "config.yaml", finished.output_dir / "model_final.pth"
    )
    assert predictor.class_names == list(toy.CLASSES)
    image = Path(os.environ["TOY_DATA"]) / "toy_val_1.png"
    detections = [d for d in read_detections(finished.output_dir) if d["image_id"] == 1]
    assert predictor(image).scores.tolist() == pytest.approx([d["score"] for d in detections])


# yaml


def test_yaml_config(tmp_path):
    output_dir = tmp_path / "output"
    config_file = tmp_path / "toy.yaml"
    config_file.write_text(toy.yaml_config(output_dir))
    args = ["--config-file", config_file]
    torch.manual_seed(0)
    results = train_net.run(parse(*args, "SEED", "0", "SOLVER.MAX_ITER", "3"))
    assert "AP" in results["bbox"]
    results = train_net.run(parse(*args, "--resume", "SEED", "0"))
    files = {path.name for path in output_dir.iterdir()}
    assert {"config.yaml", "last_checkpoint", "metrics.json", "model_final.pth"} <= files
    metrics = toy.read_metrics(output_dir)
    assert {"total_loss", "lr", "atss/num_positives"} <= set(metrics[5])
    assert torch.load(output_dir / "model_final.pth")["iteration"] == 5

    weights = output_dir / "model_final.pth"
    args = ["--config-file", output_dir / "config.yaml", "--eval-only"]
    again = train_net.run(parse(*args, "MODEL.WEIGHTS", weights))
    assert again["bbox"] == pytest.approx(results["bbox"], nan_ok=True)
    again = train_net.run(parse(*args, "--resume"))
    assert again["bbox"] == pytest.approx(results["bbox"], nan_ok=True)


# Several processes


def train_and_evaluate(train_args, eval_args) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    train_net.run(train_args)
    train_net.run(eval_args)
    leave_process_group()


class TwoProcesses:
    """Two processes train, then evaluate what they trained; one process trains the same alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained, self.evaluated = folder / "trained", folder / "evaluated"
        self.alone, self.seen = folder / "alone", folder / "seen"
        config_file = toy.write_config(folder / "config.py", self.trained)
        args = ["--config-file", config_file]
        # The same images for one and for two: any order, of one size, and no batch statistics.
        same = ["dataloader.train.aspect_ratio_grouping=False", "model.backbone.norm=FrozenBN"]
        same += ["train.max_iter=6", "train.ema.enabled=True"]
        resize = "{_target_:detectron2.data.transforms.Resize,shape:[96,96]}"
        same += [f"dataloader.train.mapper.augmentations=[{resize}]"]
        weights = f"train.init_checkpoint={self.trained / 'model_final.pth'}"
        train_args = parse(*args, "--num-gpus", 2, *same)
        eval_args = parse(
            *args, "--eval-only", *same, weights, f"train.output_dir={self.evaluated}"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOY_SEEN", str(self.seen))
            launch(train_and_evaluate, 2, dist_url="auto", args=(train_args, eval_args))
            patch.setenv("TOY_SEEN", f"{self.seen}_alone")
            train_net.run(parse(*args, *same, f"train.output_dir={self.alone}"))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> TwoProcesses:
    return TwoProcesses(tmp_path_factory.mktemp("two_processes"))


def test_two_processes_see_halves_of_the_batches(two_processes):
    halves = [toy.seen_images(two_processes.seen, rank) for rank in range(2)]
    alone = toy.seen_images(Path(f"{two_processes.seen}_alone"))
    for i in range(6):
        assert [len(half[i]) for half in halves] == [1, 1]
        assert halves[0][i] + halves[1][i] == alone[i]


def test_two_processes_train_as_one(two_processes):
    checkpoints = [
        torch.load(folder / "model_final.pth")
        for folder in (two_processes.trained, two_processes.alone)
    ]
    for part in ("model", "trained_model"):
        torch.testing.assert_close(*(c[part] for c in checkpoints), rtol=1e-3, atol=1e-5)
    losses = [
        [toy.read_metrics(folder)[i]["total_loss"] for i in range(6)]
        for folder in (two_processes.trained, two_processes.alone)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_processes_write_one_set_of_files(two_processes):
    files = [path.name for path in two_processes.trained.iterdir()]
    assert sum("tfevents" in name for name in files) == 1
    assert {"config.yaml", "metrics.json", "model_final.pth", "log.txt.rank1"} <= set(files)
    lines = (two_processes.trained / "metrics.json").read_text().splitlines()
    iterations = [json.loads(line)["iteration"] for line in lines]
    assert iterations == sorted(set(iterations))


def test_two_processes_evaluate_all_images(two_processes):
    detections = read_detections(two_processes.evaluated)
    assert {d["image_id"] for d in detections} == set(range(4))
    assert detections == read_detections(two_processes.trained)


def test_the_command_launches_processes(tmp_path, monkeypatch):
    config_file = toy.write_config(tmp_path / "config.py", tmp_path / "output")
    calls = []
    monkeypatch.setattr(train_net, "launch", lambda *args: calls.append(args) or 7)
    flags = [
        "--num-gpus",
        "2",
        "--num-machines",
        "3",
        "--machine-rank",
        "1",
        "--dist-url",
        "tcp://here:1",
    ]
    argv = ["train_net.py", "--config-file", str(config_file), *flags, "train.max_iter=7"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="^7$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    ((args, first),) = calls
    assert args.opts == ["train.max_iter=7"]
    assert first == ("atss-d2", 2, 6, 0, 2, "here", 1, "")


# Mistakes


@pytest.mark.parametrize("flags", [[], ["--eval-only"]])
def test_a_damaged_checkpoint_ends_in_one_sentence(toy_data, tmp_path, flags):
    config_file = toy.write_config(tmp_path / "config.py", tmp_path / "output")
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04 cut off")
    argv = ["--config-file", config_file, *flags, f"train.init_checkpoint={path}"]
    with pytest.raises(SystemExit, match=rf": '{path}' .*download it again"):
        train_net.run(parse(*argv))


LAZY = "coco/atss_R_50_FPN_1x"
YAML = "yaml/atss_R_50_FPN_1x.yaml"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which config? Give --config-file, for example coco/atss_R_50_FPN_1x"),
        (["--config-file", "coco/atss_R_50_1x"], "did you mean coco/atss_R_50_FPN_1x"),
        (["--config-file", "configs/common/train.py"], "does not define model, dataloader"),
        (["--config-file", LAZY, "train.max_itr=1"], "did you mean train.max_iter"),
        (["--config-file", LAZY, "train.max_iter=5", "--resume"], "flags such as --resume stand"),
        (["--config-file", LAZY, "MODEL.WEIGHTS", "x"], "write train.init_checkpoint=x"),
        (["--config-file", LAZY, "train.max_iter=[1"], "not a value in Hydra's grammar"),
        (
            ["--config-file", LAZY, "train.init_checkpoint=no.pth"],
            "There is no checkpoint at 'no.pth'",
        ),
        (["--config-file", YAML, "train.max_iter=5"], "takes KEY VALUE, not key=value"),
        (["--config-file", YAML, "SOLVER.MAX_ITR", "5"], "did you mean SOLVER.MAX_ITER"),
        (["--config-file", YAML, "SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no value"),
        (["--config-file", YAML, "SOLVER.MAX_ITER", "5", "--resume"], "flags such as --resume"),
        (["--config-file", YAML, "MODEL.WEIGHTS", "no.pth"], "There is no checkpoint at 'no.pth'"),
    ],
)
def test_mistakes_are_explained(argv, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as exit_info:
        train_net.setup(parse(*argv))
    sentence = exit_info.value.code  # Python prints it on stderr and exits with 1
    assert sentence.startswith(f"{train_net.get_parser().prog}: ")
    assert message in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml"),
        ("MODEL:\n  WEIGHTSS: x\n", "MODEL.WEIGHTSS"),
    ],
)
def test_broken_yaml_files_are_explained(tmp_path, content, message):
    (tmp_path / "broken.yaml").write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        train_net.setup(parse("--config-file", tmp_path / "broken.yaml"))
    assert message in exit_info.value.code


def test_resuming_needs_no_initial_checkpoint():
    args = parse("--config-file", LAZY, "--resume", "train.init_checkpoint=no.pth")
    assert train_net.setup(args).train.init_checkpoint == "no.pth"
