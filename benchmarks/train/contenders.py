"""Who is trained: models of `specs/`, or of this library by name, and of flash-linear-attention."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from based_ops.models import LanguageModel

SPECS = Path(__file__).parent / "specs"
SMALL = ("based-small", "hybrid-small", "transformer-small", "mamba2-small")
"""Of 6.4 million weights, give or take 2 %, bytes as tokens."""
FLA: dict[str, tuple[str, str, dict[str, float]]] = {
    "gla-small": ("GLAConfig", "GLAForCausalLM", {"expand_k": 0.5, "expand_v": 1.0}),
    "gated-deltanet-small": ("GatedDeltaNetConfig", "GatedDeltaNetForCausalLM", {"head_dim": 48}),
}
"""Their configurations, of as many layers as the Transformer; the MLP's width makes weights equal."""
EQUAL = "transformer-small"
"""Whose number of weights they have."""


class Logits(nn.Module):
    """A model of Transformers' conventions, called as ours are."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        return self.net(input_ids=ids, use_cache=False).logits, None


def missing(name: str) -> str | None:
    """Why a model cannot be made here; None if it can."""
    if name in FLA and any(importlib.util.find_spec(x) is None for x in ("fla", "transformers")):
        return "flash-linear-attention and transformers: not installed"
    return None


def make(name: str, device: str, seed: int) -> nn.Module:
    """A model with drawn weights, in float32.  `CheckpointError` for a name that nobody has."""
    torch.manual_seed(seed)
    if name in FLA:
        return _fla(name, device)
    file = SPECS / f"{name}.yaml"
    return LanguageModel(file if file.is_file() else name, device=device)


def _fla(name: str, device: str) -> Logits:
    of_config, of_model, more = FLA[name]
    package = importlib.import_module("fla.models")
    baseline = LanguageModel(SPECS / f"{EQUAL}.yaml", device="meta")
    spec = baseline.spec

    def made(inner: int, device: str) -> nn.Module:
        config = getattr(package, of_config)(
            hidden_size=spec.d_model,
            num_hidden_layers=spec.layers,
            num_heads=4,
            vocab_size=spec.vocabulary,
            intermediate_size=inner,
            tie_word_embeddings=True,
            fuse_cross_entropy=False,
            **more,
        )
        with torch.device(device):
            found: nn.Module = getattr(package, of_model)(config)
        return found

    inner = _width(lambda inner: weights(made(inner, "meta")), weights(baseline))
    return Logits(made(inner, device))


def _width(count: Callable[[int], int], wanted: int) -> int:
    """The multiple of 8 at which a count, a line in it, is nearest to what is wanted."""
    low, high = count(64), count(128)
    return max(8, 8 * round((64 + 64 * (wanted - low) / (high - low)) / 8))


def weights(net: nn.Module) -> int:
    """Numbers that are trained; a tied one counts once."""
    return sum(x.numel() for x in net.parameters())
