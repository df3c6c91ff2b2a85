"""Validation of call arguments: once, in the public functions, before any kernel runs.

Each check has a fast path that costs little per call, and a slow one that finds out what to say.  All of it
can be traced: `operator.index` turns a symbolic size into a number where a message needs it.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch
from torch import Tensor

from . import heads
from .errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceError,
    DtypeError,
    GradientError,
    LayoutWarning,
    ShapeError,
    StateError,
    fail,
)

if TYPE_CHECKING:
    from based_ops.codegen.spec.signature import Argument


_STRIDED = torch.strided


DENSE = "contiguous, or with dense entries of its first dimension, each behind the one before"
"""What a pool has to be."""


class Facts(Protocol):
    """What the checks read of a variant, see `Variant._facts`."""

    name: str
    dtypes: tuple[torch.dtype, ...]


class Widths(Facts, Protocol):
    """The same of attention."""

    @property
    def qk(self) -> int: ...
    @property
    def v(self) -> int: ...


def sizes(tensor: Tensor) -> tuple[int, ...]:
    """The shape as plain numbers, for a message."""
    return tuple([operator.index(size) for size in tensor.shape])


def qkv(variant: Widths, q: Tensor, k: Tensor, v: Tensor, most: int | None = None) -> tuple[int, int, int]:
    """q, k [B,T,H,qk] and v [B,T,H,v] of one allowed dtype, on one device; T is `most`, if given, or less.

    Each may have fewer heads, a divisor of the largest number.  Returns B, T and the heads of the state.
    """
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        for name, value in (("q", q), ("k", k), ("v", v)):
            if not isinstance(value, Tensor):
                fail(ArgumentTypeError, name, type(value).__name__, "a torch.Tensor")
    if not (q.layout is k.layout is v.layout is _STRIDED):
        _explain_layouts(q, k, v)
    try:
        shape = q.shape
        if len(shape) != 4:
            _in_groups(variant, q, k, v, most)
        batch, length, units, width = shape
        if not (
            width == variant.qk
            and k.shape == shape
            and v.shape == (batch, length, units, variant.v)
            and (most is None or length <= most)
        ):
            units = _in_groups(variant, q, k, v, most)
    except RuntimeError:  # nested tensors have no shape
        _explain_layouts(q, k, v)
        raise
    dtype = q.dtype
    if not (k.dtype is dtype and v.dtype is dtype and dtype in variant.dtypes):
        _explain_dtypes(variant, q, k, v)
    device = q.device
    if not (k.device == device and v.device == device):
        name, other = ("k", k) if k.device != device else ("v", v)
        fail(DeviceError, name, str(other.device), f"on the device of q, {device}")
    return batch, length, units


def _explain_layouts(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        layout(name, tensor)


def layout(name: str, tensor: Tensor) -> None:
    """A dense tensor."""
    if tensor.is_nested:
        fail(
            ArgumentTypeError,
            name,
            "a nested tensor",
            "a dense one: pad its sequences behind their ends, or call once for each",
        )
    if tensor.layout != torch.strided:
        fail(ArgumentTypeError, name, f"a tensor of layout {tensor.layout}", "dense, as of `to_dense()`")


def too_long(name: str, shape: tuple[int, ...], most: int) -> NoReturn:
    """A step of more tokens than it takes."""
    what = f"of up to {most} tokens: a step takes no more; for a longer piece call with `initial_state`"
    fail(ShapeError, name, f"{shape[1]} tokens in {shape}", what)


def _in_groups(variant: Widths, q: Tensor, k: Tensor, v: Tensor, most: int | None) -> int:
    """The heads of the state, where those of q, k and v differ; raises `ShapeError` for wrong shapes."""
    for name, tensor, width in (("q", q, variant.qk), ("k", k, variant.qk), ("v", v, variant.v)):
        if tensor.dim() != 4 or tensor.shape[3] != width:
            fail(ShapeError, name, sizes(tensor), f"of shape [B, T, H, {width}] for {variant.name}")
    if most is not None and q.shape[1] > most:
        too_long("q", sizes(q), most)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape[:2] != q.shape[:2]:
            want = sizes(q)[:2]
            fail(ShapeError, name, sizes(tensor), f"of q's batch and length, [{want[0]}, {want[1]}]")
    heads.check({"q": q.shape[2], "k": k.shape[2], "v": v.shape[2]})
    states: int = heads.multiple((k.shape[2], v.shape[2]))
    return states


_known_heads: set[tuple[str, int]] = set()


def layout_is_known(name: str, heads: int) -> None:
    """Says that calls of a variant with so many heads are laid out right, as a layer's are."""
    _known_heads.add((name, heads))


