"""Detectron2's checkpointer, made safe for untrusted files."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor

from ..modeling.atss import ATSS
from ..modeling.criterion import Criterion
from .agreement import convention_differences
from .atomic_checkpointer import AtomicCheckpointer
from .class_predictors import Difference, class_counts
from .conversion import convert_state_dict
from .loading import CheckpointError, load_file
from .mmdet_heads import detector_of
from .run_folder import is_remote, newest_checkpoint
from .sources import HOW_TO_NAME, check_checkpoint, local_checkpoint, split_convention

__all__ = ["SafeCheckpointer"]

logger = logging.getLogger(__name__)


class SafeCheckpointer(AtomicCheckpointer):
    """A ``DetectionCheckpointer`` that never runs code of a file and raises on a mismatch.

    It accepts what Detectron2's accepts (the model zoos of Detectron2 and Caffe2, ``catalog://``,
    ``detectron2://``, URLs, ``?matching_heuristics=True``), ``.safetensors``, and weights of other
    implementations, which it converts: ``authors://file.pth`` and ``mmdet://file.pth``, where the
    file may also be a URL. :func:`load_file` reads the files.

    Keys that only the file or only the model has are logged as a warning, as in Detectron2: the
    file may contain only a backbone. Other differences, about which Detectron2 only warns, are
    errors:

    * a file in which no key fits;
    * tensors of different shapes. Only when training begins (:meth:`resume_or_load` without
      resuming) may class predictors have a different number of classes: they keep
      their initialization;
    * any difference when training is resumed;
    * parameters that the file lacks, when the model is loaded for use (:meth:`load_for_use`).

    A new training does not take over what its losses have counted in the training of the file.
    Frozen layers that get no weights from a file cause a warning.

    Attributes:
        categories: ``[{"id": ..., "name": ...}]`` of the K classes, stored in every saved file; see
            :mod:`atss_d2.data.categories`.
        saved_iteration: The iteration of the file that was saved last; None before the first.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments of ``DetectionCheckpointer``."""
        super().__init__(*args, **kwargs)
        self.categories: list[dict[str, Any]] = []
        self.saved_iteration: int | None = None
        self._convention: str | None = None
        self._source = ""
        self._is_new_training = False
        self._is_resumed = False
        self._is_for_use = False

    def save(self, name: str, **kwargs: Any) -> bool:
        """Saves as :class:`AtomicCheckpointer` does, together with the :attr:`categories`."""
        if self.categories:
            kwargs = {"categories": self.categories, **kwargs}
        is_saved = super().save(name, **kwargs)
        if is_saved:
            self.saved_iteration = kwargs.get("iteration")
        return is_saved

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint into the model and the other checkpointables.

        Args:
            path: A path or URL; ``""`` loads nothing.
            *args: Arguments of ``DetectionCheckpointer``, as are ``kwargs``.

        Returns:
            What else the file holds.

        Raises:
            CheckpointNotFoundError: The file does not exist or cannot be downloaded.
            CheckpointError: The file is refused or damaged, or does not fit the model.
        """
        self._source = path
        if not path:
            self._warn_of_frozen([name for name, _ in self.model.named_parameters()])
            return super().load(path, *args, **kwargs)
        local_checkpoint(path)  # downloads it, so that Detectron2 finds it
        self._convention, file = split_convention(path)
        try:
            return super().load(file, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # after an error, it would break the next call

    def load_for_use(self, path: str) -> dict[str, Any]:
        """Loads all weights of a model for prediction or export.

        Returns:
            What else the file holds.

        Raises:
            CheckpointNotFoundError: As in :meth:`load`.
            CheckpointError: As in :meth:`load`; also if the path is ``""``, or the file lacks a
                parameter of the model.
        """
        check_checkpoint(path, for_use=True)
        self._is_for_use = True
        try:
            return self.load(path, checkpointables=[])
        finally:
            self._is_for_use = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resumes from the newest checkpoint that loads whole, or starts from weights of ``path``.

        Raises:
            CheckpointError: As in :meth:`load` and :func:`newest_checkpoint`.
        """
        if resume and self.has_checkpoint():
            if is_remote(self.save_dir):
                return self.resume_from(self.get_checkpoint_file())
            found = newest_checkpoint(self.save_dir, with_trainer="trainer" in self.checkpointables)
            return self.resume_from(found.path)
        self._is_new_training = True
        try:
            return self.load(path, checkpointables=[])
        finally:
            self._is_new_training = False

    def resume_from(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Loads a checkpoint of this training, with all its state.

        Raises:
            CheckpointError: As in :meth:`load`; also if the state is of another training.
        """
        self._is_resumed = True
        try:
            return self.load(str(path))
        except CheckpointError:
            raise
        except (KeyError, ValueError) as error:  # of the optimizer or another checkpointable
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(
                f"training cannot go on from '{path}', whose state is of another kind of training "
                f"({reason}): take the config that it was made with, or begin with its weights, by "
                "train.init_checkpoint or MODEL.WEIGHTS and another output folder"
            ) from error
        finally:
            self._is_resumed = False

    def _load_file(self, filename: str) -> dict[str, Any]:
        if self._convention is not None:
            # mmdetection's training checkpoints contain log objects.
            checkpoint = load_file(filename, weights_only_parts=self._convention == "mmdet")
            return {"model": self._converted(checkpoint)}
        suffix = os.path.splitext(filename)[1]
        if suffix == ".pkl":
            checkpoint = _of_model_zoo(load_file(filename))
        elif suffix == ".pyth":
            checkpoint = _of_pycls(load_file(filename), filename)
        else:
            checkpoint = super()._load_file(filename)  # which calls _torch_load
        self._check_weights(checkpoint["model"])
        return checkpoint

    def _converted(self, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        if not isinstance(self.model, ATSS):
            raise CheckpointError(
                f"'{self._source}' can be converted for the model ATSS, not for "
                f"{type(self.model).__name__}"
            )
        try:
            detector = "auto"
            if self._convention == "mmdet":  # the names of some are those of others
                detector = detector_of(lambda part: type(getattr(self.model, part)).__name__)
            weights, report = convert_state_dict(checkpoint, self._convention, detector=detector)
        except CheckpointError as error:
            raise CheckpointError(f"'{self._source}' is refused: {error}") from None
        logger.info(f"{report}")
        differences = convention_differences(self.model, self._convention)
        if differences:
            logger.warning(
                f"the results will not be those of the original, as {', '.join(differences)}: call "
                f"atss_d2.checkpoint.apply_convention(cfg, '{self._convention}')"
            )
        return weights

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return load_file(filename)

    def _check_weights(self, weights: Any) -> None:
        if not isinstance(weights, Mapping):
            raise CheckpointError(
                f"'{self._source}' has a {type(weights).__name__} as 'model', not a dict of weights"
            )
        # mmdetection's layout, and Lightning's.
        hint = "; mmdetection's are loaded by mmdet://FILE" if "state_dict" in weights else ""
        for name, value in weights.items():
            if not isinstance(value, (Tensor, np.ndarray)):
                raise CheckpointError(
                    f"'{self._source}' is not a dict of weights: {name!r} is a "
                    f"{type(value).__name__}{hint}"
                )

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False):
            self._match_names(checkpoint)
        if self._is_new_training:
            self._drop_state_of_losses(checkpoint["model"])
        in_model, in_file = list(self.model.state_dict()), list(checkpoint["model"])
        # DistributedDataParallel adds the prefix.
        if in_model and not {name.removeprefix("module.") for name in in_file} & set(in_model):
            raise CheckpointError(
                f"nothing in '{self._source}' fits the model: it has {_some(in_file)}, the model "
                f"has {_some(in_model)}; the authors' files are loaded by authors://FILE, "
                "mmdetection's by mmdet://FILE"
            )
        incompatible = super()._load_model(checkpoint)
        incompatible.incorrect_shapes.sort(key=lambda difference: in_model.index(difference[0]))
        if self._is_new_training:
            self._keep_class_predictors(incompatible)
        self._check_shapes(incompatible.incorrect_shapes)
        missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
        if self._is_resumed and (missing or unexpected):
            side, keys = ("file lacks", missing) if missing else ("model lacks", unexpected)
            raise CheckpointError(
                f"training cannot go on from '{self._source}', which is of another model: the "
                f"{side} {_some(keys)}"
            )
        if self._is_for_use:
            self._check_all_there(missing)
        self._warn_of_frozen(missing)
        return incompatible

    def _drop_state_of_losses(self, weights: dict[str, Any]) -> None:
        state = {
            f"{name}.{buffer}"
            for name, module in self.model.named_modules()
            if isinstance(module, Criterion)
            for buffer, _ in module.named_buffers()
        }
        for name in [name for name in weights if name.removeprefix("module.") in state]:
            del weights[name]

    def _check_all_there(self, missing: list[str]) -> None:
        names = dict(self.model.named_parameters())
        absent = [name for name in missing if name in names]
        if absent:
            raise CheckpointError(
                f"'{self._source}' lacks {len(absent)} of the {len(names)} parameters of the "
                f"model ({_some(absent)}), which would stay random: give a trained detector by "
                f"{HOW_TO_NAME}"
            )

    def _warn_of_frozen(self, missing: Collection[str]) -> None:
        """Warns about layers that get values from neither the file nor training."""
        missing = set(missing)
        frozen = {
            name: parameter.numel()
            for name, parameter in self.model.named_parameters()
            if not parameter.requires_grad and name in missing
        }
        num_norms = sum(
            isinstance(module, FrozenBatchNorm2d)
            and (not self._source or f"{name}.weight" in missing)
            for name, module in self.model.named_modules()
        )
        if not frozen and not num_norms:
            return
        reason = f"'{self._source}' does not have them" if self._source else "no file is named"
        names = f" ({_some(list(frozen))})" if frozen else ""
        logger.warning(
            f"{sum(frozen.values()):,} frozen parameters{names} stay random and {num_norms} frozen "
            f"norms without statistics, because {reason}: give {HOW_TO_NAME}, or train these "
            "layers, by freeze_at=0 and another norm than FrozenBN (MODEL.BACKBONE.FREEZE_AT 0, "
            "MODEL.RESNETS.NORM)"
        )

    def _match_names(self, checkpoint: dict[str, Any]) -> None:
        """Matches names as Detectron2 does, but keeps tensors that it drops for their shape."""
        checkpoint["matching_heuristics"] = False
        self._convert_ndarray_to_tensor(checkpoint["model"])
        names = self.model.state_dict()
        weights = align_and_update_state_dicts(
            names, checkpoint["model"], c2_conversion=checkpoint.get("__author__") == "Caffe2"
        )
        for name in [name for name in names if name not in weights]:
            # A leftover that would match but for its shape.
            ends = [key for key in weights if key not in names and name.endswith(f".{key}")]
            if ends:
                weights[name] = weights.pop(max(ends, key=len))
        checkpoint["model"] = weights

    def _keep_class_predictors(self, incompatible: Any) -> None:
        """Accepts the differences if they are only class predictors' numbers of classes."""
        counts = class_counts(self.model, incompatible.incorrect_shapes)
        if counts:
            incompatible.incorrect_shapes.clear()
        for (in_file, in_model), names in counts.items():
            for name in names:
                incompatible.missing_keys.remove(name)
            logger.warning(
                f"{_listed(names)} keep their initialization, the rest is loaded: "
                f"'{self._source}' was trained with {in_file} classes, but the model has {in_model}"
            )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Logs one console line for a new training; the lists of keys go only to log.txt."""
        if not self._is_new_training:
            super()._log_incompatible_keys(incompatible)
            return
        missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
        num_loaded = len(self.model.state_dict()) - len(missing)
        parts = sorted({".".join(name.split(".")[:2]).rstrip("0123456789") for name in missing})
        message = f"Weights: {num_loaded} tensors from '{self._source}'"
        if missing:
            message += f"; {len(missing)} keep their initialization ({', '.join(parts[:8])}"
            message += ", ...)" if len(parts) > 8 else ")"
        if unexpected:
            message += f"; {len(unexpected)} of the file are not used"
        logger.info(message)
        for side, keys in (("initialized", missing), ("not used", unexpected)):
            if keys:
                logger.info(f"Tensors {side}:\n" + "\n".join(keys), extra={"file_only": True})

    def _check_shapes(self, differences: list[Difference]) -> None:
        if not differences:
            return
        for (in_file, in_model), names in class_counts(self.model, differences).items():
            raise CheckpointError(
                f"'{self._source}' was trained with {in_file} classes, but the model has "
                f"{in_model} ({names[0]}): set num_classes={in_file}; to train on other "
                "classes, start from it by train.init_checkpoint or MODEL.WEIGHTS"
            )
        shapes = [f"{name} is {file} there and {model} here" for name, file, model in differences]
        raise CheckpointError(
            f"'{self._source}' does not fit the model: {_some(shapes)}; take the "
            "config that the file was made with, or remove these tensors from the file"
        )


def _of_model_zoo(data: dict[str, Any]) -> dict[str, Any]:
    """Distinguishes Detectron2's pickles from Caffe2's, as Detectron2's checkpointer does."""
    if "model" in data and "__author__" in data:
        logger.info(f"Reading a file from '{data['__author__']}'")
        return data
    weights = data.get("blobs", data)  # in detectors; ImageNet models are a flat dict
    weights = {name: value for name, value in weights.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _of_pycls(data: dict[str, Any], filename: str) -> dict[str, Any]:
    if "model_state" not in data:
        raise CheckpointError(f"'{filename}' is not a checkpoint of pycls: it has no 'model_state'")
    weights = data["model_state"].items()
    weights = {name: x for name, x in weights if not name.endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", "matching_heuristics": True}


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "no weights") + more
