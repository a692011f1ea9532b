"""Deprecation warnings of third parties that nobody who uses this package can act on.

Standard library only, so that it can be used before anything else is imported.
"""

import os
import warnings

# Beginnings of messages, each raised inside the library that is named.
_MESSAGES = (
    r"`torch\.jit\.\w+` is deprecated",  # Detectron2, when it is imported
    r"`torch\.jit\.\w+` is not supported",  # the same on Python 3.14
    r"pkg_resources is deprecated",  # Detectron2's model zoo
    r"torch\.meshgrid: in an upcoming release",  # Detectron2's anchor generator
    r"`torch\.cuda\.amp\.\w+",  # Detectron2's AMPTrainer
    r"The 'warn' method is deprecated",  # Detectron2's logging
    r"`create_unbacked_symint` is deprecated",  # torchvision's NMS under torch.export
    r"`broadcast_buffers` is deprecated",  # Detectron2's create_ddp_model, the key of train.ddp
)


def filter_third_party_warnings() -> None:
    """Ignores these messages, and no others, for the rest of the process (or context)."""
    for message in _MESSAGES:
        warnings.filterwarnings("ignore", message=message)


def filter_in_child_processes() -> None:
    """Ignores, in Python processes that this one starts, what Detectron2's import warns of.

    A spawned process unpickles what it runs, and so imports Detectron2, before any code of ours.
    """
    option = "ignore:`torch.jit."
    options = [x for x in os.environ.get("PYTHONWARNINGS", "").split(",") if x]
    if option not in options:
        os.environ["PYTHONWARNINGS"] = ",".join([*options, option])
