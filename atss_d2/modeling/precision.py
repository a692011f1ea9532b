"""Where half precision is not enough: geometry, scores and losses."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Converts half precision to float32; keeps wider types (float64 for gradcheck)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
