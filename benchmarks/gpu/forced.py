"""Forces the branches that tensors of a GPU take, with tensors on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from atss_d2.modeling import nms, postprocess, pre_nms
from atss_d2.modeling.criterion import focal_loss, positives
from atss_d2.modeling.matchers import selection

# (module, name, what a GPU has there). A name that no longer exists is an error.
_BRANCHES = (
    (positives, "positive_rows", lambda mask: slice(None)),
    (focal_loss, "_is_on_cpu", lambda x: False),
    (postprocess, "select_pre_nms", pre_nms.select_fixed_number),
    (nms, "_CPU_MOST_AT_ONCE", nms._GPU_MOST_AT_ONCE),
    (selection, "MAX_CHUNK_ENTRIES", {}),
)


@contextlib.contextmanager
def gpu_branches() -> Iterator[None]:
    """Takes the branches of a GPU within this context.

    Not forced here: the asynchronous check of classes, the training log's pinned memory and the
    devices of new tensors, which :mod:`benchmarks.pretend_gpu` and fake tensors cover.
    """
    with contextlib.ExitStack() as stack:
        for module, name, value in _BRANCHES:
            stack.enter_context(mock.patch.object(module, name, value))
        yield
