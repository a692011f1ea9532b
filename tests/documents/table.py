"""What the tests change in the blocks of the documents: as little as COCO, time and GPUs need.

A block that is not here is run as it is written. Keys are documents; see :class:`Entry`.
"""

from __future__ import annotations

from tests.documents.blocks import Entry

# Two iterations on small images.
_TRAIN = (
    "train.max_iter=2 train.eval_period=2 dataloader.train.total_batch_size=2 "
    "dataloader.train.num_workers=0 "
    "dataloader.train.mapper.augmentations.0.short_edge_length=64 "
)
_TEST = "dataloader.test.num_workers=0 dataloader.test.mapper.augmentations.0.short_edge_length=64 "
_SMALL = f"{_TRAIN}{_TEST}".strip()
_SMALL_TEST = _TEST.strip()
_SMALL_YAML = (
    "SOLVER.MAX_ITER 2 SOLVER.STEPS '(1,)' SOLVER.IMS_PER_BATCH 2 TEST.EVAL_PERIOD 2 "
    "DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN '(64,)' INPUT.MIN_SIZE_TEST 64 MODEL.DEVICE cpu"
)
_SMALL_TREES = (
    "train.max_iter=2 train.eval_period=2 dataloader.train.total_batch_size=1 "
    "dataloader.train.mapper.augmentations.7.shape=[64,64] "
    "dataloader.test.mapper.augmentations.0.factor=0.2"
)
_SMALL_SHAPES = "train.max_iter=2 dataloader.train.total_batch_size=2"
_LARGE = "configs/coco/atss_R_101_FPN_2x.py"
_SHAPES = "configs/demo/atss_mobilenetv2_shapes.py"
_FREE_PORT = (
    "PORT=$(python -c \"import socket; s = socket.create_server(('127.0.0.1', 0)); "
    'print(s.getsockname()[1])")'
)
_LOW = "model.test_score_thresh=0.0"  # an untrained head has low scores

# Code that looks at what a block has left.
_NAMES_OF_JSON = """
import json
content = json.load(open({path!r}))
assert content["categories"] == {categories!r}, content["categories"]
assert content["annotations"]
"""


def _python(code: str) -> str:
    """A shell command that runs Python code."""
    return f"python - <<'END'\n{code}\nEND\n"


OWN_CATEGORIES = [
    {"id": 3, "name": "disc"},
    {"id": 7, "name": "square"},
    {"id": 40, "name": "triangle"},
]
_OWN_NAMES_IN_ONNX = """
import onnx, json
model = onnx.load("output/widgets/export/model.onnx")
(metadata,) = [json.loads(x.value) for x in model.metadata_props if x.key == "atss_d2"]
assert metadata["class_names"] == ["disc", "square", "triangle"], metadata
assert metadata["category_ids"] == [3, 7, 40], metadata
"""

