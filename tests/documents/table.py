"""What the tests change in the blocks of the documents: as little as COCO, time and GPUs need.

A block that is not here is run as it is written. Keys are documents; see :class:`Entry`.
"""

from __future__ import annotations

from tests.documents.blocks import Entry

# One iteration on small images.
_TRAIN = (
    "train.max_iter=1 train.eval_period=1 dataloader.train.total_batch_size=1 "
    "dataloader.train.num_workers=0 "
    "dataloader.train.mapper.augmentations.0.short_edge_length=64"
)
_TEST = "dataloader.test.num_workers=0 dataloader.test.mapper.augmentations.0.short_edge_length=64"
_SMALL = f"{_TRAIN} {_TEST}"
_SMALL_YAML = (
    "SOLVER.MAX_ITER 1 SOLVER.STEPS '()' SOLVER.IMS_PER_BATCH 1 TEST.EVAL_PERIOD 1 "
    "DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN '(64,)' INPUT.MIN_SIZE_TEST 64 MODEL.DEVICE cpu"
)
_SMALL_TREES = (
    "train.max_iter=1 train.eval_period=1 dataloader.train.total_batch_size=1 "
    "dataloader.train.mapper.augmentations.7.shape=[64,64] "
    "dataloader.test.mapper.augmentations.0.factor=0.2"
)
_SMALL_SHAPES = "train.max_iter=1 dataloader.train.total_batch_size=1"
_LOW = "model.test_score_thresh=0.0"  # an untrained head has low scores

# Code that looks at what a block has left.
_NAMES_OF_JSON = """
import json
content = json.load(open({path!r}))
assert content["categories"] == {categories!r}, content["categories"]
assert content["annotations"]
"""


OWN_CATEGORIES = [
    {"id": 3, "name": "disc"},
    {"id": 7, "name": "square"},
    {"id": 40, "name": "triangle"},
]
_OWN_NAMES_IN_FILE = """
from atss_d2.export import load_exported
metadata = load_exported("output/widgets/export/model.ts").metadata
assert metadata.class_names == ("disc", "square", "triangle"), metadata
assert metadata.category_ids == (3, 7, 40), metadata
"""
# ONNX takes long; tests/deployment/ writes it by the command.
_NO_ONNX = {"--format onnx": "--format torchscript"}

