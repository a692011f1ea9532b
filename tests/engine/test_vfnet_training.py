"""VFNet in the trainer: it learns; averages are evaluated; validation losses have all boxes."""

import pytest
from detectron2.config import LazyCall as L

from atss_d2.modeling import VFNetCriterion, VFNetHead
from atss_d2.modeling.box_coding import PointDistances
from tests import toy


@pytest.mark.usefixtures("toy_data")
def test_vfnet_learns(tmp_path):
    run = toy.Run(
        tmp_path,
        **{"train.max_iter": 80, "train.eval_period": 80, "train.vis_period": 40},
        **{"train.validation_loss": {"enabled": True}},
        **{"train.ema": {"enabled": True, "decay": 0.9}},
    )
    model = run.cfg.model
    model.head.update(_target_=VFNetHead, unit_distance=2.0)
    model.box2box_transform = L(PointDistances)(anchor_scale=4)  # 32 px on stride 8
    model.criterion = L(VFNetCriterion)()
    run.train()
    names = ("loss_cls", "loss_box_reg", "loss_first_box_reg")
    assert {key for key in run.metrics[79] if key.startswith("loss_")} == set(names)
    for name in names[1:]:  # the class loss first rises with the qualities, its targets
        first, last = (
            sum(run.metrics[i][name] for i in iterations)
            for iterations in (range(10), range(70, 80))
        )
        assert last < 0.8 * first, name
    # The averages were evaluated, in which the head has no first boxes; the losses need them.
    assert run.results["bbox"]["AP50"] > 60
    expected = {"total", *(name.removeprefix("loss_") for name in names)}
    assert run.results["validation"].keys() == expected
    assert run.results["validation"]["first_box_reg"] > 0
