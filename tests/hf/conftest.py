"""Models of seconds for Transformers, in float64 so that what is equal is seen to be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("transformers")

from based_ops.hf import BasedForCausalLM
from based_ops.models import LanguageModel, shipped

TINY = [name for name in shipped() if name.endswith("tiny")]
RECURRENT = [name for name in TINY if "transformer" not in name]


def model(name: str = "based-tiny", seed: int = 0, dtype: torch.dtype = torch.float64) -> BasedForCausalLM:
    """A model whose mixers matter, and whose next tokens differ."""
    torch.manual_seed(seed)
    net = LanguageModel(name, dtype=dtype)
    for x in net.parameters():
        if x.dim() > 1:
            x.data.mul_(5.0)
    return BasedForCausalLM.of(net.eval())


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No bars of progress."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
