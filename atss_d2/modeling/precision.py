"""Where half precision is not enough: geometry, scores and losses."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """To float32 from half precision; wider types stay as they are (float64 for gradcheck)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
