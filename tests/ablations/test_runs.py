"""Which runs there are, where they lie, and what they leave."""

import json
import math

import pytest

from ablations import read_results
from ablations.configs import config_hash
from ablations.runs import METRICS
from atss_d2.config import load_config


def test_rows_of_equal_config_share_their_runs(study):
    runs = study.plan("table2/*", "table3/retinanet", "table3/fcos", seeds=(0, 1))
    names = ["iou_box", "iou_point", "spatial_scale_box", "spatial_scale_point"]
    # One seed of every row before the next seed.
    assert [run.name for run in runs] == [
        f"table2/{name} seed {seed}" for seed in (0, 1) for name in names
    ]
    assert len({run.folder for run in runs}) == len(runs)
    for run in runs:
        assert run.cfg.train.seed == run.seed
        assert run.folder.parent.parent == study.output / "shapes"
        assert config_hash(run.cfg) == run.config_hash


def test_other_overrides_and_data_are_other_runs(study):
    folders = [
        study.plan("table4/k3")[0].folder,
        study.plan("table4/k3", overrides=["train.max_iter=3"])[0].folder,
        study.plan("table4/k3", data="trees")[0].folder,
        study.plan("table4/k3", data="coco")[0].folder,
    ]
    assert len(set(folders)) == 4


def test_the_config_of_a_run_is_there_for_train_net(study):
    (run,) = study.plan("table4/k3", seeds=(4,), overrides=["train.max_iter=3"])
    run.prepare()
    arguments = run.arguments(num_gpus=8)
    assert arguments == ["--config-file", str(run.folder / "run.yaml"), "--resume"]
    cfg = load_config(run.folder / "run.yaml")
    assert (cfg.train.seed, cfg.train.max_iter, cfg.model.matcher.topk) == (4, 3, 3)
    assert cfg.train.output_dir == str(run.folder)


def test_arguments_on_coco(study):
    (run,) = study.plan("table4/k3", data="coco", seeds=(2,), overrides=["optimizer.lr=0.02"])
    assert run.arguments(num_gpus=4) == [
        *("--config-file", "configs/ablations/table4/k3.py", "--num-gpus", "4", "--resume"),
        *(f"train.output_dir={run.folder}", "train.seed=2", "optimizer.lr=0.02"),
    ]


def metrics_file(run, *lines):
    run.prepare()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.folder / "metrics.json").write_text(text)


def test_result_is_the_last_evaluation(study):
    (run,) = study.plan("table4/k3", seeds=(3,))
    assert not run.is_finished()
    last = {f"bbox/{name}": 10.0 + i for i, name in enumerate(METRICS)} | {"bbox/APl": math.nan}
    metrics_file(
        run,
        {"iteration": 1, "bbox/AP": 99.0},
        {"iteration": 2, **last},
        {"iteration": 3, "total_loss": 1.0},
    )
    result = run.write_result(seconds=12.34)
    assert result.metrics == {
        "AP": 10.0,
        "AP50": 11.0,
        "AP75": 12.0,
        "APs": 13.0,
        "APm": 14.0,
        "APl": None,
    }
    assert (result.row, result.data, result.seed) == ("table4/k3", "shapes", 3)
    assert (result.iterations, result.seconds) == (run.cfg.train.max_iter, 12.3)
    assert list(read_results(study.output, "shapes")) == [result]
    assert list(read_results(study.output, "trees")) == []
    assert run.is_finished()
    content = json.loads((run.folder / "results.json").read_text())
    assert content["metrics"]["AP"] == 10.0
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".")]


def test_no_detection_at_all_is_an_ap_of_0(study):
    (run,) = study.plan("table4/k3")
    metrics_file(run, {"iteration": 2, "bbox/AP": math.nan, "bbox/AP50": math.nan})
    assert set(run.write_result(seconds=None).metrics.values()) == {0.0}


def test_without_an_evaluation_there_is_no_result(study):
    (run,) = study.plan("table4/k3")
    metrics_file(run, {"iteration": 2, "total_loss": 1.0})
    with pytest.raises(ValueError, match="metrics.json holds no bbox/AP"):
        run.write_result(seconds=1.0)
    assert not run.is_finished()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"seed": 0}'])
def test_a_damaged_result_counts_as_none(study, text):
    (run,) = study.plan("table4/k3")
    run.prepare()
    (run.folder / "results.json").write_text(text)
    assert not run.is_finished()
    assert list(read_results(study.output, "shapes")) == []


def test_a_result_of_another_config_does_not_count(study):
    (run,) = study.plan("table4/k3")
    metrics_file(run, {"iteration": 2, "bbox/AP": 1.0})
    run.write_result(seconds=1.0)
    content = json.loads((run.folder / "results.json").read_text())
    for key, value in (("config", "00000000"), ("seed", 5)):
        (run.folder / "results.json").write_text(json.dumps({**content, key: value}))
        assert not run.is_finished()
