"""What a language model is stacked of: an MLP, and a block of a mixer and an MLP on a residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import silu

from based_ops.codegen.spec import language_model as spec

from .. import layers
from ..state_base import State, named, variant_of
from .attention import FullAttention


class SwiGLU(nn.Module):
    """fc2(a · silu(b)) with [a, b] = fc1(x) (arXiv 2002.05202), without biases."""

    def __init__(self, d_model: int, inner: int, **made: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * inner, bias=False, **made)
        self.fc2 = nn.Linear(inner, d_model, bias=False, **made)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        y: Tensor = self.fc2(a * silu(b))
        return y


class Block(nn.Module):
    """x += mixer(norm1(x)); x += mlp(norm2(x)), with x in float32 (or float64) whatever the weights are."""

    def __init__(self, model: spec.ModelSpec, mixer: spec.Mixer, **made: Any) -> None:
        super().__init__()
        self.norm1: nn.RMSNorm | None = nn.RMSNorm(model.d_model, model.norm_eps, **made)
        self.mixer = mixer_of(mixer, model.d_model, **made)
        if model.mlp is not None:
            self.norm2: nn.RMSNorm | None = nn.RMSNorm(model.d_model, model.norm_eps, **made)
            self.mlp: nn.Module | None = SwiGLU(model.d_model, model.mlp.inner, **made)
        else:
            self.mlp = None

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        output_state: bool = False,
        mix: Callable[..., tuple[Tensor, Any]] | None = None,
        **sequences: Any,
    ) -> tuple[Tensor, Any]:
        """x [B,T,d_model] and the mixer's state, before and after.

        `mix` is called in the mixer's place: by a cache that keeps the state itself.
        """
        given = {name: value for name, value in sequences.items() if value is not None}
        y, final = (mix or self.mixer)(normed(self.norm1, x), state, output_state, **given)
        return self._finish(x + y), final

    def step(self, x: Tensor, y: Tensor, state: Any, indices: Tensor | None) -> tuple[Tensor, Tensor]:
        """A few more tokens of the stream x + y, to such a pair again.

        `state`, or the slots of a pool that indices name, is updated in place.  What a product adds to the
        stream is added by the norm that reads it next: for a compiler, a part of that norm's kernel.
        """
        options = {} if indices is None else {"state_indices": indices}
        x = x + y
        y = self.mixer.step(normed(self.norm1, x), state, **options)
        if self.mlp is None:
            return x, y
        x = x + y
        return x, self.mlp(normed(self.norm2, x))

    def _finish(self, x: Tensor) -> Tensor:
        return x if self.mlp is None else x + self.mlp(normed(self.norm2, x))


def normed(norm: nn.RMSNorm | None, x: Tensor) -> Tensor:
    """The residual stream as the weights want it; squares are summed in its own dtype.

    Without a norm as it is: products have it that read the stream (`merge_norms`).
    """
    if norm is None:
        return x
    weight = norm.weight
    y: Tensor = nn.functional.rms_norm(x, norm.normalized_shape, weight.to(x.dtype), norm.eps)
    return y.to(weight.dtype)


def mixer_of(mixer: spec.Mixer, d_model: int, **made: Any) -> Any:
    """The module of a mixer: all have `forward`, `step`, `init_state` and `state_bytes`."""
    match mixer:
        case spec.GatedConv(variant=variant, expand=expand):
            return layers.GatedShortConv(d_model, variant, expand, **made)
        case spec.LinearAttention(variant=variant, heads=heads, kv_heads=kv_heads):
            return layers.LinearAttention(d_model, heads, variant, kv_heads=kv_heads or None, **made)
        case spec.SlidingWindow(variant=variant, heads=heads, kv_heads=kv_heads):
            return layers.SlidingWindowAttention(d_model, heads, variant, kv_heads=kv_heads or None, **made)
        case spec.Hybrid(variant=variant, heads=heads):
            return layers.HybridAttention(d_model, heads, variant, **made)
        case spec.Mamba2(variant=variant, conv=conv, expand=expand):
            return layers.Mamba2Mixer(d_model, variant, conv, expand, **made)
        case spec.DeltaNet(variant=variant, heads=heads, conv=conv, gate=gate):
            return layers.DeltaNet(d_model, heads, variant, conv, gate, mixer.negative_eigenvalues, **made)
        case spec.Hyena(length=length, conv=conv, width=width, modes=modes):
            return layers.Hyena(d_model, length, conv, width, modes=modes, **made)
        case spec.MultiHyena(heads=heads, length=length, conv=conv, width=width, modes=modes):
            return layers.MultiHyena(d_model, heads, length, conv, width, modes, **made)
        case spec.Attention(heads=heads, kv_heads=kv_heads, rotary=rotary):
            return FullAttention(d_model, heads, kv_heads or None, rotary, **made)


def start(block: Block, deviation: float, blocks: int) -> None:
    """Weights as training begins: normal, smaller where they end in the residual stream (Based's recipe)."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            ends = name.endswith(("o_proj", "out_proj", "fc2"))
            nn.init.normal_(module.weight, std=deviation / (2 * blocks) ** 0.5 if ends else deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def over_tensors(function: Callable[..., Tensor], *states: Any) -> Any:
    """`function` of every tensor of a state, or of those that several states of a kind have in its place."""
    first = states[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*states)
    parts = [over_tensors(function, *each) for each in zip(*states, strict=True)]
    if isinstance(first, State):
        return named(type(first)(*parts), variant_of(first))
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def bytes_of(state: Any) -> int:
    """Bytes of all tensors of a state."""
    sizes: list[int] = []

    def count(x: Tensor) -> Tensor:
        sizes.append(x.nbytes)
        return x

    over_tensors(count, state)
    return sum(sizes)
