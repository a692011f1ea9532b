"""`make demo`, end to end but tiny: two iterations on small pictures of the real data."""

import importlib.util
import json
from pathlib import Path

import cv2
import pytest

from atss_d2.data import dataset_root

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run_demo():
    spec = importlib.util.spec_from_file_location("run_demo", ROOT / "tools" / "run_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(output_dir, **changes):
    """Arguments that make the demo small enough for a test."""
    values = {
        "train.max_iter": 2,
        "train.eval_period": 2,
        "train.output_dir": output_dir,
        "train.init_checkpoint": "''",
        "dataloader.train.total_batch_size": 1,
        "dataloader.train.mapper.augmentations.7.shape": [64, 64],
        "dataloader.test.mapper.augmentations.0.factor": 0.2,
        "model.head.prior_prob": 0.3,  # so that there are detections to draw
        **changes,
    }
    return [f"{key}={value}" for key, value in values.items()]


needs_trees = pytest.mark.skipif(
    not (dataset_root() / "trees" / "annotations" / "trees_val.json").exists(),
    reason="needs the photographs: python tools/prepare_data.py --trees",
)


@needs_trees
def test_leaves_what_the_readme_promises(run_demo, tmp_path, capsys):
    output = tmp_path / "out"
    assert run_demo.main(small(output)) == 0
    for name in (
        "metrics.json",
        "config.yaml",
        "model_final.pth",
        "last_checkpoint",
        "learning_curve.png",
        "inference/coco_instances_results.json",
        "inference_trees_site2/coco_instances_results.json",
    ):
        assert (output / name).is_file(), name
    assert list(output.glob("events.out.tfevents.*"))
    # A picture for each of the 4 tiles of one photograph and for the one of the other.
    pictures = sorted(output.glob("pictures/*/*.png"))
    assert [p.parent.name for p in pictures] == ["trees_site2"] + ["trees_val"] * 4
    assert all(cv2.imread(str(p)).shape[1] > 800 for p in pictures)

    summary = json.loads((output / "summary.json").read_text())
    assert set(summary["results"]) == {"trees_val", "trees_site2"}
    assert all(0 <= v <= 100 for r in summary["results"].values() for v in r.values())
    assert 0 < summary["training_seconds"] < summary["seconds"]

    printed = capsys.readouterr().out
    table = printed[printed.index("held out") :]
    for word in ("AP", "AP50", "AP75", "AR", "trees_val", "trees_site2", "Total time"):
        assert word in table
    for picture in (output / "learning_curve.png", *pictures):
        assert str(picture) in table


@needs_trees
def test_without_any_detection_there_is_still_a_table(run_demo, tmp_path, capsys):
    output = tmp_path / "out"
    assert run_demo.main(small(output, **{"model.test_score_thresh": 1.0})) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert set(summary["results"]["trees_val"].values()) == {None}
    assert "nan" in capsys.readouterr().out


def test_a_wrong_override_is_a_sentence(run_demo, capsys):
    with pytest.raises(SystemExit) as error:
        run_demo.main(["train.max_itr=5"])
    assert error.value.code == 2
    assert "train.max_iter" in capsys.readouterr().err
