"""Joins this process to the others of a training, and parts from them."""

from __future__ import annotations

import datetime
import logging
import os
import re
import socket
import threading
import uuid

import torch
import torch.distributed as dist
from detectron2.utils import comm

from ..plain.starters import Place
from ..plain.watching import Watch

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 1800.0  # seconds; torch's for gloo, and Detectron2's for every backend
STORE_PREFIX = "atss_d2/watch"
_WAIT_BEFORE_TELLING = 20.0
_WAIT_FOR_WATCH = 10.0  # seconds; as long as the store may take to answer
# Messages of gloo, NCCL and the store when another process is gone.
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused|was)|broken pipe|store|timed? ?out|"
    r"process group|peer|socket",
    re.IGNORECASE,
)

# A group of all processes over gloo, for what is no gradient; None if they were started elsewhere.
_control_group: dist.ProcessGroup | None = None
# Kept, as the process that serves the store must do so until the others have ended.
_store: dist.Store | None = None


def control_group() -> dist.ProcessGroup | None:
    """Returns a group over gloo that waits for no GPU; None in a single process."""
    return _control_group


def open_store(place: Place, timeout: float, *, is_master: bool) -> dist.TCPStore:
    """Connects to the store where processes meet, or serves it.

    Raises:
        OSError: The port is in use, or nobody serves there within ``timeout`` seconds.
    """
    try:
        return dist.TCPStore(
            place.host,
            place.port,
            is_master=is_master,
            timeout=datetime.timedelta(seconds=timeout),
            wait_for_workers=False,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        where = f"{place.host}:{place.port}"
        if is_master:
            raise OSError(
                f"processes cannot meet at {where}, as that port cannot be opened: another "
                "run may be using it; give another one by --dist-url, or MASTER_PORT"
            ) from error
        raise OSError(
            f"nothing answers at {where}, where processes meet: start the first machine, and check "
            "its name, port and firewall"
        ) from error


def join(place: Place, watch: Watch, *, timeout: float | None = None) -> None:
    """Meets the other processes, and makes the process groups that Detectron2 needs.

    Args:
        place: Which process this is.
        watch: Gets the store, in which processes tell each other why they end.
        timeout: Seconds that a collective operation may take. Default: 1800.

    Raises:
        OSError: The processes cannot meet.
        ValueError: This machine has too few GPUs.
    """
    global _control_group, _store
    device = _device(place)
    if device is not None:
        torch.cuda.set_device(device)
    if place.world_size == 1:
        return
    seconds = DEFAULT_TIMEOUT if timeout is None else timeout
    delta = datetime.timedelta(seconds=seconds)
    where = place.url or f"{place.host}:{place.port}"
    told = threading.Timer(_WAIT_BEFORE_TELLING, _tell_of_waiting, (place, where))
    told.daemon = True
    told.start()
    backend = "gloo" if device is None else "nccl"
    store = None
    if place.url:
        dist.init_process_group(
            backend,
            init_method=place.url,
            rank=place.rank,
            world_size=place.world_size,
            timeout=delta,
        )
    else:
        store = open_store(place, seconds, is_master=_is_master(place))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"atss_d2/{attempt}", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=delta,
        )
    comm.create_local_process_group(place.local_size)
    _control_group = dist.new_group(backend="gloo", timeout=delta)
    comm.synchronize()  # a process that is much later than the others is waited for here
    told.cancel()
    if store is not None:
        name = STORE_PREFIX
        if place.starter != "atss-d2":  # the store may live longer than the processes
            name += comm.all_gather(uuid.uuid4().hex, group=_control_group)[0]
        _store = store
        watch.store = dist.PrefixStore(name, open_store(place, 10.0, is_master=False))


def _is_master(place: Place) -> bool:
    """Returns whether this process serves the store: not if its starter does."""
    if place.starter == "atss-d2":
        return False
    return place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)


def _device(place: Place) -> int | None:
    """Returns the GPU of this process; None without any."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return None
    if count == 1 and place.starter != "atss-d2":  # its starter may show each process its own
        return 0
    if place.local_rank >= count:
        raise ValueError(
            f"{place.starter} started {place.local_size} processes on this machine, which has "
            f"{count} GPUs: start as many as there are GPUs, or train on the CPU with "
            "CUDA_VISIBLE_DEVICES= in front of the command"
        )
    return place.local_rank


def _tell_of_waiting(place: Place, where: str) -> None:
    print(
        f"process {place.rank} of {place.world_size} on {socket.gethostname()} is waiting for the "
        f"others at {where}",
        flush=True,
    )


def leave(watch: Watch) -> None:
    """Parts from the other processes when all of them are done."""
    global _control_group
    watch.close()
    if comm.get_world_size() > 1:
        comm.synchronize()
        dist.destroy_process_group()
    # A thread in a call of the store while the interpreter ends would abort this process.
    watch.join(_WAIT_FOR_WATCH)
    _control_group = None


def is_lost_connection(error: BaseException | None) -> bool:
    """Returns whether an error only says that another process is gone, which knows the cause."""
    if not dist.is_available() or not isinstance(error, RuntimeError):
        return False
    if isinstance(error, dist.DistError):
        return True
    return bool(_LOST.search(str(error))) and comm.get_world_size() > 1
