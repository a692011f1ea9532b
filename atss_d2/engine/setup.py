"""Sets up a job before anything else: log files and seeds."""

from __future__ import annotations

import argparse
import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup as detectron2_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from ..config import view_of
from .console import filter_console, quiet_threads

logger = logging.getLogger(__name__)


def default_setup(cfg: DictConfig | CfgNode, args: argparse.Namespace) -> None:
    """Runs Detectron2's ``default_setup`` with a quieter console.

    Environment, command line and config go only to ``log.txt`` in the output folder.

    Args:
        cfg: A LazyConfig or a yaml config.
        args: The command line, to be logged.
    """
    output_dir = view_of(cfg).output_dir
    rank = comm.get_rank()
    # With exactly the arguments of detectron2_setup, whose own calls then change nothing.
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    setup_logger(output_dir, distributed_rank=rank)
    setup_logger(output_dir, distributed_rank=rank, name="atss_d2")
    filter_console("fvcore", "detectron2", "atss_d2")
    quiet_threads()
    # This logger warns, while the environment is collected, that there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    detectron2_setup(cfg, args)
    logger.info(f"Output folder: {output_dir} (log.txt has the environment, config and model)")


def leave_process_group() -> None:
    """Destroys the process group when all processes are done; does nothing in a single process.

    gloo's threads that are still running when the interpreter exits may abort the process. So this
    is the last thing that a function given to Detectron2's ``launch`` should do.
    """
    if comm.get_world_size() > 1:
        comm.synchronize()
        torch.distributed.destroy_process_group()
