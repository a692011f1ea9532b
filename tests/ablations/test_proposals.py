"""Recall of proposals: equal to Detectron2's, pairs by hand; the report of the RPNs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from pycocotools.coco import COCO

from ablations import RPN_ROWS, configs, proposals
from ablations.recall import SIZES, average_recall, best_pairs, cover, measure, propose
from tests import rcnn_models as r
from tests import toy
from tests.ablations.conftest import write_result


def image_of(rng, image_id, num_objects):
    """Proposals around some objects of all sizes, and annotations, one of them a crowd."""
    sides = np.exp(rng.uniform(np.log(8), np.log(200), (num_objects, 2)))
    corners = rng.uniform(0, 200, (num_objects, 2))
    boxes = np.concatenate((corners, corners + sides), axis=1)
    noise = rng.normal(0, 0.08, (6, num_objects, 4)) * np.tile(sides, 2)
    found = np.concatenate([(boxes + noise).reshape(-1, 4), rng.uniform(0, 400, (300, 4))])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    order = rng.permutation(len(found))
    result = Instances((400, 400))
    result.proposal_boxes = Boxes(torch.tensor(found[order], dtype=torch.float32))
    result.objectness_logits = torch.linspace(5, -5, len(found))
    annotations = [
        {
            "image_id": image_id,
            "bbox": [float(v) for v in (*corner, *side)],
            "area": float(side.prod()),
            "iscrowd": int(i == 1),
            "category_id": 1,
        }
        for i, (corner, side) in enumerate(zip(corners, sides, strict=True))
    ]
    return result, annotations


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [image_of(rng, i, n) for i, n in enumerate((5, 1, 9, 4))]


def coverage_of(images):
    parts = [cover(found, annotations) for found, annotations in images]
    counts = {size: [x[size].shape[1] for x in parts] for size in SIZES}
    return {
        size: (
            np.repeat(np.arange(len(images)), counts[size]),
            np.concatenate([x[size] for x in parts], axis=1),
        )
        for size in SIZES
    }


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("limit", [100, 300, 1000])
def test_recall_is_detectron2s(images, limit):
    annotations = [a for _, of_image in images for a in of_image]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "annotations": [{"id": i + 1, **a} for i, a in enumerate(annotations)],
        "categories": [{"id": 1}],
    }
    coco.createIndex()
    predictions = [{"image_id": i, "proposals": found} for i, (found, _) in enumerate(images)]
    names = dict(zip(SIZES, ("all", "small", "medium", "large"), strict=True))
    coverage = coverage_of(images)
    for size, name in names.items():
        expected = _evaluate_box_proposals(predictions, coco, area=name, limit=limit)
        assert coverage[size][1].shape[1] == expected["num_pos"] > 0
        found = average_recall(coverage, size, limit)
        assert found == pytest.approx(100 * expected["ar"].item(), abs=1e-3)


def test_pairs_by_hand():
    overlaps = torch.tensor([[0.9, 0.8], [0.7, 0.1], [0.0, 0.3]])
    # The first proposal is the best of both objects; the second object gets the third.
    assert best_pairs(overlaps).tolist() == pytest.approx([0.9, 0.3])
    assert best_pairs(overlaps[:1]).tolist() == pytest.approx([0.9, 0.0])
    assert best_pairs(overlaps[:0]).tolist() == [0, 0]
    assert best_pairs(overlaps[:, :0]).tolist() == []


def test_recall_by_hand():
    overlaps = np.array([[0.0, 0.5, 0.75]] * 3)  # none, one, and six of the ten thresholds
    coverage = {"all": (np.array([0, 0, 1]), overlaps)}
    assert average_recall(coverage, "all", 300) == pytest.approx(100 * (0 + 0.1 + 0.6) / 3)
    drawn = np.array([0, 3])
    assert average_recall(coverage, "all", 300, drawn) == pytest.approx(60)
    assert np.isnan(average_recall({"all": (np.zeros(0, int), np.zeros((3, 0)))}, "all", 100))


@pytest.fixture(scope="module")
def rcnn(tmp_path_factory):
    """A config of a tiny R-CNN on the toy data set, and a checkpoint."""
    folder = tmp_path_factory.mktemp("rcnn")
    toy.write_dataset(folder)
    cfg = toy.config(folder / "output")
    model = r.with_atss(r.rcnn_config(), focal=True)
    cfg.model = OmegaConf.merge(model, {"pixel_std": [57.0, 57.0, 57.0]})
    torch.save({"model": r.build(cfg.model).state_dict()}, folder / "model.pth")
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    return folder


def test_the_command_prints_the_recall_of_a_checkpoint(rcnn, capsys):
    arguments = ["--config-file", str(rcnn / "config.yaml"), "--weights", str(rcnn / "model.pth")]
    assert proposals.main(arguments) == 0
    lines = capsys.readouterr().out.strip().splitlines()[-5:]
    assert lines[0] == "| AR | all | s | m | l |"
    cells = [line.split("|")[1:-1] for line in lines[2:]]
    assert [x[0].strip() for x in cells] == ["@100", "@300", "@1000"]
    values = [[float(v) for v in x[1:]] for x in cells]
    assert 0 < values[0][0] <= 100
    assert values[0][0] <= values[1][0] <= values[2][0]


def test_detectors_that_use_few_proposals_are_compared_with_as_many(rcnn):
    cfg = LazyConfig.load(str(rcnn / "config.yaml"))
    many = measure(cfg, str(rcnn / "model.pth"))
    cfg.model.proposal_generator.post_nms_topk = [10, 10]
    few = measure(cfg, str(rcnn / "model.pth"))
    np.testing.assert_array_equal(few["all"][1], many["all"][1])


def test_images_keep_their_size_in_a_measurement(rcnn):
    """Proposals are scaled back to the size of the original image."""
    cfg = LazyConfig.load(str(rcnn / "config.yaml"))
    model = r.build(cfg.model).eval()
    (inputs,) = list(instantiate(cfg.dataloader.test))[:1]
    with torch.no_grad():
        (found,) = propose(model, inputs)
        doubled = [
            {**inputs[0], "height": 2 * inputs[0]["height"], "width": 2 * inputs[0]["width"]}
        ]
        (larger,) = propose(model, doubled)
    torch.testing.assert_close(larger.proposal_boxes.tensor, 2 * found.proposal_boxes.tensor)


def test_errors(rcnn, tmp_path, capsys):
    with pytest.raises(SystemExit, match="no run of rpn/\\* is measured"):
        proposals.main(["--report", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        proposals.main([])
    assert "what to do?" in capsys.readouterr().err
    yaml = str(ROOT / "configs/yaml/atss_R_50_FPN_1x.yaml")
    with pytest.raises(SystemExit, match="recall is measured for a LazyConfig with one test set"):
        proposals.main(["--config-file", yaml, "--weights", "no.pth"])
    cfg = toy.config(tmp_path / "output")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    with pytest.raises(SystemExit, match="RecordingATSS has no proposal_generator: give an R-CNN"):
        proposals.main(["--config-file", str(tmp_path / "config.yaml"), "--weights", "no.pth"])


def test_rows_and_their_baselines():
    names = {row.name: proposals.baseline_of(row) for row in RPN_ROWS}
    assert set(names.values()) == {"rpn/faster_rcnn", "rpn/cascade_rcnn", "rpn/mask_rcnn"}
    for row in RPN_ROWS:
        small = configs.load_row_config(row, "shapes")
        assert small.train.max_iter == 400
        assert ("mask" in small.dataloader.train.dataset.names) == ("mask" in row.name)


def test_the_report(study, monkeypatch):
    """From finished runs to the table, with a stand-in for the model."""
    seeds = (0, 1)
    rng = np.random.default_rng(0)
    for run in study.plan("rpn/faster_rcnn*", seeds=seeds):
        is_ours = "atss" in run.row.name
        write_result(run, metrics={**dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 7)})
        metrics = {"iteration": 1, "bbox/AP": 7.0, "segm/AP": 5.0}
        (run.folder / "metrics.json").write_text(json.dumps(metrics) + "\n")
        overlaps = rng.uniform(0.4, 0.6, (3, 40)) + 0.3 * is_ours
        coverage = {size: (np.arange(40) % 20, overlaps) for size in SIZES}
        monkeypatch.setattr(proposals, "measure", lambda *_, c=coverage: c)
        assert list(proposals.measure_runs(study.output))[-1] == run.folder / "proposals.npz"
    assert list(proposals.measure_runs(study.output)) == []  # each once
    monkeypatch.setattr(proposals, "compare", lambda *_: {"gain": (1.0, -0.5, 2.5)})
    document = study.folder / "document.md"
    document.write_text("before\n<!-- begin rpn --><!-- end rpn -->\nafter\n")
    proposals.write_report(document, study.output)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    lines = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(lines) == 3
    baseline, ours, _ = ([x.strip() for x in line.split("|")[1:-1]] for line in lines)
    assert baseline[0] == "[Faster R-CNN](../configs/demo/faster_rcnn_shapes_wide.py)"
    assert baseline[6:8] == ["", ""]
    assert ours[6].startswith("**+")  # the interval excludes 0
    assert float(ours[1]) > float(baseline[1]) + 30
    assert ours[-4:] == ["7.0", "+1.0 [-0.5, +2.5]", "5.0", "2"]
