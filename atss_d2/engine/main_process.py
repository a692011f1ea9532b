"""Lets the first process decide for all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from detectron2.utils import comm

T = TypeVar("T")


def decided_by_main(function: Callable[[], T]) -> T:
    """Calls a function in the first process and returns its result in all of them.

    Args:
        function: Its result must be picklable.

    Raises:
        Exception: The function's error, in the first process, which reports it; the others exit
            with code 1.
    """
    result, error = None, None
    if comm.is_main_process():
        try:
            result = function()
        except Exception as raised:
            error = raised
    if comm.get_world_size() > 1:
        result, failed = comm.all_gather((result, error is not None))[0]
        if failed and error is None:
            sys.exit(1)
    if error is not None:
        raise error
    return result
