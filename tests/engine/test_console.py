"""What training shows, how long it says it takes, and the weights that it keeps as the best."""

import errno
import io
import logging
import re
import time
from collections import Counter

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

from atss_d2.engine import trainer
from atss_d2.engine.console import (
    FILE_ONLY,
    ProgressPrinter,
    close_logs,
    filter_console,
    quiet_evaluation,
)
from atss_d2.engine.evaluation_hooks import TimedEvalHook
from atss_d2.engine.models import build_model
from atss_d2.engine.testing import try_evaluation
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")


# The console


@pytest.fixture
def shown(monkeypatch):
    """A logger's console, filtered, and its log file."""
    logger = logging.getLogger("detectron2")
    before = logger.handlers[:], logger.level, logger.propagate
    stream, file = logging.StreamHandler(io.StringIO()), logging.StreamHandler(io.StringIO())
    logger.handlers[:] = [stream, file]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream.stream)
        filter_console("detectron2")
        filter_console("detectron2")
    yield stream.stream, file.stream
    logger.handlers[:], logger.level, logger.propagate = before


def test_the_console_shows_less_than_the_file(shown):
    hidden = ["detectron2", "detectron2.data.common", "detectron2.checkpoint.c2_model_loading"]
    for name in [*hidden, "detectron2.data.datasets.coco", "detectron2.utils.events"]:
        logging.getLogger(name).info(f"from {name}")
    logging.getLogger("detectron2.data.build").info("Distribution of instances among ...")
    logging.getLogger("detectron2.data.common").warning("a warning")
    logging.getLogger("detectron2.engine").info("the model", extra=FILE_ONLY)
    ids = "\nCategory ids in annotations are not in [1, #categories]! We'll apply a mapping.\n"
    logging.getLogger("detectron2.data.datasets.coco").warning(ids)
    stream, file = (x.getvalue() for x in shown)
    assert stream.splitlines() == [
        "from detectron2.data.datasets.coco",
        "from detectron2.utils.events",
        "Distribution of instances among ...",
        "a warning",
    ]
    assert all(f"from {name}" in file for name in hidden)
    assert "the model" in file
    assert "Category ids" in file


def test_evaluations_are_quiet_while_training(shown, capsys):
    evaluator = logging.getLogger("detectron2.evaluation.coco_evaluation")
    with quiet_evaluation():
        evaluator.info("Preparing results")
        logging.getLogger("detectron2.evaluation.evaluator").info("Inference done 11/5000. ...")
        evaluator.warning("nothing predicted")
        print("Average Precision")
    evaluator.info("afterwards")
    assert shown[0].getvalue().splitlines() == [
        "Inference done 11/5000. ...",
        "nothing predicted",
        "afterwards",
    ]
    assert "Preparing results" in shown[1].getvalue()
    assert capsys.readouterr().out == ""


