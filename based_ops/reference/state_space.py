"""The state space as its definition says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from based_ops.codegen.mixers.state_space import StateSpace


def state_space(
    spec: StateSpace,
    x: Tensor,
    log_decay: Tensor,
    angle: Tensor,
    residues: Tensor,
    skip: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y, of x's shape [B,T,D] or [B,T,H,P], and the last state [B,N/2,...,2], in complex128 token by token.

    Poles and residues are those of channels or heads, [N/2,D] or [N/2,H], and [..., 2].
    """
    wide = torch.float64
    poles = torch.polar(log_decay.to(wide).exp(), angle.to(wide))
    twice = torch.view_as_complex(2 * residues.to(wide).contiguous())
    if spec.shared:  # the same for all channels of a head
        poles, twice = poles.unsqueeze(-1), twice.unsqueeze(-1)
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], spec.modes, *x.shape[2:], 2)
    state = torch.view_as_complex(initial_state.to(wide).contiguous())
    outputs = []
    for token in x.to(wide).unbind(1):
        state = poles * state + token.unsqueeze(1)
        outputs.append((twice * state).sum(1).real)
    y = torch.stack(outputs, 1) if outputs else x.to(wide)
    if skip is not None:
        y = y + skip.to(wide) * x.to(wide)
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32
    return y.to(x.dtype), torch.view_as_real(state).to(kept)
