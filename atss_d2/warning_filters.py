"""Silences third-party deprecation warnings that users of this package can do nothing about.

Uses only the standard library, so that it can run before anything else is imported.
"""

import os
import warnings

# Beginnings of messages, each with the library that causes it.
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
    """Ignores only these messages, for the rest of the process (or context)."""
    for message in _MESSAGES:
        warnings.filterwarnings("ignore", message=message)


def filter_in_child_processes() -> None:
    """Ignores the warnings of Detectron2's import in Python processes that this one starts.

    A spawned process unpickles its function, and so imports Detectron2, before any of our code.
    """
    option = "ignore:`torch.jit."
    options = [x for x in os.environ.get("PYTHONWARNINGS", "").split(",") if x]
    if option not in options:
        os.environ["PYTHONWARNINGS"] = ",".join([*options, option])
