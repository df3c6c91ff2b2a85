"""The cookbook of feature maps: formula, spec and a picture of the weights, from the shipped specs."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
import yaml
from torch import Tensor

import based_ops
from based_ops.codegen.spec.fields import spec_fields
from based_ops.codegen.spec.model import dump_yaml

from .spec_reference import shipped_layers

WORDS = Path(__file__).with_name("feature_maps.yaml")
TOKENS = 64
"""As many as a head has values: the layer's output of unit values is its weights."""
PERIOD = 16
"""After so many tokens the keys of the picture come again."""
GRAY = "#808080"
"""Seen on light and on dark."""


@functools.cache
def words() -> dict[str, dict[str, str]]:
    """What people say of each map, by the spec that has it and nothing else."""
    found: dict[str, dict[str, str]] = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    return found


def map_of(spec: Any) -> Any:
    """What tells feature maps apart; nothing for layers that have none."""
    if not hasattr(spec, "feature_map"):
        return None
    return spec.feature_map, spec.parts, spec.key_parts


def entries() -> str:
    """A section for each map."""
    return "\n\n".join(_entry(name, said) for name, said in words().items())


def pictures() -> dict[str, bytes]:
    """The picture of each map, by its path in the site."""
    return {_path(name): _draw(name) for name in words()}


def _path(name: str) -> str:
    return f"pictures/{name}.png"


def _entry(name: str, said: dict[str, str]) -> str:
    spec = shipped_layers()[name]
    same = [other for other, x in shipped_layers().items() if map_of(x) == map_of(spec)]
    features = spec.feature_map.features(spec.core.head_dims.qk)
    lines = [
        f"### {said['title']}",
        f"**Weight**: `{spec.feature_map.weight}`{_after(spec)}. **State**: {features} rows for qk "
        f"{spec.head_dims.qk}. **Source**: {said['paper']}.",
        said["use"],
        f"*When it fails.* {said['fails']}",
        f"![Weights of {name}]({_path(name)})",
        f"```yaml\n{short(spec)}```",
        f"Shipped with it: {', '.join(f'`{other}`' for other in same)}.",
    ]
    return "\n\n".join(lines)


def _after(spec: Any) -> str:
    kinds = ", ".join(f"`{getattr(x, 'expression', x.kind)}`" for x in spec.parts)
    return f", where q and k stand for what they become by {kinds}" if kinds else ""


def short(spec: Any) -> str:
    """The spec without what it would say anyway."""
    kept = []
    for line in dump_yaml(spec).splitlines():
        name = line.partition(":")[0]
        item = spec_fields(type(spec)).get(name)
        if item is None or _default(spec, name) is not True:
            kept.append(line)
    return "\n".join(kept) + "\n"


def _default(spec: Any, name: str) -> bool:
    return bool(getattr(spec, name) == spec_fields(type(spec))[name].default)


def weights(name: str, q: Tensor, k: Tensor) -> Tensor:
    """What each query of one head gives to each key, [B,T,T] with T = 64, by the layer's own mathematics."""
    op = based_ops.get(name)
    units = torch.eye(TOKENS, dtype=q.dtype).expand(q.shape[0], TOKENS, TOKENS)
    made = op.init_parameters(1)
    o = op.reference(q, k, units[:, :, None], parameters={x: y.detach() for x, y in made.items()} or None)
    return o[:, :, 0]


def _draw(name: str) -> bytes:
    """Left: keys by their score, beside softmax; right: a sequence whose keys come again."""
    qk = shipped_layers()[name].head_dims.qk
    torch.manual_seed(0)
    with matplotlib.rc_context({"text.color": GRAY, "axes.labelcolor": GRAY, "axes.edgecolor": GRAY}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.0, 2.8))
        figure.subplots_adjust(0.07, 0.16, 1.0, 0.9, 0.1)
        q, k = (torch.randn(8, TOKENS, 1, qk, dtype=torch.float64) for _ in range(2))
        last = weights(name, q, k)[:, -1].flatten()
        scores = torch.einsum("bd,btd->bt", q[:, -1, 0], k[:, :, 0]).flatten() / qk**0.5
        last = last / last.abs().mean()
        left.scatter(scores, last, s=3, color="#3f7fbf", linewidths=0)
        line = torch.linspace(float(scores.min()), float(scores.max()), 50)
        left.plot(line, line.exp() / scores.exp().mean(), color="#d08030", linewidth=1)
        left.set(xlabel="q·k / √qk", ylabel="weight, of the mean size", title="dots: this map, line: softmax")
        again = torch.randn(1, PERIOD, 1, qk, dtype=torch.float64).repeat(1, TOKENS // PERIOD, 1, 1)
        shown = weights(name, again, again)[0]
        most = float(shown[TOKENS // 2 :].abs().max())
        future = torch.ones_like(shown).triu(1) > 0
        right.imshow(
            shown.masked_fill(future, torch.nan),
            cmap="RdBu_r",
            vmin=-most,
            vmax=most,
            interpolation="nearest",
        )
        right.set(xlabel="key", ylabel="query", title=f"keys that come again every {PERIOD}")
        for axes in (left, right):
            axes.patch.set_alpha(0.0)
            axes.tick_params(colors=GRAY, labelsize=7)
            axes.title.set_fontsize(8)
        left.set_ylim(min(-0.5, float(last.quantile(0.005))), 8)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110, transparent=True, metadata={"Software": None})
        plt.close(figure)
    return out.getvalue()
