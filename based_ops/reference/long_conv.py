"""The long convolution as its definition says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from based_ops.codegen.mixers.long_conv import LongConv


def long_conv(
    spec: LongConv,
    u: Tensor,
    filters: Tensor,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y of u's shape, and the last `spec.length` inputs, the newest last, by the sum over lags.

    u and gate are [B,T,D] or [B,T,H,P], filters [L,D] or [L,H], skip [D] or [H,P], and `before` as u, with
    `spec.length` inputs.  All is in the wider dtype of u and the filters.
    """
    seen = u if before is None else torch.cat([before.to(u.dtype), u], 1)
    length, rows = u.shape[1], seen.shape[1] - u.shape[1]
    taps = filters.unsqueeze(-1) if spec.shared else filters
    y = torch.zeros_like(u, dtype=torch.promote_types(u.dtype, filters.dtype))
    for lag in range(min(len(filters), rows + length)):
        first = max(rows - lag, 0)
        late = first - (rows - lag)  # tokens that have nothing so far back
        y[:, late:] += taps[lag] * seen[:, first : first + length - late]
    if skip is not None:
        y = y + skip * u
    if gate is not None:
        y = y * gate
    nothing = u.new_zeros(len(u), max(0, spec.length - seen.shape[1]), *u.shape[2:])
    last = torch.cat([nothing, seen], 1)
    return y.to(u.dtype), last[:, last.shape[1] - spec.length :].contiguous()
