"""Keys that are divided by their lengths, as the delta rule wants them: one of length 0 has no direction.

That is looked at on a CPU alone, where nobody waits for the answer, and of tokens that count.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentValueError, fail


def check(k: Tensor, offsets: Any, mask: Any, indices: Any) -> None:
    """Raises an error if a key [B,T,H,qk] is 0, and no padding, between sequences or without a slot.

    What is wrong with offsets, mask and indices is told where they are used.
    """
    if k.device.type != "cpu":
        return
    none = (k.detach() == 0).all(-1)
    if isinstance(mask, Tensor) and mask.shape == k.shape[:2]:
        none &= mask.bool().unsqueeze(-1)
    elif isinstance(offsets, Tensor) and offsets.dim() == 1 and offsets.numel():
        places = torch.arange(k.shape[1])
        none &= ((places >= offsets[0]) & (places < offsets[-1])).unsqueeze(-1)
    elif isinstance(indices, Tensor) and indices.shape == k.shape[:1]:
        none &= (indices >= 0).view(-1, 1, 1)
    if bool(none.any()):
        b, t, h = (int(x) for x in none.nonzero()[0])
        got = f"a key of length 0, of token {t} and head {h} in entry {b} of the batch"
        fail(ArgumentValueError, "k", got, "a longer one: `unit_keys` divides keys by their lengths")
