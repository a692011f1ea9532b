"""Options of the training on a detector with DyHead."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage

from atss_d2 import DenseDetectorWithTTA
from atss_d2.engine.activation_checkpointing import checkpoint_activations
from atss_d2.modeling import DyHead
from tests import toy

KEYS = {
    "train.max_iter": 3,
    "train.eval_period": 0,
    "model.backbone": L(DyHead)(backbone=L(toy.ToyBackbone)(), channels=toy.CHANNELS, num_blocks=1),
    "model.head.conv_dims": [],
    "model.head.pred_kernel_size": 1,
}
CHECKPOINTED = {"train.activation_checkpointing": {"enabled": True}}


@pytest.mark.usefixtures("toy_data")
def test_a_run_with_everything(tmp_path):
    """The average of the weights, frozen parts, factors of the learning rate, micro-batches."""
    run = toy.Run(
        tmp_path,
        **KEYS,
        **{
            "train.ema": {"enabled": True, "decay": 0.9},
            "train.freeze": ["backbone.backbone"],
            "train.lr_factors": [["backbone.blocks.*.offset", 1e-9]],
            "train.accumulate": 2,
            "train.checkpointer": {"period": 1, "max_to_keep": 9},
        },
    ).train()
    first, last = run.checkpoint("model_0000000"), run.checkpoint("model_0000002")
    moved = {
        name
        for name, value in last["trained_model"].items()
        if (value - first["trained_model"][name]).abs().max() > 1e-7
    }
    trained = {f"backbone.blocks.0.{name}.weight" for name in ("same", "lower", "upper")}
    assert trained | {"head.cls_score.weight"} <= moved
    assert not any(x.startswith("backbone.backbone.") or ".offset." in x for x in moved)
    weight = "backbone.blocks.0.same.weight"
    assert not torch.equal(last["model"][weight], last["trained_model"][weight])  # the average


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize("parts", [None, ["backbone.blocks.*"]], ids=["default", "each block"])
def test_less_is_kept_for_the_backward_pass(tmp_path, parts):
    batch = next(iter(instantiate(toy.config(tmp_path).dataloader.train)))

    def step(options):
        cfg = toy.config(tmp_path, **{**KEYS, **options})
        if parts and options:
            cfg.train.activation_checkpointing.parts = parts
        torch.manual_seed(0)
        model = instantiate(cfg.model)
        checkpoint_activations(cfg, model)
        sizes = {}
        with (
            EventStorage(),
            torch.autograd.graph.saved_tensors_hooks(
                lambda x: sizes.update({x.data_ptr(): x.nbytes}) or x, lambda x: x
            ),
        ):
            loss = sum(model(batch).values())
        loss.backward()
        weights = {x.data_ptr() for x in model.parameters()}
        kept = sum(size for pointer, size in sizes.items() if pointer not in weights)
        return kept, {name: p.grad for name, p in model.named_parameters()}

    kept, gradients = step(CHECKPOINTED)
    kept_before, expected = step({})
    assert kept < 0.5 * kept_before
    toy.assert_equal(gradients, expected)


@pytest.mark.usefixtures("toy_data")
def test_tta(tmp_path):
    model = instantiate(toy.config(tmp_path, **KEYS).model).eval()
    model.test_score_thresh = 0.0
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    file_name = str(tmp_path / "picture.png")
    toy.cv2.imwrite(file_name, image.permute(1, 2, 0).numpy())
    wrapped = DenseDetectorWithTTA(model, min_sizes=[64, 96], flip=True, input_format="BGR")
    (found,) = wrapped([{"file_name": file_name, "image": image, "height": 96, "width": 128}])
    assert len(found["instances"]) > 0
