"""Trains or evaluates a model from a LazyConfig (.py) or a yaml config, on one or more GPUs.

    python train_net.py --config-file configs/coco/atss_R_50_FPN_1x.py --num-gpus 8
    python train_net.py --config-file configs/demo/atss_mobilenetv2_trees.py train.max_iter=100
    python train_net.py --config-file configs/yaml/atss_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.005

--eval-only evaluates the checkpoint named by train.init_checkpoint or MODEL.WEIGHTS, and evaluates
it again with test-time augmentation if the config has test_time_augmentation (in yaml
TEST.AUG.ENABLED).

Put flags before the overrides: key=value for a LazyConfig, KEY VALUE for yaml. Without a GPU,
everything runs on the CPU, and --num-gpus is the number of processes.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

from ..plain.starters import Place, find_place, is_restart
from ..plain.stopping import STOP, Stopped
from .ending import print_ending
from .errors import EXPECTED, Parser, fail, one_sentence
from .launching import launch, run_rank, tell_of_stop

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from omegaconf import DictConfig
    from torch import nn

    from ..config import View


def get_parser() -> argparse.ArgumentParser:
    """Returns the parser; flags are those of Detectron2's ``default_argument_parser``."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="a config, or its name")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest whole checkpoint of the output folder, if there is one",
    )
    start.add_argument(
        "--overwrite",
        action="store_true",
        help="start again in the folder of a run, whose files move to its subfolder previous_N",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, help="GPUs per machine (default: 1)")
    parser.add_argument("--num-machines", type=int, help="machines (default: 1)")
    parser.add_argument("--machine-rank", type=int, help="of this machine, from 0 (default: 0)")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help='where processes meet; "auto" is a free port of this machine, several machines need '
        "tcp://HOST:PORT of the first (default: %(default)s)",
    )
    parser.add_argument(
        "--dist-timeout",
        type=float,
        metavar="SECONDS",
        help="how long processes wait for each other before they give up (default: 1800)",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="key=value",
        help="overrides of the config, after the flags; for yaml KEY VALUE",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command in the processes that its starter or the flags ask for."""
    args = get_parser().parse_args(argv)
    args.prog = get_parser().prog
    with STOP.deferred(), STOP.installed():
        try:
            with STOP.immediate():
                return start(args)
        except Stopped as stop:
            STOP.is_stopping = True
            tell_of_stop(args, stop)
            return stop.exit_code


def start(args: argparse.Namespace) -> int:
    """Runs this process, as torchrun or srun has started it, or starts those of this machine."""
    if is_restart(os.environ) and not args.eval_only:
        args.resume = True
    try:
        if args.dist_timeout is not None and not args.dist_timeout > 0:
            raise ValueError(f"--dist-timeout must be greater than 0, got {args.dist_timeout:g}")
        place = find_place(args, os.environ)
        first = None if place else _first_place(args)
    except ValueError as error:
        fail(get_parser(), error)
    if place is not None:
        return run_rank(args, place, work)
    # Must be imported before Detectron2: silences deprecation warnings raised by its import.
    import atss_d2  # noqa: F401

    # isort: split
    from ..warning_filters import filter_in_child_processes

    filter_in_child_processes()
    cfg = None
    if first.num_machines == 1:  # else processes meet first, as all must hear of an error
        cfg = load(args)  # a wrong config fails here, not in every process
    if first.world_size == 1:
        run(args, cfg)
        return 0
    try:
        # Spawned processes execute the config file themselves, which registers its data sets.
        return launch(args, first)
    except OSError as error:
        fail(get_parser(), error)


def work(args: argparse.Namespace) -> None:
    """What each of several processes does."""
    run(args, load(args))


def _first_place(args: argparse.Namespace) -> Place:
    """Returns the place of the first process of this machine, from the flags."""
    num_gpus, num_machines = (
        1 if flag is None else flag for flag in (args.num_gpus, args.num_machines)
    )
    machine = args.machine_rank or 0
    if num_gpus < 0 or num_machines < 1:
        raise ValueError(
            "--num-gpus must not be negative and --num-machines be at least 1, got "
            f"{num_gpus} and {num_machines}"
        )
    if not 0 <= machine < num_machines:
        raise ValueError(
            f"--machine-rank must be one of 0 to {num_machines - 1}, as --num-machines is "
            f"{num_machines}, got {machine}"
        )
    if num_machines > 1 and args.dist_url == "auto":
        raise ValueError(
            "--num-machines > 1 needs --dist-url tcp://HOST:PORT, an address of the first machine"
        )
    size = max(num_gpus, 1)
    host, port, url = "127.0.0.1", 0, ""
    if args.dist_url.startswith("tcp://"):
        host, _, number = args.dist_url.removeprefix("tcp://").rpartition(":")
        if not host or not number.isdigit():
            raise ValueError(f"--dist-url must be tcp://HOST:PORT, got {args.dist_url}")
        port = int(number)
    elif args.dist_url != "auto":
        url = args.dist_url
    return Place("atss-d2", machine * size, num_machines * size, 0, size, host, port, url)


def load(args: argparse.Namespace) -> DictConfig | CfgNode:
    """Loads the config, and checks it and that the files of its data sets exist."""
    from ..data import DataError
    from ..engine import check_dataset_files

    cfg = setup(args)
    try:
        check_dataset_files(cfg, with_training=not args.eval_only)
    except DataError as error:
        fail(get_parser(), error)
    return cfg


def setup(args: argparse.Namespace) -> DictConfig | CfgNode:
    """Loads the config and applies the overrides; an error ends the command with one sentence."""
    from ..config import by_kind, find_config, load_config, view_of
    from ..engine.fast_dev_run import apply_fast_dev_run

    try:
        if not args.config_file:
            raise ValueError("which config? Give --config-file, for example coco/atss_R_50_FPN_1x")
        args.config_file = find_config(args.config_file)
        view = view_of(load_config(args.config_file))
        if view.missing_keys:
            raise ValueError(f"{args.config_file} does not define {', '.join(view.missing_keys)}")
        view.apply(args.opts)
        by_kind(view.cfg, lazy=apply_fast_dev_run, yaml=lambda *_: None)(view.cfg, args)
        check(view, args)
        view.freeze()
    except EXPECTED as error:
        fail(get_parser(), error)
    return view.cfg


def check(view: View, args: argparse.Namespace) -> None:
    """Finds errors early that would stop the run after minutes, or in every process."""
    import torch

    from ..engine import check_categories, check_checkpoint

    if os.path.isfile(view.output_dir):
        raise ValueError(f"{view.output_dir_key} '{view.output_dir}' is a file: give a folder")
    num_devices = torch.cuda.device_count()
    num_gpus = args.num_gpus or 1
    place = getattr(args, "place", None)
    if num_devices and num_gpus > num_devices and place is None:
        raise ValueError(
            f"--num-gpus {num_gpus}, but this machine has {num_devices}; with "
            "CUDA_VISIBLE_DEVICES= in front of the command it trains on the CPU"
        )
    check_categories(view.cfg)
    if not args.resume and place is None:  # several processes look together
        check_checkpoint(view.weights, for_use=args.eval_only)  # last, as it downloads the file


def run(args: argparse.Namespace, cfg: DictConfig | CfgNode | None = None) -> dict[str, Any]:
    """Runs one process of the job.

    Args:
        args: The command line.
        cfg: The config, if this process has already loaded it.
    """
    from ..checkpoint import CheckpointError
    from ..config import ConfigError, by_kind, view_of
    from ..data import DataError
    from ..engine import NonFiniteError, claimed_folder, default_setup
    from ..engine.console import close_logs
    from ..warning_filters import filter_third_party_warnings

    filter_third_party_warnings()
    cfg = setup(args) if cfg is None else cfg
    try:
        with ExitStack() as stack:
            if not args.eval_only:
                stack.enter_context(
                    claimed_folder(
                        view_of(cfg).output_dir, resume=args.resume, overwrite=args.overwrite
                    )
                )
            default_setup(cfg, args)
            return by_kind(cfg, lazy=run_lazy, yaml=run_yaml)(cfg, args)
    except (CheckpointError, ConfigError, DataError) as error:
        fail(get_parser(), error)
    except NonFiniteError as error:
        fail_together(get_parser(), error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        close_logs("fvcore", "detectron2", "atss_d2")
        where = f"'{error.filename or view_of(cfg).output_dir}' ({error.strerror})"
        fail(get_parser(), f"cannot write to {where}: make room for it, and continue by --resume")


def fail_together(parser: argparse.ArgumentParser, error: Exception) -> NoReturn:
    """Ends the command with an error that all processes have: the first one says it."""
    from detectron2.utils import comm

    if comm.is_main_process():
        print(f"{parser.prog}: {one_sentence(error)}", file=sys.stderr, flush=True)
    comm.synchronize()  # the end of one process ends the others
    sys.exit(1)


def load_for_evaluation(
    model: nn.Module, weights: str, output_dir: str, args: argparse.Namespace
) -> None:
    """Loads the weights that the config names or, with --resume, the run's newest whole ones."""
    from ..engine import choose_checkpoint, load_weights, same_checkpoint, same_weights

    found = choose_checkpoint(output_dir) if args.resume else None
    shared = same_weights(weights, for_use=True) if found is None else same_checkpoint(found.path)
    with shared as path:
        load_weights(model, path)


def run_lazy(cfg: DictConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Trains or evaluates a LazyConfig."""
    from detectron2.utils import comm

    from ..engine import build_model, do_test, do_train, keep_freed_memory, resolve_device
    from ..engine.fast_dev_run import finish

    if args.eval_only:
        model = build_model(cfg)
        load_for_evaluation(model, cfg.train.init_checkpoint, cfg.train.output_dir, args)
        return do_test(cfg, model, with_tta=True)
    cfg.train.device = resolve_device(cfg.train.device)
    if cfg.train.device == "cpu":
        keep_freed_memory()
    results = do_train(cfg, resume=args.resume)
    if comm.is_main_process():
        print_ending(cfg, args.config_file, results)
        finish(cfg)
    return results


def run_yaml(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Trains or evaluates a yaml config."""
    from ..engine import Trainer

    if args.eval_only:
        model = Trainer.build_model(cfg)
        load_for_evaluation(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, args)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    # train() returns the results only for configs with expected results.
    return trainer._last_eval_results


if __name__ == "__main__":
    sys.exit(main())
