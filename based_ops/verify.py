"""Errors of a variant's kernels against naive mathematics in float64, over awkward shapes.

Inputs are random, from a distribution that `domain` names, rounded to the dtype under test, and laid out in
three ways (dense, slices of one fused projection, heads before tokens).  The reference computes in float64
from the same rounded inputs.  Memory that kernels allocate is filled with NaN first, so an element that
nobody wrote is seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .errors import LayoutWarning
from .inputs import draw, filled, taken, tokens, units
from .tolerance import BACKWARD, FORWARD, Tolerance, errors
from .variant import Variant

PASSES = ("forward", "backward", "pieces", "step")
ODD_CHANNELS = 43
"""Channels for each head of a case, of layers without heads."""
SINGLY = 3
"""Tokens that are stepped one by one before the others are at once."""
NOISE = 0.1
"""Of the largest gradient of a call: what is smaller is a cancellation, and judged against this size."""


@dataclass(frozen=True)
class Case:
    """The shape of one call; `prefix` tokens went before it into the state it starts from (0: no state)."""

    batch: int
    length: int
    heads: int
    prefix: int
    layout: str

    def __str__(self) -> str:
        state = f", after {self.prefix} tokens" if self.prefix else ""
        return f"B{self.batch} T{self.length} H{self.heads}, {self.layout}{state}"


@dataclass(frozen=True)
class Measurement:
    """One tensor of one call: how far it is from the reference, and how far it may be."""

    variant: str
    backend: str
    device: str
    dtype: torch.dtype
    which: str
    tensor: str
    case: Case
    found: Tolerance
    allowed: Tolerance

    @property
    def fine(self) -> bool:
        return self.allowed.allows(self.found)


SHORT = (
    Case(3, 1, 1, 0, "dense"),
    Case(1, 1, 3, 5, "fused"),
    Case(1, 2, 3, 3, "dense"),
    Case(2, 15, 1, 0, "heads first"),
    Case(1, 16, 2, 16, "fused"),
    Case(1, 17, 3, 1, "dense"),
    Case(1, 63, 1, 70, "heads first"),
    Case(3, 65, 1, 0, "fused"),
)
"""Cases that an interpreter gets through in seconds."""

ALL = (
    *SHORT,
    Case(2, 64, 3, 64, "fused"),
    Case(1, 129, 5, 31, "heads first"),
    Case(3, 300, 1, 0, "fused"),
    Case(1, 513, 1, 129, "dense"),
)
"""The awkward shapes: around powers of two, odd batches and heads, shorter than a chunk, and some long."""


def cases(backend: str, device: str) -> Sequence[Case]:
    """The cases to measure: all, or the short ones where kernels are interpreted or run one thread."""
    return ALL if backend == "torch" or torch.device(device).type == "cuda" else SHORT


def dtypes(variant: Variant, backend: str) -> tuple[torch.dtype, ...]:
    """The dtypes in which a backend serves a variant."""
    return variant.dtypes if backend == "torch" else tuple(d for d in variant.dtypes if d != torch.float64)


def measure(
    variant: Variant,
    backend: str,
    device: str,
    dtype: torch.dtype,
    over: Sequence[Case] | None = None,
    seed: int = 0,
    passes: Sequence[str] = PASSES,
) -> Iterator[Measurement]:
    """Every tensor of each of `passes` of every case, compared.

    Of a layer with parts, whose kernels are those of its core, inputs are features already.
    """
    weighs, variant = domain(variant).draw, variant.core
    for number, case in enumerate(cases(backend, device) if over is None else over):
        generator = torch.Generator().manual_seed(seed + 1000 * number)
        trial = _Trial(variant, backend, device, dtype, case, generator, weighs)
        for which in passes:
            with poisoned_memory(), warnings.catch_warnings():
                warnings.simplefilter("ignore", LayoutWarning)  # fewer tokens than heads are meant
                found = list(getattr(trial, which)())
            yield from found


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills memory that PyTorch allocates without initialising with NaN."""
    on = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic
    fill = filling.fill_uninitialized_memory
    # The filling is a part of the deterministic mode.  Inputs and references are computed under it too, which
    # costs a little time and changes nothing.
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn)
        filling.fill_uninitialized_memory = fill


