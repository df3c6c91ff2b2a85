"""Signals read back from the state of a basis."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import count, sizes
from ..errors import ArgumentValueError, ShapeError, fail
from .bases import Basis, find, legendre, matrices


def recall(basis: Basis | str, state: Tensor, ages: Tensor) -> Tensor:
    """u(t - s) ≈ Σ_n x_n p_n(s), [..., S], for a state x(t) [..., N] and ages s [S] of at most the end.

    An age is Δ times so many samples.  The error is least for the basis' measure: the same over the window
    for `legt` and `fout`, fading with age for `legs` and `lagt`.

    Args:
        basis: A `Basis`, or the name of one in `BASES`.
        state: x(t) [...,N].
        ages: s [S], at most the measure's end.

    Raises:
        ArgumentValueError: ages are outside of the measure, or the basis is not orthonormal.

    Examples:
        >>> import torch
        >>> from based_ops.hippo import matrices, recall, remember
        >>> state = remember(*matrices("legt", 8), torch.ones(2000).double(), delta=0.001)
        >>> bool(((recall("legt", state, torch.tensor([0.3, 0.6]).double()) - 1).abs() < 0.01).all())
        True
    """
    found = find(basis)
    if not found.orthonormal:
        fail(ArgumentValueError, "basis", repr(found.name), "orthonormal, for signals to be read back")
    if ages.numel() and not bool(((ages >= 0) & (ages <= found.end)).all()):
        least, most = (float(x) for x in ages.aminmax())
        fail(ArgumentValueError, "ages", f"{least:g} to {most:g}", f"from 0 to {found.end:g}")
    return state @ found.functions(state.shape[-1], ages)


def history(signal: Tensor, order: int) -> Tensor:
    """The state [..., order] of HiPPO-LegS, x' = (A x + B u) / t, after a signal [..., T].

    It weighs the whole history alike, however long.  Tustin's rule (arXiv 2008.07669, appendix B.3).

    Args:
        signal: [...,T].
        order: N.

    Raises:
        ArgumentValueError: there are no samples, or the order is below 1.

    Examples:
        >>> import torch
        >>> from based_ops.hippo import history
        >>> history(torch.ones(3, 100).double(), order=8).shape
        torch.Size([3, 8])
    """
    count("order", order, 1)
    if signal.dim() == 0 or signal.shape[-1] == 0:
        fail(ShapeError, "signal", sizes(signal), "of shape [..., T], T at least 1")
    a, b = (x.to(signal) for x in matrices("legs", order))
    one = torch.eye(order, dtype=signal.dtype, device=signal.device)
    # A constant has this state at any time: the first sample's begins with it.
    state = signal[..., :1] * one[0]
    for k in range(1, signal.shape[-1]):
        right = state @ (one + a / (2 * k)).mT + signal[..., k, None] * b / (k + 0.5)
        left = one - a / (2 * (k + 1))
        state = torch.linalg.solve_triangular(left, right.unsqueeze(-1), upper=False).squeeze(-1)
    return state


def recall_history(state: Tensor, parts: Tensor) -> Tensor:
    """The signal at `parts` [S] of its length, 0 the first sample and 1 the last, from `history`'s state.

    Args:
        state: [...,N], as `history` returns it.
        parts: [S], from 0 to 1.

    Raises:
        ArgumentValueError: parts are outside of 0 to 1.

    Examples:
        >>> import torch
        >>> from based_ops.hippo import history, recall_history
        >>> state = history(torch.linspace(0, 1, 1000).double(), order=8)
        >>> recall_history(state, torch.tensor([0.5]).double()).round(decimals=2)
        tensor([0.5000], dtype=torch.float64)
    """
    if parts.numel() and not bool(((parts >= 0) & (parts <= 1)).all()):
        least, most = (float(x) for x in parts.aminmax())
        fail(ArgumentValueError, "parts", f"{least:g} to {most:g}", "from 0 to 1")
    return state @ legendre(state.shape[-1], 2 * parts - 1)
