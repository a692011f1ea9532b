"""How the processes that load images are started."""

from __future__ import annotations

import multiprocessing

from torch.utils.data import DataLoader


def with_default_workers(loader: DataLoader) -> DataLoader:
    """Makes a loader start its processes in the platform's way, which is to fork on Linux.

    In the processes of Detectron2's ``launch``, Python would start a new interpreter for each
    worker: seconds of imports and 0.4 GB that it shares with nobody.
    """
    if loader.num_workers > 0 and loader.multiprocessing_context is None:
        loader.multiprocessing_context = multiprocessing.get_all_start_methods()[0]
    return loader