class _Trial:
    """One case of one variant: its inputs, its reference, and what each pass gives."""

    def __init__(
        self,
        variant: Variant,
        backend: str,
        device: str,
        dtype: torch.dtype,
        case: Case,
        generator: torch.Generator,
        weighs: Callable[[Tensor], Tensor],
    ) -> None:
        self.variant, self.backend, self.device, self.dtype, self.case = variant, backend, device, dtype, case
        self.generator = generator
        self.weighs = weighs
        self.units = units(variant.signature, case.heads, ODD_CHANNELS)
        self.inputs = self._inputs(case.length)
        self.state = None
        if case.prefix:
            past = self._exactly([x.double() for x in self._inputs(case.prefix)], None)[1]
            self.state = _rounded(past, variant, self.inputs[0], self.units)
        self.exact = tuple(x.double().requires_grad_() for x in self.inputs)
        self.exact_state = _map(self.state, lambda x: x.double().requires_grad_())
        self.expected = self._reference(case.length)

    def forward(self) -> Iterator[Measurement]:
        """The output and the final state of one call."""
        o, final = self._call(self.inputs, self.state)
        yield self._compared("forward", self.output, o, self.expected[0], FORWARD)
        yield from self._states("forward", final, self.expected[1])

    def backward(self) -> Iterator[Measurement]:
        """Gradients of all inputs, from the output and, where it is differentiable, the final state."""
        inputs = [x.detach().requires_grad_() for x in self.inputs]
        state = _map(self.state, lambda x: x.detach().clone().requires_grad_())
        o, final = self._call(inputs, state)
        both = zip((o, *_floating(final)), (self.expected[0], *_floating(self.expected[1])), strict=True)
        outputs, expected = zip(*((x, y) for x, y in both if x.requires_grad), strict=True)
        weights = [self._normal(x.shape).to(x.dtype) for x in outputs]
        names = [f"d{x.name}" for x in taken(self.variant)]
        names += [f"d initial {name}" for name in _field_names(state)]
        actual = torch.autograd.grad(outputs, [*inputs, *_floating(state)], weights)
        leaves = [*self.exact, *_floating(self.exact_state)]
        exact = torch.autograd.grad(expected, leaves, [w.double() for w in weights], retain_graph=True)
        size = max(float(g.square().mean().sqrt()) for g in exact)
        # The gradient of a number that all tokens share is a sum of as many terms, of either sign.
        shared = [x for x in taken(self.variant) if (x.fades or x.multiplies) and "T" not in x.dims]
        summed = {f"d{x.name}" for x in shared}
        terms = self.case.batch * self.case.length
        for name, got, want in zip(names, actual, exact, strict=True):
            floor = size * (terms**0.5 if name in summed else NOISE)
            yield self._compared("backward", name, got, want, BACKWARD, floor)

    def pieces(self) -> Iterator[Measurement]:
        """The same sequence in three calls that hand on their state."""
        state, parts = self.state, []
        for start, stop in _split(self.case.length):
            o, state = self._call(tokens(self.variant, self.inputs, start, stop), state)
            parts.append(o)
        yield self._compared("pieces", self.output, torch.cat(parts, 1), self.expected[0], FORWARD)
        yield from self._states("pieces", state, self.expected[1])

    def step(self) -> Iterator[Measurement]:
        """The beginning of the sequence in steps, the first of one token each, the last of several."""
        variant, length = self.variant, min(self.case.length, 17)
        if self.state is None:
            state = variant.init_state(self.case.batch, self.units, device=self.device, dtype=self.dtype)
        else:
            state = type(self.state)(*(x if x is None else x.clone() for x in self.state))
        parts = []
        with torch.no_grad():
            for start, stop in pairwise([*range(min(SINGLY, length - 1) + 1), length]):
                given = filled(variant, tokens(variant, self.inputs, start, stop))
                parts.append(variant._step(given, None, state, self.backend))
        o, final = self._reference(length)
        yield self._compared("step", self.output, torch.cat(parts, 1), o, FORWARD)
        kernel = dispatch.kernel(variant.name, self.backend, self.inputs[0].device, self.dtype)
        yield from self._states("step", variant._settle(state, kernel), final)

    def _call(self, inputs: Sequence[Tensor], state: Any) -> tuple[Tensor, Any]:
        return self.variant._call(filled(self.variant, inputs), None, state, True, self.backend)

    def _reference(self, length: int) -> tuple[Tensor, Any]:
        """The exact output and final state of the first `length` tokens."""
        return self._exactly(tokens(self.variant, self.exact, 0, length), self.exact_state)

    def _exactly(self, inputs: Sequence[Tensor], state: Any) -> tuple[Tensor, Any]:
        variant = self.variant
        return variant._reference(filled(variant, inputs), variant._numbers(variant, None), state)

    @property
    def output(self) -> str:
        return self.variant.signature.output.name

    def _states(self, which: str, actual: Any, expected: Any) -> Iterator[Measurement]:
        for name, got, want in zip(type(actual)._fields, actual, expected, strict=True):
            if got is not None:
                yield self._compared(which, f"final {name}", got, want, FORWARD)

    def _compared(
        self,
        which: str,
        tensor: str,
        actual: Tensor,
        expected: Tensor,
        allowed: dict[torch.dtype, Tolerance],
        floor: float = 0.0,
    ) -> Measurement:
        if actual.shape != expected.shape:
            got, want = tuple(actual.shape), tuple(expected.shape)
            raise ValueError(f"{which}: {tensor} has shape {got}, must be {want}")
        # A state may be kept in fewer bits than the inputs have.
        dtypes = {self.dtype, actual.dtype} & allowed.keys()
        return Measurement(
            self.variant.name,
            self.backend,
            str(torch.device(self.device)),
            self.dtype,
            which,
            tensor,
            self.case,
            errors(actual, expected, floor),
            max((allowed[dtype] for dtype in dtypes), key=lambda bounds: bounds.norm),
        )

    def _inputs(self, length: int) -> tuple[Tensor, ...]:
        """What the layer takes in the layout of the case, on the device, rounded to the dtype."""
        case = self.case

        def rounded(shape: Sequence[int]) -> Tensor:
            return self._normal(shape).to(self.dtype)

        def weighs(x: Tensor) -> Tensor:
            return self.weighs(x.double()).to(self.dtype)

        return draw(self.variant, case.batch, length, self.units, rounded, weighs, case.layout)

    def _normal(self, shape: Sequence[int]) -> Tensor:
        x = torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)
        return x.to(self.device)


