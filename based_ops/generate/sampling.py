"""How a next token is chosen from logits: the same for the same request, whatever else is in the batch."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentTypeError, ArgumentValueError, fail


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token; else one of the `top_k` likeliest (0: all), and of the
    fewest whose probabilities reach `top_p` together.  `seed`, any whole number, decides what is drawn; None
    draws one.

    Args:
        temperature: 0 or more.
        top_k: 0 or more.
        top_p: Above 0 and up to 1.
        seed: A whole number or None.

    Raises:
        ArgumentValueError: a number is outside of these.
        ArgumentTypeError: the seed is no whole number.

    Examples:
        >>> from based_ops.generate import Sampling
        >>> Sampling(temperature=0.8, top_p=0.95, seed=0).top_k
        0
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            fail(ArgumentValueError, "temperature", self.temperature, "0 or more, and finite")
        if self.top_k < 0:
            fail(ArgumentValueError, "top_k", self.top_k, "0 or more")
        if not 0.0 < self.top_p <= 1.0:
            fail(ArgumentValueError, "top_p", self.top_p, "above 0 and up to 1")
        if not isinstance(self.seed, int | None):
            fail(ArgumentTypeError, "seed", type(self.seed).__name__, "a whole number or None")

    def start(self) -> int:
        """Where the numbers of a request begin, an int64: seeds that are alike begin far apart."""
        seed = secrets.randbits(64) if self.seed is None else self.seed
        return int(_mixed(torch.tensor(_signed(seed))))


def _signed(x: int) -> int:
    """The int64 of the last 64 bits of a number."""
    return (x + 2**63) % 2**64 - 2**63


STEP, FACTORS = _signed(0x9E3779B97F4A7C15), (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def uniform(start: Tensor, number: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, of int64 starts and how many were drawn before: SplitMix64.

    A function of both alone, so that it can stand in a CUDA graph and no request's numbers hang on another's.
    """
    return _shifted(_mixed(start + (number + 1) * STEP), 11).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, count: int) -> Tensor:
    """Shifted right, zeros coming in."""
    return (x >> count) & (2 ** (64 - count) - 1)


def chosen(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, drawn: Tensor) -> Tensor:
    """A token [B] for each row of logits [B,V]; the others are [B], `drawn` numbers in [0, 1).

    The token is where the sum of probabilities, the likeliest first, passes `drawn`: one row never depends on
    another, and nothing waits for the device.  Logits are taken in float32.
    """
    logits = logits.float()
    ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    warm = torch.where(temperature > 0, temperature, 1.0).unsqueeze(-1)
    probabilities = ((ordered - ordered[:, :1]) / warm).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    rank = torch.arange(logits.shape[-1], device=logits.device)
    most = torch.where(top_k > 0, top_k, logits.shape[-1]).unsqueeze(-1)
    kept = (rank < most) & (before < top_p.unsqueeze(-1)) | (rank == 0)
    sums = torch.where(kept, probabilities, 0.0).cumsum(-1)
    place = (sums <= drawn.unsqueeze(-1) * sums[:, -1:]).sum(-1, keepdim=True)
    place = torch.minimum(place, kept.sum(-1, keepdim=True) - 1)
    place = torch.where(temperature.unsqueeze(-1) > 0, place, 0)
    return tokens.gather(-1, place).squeeze(-1)
