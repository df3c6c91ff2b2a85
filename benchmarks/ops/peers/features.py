"""Features of queries and keys by PyTorch, in front of linear attention: another library's, and our own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contender import Call, Contender
from ..inputs import Inputs
from ..works import Entry, Work
from .common import sequence_call
from .fla import fla_missing


@dataclass(frozen=True)
class Features(Contender):
    """The features that the torch backend makes, `compiled` or not, and what mixes them."""

    by: str
    compiled: bool
    own: bool
    """Whether our kernels mix them."""

    def takes(self, work: Work) -> bool:
        spec = work.spec
        map_of_features = getattr(getattr(spec, "feature_map", None), "expression", "")
        plain = spec.mixer == "linear_attention" and spec.decay == "none" and map_of_features == "x"
        return work.form == "featured" and not work.corrects and (self.own or plain)

    def why_not(self, entry: Entry, device: str) -> str | None:
        return None if self.own else fla_missing()

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        made, mix = work.op.features_by_torch, self._mixer(work)
        of_query, of_key = (torch.compile(f) if self.compiled else f for f in made)
        given = inputs.parameters

        def forward(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
            return mix(of_query(q, given, None), of_key(k, given, None), v)

        return sequence_call(work, inputs, (*inputs.leaves, *inputs.learned), forward, len(inputs.leaves))

    def _mixer(self, work: Work) -> Callable[..., Tensor]:
        op: Any = work.op
        if self.own:
            return lambda *x: op.core(*x)[0]
        from fla.ops.linear_attn import chunk_linear_attn

        scale, normalize = op.default_scale, work.spec.normalize
        return lambda *x: chunk_linear_attn(*x, scale=scale, normalize=normalize)[0]
