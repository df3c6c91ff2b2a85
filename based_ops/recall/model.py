"""The small language models of the study, alone or many of one design side by side."""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma, log

import torch
from torch import Tensor, nn

from .blocks import BlockDiagonal, Norms, joined, keep_apart, sections
from .designs import Design
from .recipe import DEVIATION


class RecallModel(nn.Module):
    """x = E[ids]; x += mixer(norm(x)), layer by layer; logits = norm(x) Eᵀ: no MLP, no positions.

    `models` of a design lie side by side: [..., models·d_model] is the stream of all.
    """

    AXES = {"table": 1}
    """Along which models are joined, of parameters that do not have them in front."""

    def __init__(self, design: Design, models: int, vocabulary: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.design, self.models, self.width, self.dropout = design, models, design.d_model, dropout
        wide = models * design.d_model
        self.table = nn.Parameter(torch.randn(vocabulary, wide) * DEVIATION)
        made = [layer.make(models) for layer in design.layers()]
        self.sections = {
            f"mixers.{number}.{name}": kinds
            for number, mixer in enumerate(made)
            for name, kinds in sections(mixer).items()
        }
        """Of submodules in which a model has several kinds of channels, of all models together."""
        self.mixers = nn.ModuleList(keep_apart(mixer, models) for mixer in made)
        self.norms = nn.ModuleList(Norms(models, design.d_model) for _ in range(len(made) + 1))
        for name, module in self.named_modules():
            if isinstance(module, BlockDiagonal):
                ends = name.endswith(("o_proj", "out_proj"))
                nn.init.normal_(module.weight, std=DEVIATION / (2 * len(made)) ** 0.5 if ends else DEVIATION)

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        """Logits [models, B·K, vocabulary] of what follows the positions `places` [B,K] of ids [B,T]."""
        x = self.table.index_select(0, ids.flatten()).view(*ids.shape, -1)
        if self.training and self.dropout:
            # One mask for all models, so that each computes what it computes alone.
            mask = torch.rand(*ids.shape, 1, self.width, device=x.device) >= self.dropout
            x = (x.unflatten(-1, (self.models, self.width)) * (mask / (1 - self.dropout))).flatten(-2)
        *before, last = self.norms
        for norm, mixer in zip(before, self.mixers, strict=True):
            y = mixer(norm(x))
            x = x + (y[0] if isinstance(y, tuple) else y)
        x = last(x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1])))
        each = x.view(-1, self.models, self.width).transpose(0, 1)
        return torch.bmm(each, self.table.view(-1, self.models, self.width).permute(1, 2, 0))

    def joined(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """The parameter `name` of these models, given that of each."""
        kinds = self.sections.get(name.rpartition(".")[0], ())
        if name.endswith("in_proj.weight") or name.endswith("in_proj.bias"):
            kinds = ()  # which has models in front
        return joined(parts, self.AXES.get(name, 0), [n // self.models for n in kinds])


def start(design: Design, seeds: Sequence[int], vocabulary: int, dropout: float = 0.0) -> RecallModel:
    """A model of each seed, side by side, each with the weights that it would have alone."""
    singles = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            singles.append(RecallModel(design, 1, vocabulary, dropout))
        if len(singles) == 1:
            return singles[0]
        found = RecallModel(design, len(seeds), vocabulary, dropout)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            parameter.copy_(found.joined(name, [x.get_parameter(name) for x in singles]))
    return found


def state_bytes(design: Design) -> int:
    """Bytes of the state of one sequence of 1024 tokens, of all layers in float32."""
    return sum(layer.state_bytes for layer in design.layers())


def information_bytes(pairs: int, vocabulary: int) -> float:
    """What `pairs` different keys and their values take at least: log2 of the number of such sets, / 8."""
    keys, values = vocabulary // 2 - 1, vocabulary // 2
    sets = lgamma(keys + 1) - lgamma(pairs + 1) - lgamma(keys - pairs + 1)
    valued = lgamma(values + 1) - lgamma(values - pairs + 1)
    return (sets + valued) / log(2) / 8
