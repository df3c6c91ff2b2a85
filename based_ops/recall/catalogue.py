"""Which kinds of models there are, and of what layers they consist."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import layers
from ..errors import ArgumentValueError, fail
from ..extras import require
from ..operands import dtype_of
from ..variant import Variant
from .attention import SoftmaxAttention
from .maps import MAPS
from .peers import PEERS, Apart, peer
from .recipe import LENGTH

if TYPE_CHECKING:
    from based_ops.codegen.spec.model import LayerSpec

Dial = int | str | bool
Dials = Mapping[str, Any]
Made = Callable[[int], nn.Module]
"""A layer of so many models side by side; `keep_apart` has still to keep them apart."""


@dataclass(frozen=True)
class Layer:
    """A layer of a model: how it is made, and what it keeps of one sequence of `LENGTH` tokens."""

    make: Made
    state_bytes: int
    """In float32."""
    spec: LayerSpec | None = None
    """That of what mixes tokens, where it is a spec."""


@dataclass(frozen=True)
class Kind:
    """A kind of model: what it is, its layers at a width, and its dials as they are by default."""

    says: str
    layers: Callable[[int, Dials], Sequence[Layer]]
    dials: Dials = field(default_factory=dict)


def spec_of(mixer: str, name: str, **fields: Any) -> LayerSpec:
    """The spec with these fields; raises `SpecErrors` if they make none."""
    require("compile", "a layer's spec")
    import yaml

    from based_ops.codegen.spec.load import parse_spec

    return parse_spec(yaml.safe_dump({"name": name, "mixer": mixer} | fields), f"<{name}>")


def compiled(spec: LayerSpec) -> Variant:
    """The variant of a spec: one that is shipped, or it is compiled into the cache now."""
    from ..jit import meaning

    return meaning(spec)


def bytes_of(spec: LayerSpec, units: int = 1) -> int:
    """Bytes of the state of one sequence, in so many heads or channels, of calls in float32."""
    found = 0
    for part in spec.signature().state:
        if part.present:
            numbers = (x if isinstance(x, int) else 1 for x in part.dims)
            found += math.prod(numbers) * dtype_of(spec, part.dtype, torch.float32).itemsize
    return units * found


def _of_spec(spec: LayerSpec, make: Callable[[int, Variant], nn.Module]) -> Layer:
    """A layer of one head of a spec, which is compiled when it is made."""
    return Layer(lambda models: make(models, compiled(spec)), bytes_of(spec), spec)


def _of_module(make: Made) -> Layer:
    """A layer that says itself what it keeps."""
    one: Any = make(1)
    grows = "most" in inspect.signature(one.state_bytes).parameters
    return Layer(make, one.state_bytes(1, LENGTH) if grows else one.state_bytes(1))


def linear(name: str, d: int, qk: int, **fields: Any) -> Layer:
    """Linear attention with one head, queries and keys `qk` wide, values as wide as the model."""
    spec = spec_of("linear_attention", f"{name}_qk{qk}_v{d}", head_dims={"qk": qk, "v": d}, **fields)
    return _of_spec(spec, lambda models, op: layers.LinearAttention(models * d, models, op))


def taylor(d: int, qk: int, order: int, **fields: Any) -> Layer:
    """The Taylor map of exp."""
    signed = {"signed_weights": True} if order % 2 else {}
    about = {"kind": "taylor_exp", "order": order}
    return linear(f"taylor{order}", d, qk, feature_map=about, **signed, **fields)


def convolution(width: int) -> LayerSpec:
    """A short convolution without an activation."""
    return spec_of("short_conv", f"conv{width}_plain", width=width, activation=None)


def conv(d: int, width: int = 3) -> Layer:
    """A BaseConv of a few taps."""
    spec = convolution(width)
    return Layer(lambda models: layers.BaseConv(models * d, compiled(spec)), bytes_of(spec, d))


def window(d: int, width: int) -> Layer:
    """Softmax over the last keys, without positions."""
    spec = spec_of("sliding_window", f"window{width}_d{d}", window=width, head_dims={"qk": d, "v": d})
    return _of_spec(
        spec, lambda models, op: layers.SlidingWindowAttention(models * d, models, op, rotary=False)
    )


def _softmax(d: int, width: int | None = None, sinks: int = 0) -> Layer:
    return _of_module(lambda models: SoftmaxAttention(models * d, models, width, sinks))


def _based(d: int, dials: Dials) -> list[Layer]:
    """`conv` taps beneath (0: none), a window in a layer of its own (0: none), and the Taylor map."""
    found = [conv(d, dials["conv"])] if dials["conv"] else []
    found += [window(d, dials["window"])] if dials["window"] else []
    return [*found, taylor(d, dials["features"], dials["order"])]


def _hybrid(d: int, dials: Dials) -> list[Layer]:
    qk, own = dials["features"], dials["window_qk"]
    fields: dict[str, Any] = {"window": dials["window"], "head_dims": {"qk": qk, "v": d}}
    fields |= {"feature_map": {"kind": "taylor_exp", "order": 2}, "combine": dials["combine"]}
    fields |= {"window_factor": dials["factors"], "linear_factor": dials["factors"]}
    if own:
        fields["window_dims"] = {"qk": own}
    spec = spec_of("hybrid", f"hybrid_taylor2_qk{qk}_v{d}_w{dials['window']}", **fields)
    return [conv(d), _of_spec(spec, lambda models, op: layers.HybridAttention(models * d, models, op))]


def _map(d: int, dials: Dials) -> list[Layer]:
    name, qk = dials["map"], dials["features"] or d
    if name not in MAPS:
        fail(ArgumentValueError, "map", repr(name), f"one of {', '.join(MAPS)}")
    return [conv(d), linear(name, d, qk, **MAPS[name](qk))]


def _mamba2(d: int, dials: Dials) -> list[Layer]:
    state, width = dials["state"], dials["head"]
    fields = {"head_dims": {"qk": state, "v": width}, "normalize": False, "scale": 1.0, "decay": "token"}
    fields["feature_map"] = {"kind": "elementwise", "expression": "x"}
    spec = spec_of("linear_attention", f"mamba2_qk{state}_v{width}", **fields)
    conv4 = _conv4()

    def make(models: int) -> nn.Module:
        return layers.Mamba2Mixer(models * d, compiled(spec), compiled(conv4), groups=models)

    bytes_ = bytes_of(spec, 2 * d // width) + bytes_of(conv4, 2 * d + 2 * state)
    return [Layer(make, bytes_, spec)] * 2


def _delta(d: int, dials: Dials) -> list[Layer]:
    """`scale` is that of q·k, which is at most 1: keys are divided by their lengths."""
    name, qk, kind = dials["map"], dials["features"], _CORRECTED.get(dials["map"])
    if kind is None:
        fail(ArgumentValueError, "map", repr(name), f"one of {', '.join(_CORRECTED)}")
    fields: dict[str, Any] = {"update": "delta", "unit_keys": True, "normalize": False}
    fields |= {"feature_map": kind, "scale": float(dials["scale"])}
    fields |= {"decay": "token"} if dials["fades"] else {}
    spec = spec_of("linear_attention", f"{name}_delta_qk{qk}_v{d}", head_dims={"qk": qk, "v": d}, **fields)

    def make(models: int, op: Variant) -> nn.Module:
        return layers.BasedDelta(models * d, models, op, negative_eigenvalues=dials["negative"])

    return [conv(d), _of_spec(spec, make)]


def _delta_net(d: int, dials: Dials) -> list[Layer]:
    """Models one after the other: its norm is shared by heads, which side by side are models."""
    heads = dials["heads"]
    qk, v = dials["qk"] or d // heads, d // heads
    fields: dict[str, Any] = {"feature_map": _CORRECTED["identity"], "head_dims": {"qk": qk, "v": v}}
    fields |= {"update": "delta", "unit_keys": True, "normalize": False}
    fields |= {"decay": "token"} if dials["fades"] else {}
    name = f"{'gated_' if dials['fades'] else ''}delta_qk{qk}_v{v}"
    spec, conv4 = spec_of("linear_attention", name, **fields), _conv4()
    size = bytes_of(spec, heads) + bytes_of(conv4, heads * (2 * qk + v))

    def make(models: int) -> nn.Module:
        op, taps = compiled(spec), compiled(conv4)
        return Apart(lambda: layers.DeltaNet(d, heads, op, taps, True, dials["negative"]), models, size)

    return [conv(d), Layer(make, size, spec)]


def _conv4() -> LayerSpec:
    return spec_of("short_conv", "conv4_silu", width=4, activation="silu(x)")


_CORRECTED: dict[str, dict[str, Any]] = {
    "taylor2": {"kind": "taylor_exp", "order": 2},
    "square": {"kind": "power", "degree": 2},
    "identity": {"kind": "elementwise", "expression": "x"},
}
"""The feature maps under the delta rule."""


def _hyena(d: int, dials: Dials) -> list[Layer]:
    short = compiled(convolution(3))
    return [_of_module(lambda models: layers.Hyena(models * d, LENGTH, short, groups=models))] * 2


def _h3(d: int, dials: Dials) -> list[Layer]:
    return [_of_module(lambda models: layers.H3(models * d, dials["state"]))] * 2


def _s4d(d: int, dials: Dials) -> list[Layer]:
    """Models one after the other: a mode's numbers come before the channels, and so before the models."""
    order, basis = dials["order"], dials["basis"]
    spec = spec_of("state_space", f"s4d_n{order}_{basis}", order=order, basis=basis)
    size = bytes_of(spec, d)

    def make(models: int) -> nn.Module:
        op: Variant[Any] = compiled(spec)
        return Apart(lambda: layers.StateSpace(d, op), models, size)

    return [Layer(make, size, spec)] * 2


