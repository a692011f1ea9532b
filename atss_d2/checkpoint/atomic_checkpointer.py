"""Detectron2's checkpointer that leaves whole files only, whenever it is interrupted."""

from __future__ import annotations

import logging
import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from .finite import nonfinite_tensors
from .loading import CheckpointError
from .run_folder import POINTER, has_checkpoints, is_remote
from .saving import save_checkpoint, write_atomically

__all__ = ["AtomicCheckpointer"]

logger = logging.getLogger(__name__)


class AtomicCheckpointer(DetectionCheckpointer):
    """A ``DetectionCheckpointer`` that writes its files atomically, and no NaN or infinity."""

    def save(self, name: str, **kwargs: Any) -> bool:
        """Saves as ``DetectionCheckpointer`` does, but atomically, and never NaN or infinity.

        Returns:
            False if nothing was written because weights or optimizer state are not finite; an error
            is then logged that names the tensors, and earlier files stay as they are.

        Raises:
            CheckpointError: The file cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return True
        state = {key: x.state_dict() for key, x in self.checkpointables.items()}
        state = {"model": self.model.state_dict(), **state, **kwargs}
        parameters = {parameter for parameter, _ in self.model.named_parameters()}
        names = nonfinite_tensors(state, parameters=parameters)
        path = os.path.join(self.save_dir, f"{name}.pth")
        if names:
            shown = ", ".join(names[:3]) + " and more" * (len(names) > 3)
            logger.error(
                f"'{path}' is not written, because {len(names)} tensors hold NaN or infinity "
                f"({shown}); earlier checkpoints are kept"
            )
            return False
        if is_remote(self.save_dir):
            super().save(name, **kwargs)
            return True
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            save_checkpoint(state, path)
        except OSError as error:
            raise CheckpointError(
                f"cannot write '{path}' ({error.strerror}): make room for it, or give the run "
                "permission to write, and continue by --resume"
            ) from error
        self.tag_last_checkpoint(f"{name}.pth")
        return True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Writes ``last_checkpoint`` atomically."""
        if is_remote(self.save_dir):
            super().tag_last_checkpoint(last_filename_basename)
            return
        path = os.path.join(self.save_dir, POINTER)
        try:
            if os.path.isdir(path):
                os.rmdir(path)
            write_atomically(path, last_filename_basename.encode())
        except OSError as error:
            logger.warning(
                f"cannot write '{path}' ({error.strerror}); --resume finds the checkpoints without "
                "it, but Detectron2's own tools do not"
            )

    def has_checkpoint(self) -> bool:
        """Returns whether a run has saved anything, with ``last_checkpoint`` or without."""
        if is_remote(self.save_dir):
            return super().has_checkpoint()
        return bool(self.save_dir) and has_checkpoints(self.save_dir)
