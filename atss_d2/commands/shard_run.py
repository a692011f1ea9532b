"""One process at work on its shard of many images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..plain.manifest import Manifest
from ..plain.shard import Shard
from ..plain.shards import ShardResults
from .detecting import Detecting
from .errors import one_sentence, tell
from .processes import wait_for_others
from .progress import Progress
from .stopping import Stopping, ignore_signals

if TYPE_CHECKING:
    from ..plain.detections import Detections
    from ..predictor import Predictor
    from .predictor_detector import PredictorDetector

# Images that wait for others of their size, for each image of a batch.
_WAITING = 8
# Images that a worker reads ahead.
_PREFETCH = 4


class _Images:
    """Reads images for the detector, in a worker; a Dataset whose indices are lines of the list."""

    def __init__(self, prepare: Callable[[Any], dict], root: str) -> None:
        self._prepare = prepare
        self._root = root

    def __getitem__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns an input of the model with ``row``, or ``row`` and ``error``."""
        path = os.path.join(self._root, row["file_name"])
        try:
            if "://" not in path and not os.path.isfile(path):  # a pipe would never end
                raise ValueError(
                    "it is not a file" if os.path.exists(path) else "it does not exist"
                )
            return {**self._prepare(path), "row": row}
        except Exception as error:  # decoders raise any type; the other images are fine
            return {"row": row, "error": one_sentence(error)}


class ShardRun:
    """Detects objects in the images of a shard that are left to do."""

    def __init__(
        self,
        args: argparse.Namespace,
        shard: Shard,
        manifest: Manifest,
        detector: PredictorDetector,
        results: ShardResults,
    ) -> None:
        self._args = args
        self._shard = shard
        self._manifest = manifest
        self._detector = detector
        self._results = results
        self._num_full = 0
        self._ids = [category["id"] for category in detector.categories]
        tiling = argparse.Namespace(**{**vars(args), "image_ids": None})
        self._detecting = Detecting(detector, tiling, warn=self._count_full)
        self._predictor: Predictor = detector.predictor

    def go(self) -> int:
        """Does what is left; returns the exit code."""
        from ..data.test_loader import same_size_batches

        results, args = self._results, self._args
        if results.num_damaged:
            tell(f"{self._shard}: {results.num_damaged} damaged lines were removed")
        if results.is_complete:
            return self._end("was finished before")
        progress = Progress(str(self._shard), results)
        batch_size = 1 if args.tiles is not None else args.batch_size
        with Stopping() as stopping:
            try:
                batches = same_size_batches(
                    self._readable(progress, stopping),
                    batch_size,
                    max_waiting=_WAITING * batch_size,
                )
                for batch in batches:
                    results.add(self._detect(batch))
                    progress.show()
                    if stopping.received:
                        break
                progress.show(is_last=True)
                results.close()
            except (OSError, RuntimeError) as error:  # a full disk, memory, a killed worker
                tell(error)
                print(self._how_to_go_on(), file=sys.stderr)
                return 1
        if stopping.received and not results.is_complete:
            print(f"stopped by {stopping.received.name}: {self._how_to_go_on()}", file=sys.stderr)
            return stopping.exit_code
        return self._end("is finished")

    def _how_to_go_on(self) -> str:
        done = self._results.num_done + self._results.num_bad
        without = " without --overwrite" if self._args.overwrite else ""
        return (
            f"{done} of {self._results.num_images} images of {self._shard} are done; run the same "
            f"command again{without} to continue"
        )

    def _end(self, how: str) -> int:
        results, output = self._results, self._args.output
        print(f"{self._shard} {how}: {results.num_done} images: {self._shard.detections(output)}")
        if self._num_full:
            tell(
                f"{self._num_full} images have {self._detector.max_detections} detections, the "
                f"most that one pass gives: use --tiles, or {self._detector.how_to_raise_it}"
            )
        if results.num_bad:
            tell(
                f"error: {results.num_bad} images could not be read, "
                f"{self._shard.bad_images(output)} lists them; --retry-bad tries them again"
            )
        wait_for_others(should_wait=results.num_bad > 0)
        return 1 if results.num_bad else 0

    def _left(self) -> Iterator[dict[str, Any]]:
        """Yields the lines of the list that are left to do."""
        return self._manifest.rows(self._results.is_left)

    def _readable(self, progress: Progress, stopping: Stopping) -> Iterator[dict[str, Any]]:
        """Yields the inputs of the images that can be read, writes down the others."""
        from torch.utils.data import DataLoader

        prepare = self._predictor.prepare if self._args.tiles is None else _read_pixels
        root = self._args.image_root or ""
        num_workers = self._args.num_workers or 0
        loader = DataLoader(
            _Images(prepare, root),
            sampler=self._left(),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=_PREFETCH if num_workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_signals,
        )
        for x in loader:
            if "error" in x:
                self._results.add_bad(x["row"], x["error"])
                progress.show()
            else:
                yield x
            if stopping.received:
                return

    def _detect(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the lines of the images of a batch that fit into memory."""
        from torch import OutOfMemoryError

        try:
            found = self._detect_batch(batch)
        except OutOfMemoryError as error:
            if len(batch) > 1:
                return [row for x in batch for row in self._detect([x])]
            self._results.add_bad(batch[0]["row"], one_sentence(error))
            return []
        return [self._line(x, detections) for x, detections in zip(batch, found)]

    def _detect_batch(self, batch: list[dict[str, Any]]) -> list[Detections]:
        from ..predictor import to_detections

        if self._args.tiles is not None:
            return [self._detecting.detect(x["image"].numpy(), "") for x in batch]
        result = []
        for instances in self._predictor.detect_prepared(batch):
            found = to_detections(instances)
            found = found.select(found.scores >= self._args.confidence_threshold).best_first()
            if len(found.scores) == self._detector.max_detections:
                self._count_full("")
            result.append(found)
        return result

    def _count_full(self, sentence: str) -> None:
        self._num_full += 1

    def _line(self, x: dict[str, Any], found: Detections) -> dict[str, Any]:
        row = x["row"]
        boxes, scores, classes = (part.tolist() for part in found)
        return {
            **{key: row[key] for key in ("index", "file_name", "image_id")},
            **row,
            "width": x["width"],
            "height": x["height"],
            "boxes": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes],
            "scores": scores,
            "category_ids": [self._ids[c] for c in classes],
        }


def _read_pixels(path: str) -> dict[str, Any]:
    import torch

    from ..data.images import read_image

    pixels = read_image(path, "RGB")
    height, width = pixels.shape[:2]
    return {"image": torch.from_numpy(pixels.copy()), "height": height, "width": width}


def _as_it_is(x: Any) -> Any:
    return x


def _ignore_signals(worker: int) -> None:
    ignore_signals()