def _long(d: int, dials: Dials) -> list[Layer]:
    long = _of_module(lambda models: layers.BaseConv(models * d, length=LENGTH, groups=models))
    return [conv(d), long]


def _sparse(d: int, dials: Dials) -> list[Layer]:
    """Zoology's hybrid; `penalty` is whether training pulls the number of open gates to √T."""
    long = _of_module(lambda models: layers.BaseConv(models * d, length=LENGTH, groups=models))

    return [
        long,
        _of_module(lambda models: layers.SparseAttention(models * d, models, models, dials["penalty"])),
    ]


def _peer(name: str, d: int, dials: Dials) -> list[Layer]:
    return [conv(d), _of_module(peer(name, d, dials))]


MODELS: dict[str, Kind] = {
    "attention": Kind("softmax over all keys", lambda d, _: [conv(d), _softmax(d)]),
    "based": Kind(
        "the Taylor map of exp; window: a layer of one before it (0: none); conv: taps beneath (0: none)",
        _based,
        {"features": 16, "order": 2, "window": 0, "conv": 3},
    ),
    "window": Kind(
        "softmax over the last keys", lambda d, x: [conv(d), window(d, x["window"])], {"window": 64}
    ),
    "sinks": Kind(
        "softmax over the last keys and the first",
        lambda d, x: [conv(d), _softmax(d, x["window"], x["sinks"])],
        {"window": 60, "sinks": 4},
    ),
    "hybrid": Kind(
        "window and Taylor map in one layer; window_qk: queries and keys of the window's own (0: none)",
        _hybrid,
        {"features": 16, "window": 32, "combine": "normalizer", "factors": False, "window_qk": 0},
    ),
    "fading": Kind(
        "the Taylor map with a state that fades by what each token says",
        lambda d, x: [conv(d), taylor(d, x["features"], 2, decay="token")],
        {"features": 16},
    ),
    "delta": Kind(
        "the delta rule over taylor2, square or identity of keys of length 1; negative: rates to 2",
        _delta,
        {"map": "taylor2", "features": 16, "scale": 4, "fades": False, "negative": False},
    ),
    "delta_net": Kind(
        "DeltaNet, or if it fades Gated DeltaNet; qk 0: as wide as the values; negative: rates to 2",
        _delta_net,
        {"heads": 1, "qk": 0, "fades": False, "negative": False},
    ),
    "map": Kind(
        "another feature map; features 0: as wide as the model", _map, {"map": "relu", "features": 0}
    ),
    "mamba2": Kind("two blocks of Mamba-2", _mamba2, {"state": 16, "head": 64}),
    "hyena": Kind("two layers of Hyena", _hyena),
    "h3": Kind("two layers of H3", _h3, {"state": 16}),
    "sparse": Kind(
        "a BaseConv as long as the sequence, and attention for the √T tokens that ask for it",
        _sparse,
        {"penalty": True},
    ),
    "s4d": Kind(
        "two layers of S4D; basis, where poles begin: legs, legt, fout, foud, lin, inv, real, random",
        _s4d,
        {"order": 64, "basis": "legs"},
    ),
    "base_conv": Kind("a BaseConv of three taps, and one as long as the sequence", _long),
    **{
        name: Kind(f"{name} of flash-linear-attention", partial(_peer, name), dials)
        for name, dials in PEERS.items()
    },
}
