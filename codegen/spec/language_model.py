"""What a language model is: dataclasses that hold its widths, and which mixer each of its layers has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, get_args

from .fields import Flag, Integer, Name, Number, Record, Several, Tagged, spec_field

LAYERS = Integer(0, 1023)
HEADS_DOC = "Heads of queries."
KV_HEADS_DOC = "Heads of keys and values; 0 means as many."
CONV_DOC = "The layer spec of its convolution."
LENGTH_DOC = "Taps of each filter, and tokens of the longest sequence."
FILTER_DOC = "Width of the network that makes the filters."
MODES_DOC = "Pairs of poles of the state space that a filter was distilled to; 0 means the filter itself."
VARIANT_DOC = "The layer spec whose kernels mix."


@dataclass(frozen=True)
class GatedConv:
    """Based's gated short convolution."""

    kind: ClassVar[str] = "gated_conv"
    variant: str = spec_field(Name(), VARIANT_DOC, "conv3_silu")
    expand: int = spec_field(Integer(1, 16), "How many times as wide as the model the convolution is.", 2)


@dataclass(frozen=True)
class LinearAttention:
    """Linear attention, without positions."""

    kind: ClassVar[str] = "linear_attention"
    variant: str = spec_field(Name(), VARIANT_DOC)
    heads: int = spec_field(Integer(1, 1024), HEADS_DOC)
    kv_heads: int = spec_field(Integer(0, 1024), KV_HEADS_DOC, 0)


@dataclass(frozen=True)
class SlidingWindow:
    """Softmax over the last keys, with rotary positions."""

    kind: ClassVar[str] = "sliding_window"
    variant: str = spec_field(Name(), VARIANT_DOC)
    heads: int = spec_field(Integer(1, 1024), HEADS_DOC)
    kv_heads: int = spec_field(Integer(0, 1024), KV_HEADS_DOC, 0)


@dataclass(frozen=True)
class Hybrid:
    """Softmax over the last keys and linear attention over all older ones."""

    kind: ClassVar[str] = "hybrid"
    variant: str = spec_field(Name(), VARIANT_DOC)
    heads: int = spec_field(Integer(1, 1024), HEADS_DOC)


@dataclass(frozen=True)
class Mamba2:
    """Mamba-2's block."""

    kind: ClassVar[str] = "mamba2"
    variant: str = spec_field(Name(), VARIANT_DOC, "mamba2_qk64_v64")
    conv: str = spec_field(Name(), CONV_DOC, "conv4_silu")
    expand: int = spec_field(Integer(1, 16), "How many times as wide as the model it is.", 2)


@dataclass(frozen=True)
class DeltaNet:
    """DeltaNet's block, gated or not."""

    kind: ClassVar[str] = "delta_net"
    variant: str = spec_field(Name(), VARIANT_DOC)
    heads: int = spec_field(Integer(1, 1024), HEADS_DOC)
    conv: str = spec_field(Name(), CONV_DOC, "conv4_silu")
    gate: bool = spec_field(Flag(), "Whether what leaves a head is gated.", True)
    negative_eigenvalues: bool = spec_field(Flag(), "Whether rates go up to 2.", False)


@dataclass(frozen=True)
class Hyena:
    """Hyena of order 2, with an implicit filter for every channel."""

    kind: ClassVar[str] = "hyena"
    length: int = spec_field(Integer(1, 2**24), LENGTH_DOC, 2048)
    conv: str = spec_field(Name(), CONV_DOC, "conv4_plain")
    width: int = spec_field(Integer(1, 2**16), FILTER_DOC, 64)
    modes: int = spec_field(Integer(0, 256), MODES_DOC, 0)


@dataclass(frozen=True)
class MultiHyena:
    """Laughing Hyena's multi-head long convolution, with a filter for every head."""

    kind: ClassVar[str] = "multi_hyena"
    heads: int = spec_field(Integer(1, 1024), "Heads, and filters.")
    length: int = spec_field(Integer(1, 2**24), LENGTH_DOC, 2048)
    conv: str = spec_field(Name(), CONV_DOC, "conv4_plain")
    width: int = spec_field(Integer(1, 2**16), FILTER_DOC, 64)
    modes: int = spec_field(Integer(0, 256), MODES_DOC, 0)


@dataclass(frozen=True)
class Attention:
    """Softmax over all keys, with rotary positions: the baseline."""

    kind: ClassVar[str] = "attention"
    heads: int = spec_field(Integer(1, 1024), HEADS_DOC)
    kv_heads: int = spec_field(Integer(0, 1024), KV_HEADS_DOC, 0)
    rotary: float = spec_field(Number(0.0, 1.0), "The part of each head that turns with the position.", 1.0)


Mixer = (
    GatedConv | LinearAttention | SlidingWindow | Hybrid | Mamba2 | DeltaNet | Hyena | MultiHyena | Attention
)
MIXERS: dict[str, type[Mixer]] = {cls.kind: cls for cls in get_args(Mixer)}
MIXER = Tagged("kind", MIXERS, "mixer")


@dataclass(frozen=True)
class Mlp:
    """fc2(a · silu(b)) with [a, b] = fc1(x): SwiGLU (arXiv 2002.05202), without biases."""

    inner: int = spec_field(Integer(1, 2**20), "Width of a and of b.")


@dataclass(frozen=True)
class Placement:
    """A mixer that some layers have instead."""

    layers: tuple[int, ...] = spec_field(Several(LAYERS, 1, 1024), "Which layers, counted from 0.")
    mixer: Mixer = spec_field(MIXER, "Their mixer.")


@dataclass(frozen=True)
class ModelSpec:
    """A pre-norm language model: E[ids], blocks of a mixer and an MLP, a norm, and E again."""

    name: str = spec_field(Name(hyphens=True), "Name of the model; equal to the name of the file.")
    d_model: int = spec_field(Integer(1, 2**20), "Width of the residual stream.")
    vocabulary: int = spec_field(Integer(1, 2**24), "Number of tokens.")
    layers: int = spec_field(Integer(1, 1024), "Number of blocks.")
    mixer: Mixer = spec_field(MIXER, "The mixer of every layer that `placement` does not name.")
    placement: tuple[Placement, ...] = spec_field(
        Several(Record(Placement, {}), 0, 64), "Layers that have another; a later entry wins.", ()
    )
    mlp: Mlp | None = spec_field(
        Record(Mlp, {}, optional=True), "The MLP of each block; null means none.", None
    )
    norm_eps: float = spec_field(Number(0.0, 1.0), "Added to mean squares by RMSNorm.", 1e-5)
    tied: bool = spec_field(Flag(), "Whether logits are products with the embedding.", True)

    def mixers(self) -> Iterator[Mixer]:
        """That of every layer."""
        placed = {layer: entry.mixer for entry in self.placement for layer in entry.layers}
        for layer in range(self.layers):
            yield placed.get(layer, self.mixer)
