"""State spaces in steps of Δ: discretisations, convolution kernels, and the states that signals leave."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..checks import count, sizes
from ..errors import ArgumentValueError, ShapeError, fail

Rule = Literal["zoh", "bilinear"]


def discretise(a: Tensor, b: Tensor, delta: float, rule: Rule = "zoh") -> tuple[Tensor, Tensor]:
    """Ā [N,N] and B̄ [N] of x_t = Ā x_(t-1) + B̄ u_t, for a [N,N], b [N] and the step `delta`.

    `zoh` holds the input for a step, `bilinear` is Tustin's rule (arXiv 2111.00396, equation 3).

    Args:
        a: A [N,N].
        b: B [N].
        delta: The step Δ.
        rule: `zoh` or `bilinear`.

    Raises:
        ArgumentValueError: the rule is another, or the step not above 0.

    Examples:
        >>> from based_ops.hippo import discretise, matrices
        >>> a, b = discretise(*matrices("legs", 2), delta=0.1)
        >>> a.diagonal()  # exp(-0.1) and exp(-0.2)
        tensor([0.9048, 0.8187], dtype=torch.float64)
    """
    if a.dim() != 2 or a.shape[0] != a.shape[1]:
        fail(ShapeError, "a", sizes(a), "of shape [N, N]")
    if b.shape != a.shape[:1]:
        fail(ShapeError, "b", sizes(b), f"of shape [{a.shape[0]}]")
    if not (delta > 0 and math.isfinite(delta)):
        fail(ArgumentValueError, "delta", delta, "a positive number")
    one = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    if rule == "bilinear":
        left = one - delta / 2 * a
        right = torch.cat([one + delta / 2 * a, delta * b.unsqueeze(1)], 1)
        both = torch.linalg.solve(left, right)
    elif rule == "zoh":
        # exp of [[A, B], [0, 0]] holds both, and A need not have an inverse.
        both = torch.linalg.matrix_exp(delta * torch.nn.functional.pad(_beside(a, b), (0, 0, 0, 1)))[:-1]
    else:
        fail(ArgumentValueError, "rule", repr(rule), "zoh or bilinear")
    return both[:, :-1], both[:, -1]


def responses(a: Tensor, b: Tensor, delta: float, length: int, rule: Rule = "zoh") -> Tensor:
    """Ā^l B̄ for l < length, [N, length], by doubling.

    Args:
        a: A [N,N].
        b: B [N].
        delta: The step Δ.
        length: How many.
        rule: `zoh` or `bilinear`.

    Raises:
        ArgumentValueError: as of `discretise`.

    Examples:
        >>> from based_ops.hippo import matrices, responses
        >>> responses(*matrices("legs", 2), delta=0.1, length=5).shape
        torch.Size([2, 5])
    """
    count("length", length, 1)
    power, first = discretise(a, b, delta, rule)
    found = first.unsqueeze(1)
    while found.shape[1] < length:
        found = torch.cat([found, power @ found], 1)
        power = power @ power
    return found[:, :length]


def kernel(a: Tensor, b: Tensor, c: Tensor, delta: float, length: int, rule: Rule = "zoh") -> Tensor:
    """K_l = C Ā^l B̄, [..., length], for c [..., N]: y_t = Σ_l K_l u_(t-l) (arXiv 2111.00396, equation 5).

    Args:
        a: A [N,N].
        b: B [N].
        c: C [...,N].
        delta: The step Δ.
        length: Taps.
        rule: `zoh` or `bilinear`.

    Raises:
        ArgumentValueError: as of `discretise`.

    Examples:
        >>> import torch
        >>> from based_ops.hippo import kernel, matrices
        >>> kernel(*matrices("legs", 2), torch.ones(3, 2).double(), delta=0.1, length=5).shape
        torch.Size([3, 5])
    """
    if c.dim() == 0 or c.shape[-1] != a.shape[0]:
        fail(ShapeError, "c", sizes(c), f"of shape [..., {a.shape[0]}]")
    return c @ responses(a, b, delta, length, rule)


def remember(a: Tensor, b: Tensor, signal: Tensor, delta: float, rule: Rule = "zoh") -> Tensor:
    """The state [..., N] that a signal [..., T] leaves behind, from zero.

    Args:
        a: A [N,N].
        b: B [N].
        signal: [...,T], a number each step.
        delta: The step Δ.
        rule: `zoh` or `bilinear`.

    Raises:
        ArgumentValueError: as of `discretise`.

    Examples:
        >>> import torch
        >>> from based_ops.hippo import matrices, remember
        >>> remember(*matrices("legs", 8), torch.ones(3, 100).double(), delta=0.01).shape
        torch.Size([3, 8])
    """
    if signal.dim() == 0:
        fail(ShapeError, "signal", sizes(signal), "of shape [..., T]")
    return signal.flip(-1) @ responses(a, b, delta, max(1, signal.shape[-1]), rule).mT


def _beside(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b.unsqueeze(1)], 1)