TABLE: dict[str, tuple[Entry, ...]] = {
    "README.md": (
        Entry(
            "git clone REPOSITORY",
            replace={
                "REPOSITORY atss_d2 && cd atss_d2": "../repository clone && cd clone",
                # tests/test_make.py runs the targets.
                "make demo": "make -n demo",
                "make test": "make -n test",
            },
        ),
        Entry("tools/start_project.py", run_by="docs/custom_dataset.md"),
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
                "--positives": "--positives --help",  # counts for half a minute
            },
            append={"--rows": _SMALL_SHAPES, "--report": _SMALL_SHAPES},
        ),
        Entry(
            "_wide_tta.py",
            replace={
                "output/ablations/shapes/table3_retinanet_atss_76b808ef/seed0/model_final.pth": (
                    "output/shapes/model_final.pth"
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
    "docs/quality.md": (
        Entry(
            "configs/demo/gfl_shapes_wide.py",
            replace={"--num-gpus 8": "--num-gpus 1"},
            append={
                "configs/coco/gfl_R_50_FPN_1x.py": _SMALL,
                "configs/demo/gfl_shapes_wide.py": _SMALL_SHAPES,
            },
        ),
        Entry(
            "matchability_aware",
            before="from atss_d2 import get_config\n"
            "model = get_config('coco/atss_R_50_FPN_1x').model\n",
            after="from detectron2.config import instantiate\n"
            "assert instantiate(model.criterion).cls_loss == 'matchability_aware'\n",
        ),
        Entry(
            "DY_HEAD",
            after="from detectron2.modeling import build_model\n"
            "cfg.MODEL.DEVICE = 'cpu'\n"
            "model = build_model(cfg)\n"
            "assert len(model.backbone.blocks) == 6 and model.head.num_box_values == 68\n",
        ),
        Entry(
            "--report",
            replace={
                "--rows 'quality/*' --seeds 0 1 2 3 4": "--rows quality/atss --seeds 0",
                "--cost": "--cost --rows quality/atss --seconds 0.1",
                "ablations.quality --report": "ablations.quality --rows quality/atss --report",
            },
            append={"--rows": _SMALL_SHAPES},
        ),
    ),
    "docs/checkpoints.md": (
        Entry(
            "--config-file output/mmdet_R_50.py",
            append={"train_net.py": _TEST},
            leaves=("output/mmdet_R_50.pth", "output/mmdet_R_50.py"),
        ),
        Entry("train.init_checkpoint=authors://", append={"train_net.py": _TEST}),
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
            replace=_NO_ONNX,
            append={"train_net.py": f"{_SMALL} {_LOW}"}
            | {"tools/demo.py": f"--confidence-threshold 0 --opts {_LOW}"},
            after=_NAMES_OF_JSON.format(
                path="output/found/detections.json", categories=OWN_CATEGORIES
            )
            + _OWN_NAMES_IN_FILE,
            leaves=(
                "output/widgets/config.py",
                "output/widgets/data.png",
                "output/widgets/output/model_best.pth",
                "output/widgets/output/learning_curve.png",
                "output/widgets/export/model.ts",
            ),
        ),
        Entry('get_config("custom/atss_mobilenetv2")', save_as="my_config.py"),
        Entry(
            "--input data/images --output output/pictures",
            append={
                "train_net.py": f"{_SMALL} {_LOW}",
                "tools/demo.py": f"--confidence-threshold 0 --opts {_LOW}",
            },
            after=_NAMES_OF_JSON.format(
                path="output/pictures/detections.json", categories=OWN_CATEGORIES
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
            replace={**_NO_ONNX, "model.onnx": "model.ts"},
            append={"tools/export_model.py": "dataloader.test.mapper.augmentations.0.factor=0.2"},
            leaves=("output/export/model.ts", "found/photo.jpg", "found/detections.json"),
        ),
        Entry("load_exported(", run_by="tests/deployment/test_document.py"),
        Entry("export_torchscript(", run_by="tests/deployment/test_document.py"),
        Entry("scripting_with_instances(", run_by="tests/deployment/test_document.py"),
    ),
    "docs/integration.md": (
        *(
            Entry(text, run_by="tests/documents/test_integration.py")
            for text in (
                "use_matcher(model, None)",
                "use_atss(cfg.model, topk=9)",
                "RetinaNetWithMatcher",
                "keep_ignored=True",
                "torch.meshgrid",
                "class CentralPartMatcher",
                "rcnn = use_atss(",
                "rpn.criterion =",
                "RPN.SAMPLE_ANCHORS",
            )
        ),
        Entry(
            "ablations.proposals --measure",
            replace={
                "--data shapes --rows 'rpn/*' --seeds 0 1 2 3 4": "--list",
                "--measure": "--help",
                "--report": "--help",
            },
        ),
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
            "--input photo.jpg",
            append={"tools/demo.py": "--opts dataloader.test.mapper.augmentations.0.factor=0.5"},
            leaves=("found/detections.json", "found/photo.jpg"),
        ),
        Entry(
            "--merge found_many",
            # tests/commands/test_predict_many.py starts torchrun.
            replace={
                "torchrun --standalone --nproc-per-node 8": "python",
                "--num-workers 2 --batch-size 8": "--batch-size 8 --opts "
                "dataloader.test.mapper.augmentations.0.factor=0.5",
            },
            leaves=("found_many/detections.json", "found_many/run.json"),
        ),
        Entry(
            "#SBATCH",
            replace={
                "--num-workers 7": "--num-workers 1",
                '_COUNT"': '_COUNT" --opts dataloader.test.mapper.augmentations.0.factor=0.5',
            },
            save_as="predict.sh",
        ),
        Entry(
            "sbatch --array=0-15",
            replace={
                "sbatch --array=0-15": "SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_COUNT=1 bash",
            },
            leaves=("found_array/detections.json",),
        ),
        Entry("COCOeval(", run_by="tests/commands/test_prediction_document.py"),
        Entry("predictor.detect_tiles(", run_by="tests/commands/test_prediction_document.py"),
    ),
    "docs/training.md": (
        Entry(
            "# COCO under $DETECTRON2_DATASETS",
            replace={"--num-gpus 8": "--num-gpus 1"},
            append={
                "configs/coco/atss_R_50_FPN_1x.py": _SMALL,
                "configs/yaml/atss_R_50_FPN_1x.yaml": _SMALL_YAML,
            },
            leaves=("output/model_final.pth",),
        ),
        Entry(
            "# torchrun: leave --num-gpus",  # tests/engine/test_starts.py starts several processes
            replace={
                "--nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d "
                "--rdzv-endpoint HOST:PORT": "--nproc-per-node 1 --max-restarts 3",
                "--nproc-per-node 8": "--nproc-per-node 1",
                "srun --ntasks-per-node 8 ": "",
                "configs/coco/atss_R_101_FPN_2x.py": "configs/coco/atss_R_101_FPN_2x.py --help",
                "configs/coco/atss_R_50_FPN_1x.py": "configs/coco/atss_R_50_FPN_1x.py --help",
            },
        ),
        Entry(
            "configs/ablations/table3/retinanet_atss.py",
            # Prints the commands; docs/ablations.md runs them.
            replace={"--num-gpus 8": "--num-gpus 1", "--data shapes": "--data coco"},
            append={"configs/ablations/table3/retinanet_atss.py": _SMALL},
        ),
        # A training that starts in "output" moves what an earlier run has left there.
        Entry("tools/replay.py", replace={"output/": "stopped/"}),
        Entry("make test-gpu", replace={"make test-gpu": "make -n test-gpu"}),
        Entry(
            "--collect --document",
            # Prints the commands; tests/reproduction/ runs and submits them.
            replace={
                "--canary coco": "--print coco",
                "'coco/*_1x' 'table3/*' --nproc 8": "table4/k9 --nproc 8 --print",
                "'coco/*' --nproc 8 --submit slurm": "table4/k9 --print --nproc 8",
                "'coco/*' 'table*' --collect": "table4/k9 --collect",
            },
        ),
        Entry("--canary demo", append={"demo/atss_mobilenetv2_trees": "--iterations 2"}),
    ),
}