# ETA


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("period", "first_estimate"), [(20, 10.0), (0, 7.0), (35, 0.0)])
def test_the_eta_counts_evaluations(monkeypatch, period, first_estimate):
    """100 iterations of 2 s, evaluations of 10 s, a first iteration of 30 s."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    max_iter = 100

    def evaluate():
        clock.now += 10
        return {}

    hook = TimedEvalHook(period, evaluate)
    hook.expected_seconds = first_estimate
    hook.trainer = type("Trainer", (), {"max_iter": max_iter, "iter": 0})()
    printer = ProgressPrinter(max_iter, hook.seconds)
    num_evaluations = len([i for i in range(1, max_iter) if period and i % period == 0]) + 1
    total = 30 + 99 * 2 + 10 * num_evaluations
    with EventStorage() as storage:
        for i in range(max_iter):
            clock.now += 30 if i == 0 else 2
            hook.trainer.iter = storage.iter = i
            hook.after_step()
            if (i + 1) % 10 == 0:
                text = printer._get_eta(storage)
                eta = storage.latest().get("eta_seconds", (None,))[0]
                if i + 1 >= 50 and (num_evaluations == 1 or period < 50):
                    wrong = abs(first_estimate - 10) if num_evaluations == 1 else 0
                    assert eta == pytest.approx(total - clock.now, abs=wrong + 1e-6)
                    assert re.fullmatch(r"0:\d\d:\d\d", text)


def test_the_first_line_has_an_estimate():
    with EventStorage(5) as storage:
        printer = ProgressPrinter(10, lambda finished: (0.0, 3.0))
        assert printer._get_eta(storage) == ""
        printer = ProgressPrinter(10, lambda finished: (0.0, 3.0))
        storage.put_scalar("time", 2.0)
        assert printer._get_eta(storage) == "0:00:11"


def test_an_evaluation_is_tried_first_and_changes_no_random_state(tmp_path):
    run = toy.Run(tmp_path)
    model = build_model(run.cfg)
    model.train()
    run.cfg.dataloader.test.mapper.augmentations[0].update(
        short_edge_length=[64, 96], sample_style="choice"
    )
    torch.manual_seed(3)
    before = torch.get_rng_state()
    seconds = try_evaluation(run.cfg, model)
    assert seconds > 0
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


# The best checkpoint


BEST = {"train.best_checkpoint": {"enabled": True, "metric": "bbox/AP"}, "train.eval_period": 3}


def with_scores(monkeypatch, scores):
    """Evaluations that give these AP in turn."""
    scores = iter(scores)
    monkeypatch.setattr(
        trainer, "do_test", lambda cfg, model, **_: {"bbox": {"AP": next(scores), "AP50": 1.0}}
    )


def test_the_best_weights_are_kept(tmp_path, monkeypatch):
    with_scores(monkeypatch, [10.0, float("nan"), 30.0, 20.0])  # after 3, 6, 9, 12 iterations
    run = toy.Run(tmp_path, **BEST, **{"train.checkpointer.period": 3}).train()
    best = run.checkpoint("model_best")
    assert (best["iteration"], best["metric"]) == (8, 30.0)
    assert best["results"] == {"bbox/AP": 30.0, "bbox/AP50": 1.0}
    assert best["categories"] == [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}]
    torch.testing.assert_close(best["model"], run.checkpoint("model_0000008")["model"])
    # Training resumes from its own checkpoints.
    assert (run.output_dir / "last_checkpoint").read_text() == "model_final.pth"


def test_the_best_metric_survives_resuming(tmp_path, monkeypatch):
    with_scores(monkeypatch, [10.0, 30.0])
    run = toy.Run(tmp_path, **BEST, **{"train.checkpointer.period": 7})
    run.train(fail_at=8)  # after the checkpoint of 7 iterations
    assert run.checkpoint("model_best")["metric"] == 30.0
    with_scores(monkeypatch, [20.0, 25.0])
    run.train(resume=True)
    assert (run.checkpoint("model_best")["metric"], run.checkpoint("model_best")["iteration"]) == (
        30.0,
        5,
    )
    # A run that begins anew in the same folder owes nothing to the last.
    with_scores(monkeypatch, [1.0, 2.0, 3.0, 1.5])
    run.train()
    assert run.checkpoint("model_best")["metric"] == 3.0
    # Nor does it end with the best weights of the last, if it detects nothing.
    with_scores(monkeypatch, [float("nan")] * 4)
    run.train()
    assert run.checkpoint("model_best")["metric"] == -float("inf")
    assert run.checkpoint("model_best_previous")["metric"] == 3.0


def test_a_best_checkpoint_is_kept_even_if_nothing_was_detected(tmp_path, monkeypatch):
    """Else the next command of the documents would miss its file, or take that of an old run."""
    nan = float("nan")
    with_scores(monkeypatch, [nan, nan, 5.0, nan])
    run = toy.Run(tmp_path, **BEST).train()
    assert run.checkpoint("model_best")["iteration"] == 8
    with_scores(monkeypatch, [nan] * 4)
    run.train()
    best = run.checkpoint("model_best")
    assert (best["iteration"], best["metric"]) == (2, -float("inf"))
    with_scores(monkeypatch, [0.0] * 4)
    run.train()
    assert run.checkpoint("model_best")["metric"] == 0.0


def test_a_metric_that_is_not_there_is_named(tmp_path, monkeypatch, caplog):
    with_scores(monkeypatch, [1.0] * 4)
    overrides = {**BEST, "train.best_checkpoint": {"enabled": True, "metric": "bbox/APx"}}
    run = toy.Run(tmp_path, **overrides).train()
    assert not (run.output_dir / "model_best.pth").exists()
    assert "train.best_checkpoint.metric is 'bbox/APx'" in caplog.text


# Own hooks, the learning rate


class Recorder(HookBase):
    """Writes the iterations that it sees into a file."""

    def __init__(self, *, path: str) -> None:
        self.path = path

    def after_step(self) -> None:
        with open(self.path, "a") as file:
            file.write(f"{self.trainer.iter}\n")


def test_own_hooks_run(tmp_path):
    from detectron2.config import LazyCall as L

    run = toy.Run(tmp_path)
    run.cfg.train.hooks = [L(Recorder)(path=str(tmp_path / "iterations"))]
    run.train()
    assert (tmp_path / "iterations").read_text().split() == [str(i) for i in range(12)]


@pytest.mark.parametrize("is_list", [True, False])
def test_what_is_no_list_of_hooks_is_refused(tmp_path, is_list):
    """A node alone ended in an AssertionError without a word, as did a list of something else."""
    from detectron2.config import LazyCall as L

    from atss_d2.config import ConfigError

    run = toy.Run(tmp_path)
    node = L(Counter)() if is_list else L(Recorder)(path=str(tmp_path / "iterations"))
    run.cfg.train.hooks = [node] if is_list else node
    with pytest.raises(ConfigError, match=r"train.hooks must be a list of hooks of Detectron2"):
        run.train()


def test_the_lr_that_is_logged_is_the_base_rate(tmp_path, whole_runs):
    from detectron2.config import LazyCall as L

    from atss_d2.engine import BackboneLRFactor

    run = toy.Run(tmp_path)
    run.cfg.optimizer.params.lr_factor_func = L(BackboneLRFactor)(factor=0.1, prefix="")
    expected = whole_runs().rates()
    run.cfg.optimizer.params.lr_factor_func.prefix = "head."  # most of the parameters
    assert run.train().rates() == pytest.approx(expected)


def test_a_full_disk_loses_lines_of_the_log_without_a_word(capsys):
    class Full(io.StringIO):
        def write(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

        close = write

    logger = logging.getLogger("a.full.disk")
    logger.addHandler(logging.StreamHandler(Full()))
    filter_console(logger.name)
    logger.warning("lost")
    close_logs(logger.name)
    assert not logger.handlers
    assert capsys.readouterr() == ("", "")