@dataclass(frozen=True)
class Domain:
    """What queries and keys are drawn from, and how such numbers are made of normal ones."""

    name: str
    draw: Callable[[Tensor], Tensor]


NARROW = Domain("N(0, 0.7²)", lambda x: x * 0.7)
NORMAL = Domain("N(0, 1)", lambda x: x)
POSITIVE = Domain("|N(0, 1)| + 0.1", lambda x: x.abs() + 0.1)
CENTRES = sorted((n / 4 for n in range(-32, 33)), key=lambda m: (abs(m), -m))
"""Where else the middle of the numbers may lie, the nearest first."""
SIDED = 0.9
"""|mean| over root mean square of a map's values, from which on sums of few products keep one sign."""


def domain(variant: Variant) -> Domain:
    """Queries and keys at which the layer is well conditioned.

    A layer that divides by a sum of weights is so only where weights do not cancel.  If its map has both
    signs, normal numbers are drawn around a place at which most values have one; `strain` says what others
    do.  A map that is undefined somewhere is tried where it has values.  A power is the smaller, against the
    products of components that its state sums to it, the nearer a query and a key are to a right angle.
    """
    if variant.core is not variant:
        return POSITIVE if variant.spec.one_sign else domain(variant.core)
    spec: Any = variant.spec
    feature_map = getattr(spec, "feature_map", None)
    expression = getattr(feature_map, "expression", None)
    if expression is None:
        is_power = feature_map is not None and feature_map.kind == "power"
        return POSITIVE if is_power and spec.normalize else NARROW
    from .reference import elementwise

    points = torch.linspace(-6, 6, 601, dtype=torch.float64)
    density = torch.exp(-points.square() / 2)

    def around(centre: float) -> tuple[bool, bool, float]:
        """Whether φ is defined there, has one sign, and how much its values lean to one."""
        values = elementwise(expression, points + centre)
        mean, power = (float((density * x).sum() / density.sum()) for x in (values, values.square()))
        lean = abs(mean) / power**0.5 if power > 0 else 1.0
        return bool(values.isfinite().all()), bool((values >= 0).all() or (values <= 0).all()), lean

    defined, one_sign, _ = around(0.0)
    if defined and (one_sign or not spec.normalize):
        return NORMAL
    if not spec.normalize:
        return POSITIVE
    leans = {m: lean for m in CENTRES for fine, _, lean in [around(m)] if fine}
    if not leans:
        return POSITIVE
    centre = next((m for m, lean in leans.items() if lean >= SIDED), max(leans, key=leans.__getitem__))
    return Domain(f"N({centre:g}, 1)", lambda x: x + centre)


def strain(variant: Variant, length: int = 256) -> float | None:
    """The largest output over the largest value, in exact mathematics, where queries and keys are N(0, 1).

    Weights of one sign make means, which do not exceed 1.  None for a layer that does not divide by a sum of
    weights that can vanish.
    """
    if variant.core is not variant:
        return None if variant.spec.one_sign else strain(variant.core, length)
    spec: Any = variant.spec
    feature_map = getattr(spec, "feature_map", None)
    if feature_map is None or not spec.normalize or feature_map.signs() is None:
        return None
    generator = torch.Generator().manual_seed(0)
    widths = variant.qk, variant.qk, variant.v
    q, k, v = (torch.randn(1, length, 2, n, generator=generator, dtype=torch.float64) for n in widths)
    found: Any = variant.reference(q, k, v)
    return float(found.abs().max() / v.abs().max())


def _split(length: int) -> list[tuple[int, int]]:
    """Up to three uneven pieces of a sequence, none empty."""
    cuts = sorted({0, length // 5, length // 5 + max(1, length // 2), length})
    return [(a, b) for a, b in zip(cuts, cuts[1:], strict=False) if a < b <= length]


def _rounded(state: Any, variant: Variant, like: Tensor, units: int) -> Any:
    """A float64 state as a call with `like` takes it."""
    fresh = variant.init_state(like.shape[0], units, device=like.device, dtype=like.dtype)
    return type(state)(*(x if x is None else x.to(f.dtype) for x, f in zip(state, fresh, strict=True)))


def _map(state: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A state with `function` applied to its floating tensors."""
    if state is None:
        return None
    apply = (function(x) if x is not None and x.is_floating_point() else x for x in state)
    return type(state)(*apply)


def _floating(state: Any) -> list[Tensor]:
    return [] if state is None else [x for x in state if x is not None and x.is_floating_point()]


def _field_names(state: Any) -> list[str]:
    if state is None:
        return []
    pairs = zip(state._fields, state, strict=True)
    return [name for name, x in pairs if x is not None and x.is_floating_point()]
