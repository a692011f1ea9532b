"""Counts the memory and the work of tensor operations, the same on every machine."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Watches the operations inside a ``with`` block.

    Attributes:
        peak_bytes: Most bytes held at a time by tensors that were made inside the block.
        held_bytes: Those that are still held.
        num_elements: Elements of the results of all operations.
        operations: Names of the operations, in order. Views are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self.num_elements = 0
        self.operations: list[str] = []
        self.held_bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {self._key(x) for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        self.operations.append(func.overloadpacket.__name__)
        for tensor in filter(torch.is_tensor, tree_leaves(result)):
            self.num_elements += tensor.numel()
            key = self._key(tensor)
            if key not in inputs and key not in self._seen:
                self._hold(tensor.untyped_storage(), key)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return result

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _hold(self, storage: torch.UntypedStorage, key: int) -> None:
        size = storage.nbytes()
        self.held_bytes += size
        self._seen.add(key)

        def release() -> None:
            self.held_bytes -= size
            self._seen.discard(key)

        weakref.finalize(storage, release)
