"""Several processes of one command that share work without a process group."""

from __future__ import annotations

import argparse
import os
import time

from ..plain.shard import Shard


def shard_of(text: str) -> Shard:
    """Parses ``I/N``, for example ``0/4`` to ``3/4``."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"must be I/N with I from 0 to N - 1, such as 0/4, got '{text}'"
        )
    return Shard(int(index), int(count))


def shard_here(shard: Shard | None) -> Shard:
    """Returns the shard of this process: ``shard``, divided among torchrun's processes."""
    shard = shard or Shard(0, 1)
    num = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    return Shard(shard.index * num + rank, shard.count * num)


def device_here(device: str) -> str:
    """Returns the device of this process: of "cuda", the GPU of torchrun's LOCAL_RANK."""
    import torch

    if device != "cuda" or "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return device
    # Schedulers that show each process one GPU number it 0; more processes than GPUs share them.
    device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    torch.cuda.set_device(device)  # or others' GPUs get a context, too
    return device


def wait_for_others(*, should_wait: bool) -> None:
    """Announces under torchrun that this process is done, and waits until all are.

    torchrun ends all other processes as soon as one exits with an error. So one that has an error
    to report, but is done, waits.

    Args:
        should_wait: Whether to wait; if not, only announces.
    """
    num = int(os.environ.get("WORLD_SIZE", 1))
    if num == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    key = f"atss_d2/done/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    try:
        store = TCPStore(host, port, is_master=False)
        num_done = store.add(key, 1)
        while should_wait and num_done < num:
            time.sleep(0.5)
            num_done = store.add(key, 0)
    except RuntimeError:  # torchrun is gone
        return