def warn_of_layout(name: str, length: int, heads: int) -> None:
    """Warns once of tensors with less time than heads: they may be [B,H,T,D]."""
    if (name, heads) not in _known_heads:
        warnings.warn(
            f"{name}: q has {length} tokens and {heads} heads; tensors are [B, T, H, D], so if these are "
            "[B, H, T, D], heads and time have changed places: take `x.transpose(1, 2)`",
            LayoutWarning,
            stacklevel=5,  # past the functions that lead here from a call
        )
        layout_is_known(name, heads)


def _explain_dtypes(variant: Facts, q: Tensor, k: Tensor, v: Tensor) -> None:
    allowed = ", ".join([str(dtype) for dtype in variant.dtypes])
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dtype not in variant.dtypes:
            fail(DtypeError, name, str(tensor.dtype), f"one of {allowed} (float64 on the torch backend only)")
        if tensor.dtype != q.dtype:
            fail(DtypeError, name, str(tensor.dtype), f"of q's dtype, {q.dtype}")


def scale(value: float) -> float:
    """The scale that a call gives."""
    if isinstance(value, bool) or not isinstance(value, (float, int)):
        fail(ArgumentTypeError, "scale", type(value).__name__, "a Python float (or None for the spec's own)")
    if not 0 < value <= 1e6:  # in words and written out, since traced code may know the number as a symbol
        got = "NaN" if value != value else "a larger number" if value > 0 else "zero or less"
        fail(ArgumentValueError, "scale", got, "a positive number up to 1e6, as in a spec")
    return float(value)


def count(name: str, value: Any, least: int) -> None:
    """A size: an integer of at least `least`."""
    if isinstance(value, torch.SymInt):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        fail(ArgumentTypeError, name, type(value).__name__, "an int")
    if value < least:
        fail(ArgumentValueError, name, value, f"at least {least}")


def sizes_of_state(variant: Facts, batch: Any, units: Any, dtype: Any, unit: str = "heads") -> None:
    """What a state is made for: a batch and heads, each of which may be 0, and the inputs' dtype or None."""
    count("batch", batch, 0)
    count(unit, units, 0)
    if dtype is not None and dtype not in variant.dtypes:
        allowed = ", ".join([str(x) for x in variant.dtypes])
        fail(DtypeError, "dtype", str(dtype), f"one of {allowed}, or None")


def state_part(
    argument: str,
    name: str,
    part: Tensor | None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    like: Tensor,
    in_place: bool,
    other_dtype: str = "",
    pool: bool = False,
) -> None:
    """One tensor of a state: its exact shape and dtype, on `like`'s device, and dense if `in_place`.

    `other_dtype` is what to say besides where the dtype is another.
    """
    if not isinstance(part, Tensor):
        fail(StateError, f"{argument}.{name}", type(part).__name__, "a torch.Tensor")
    if (
        part.shape == shape
        and part.dtype is dtype
        and part.device == like.device
        and (not in_place or part.is_contiguous() or (pool and dense_entries(part)))
    ):
        return
    argument = f"{argument}.{name}"
    if part.shape != shape:
        expected = [operator.index(size) for size in shape]
        fail(StateError, argument, f"shape {sizes(part)}", f"of shape {expected}")
    if part.dtype != dtype:
        fail(StateError, argument, str(part.dtype), f"{dtype} for inputs of {like.dtype}{other_dtype}")
    if part.device != like.device:
        fail(DeviceError, argument, str(part.device), f"on the device of the inputs, {like.device}")
    wanted = f"{DENSE if pool else 'contiguous'}, since a step updates it in place"
    fail(StateError, argument, "a tensor that is not contiguous", wanted)


