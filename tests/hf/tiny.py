"""Models of seconds for Transformers, in float64 so that what is equal is seen to be."""

from __future__ import annotations

import torch

from based_ops.hf import BasedForCausalLM
from based_ops.models import LanguageModel, shipped

TINY = [name for name in shipped() if name.endswith("tiny")]


def model(name: str = "based-tiny", seed: int = 0, dtype: torch.dtype = torch.float64) -> BasedForCausalLM:
    """A model whose mixers matter, and whose next tokens differ."""
    torch.manual_seed(seed)
    net = LanguageModel(name, dtype=dtype)
    for x in net.parameters():
        if x.dim() > 1:
            x.data.mul_(5.0)
    return BasedForCausalLM.of(net.eval())
