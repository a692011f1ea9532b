"""Counting positives by the size of objects, and the paper's claims about them."""

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes

from ablations import find_row, load_row_config, positives
from ablations.positives import (
    RULES,
    SIZE_EDGES,
    PositiveCounts,
    Scene,
    count_positives,
    measure_positives,
    random_scenes,
    training_scenes,
)
from atss_d2 import ATSSMatcher, ScaleRangeMatcher
from tests import toy


def anchors_of(scale=8, strides=(8, 16, 32, 64, 128)):
    return DefaultAnchorGenerator(
        sizes=[[scale * stride] for stride in strides],
        aspect_ratios=[1.0],
        strides=list(strides),
        offset=0.5,
    )


def test_counts_of_a_scene_by_hand():
    """Stride 8, 32 x 32 px: 16 centers at 4, 12, 20, 28; the box holds those at 4 and 12."""
    matcher = ScaleRangeMatcher(strides=(8,))
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [17.0, 17.0, 19.0, 19.0], [16.0, 0.0, 32.0, 8.0]])
    counts = count_positives(matcher, anchors_of(strides=(8,)), [Scene((32, 32), boxes)])
    assert counts.counts.tolist() == [4, 0, 2]
    assert counts.sizes.tolist() == pytest.approx([16.0, 2.0, 128**0.5])


def test_scenes_of_several_sizes_keep_their_order():
    scenes = [
        *random_scenes(40, image_size=(300, 420), seed=1),
        Scene((200, 100), torch.zeros(0, 4)),
        *random_scenes(3, image_size=(100, 200), seed=2),
    ]
    generator = anchors_of()
    together = count_positives(ATSSMatcher(), generator, scenes)
    alone = [count_positives(ATSSMatcher(), generator, [scene]) for scene in scenes]
    np.testing.assert_array_equal(together.counts, np.concatenate([x.counts for x in alone]))
    np.testing.assert_array_equal(together.sizes, np.concatenate([x.sizes for x in alone]))


def test_maps_are_those_of_the_padded_image():
    """33 x 65 px are padded to 64 x 96: 96 anchors of stride 8, 6 of 32, and 1 x 2, 1 x 1 above."""
    seen = []

    class Recorder(ATSSMatcher):
        def __call__(self, anchors, gt_boxes):
            seen.append([len(level) for level in anchors])
            return super().__call__(anchors, gt_boxes)

    scene = Scene((33, 65), torch.tensor([[1.0, 1.0, 30.0, 30.0]]))
    count_positives(Recorder(), anchors_of(), [scene])
    assert seen == [[96, 24, 6, 2, 1]]


def test_summaries():
    counts = PositiveCounts(np.array([8.0, 9.0, 100.0, 5.0]), np.array([2, 0, 7, 3]))
    groups = counts.by_size()
    assert [group["objects"] for group in groups[:2]] == [2, 0]
    assert groups[0] == {"from": 8.0, "to": 8 * 2**0.5, "objects": 2, "mean": 1, "std": 1} | {
        "without": 0.5
    }
    assert groups[1]["mean"] is None
    assert sum(group["objects"] for group in groups) == 3  # 5 px is below the first group
    assert counts.summary() == {
        "objects": 4,
        "mean": 3.0,
        "std": pytest.approx(np.std([2, 0, 7, 3])),
        "without": 0.25,
    }


def test_random_scenes_lie_inside_and_span_the_sizes():
    scenes = random_scenes(2000, image_size=(400, 600), seed=3)
    boxes = torch.cat([scene.boxes for scene in scenes])
    assert len(boxes) == 2000
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 600).all()
    assert (boxes[:, 3] <= 400).all()
    sizes = Boxes(boxes).area().sqrt().numpy()
    assert sizes.min() >= 7.99
    # Uniform in the logarithm from 8 to 360: as many on each side of the geometric mean.
    assert np.mean(sizes < (8 * 360) ** 0.5) == pytest.approx(0.5, abs=0.05)
    aspects = ((boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0])).numpy()
    assert 0.49 < aspects.min() < 0.6 < 1.7 < aspects.max() < 2.01
    again = random_scenes(2000, image_size=(400, 600), seed=3)
    assert all(a.boxes.equal(b.boxes) for a, b in zip(scenes, again, strict=True))


def test_claim_of_the_paper():
    """About 0.2 k L = 9 positives for every object above the smallest; fixed rules are unfair."""
    scenes = random_scenes(400)
    assert any(len(scene.boxes) for scene in scenes)
    means = {}
    for name, matcher in (("atss", ATSSMatcher()), ("ssc", ScaleRangeMatcher())):
        groups = count_positives(matcher, anchors_of(), scenes).by_size()
        means[name] = [g["mean"] for g in groups if g["objects"] and g["from"] > 31]
    assert np.mean(means["atss"]) == pytest.approx(9, rel=0.2)
    assert max(means["atss"]) < 1.4 * min(means["atss"])
    assert max(means["ssc"]) > 1.7 * min(means["ssc"])


def test_training_scenes_are_what_training_sees(tmp_path):
    toy.write_dataset(tmp_path)
    cfg = toy.config(tmp_path / "output")
    scenes = training_scenes(cfg)
    assert len(scenes) == toy.NUM_IMAGES["toy_train"]
    assert {scene.image_size for scene in scenes} == {(96, 128), (128, 96)}
    assert all(28 <= Boxes(scene.boxes).area().sqrt() < 40 for scene in scenes)


def test_what_is_measured(monkeypatch, tmp_path):
    toy.write_dataset(tmp_path)
    monkeypatch.setattr(
        positives, "load_row_config", lambda row, data: toy.config(tmp_path / "output")
    )
    found = measure_positives("shapes", num_objects=16)
    assert list(found["scenes"]) == ["generated", "shapes"]
    for name, number in (("generated", 16), ("shapes", 10)):
        assert list(found["scenes"][name]) == list(RULES)
        for rule in found["scenes"][name].values():
            assert rule["summary"]["objects"] == number
            assert len(rule["by_size"]) == len(SIZE_EDGES) - 1
    assert {table: len(rows) for table, rows in found["sweeps"].items()} == {
        "table4": 9,
        "table5": 5,
    }
    ks = [summary["mean"] for summary in found["sweeps"]["table4"].values()]
    assert ks == sorted(ks)  # more candidates, more positives
    assert list(measure_positives("coco", num_objects=2)["scenes"]) == ["generated"]


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_rows_of_the_study(rule):
    """And they differ in the rule: the first word of its name is in that of the class."""
    cfg = load_row_config(find_row(RULES[rule]), "coco")
    word = {"spatial": "ScaleRange", "center": "CenterSampling"}.get(rule.split()[0], rule)
    assert cfg.model.matcher._target_.__name__ == f"{word}Matcher"