def dense_entries(x: Tensor) -> bool:
    """Whether each entry of the first dimension is dense, and none shares memory with the next."""
    if x.is_contiguous():
        return True
    length: Any = 1
    for size, stride in zip(x.shape[:0:-1], x.stride()[:0:-1], strict=True):
        if size != 1 and stride != length:
            return False
        length = length * size
    return bool(x.stride(0) >= length)


STEP = "a step updates its state in place and is not differentiable"


def no_gradient(names: Iterable[str], tensors: Iterable[Tensor | None], why: str = STEP) -> None:
    """What updates states in place is not differentiable."""
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is not None and tensor.requires_grad:
            fail(
                GradientError,
                name,
                "a tensor that requires a gradient",
                f"used under torch.no_grad(): {why}",
            )


def autocast_dtype(x: Any, dtypes: Sequence[torch.dtype]) -> torch.dtype | None:
    """The dtype that autocast gives a call with `x`, its own or float32, if that is allowed, or None."""
    if not isinstance(x, Tensor):
        return None
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast to ask about
        return None
    dtype = torch.get_autocast_dtype(device)
    if dtype in dtypes:
        return dtype
    return torch.float32 if torch.float32 in dtypes else None


def cast(x: Any, dtype: torch.dtype) -> Any:
    """`x` as autocast casts it."""
    # float64 stays, and so does what is no floating tensor, for the checks to name.
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(dtype)


def inputs(
    arguments: Sequence[Argument], variant: Facts, tensors: Sequence[Tensor | None], most: int | None = None
) -> tuple[int, int, int]:
    """Inputs as `arguments` describe them, of one allowed dtype, on one device; T up to `most` if given.

    Returns the first three sizes of the first, which are batch, length, and heads or channels.
    """
    known: dict[str, Any] = {}
    lead = tensors[0]
    for x, tensor in zip(arguments, tensors, strict=True):
        if tensor is None and x.optional:
            continue
        if not x.present:
            fail(ArgumentTypeError, x.name, "a tensor", f"None, since {variant.name} takes none")
        if not isinstance(tensor, Tensor):
            fail(ArgumentTypeError, x.name, type(tensor).__name__, "a torch.Tensor")
        layout(x.name, tensor)
        shape = tensor.shape
        if len(shape) == len(x.dims):
            for dim, size in zip(x.dims, shape, strict=True):
                want = dim if isinstance(dim, int) else known.setdefault(dim, size)
                if size != want:
                    break
            else:
                if x.wide:
                    _as_wide_as_sums(x.name, tensor, arguments[0].name, lead)
                else:
                    _same_kind(variant, x.name, tensor, arguments[0].name, lead)
                continue
        wanted = [str(operator.index(known[dim])) if dim in known else str(dim) for dim in map(str, x.dims)]
        fail(ShapeError, x.name, sizes(tensor), f"of shape [{', '.join(wanted)}] for {variant.name}")
    if most is not None and known["T"] > most:
        too_long(arguments[0].name, sizes(lead), most)  # type: ignore[arg-type]
    return known["B"], known["T"], known[str(arguments[0].dims[2])]


def _as_wide_as_sums(name: str, tensor: Tensor, first: str, lead: Any) -> None:
    wide = torch.float64 if lead.dtype == torch.float64 else torch.float32
    if tensor.dtype != wide:
        fail(DtypeError, name, str(tensor.dtype), f"{wide} beside {first} of {lead.dtype}")
    if tensor.device != lead.device:
        fail(DeviceError, name, str(tensor.device), f"on the device of {first}, {lead.device}")