TABLE: dict[str, tuple[Entry, ...]] = {
    "README.md": (
        Entry(
            "git clone REPOSITORY",
            replace={
                "REPOSITORY": "../repository",
                # tests/test_make.py runs the targets.
                "make demo": "make -n demo",
                "make test": "make -n test",
            },
        ),
        Entry(
            "tools/start_project.py",
            append={"train_net.py": f"{_SMALL} {_LOW}"},
            leaves=("output/widgets/data.png", "output/widgets/output/model_best.pth"),
        ),
        Entry(
            "# COCO under $DETECTRON2_DATASETS",
            replace={
                # A smaller model, and two processes that meet on this machine instead of two.
                f"python train_net.py --config-file {_LARGE} --num-gpus 8": (
                    f"{_FREE_PORT}\n"
                    f"python train_net.py --config-file {_SHAPES} --num-machines 2 "
                    "--machine-rank 1 --dist-url tcp://127.0.0.1:$PORT "
                    f"{_SMALL_SHAPES} &\n"
                    f"python train_net.py --config-file {_SHAPES} --num-gpus 1"
                ),
                "--machine-rank 0 --dist-url tcp://HOST:PORT": (
                    f"--machine-rank 0 --dist-url tcp://127.0.0.1:$PORT {_SMALL_SHAPES}\nwait $!"
                ),
                "--num-gpus 8": "--num-gpus 1",
                "total_batch_size=8": "total_batch_size=2",
            },
            append={
                "configs/coco/atss_R_50_FPN_1x.py": _SMALL,
                "configs/yaml/atss_R_50_FPN_1x.yaml": _SMALL_YAML,
                "tools/demo.py": f"--opts {_SMALL_TEST} {_LOW}",
            },
            leaves=("output/model_final.pth", "output/pictures/street.jpg"),
        ),
        Entry("atss_d2.Predictor(", after="assert instances.image_size[0] > 0\nassert cfg.MODEL\n"),
        Entry(
            "atss_d2.use_atss(model)",
            before="import atss_d2, torch\n"
            "from detectron2.config import instantiate\n"
            "from detectron2.model_zoo import get_config\n"
            "node = get_config('COCO-Detection/retinanet_R_50_FPN_1x.py').model\n"
            "node.backbone.bottom_up.freeze_at = 0\n"
            "model = instantiate(node)\n"
            "anchors = [torch.tensor([[0.0, 0, 64, 64], [8, 0, 72, 64]])]\n"
            "gt_boxes = [torch.tensor([[2.0, 2, 60, 60]])]\n",
            after="assert matched_idxs[0].shape == (2,)\n"
            "assert type(model.label_anchors.matcher).__name__ == 'ATSSMatcher'\n",
        ),
        Entry(
            "tools/convert_weights.py",
            # ONNX takes half a minute and is written by the blocks of two other documents.
            replace={"--format onnx": "--format torchscript", "model.onnx": "model.ts"},
            append={"configs/conventions/atss_R_50_FPN_1x_authors.py": _SMALL_TEST},
            leaves=("output/mmdet_R_50.py", "output/export/model.ts"),
        ),
        Entry(
            "configs/ablations/table3/retinanet_atss.py",
            # Prints the commands; docs/ablations.md runs them.
            replace={"--num-gpus 8": "--num-gpus 1", "--data shapes": "--data coco"},
            append={"configs/ablations/table3/retinanet_atss.py": _SMALL},
        ),
    ),
    "docs/ablations.md": (
        Entry(
            "--data coco --rows table4/k19 --run",
            replace={"--num-gpus 8": "--num-gpus 1"},
            append={"--run": _SMALL},
        ),
        Entry(
            "--positives",
            replace={
                "--rows 'table1/*' 'table2/*' 'table3/*'": "--rows table3/retinanet_atss",
                "--rows table4/k3 table4/k9 table4/k19 'table5/*'": "--rows table4/k9",
                "--seeds 0 1 2": "--seeds 0",
            },
            append={"--rows": _SMALL_SHAPES, "--report": _SMALL_SHAPES},
        ),
        Entry(
            "_wide_tta.py",
            replace={
                "output/ablations/shapes/table3_retinanet_atss_76b808ef/seed0/model_final.pth": (
                    "$(ls output/ablations/shapes/table3_retinanet_atss_*/seed0/model_final.pth)"
                ),
                "output/seed2/model_final.pth": "output/demo/model_final.pth",
            },
            append={
                "configs/demo/atss_mobilenetv2_shapes_wide_tta.py": (
                    "test_time_augmentation.min_sizes=[64]"
                ),
                "configs/demo/atss_mobilenetv2_trees_tta.py": (
                    "test_time_augmentation.min_sizes=[64] "
                    "dataloader.test.mapper.augmentations.0.factor=0.2"
                ),
            },
        ),
    ),
    "docs/checkpoints.md": (
        Entry(
            "--config-file output/mmdet_R_50.py",
            append={"train_net.py": _SMALL_TEST},
            leaves=("output/mmdet_R_50.pth", "output/mmdet_R_50.py"),
        ),
        Entry("train.init_checkpoint=authors://", append={"train_net.py": _SMALL_TEST}),
        Entry("mmdet://https://", append={"train_net.py": _SMALL}),
        Entry('apply_convention(cfg, "mmdet")', after="assert not model.head.conv_bias\n"),
        Entry('apply_convention(cfg, "authors")', after="assert cfg.model.matcher.inset == 0.5\n"),
        Entry("report.key_table()", after="assert len(weights) == 316\n"),
        Entry("safe_globals([argparse.Namespace])", run_by="tests/checkpoint/test_document.py"),
        Entry("trained_on", run_by="tests/checkpoint/test_document.py"),
        Entry(
            "MODEL.WEIGHTS atss_R_50_80_classes.pth",
            append={"my_config.py": _SMALL, "my_config.yaml": _SMALL_YAML},
        ),
    ),
    "docs/custom_dataset.md": (
        Entry(
            "tools/start_project.py",
            append={"train_net.py": f"{_SMALL} {_LOW}"}
            | {"tools/demo.py": f"--confidence-threshold 0 --opts {_LOW}"},
            after=_python(
                _NAMES_OF_JSON.format(
                    path="output/found/detections.json", categories=OWN_CATEGORIES
                )
                + _OWN_NAMES_IN_ONNX
            ),
            leaves=(
                "output/widgets/config.py",
                "output/widgets/data.png",
                "output/widgets/output/model_best.pth",
                "output/widgets/output/learning_curve.png",
                "output/widgets/export/model.onnx",
            ),
        ),
        Entry('get_config("custom/atss_mobilenetv2")', save_as="my_config.py"),
        Entry(
            "--input data/images --output output/pictures",
            append={
                "train_net.py": f"{_SMALL} {_LOW}",
                "tools/demo.py": f"--confidence-threshold 0 --opts {_LOW}",
            },
            after=_python(
                _NAMES_OF_JSON.format(
                    path="output/pictures/detections.json", categories=OWN_CATEGORIES
                )
            ),
            leaves=("output/my_model/model_best.pth",),
        ),
        Entry("from atss_d2_cli import run", save_as="train_widgets.py"),
        Entry("_BASE_", save_as="widgets.yaml"),
        Entry("train_widgets.py", append={"train_widgets.py": _SMALL_YAML}),
        Entry("keep_ignored=True", append={"train_net.py": _SMALL}),
    ),
    "docs/demo.md": (
        Entry("train.output_dir=output/dev\n", append={"train_net.py": _SMALL_TREES}),
        Entry("train.output_dir=output/dev_nms60", append={"train_net.py": _SMALL_TREES}),
    ),
    "docs/deployment.md": (
        Entry(
            "--run-eval",
            append={"tools/export_model.py": "dataloader.test.mapper.augmentations.0.factor=0.2"},
            leaves=("output/export/model.onnx", "found/photo.jpg", "found/detections.json"),
        ),
        Entry("load_exported(", run_by="tests/deployment/test_document.py"),
        Entry("export_torchscript(", run_by="tests/deployment/test_document.py"),
        Entry("scripting_with_instances(", run_by="tests/deployment/test_document.py"),
    ),
    "docs/integration.md": tuple(
        Entry(text, run_by="tests/documents/test_integration.py")
        for text in (
            "use_matcher(model, None)",
            "use_atss(cfg.model, topk=9)",
            "add_atss_config(cfg)",
            "keep_ignored=True",
            "torch.meshgrid",
            "class CentralPartMatcher",
        )
    ),
    "docs/performance.md": (
        Entry(
            "make benchmarks",
            replace={
                "make benchmarks": "make -n benchmarks",
                "benchmarks --quick": "benchmarks nms --quick",
                "benchmarks --document": "benchmarks focal_loss --quick --document",
                "benchmarks training_step --full-size": "benchmarks focal_loss --report",
            },
        ),
    ),
    "docs/prediction.md": (
        Entry(
            "tools/demo.py",
            append={"tools/demo.py": "--opts dataloader.test.mapper.augmentations.0.factor=0.5"},
            leaves=("found/detections.json", "found/photo.jpg"),
        ),
        Entry("COCOeval(", run_by="tests/commands/test_prediction_document.py"),
        Entry("predictor.detect_tiles(", run_by="tests/commands/test_prediction_document.py"),
    ),
}
