"""Starts the processes of this machine, passes signals on to them and tells why they ended."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import atss_d2_cli

from ..plain.starters import Place
from ..plain.stopping import (
    STOP,
    Stopped,
    blocked_signals,
    exit_now,
    name_of,
    unblock_signals,
)
from ..plain.watching import Watch, publish_failure, read_failure
from .errors import one_sentence

if TYPE_CHECKING:
    from torch.distributed import Store

# Seconds that the other processes get after one has failed, or has stopped: a save may take long.
_PATIENCE, _PATIENCE_WITH_SAVE = 20.0, 120.0
_WAIT_FOR_CAUSE = 5.0
_LOST = 70  # exit code of a process that only knows that another one is gone
_WHY_LOST = "which was killed, or whose machine or network is gone"


class _Child(NamedTuple):
    place: Place
    process: Any  # of multiprocessing's spawn context
    connection: Connection


def launch(args: argparse.Namespace, first: Place) -> int:
    """Runs the processes of this machine; returns the exit code of the command.

    Args:
        args: The command line.
        first: Place of the first process of this machine; a port of 0 stands for any free one.

    Raises:
        OSError: Processes cannot meet at this address.
    """
    store = _serve(args, first)
    if store is not None and first.port == 0:
        first = first._replace(port=store.port)
    context = multiprocessing.get_context("spawn")
    children: list[_Child] = []
    STOP.is_deferred = True  # the processes stop, then this one
    STOP.listeners.append(lambda signum: _forward(children, signum))
    STOP.end_at_once = lambda: _kill_and_exit(children)
    resource_tracker.ensure_running()  # would unblock signals at the first start of a process
    for local_rank in range(first.local_size):
        place = first._replace(rank=first.rank + local_rank, local_rank=local_rank)
        ours, theirs = context.Pipe()
        # A plain tuple, so that unpickling imports nothing that takes seconds.
        process = context.Process(target=atss_d2_cli.start_rank, args=(args, tuple(place), theirs))
        with blocked_signals():  # this process passes them on; the other could not handle them yet
            process.start()
        theirs.close()
        children.append(_Child(place, process, ours))
        if STOP.signum is not None:  # came before this process was in the list
            _forward(children[-1:], STOP.signum)
    try:
        return _supervise(args, children, store)
    finally:
        for child in children:
            if child.process.is_alive():
                child.process.kill()


def _serve(args: argparse.Namespace, first: Place) -> Store | None:
    """Serves the store where processes meet, which thus outlives a process that fails."""
    if first.url or first.machine > 0:
        return None
    from ..engine.processes import open_store

    return open_store(first, 60.0, is_master=True)


def _forward(children: list[_Child], signum: int) -> None:
    for child in children:
        with contextlib.suppress(OSError):
            child.connection.send(int(signum))


def _kill_and_exit(children: list[_Child]) -> None:
    for child in children:
        child.process.kill()
    exit_now(128 + signal.SIGINT)


def _supervise(args: argparse.Namespace, children: list[_Child], store: Store | None) -> int:
    """Waits until all processes have ended; after a failure, ends those that do not."""
    running = {child.process.sentinel: child for child in children}
    codes: list[int] = []  # in the order in which processes ended
    killed_by = 0
    deadline: float | None = None
    while running:
        for sentinel in wait(list(running), timeout=1.0):
            child = running.pop(sentinel)
            child.process.join()
            code = child.process.exitcode
            codes.append(code)
            if code < 0 and not killed_by and deadline is None:
                killed_by = -code
                _tell_of_kill(args, child, killed_by)
            if code != 0 and deadline is None:
                is_stop = code > 128
                deadline = time.monotonic() + (_PATIENCE_WITH_SAVE if is_stop else _PATIENCE)
        if deadline is not None and time.monotonic() > deadline:
            for child in running.values():
                child.process.kill()
            deadline = float("inf")
    STOP.is_stopping = True
    causes = [code for code in codes if code > 0 and code != _LOST]
    if any(codes) and children[0].place.num_machines > 1 and store is not None:
        time.sleep(2.0)  # the other machines read the cause in our store
    if killed_by or not any(codes):
        return min(killed_by, 1)
    if not causes:
        _say(args, f"lost the connection to a process of another machine, {_WHY_LOST}")
        return 1
    return causes[0]


def _tell_of_kill(args: argparse.Namespace, child: _Child, signum: int) -> None:
    """Says that a process was killed, here and to the processes of other machines."""
    place = child.place
    text = f"process {place.rank} was killed by {name_of(signum)}"
    if signum == signal.SIGKILL:
        text += ", as the system does when memory runs out"
    _say(args, text)
    if not place.url:
        from torch.distributed import PrefixStore

        from ..engine.processes import STORE_PREFIX, open_store

        with contextlib.suppress(OSError):
            store = PrefixStore(STORE_PREFIX, open_store(place, 5.0, is_master=False))
            publish_failure(store, text=text, machine=place.machine)


def _say(args: argparse.Namespace, text: str) -> None:
    print(f"{args.prog}: {text}", file=sys.stderr, flush=True)


def run_rank(
    args: argparse.Namespace,
    place: Place,
    work: Callable[[argparse.Namespace], object],
    connection: Connection | None = None,
) -> int:
    """Runs one process of several; returns its exit code.

    Args:
        args: The command line.
        place: Which process this is.
        work: What the process does when it has met the others.
        connection: To the process of :func:`launch`, if that has started this one.
    """
    # torchrun does not end its processes when it is killed.
    parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    watch = Watch(connection=connection, parent=parent)
    watch.on_failure = lambda failure: _tell_of_others(args, place, failure)
    with STOP.deferred(), STOP.installed():
        unblock_signals()
        try:
            with STOP.immediate():
                watch.start()
                return _run_rank(args, place, watch, work)
        except Stopped as stop:
            return _stop(args, place, watch, stop)
        except BaseException as error:
            return _fail(args, place, watch, error)


def _run_rank(
    args: argparse.Namespace,
    place: Place,
    watch: Watch,
    work: Callable[[argparse.Namespace], object],
) -> int:
    # Must be imported before Detectron2: silences deprecation warnings raised by its import.
    import atss_d2  # noqa: F401

    # isort: split
    from ..engine.processes import join, leave

    args.place = place
    join(place, watch, timeout=args.dist_timeout)
    try:
        work(args)
    except Stopped as stop:
        if stop.is_agreed:
            STOP.is_stopping = True
            leave(watch)
        raise
    leave(watch)
    return 0


def _stop(args: argparse.Namespace, place: Place, watch: Watch, stop: Stopped) -> int:
    STOP.is_stopping = True
    # After a failure, torchrun sends SIGTERM to the other processes.
    failure = None if stop.is_agreed else read_failure(watch.store)
    if failure is not None:
        _tell_of_others(args, place, failure)
    elif place.rank == 0:
        tell_of_stop(args, stop)
    if not stop.is_agreed:  # the others may wait for this process, and parting would, too
        watch.publish_end(stop.signum)
        watch.close()
        _exit(place, stop.exit_code)
    return stop.exit_code


def tell_of_stop(args: argparse.Namespace, stop: Stopped) -> None:
    """Says that a command was stopped, unless the training has said so."""
    if not STOP.is_told:
        what = "before a checkpoint was saved"
        if args.eval_only:
            what = "before the evaluation was finished"
        elif STOP.saved_iteration is not None:
            what = f"after iteration {STOP.saved_iteration} was saved: --resume continues from it"
        _say(args, f"stopped by {stop} {what}")


def _fail(args: argparse.Namespace, place: Place, watch: Watch, error: BaseException) -> int:
    """Ends this process after an error, and tells the cause once, on every machine."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        watch.close()
        _exit(place, error.code or 0)  # every process has the same error, and one has said it
    from ..engine.processes import is_lost_connection

    watch.close()
    is_lost = is_lost_connection(error)
    failure = read_failure(watch.store)
    until = time.monotonic() + _WAIT_FOR_CAUSE
    while is_lost and failure is None and STOP.signum is None and time.monotonic() < until:
        time.sleep(0.1)
        failure = read_failure(watch.store)
    if failure is not None:
        _tell_of_others(args, place, failure)
        _exit(place, 1)
    if is_lost and STOP.signum is not None:
        return _stop(args, place, watch, Stopped(STOP.signum))
    if is_lost and place.starter == "atss-d2":
        _exit(place, _LOST)
    if is_lost:
        text = f"lost the connection to another process, {_WHY_LOST}"
    elif isinstance(error, SystemExit):
        text = str(error.code).removeprefix(f"{args.prog}: ")
    else:
        text = one_sentence(error)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun's summary shows its content
        with contextlib.suppress(OSError), open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
            extra = {"py_callstack": "", "timestamp": str(int(time.time()))}
            json.dump({"message": {"message": text, "extraInfo": extra}}, file)
    if publish_failure(watch.store, text=text, rank=place.rank, machine=place.machine):
        if is_lost or isinstance(error, SystemExit):
            _say(args, text)
        else:
            traceback.print_exception(error)
    else:
        _tell_of_others(args, place, read_failure(watch.store) or {})
    _exit(place, 1)


def _tell_of_others(args: argparse.Namespace, place: Place, failure: dict[str, Any]) -> None:
    """Tells the cause that ended a process of another machine."""
    if failure.get("machine") != place.machine and place.local_rank == 0:
        who = f"process {failure['rank']} failed: " if "rank" in failure else ""
        _say(args, f"{who}{failure.get('text')}")


def _exit(place: Place, code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if place.rank == 0 and place.starter != "atss-d2":
        time.sleep(2.0)  # the others read in our store why this process ends
    exit_now(code)