def _same_kind(variant: Facts, name: str, tensor: Tensor, first: str, lead: Any) -> None:
    if tensor.dtype not in variant.dtypes:
        allowed = ", ".join([str(dtype) for dtype in variant.dtypes])
        fail(DtypeError, name, str(tensor.dtype), f"one of {allowed} (float64 on the torch backend only)")
    if tensor.dtype != lead.dtype:
        fail(DtypeError, name, str(tensor.dtype), f"of {first}'s dtype, {lead.dtype}")
    if tensor.device != lead.device:
        fail(DeviceError, name, str(tensor.device), f"on the device of {first}, {lead.device}")


def decay(variant: Facts, dims: Sequence[int | str], g: Any, q: Tensor, units: int, traced: bool) -> None:
    """Decays g [H] or [B,T,H] of calls with q, none above 0: that is looked at on a CPU alone.

    There are `units` heads, those of the state.
    """
    layout("g", g)
    wanted = (*q.shape[:2], units) if len(dims) > 1 else (units,)
    if tuple(g.shape) != wanted:
        fail(ShapeError, "g", sizes(g), f"of shape {[operator.index(x) for x in wanted]} for {variant.name}")
    if g.device != q.device:
        fail(DeviceError, "g", str(g.device), f"on the device of q, {q.device}")
    if not traced and g.device.type == "cpu" and bool((g > 0).any()):
        what = "a logarithm of what is left, at most 0, of every token"
        fail(ArgumentValueError, "g", f"a number above 0, {float(g.detach().max())}", what)


MOST_RATE = 2.0
"""The largest rate of a delta rule: beyond it what a state answers to a key grows with each token."""


def rate(variant: Facts, beta: Any, q: Tensor, units: int, traced: bool) -> None:
    """Rates β [B,T,H] of calls with q, from 0 to 2: that is looked at on a CPU alone.

    There are `units` heads, those of the state.
    """
    layout("beta", beta)
    wanted = (*q.shape[:2], units)
    if tuple(beta.shape) != wanted:
        shape = [operator.index(x) for x in wanted]
        fail(ShapeError, "beta", sizes(beta), f"of shape {shape} for {variant.name}")
    if beta.device != q.device:
        fail(DeviceError, "beta", str(beta.device), f"on the device of q, {q.device}")
    if not traced and beta.device.type == "cpu" and bool(((beta < 0) | (beta > MOST_RATE)).any()):
        least, most = (float(x) for x in beta.detach().aminmax())
        got = f"a number of {least:g}" if least < 0 else f"a number of {most:g}"
        fail(ArgumentValueError, "beta", got, f"from 0 to {MOST_RATE:g} for every token, mostly up to 1")


def factor(
    variant: Facts, name: str, x: Any, q: Tensor, heads: Any, least: float | None, traced: bool
) -> None:
    """A factor of each of the `heads` of outputs, or none; whether one is below `least` is seen on a CPU."""
    if x is None:
        return
    if not isinstance(x, Tensor):
        fail(ArgumentTypeError, name, type(x).__name__, "a torch.Tensor or None")
    layout(name, x)
    if x.dim() != 1 or x.shape[0] != heads:
        wanted = operator.index(heads)
        fail(ShapeError, name, sizes(x), f"of shape [{wanted}], one number a head, for {variant.name}")
    if x.device != q.device:
        fail(DeviceError, name, str(x.device), f"on the device of q, {q.device}")
    if least is not None and not traced and x.device.type == "cpu" and bool((x < least).any()):
        what = f"factors under one normaliser, at least {least:g}"
        fail(ArgumentValueError, name, f"a number below, {float(x.detach().min()):g}", what)


def as_many(variant: Facts, name: str, x: Any, q: Tensor, like: Tensor, width: int | str) -> None:
    """Further queries or keys [B,T,H,width] of calls with q, as many as those that they are `like`."""
    if not isinstance(x, Tensor):
        fail(ArgumentTypeError, name, type(x).__name__, f"a torch.Tensor: {variant.name} takes it")
    layout(name, x)
    if x.dim() != 4 or x.shape[3] != width or x.shape[:3] != like.shape[:3]:
        wanted = [*map(operator.index, like.shape[:3]), width]
        fail(ShapeError, name, sizes(x), f"of shape {wanted} for {variant.name}")
    _same_kind(variant, name, x, "q", q)
