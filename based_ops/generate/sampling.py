"""How a next token is chosen from logits: the same for the same request, whatever else is in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentValueError, fail


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token; else one of the `top_k` likeliest (0: all), and of the
    fewest whose probabilities reach `top_p` together.  `seed` decides what is drawn; None draws one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            fail(ArgumentValueError, "temperature", self.temperature, "0 or more")
        if self.top_k < 0:
            fail(ArgumentValueError, "top_k", self.top_k, "0 or more")
        if not 0.0 < self.top_p <= 1.0:
            fail(ArgumentValueError, "top_p", self.top_p, "above 0 and up to 1")

    def draws(self) -> torch.Generator:
        """What gives one number in [0, 1) for each token of a request."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def chosen(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, drawn: Tensor) -> Tensor:
    """A token [B] for each row of logits [B,V]; the others are [B], `drawn` numbers in [0, 1).

    The token is where the sum of probabilities, the likeliest first, passes `drawn`: one row never depends on
    another, and nothing waits for the device.  Logits are taken in float32.
    """
    logits = logits.float()
    ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    warm = torch.where(temperature > 0, temperature, 1.0).unsqueeze(-1)
    probabilities = (ordered / warm).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    rank = torch.arange(logits.shape[-1], device=logits.device)
    most = torch.where(top_k > 0, top_k, logits.shape[-1]).unsqueeze(-1)
    kept = (rank < most) & (before < top_p.unsqueeze(-1))  # the likeliest always
    sums = torch.where(kept, probabilities, 0.0).cumsum(-1)
    place = (sums <= drawn.unsqueeze(-1) * sums[:, -1:]).sum(-1, keepdim=True)
    place = torch.minimum(place, kept.sum(-1, keepdim=True) - 1)
    place = torch.where(temperature.unsqueeze(-1) > 0, place, 0)
    return tokens.gather(-1, place).squeeze(-1)
