"""What a layer is: frozen dataclasses that hold meaning only, and no tile size.

`LayerSpec` is what every mixer answers; the mixers themselves are the modules of `codegen.mixers`.  The
runtime imports this module and theirs, so they need neither YAML nor sympy, and import lowerings only when
asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .fields import (
    Choices,
    Expression,
    Integer,
    Kind,
    Record,
    Several,
    Tagged,
    is_quiet,
    kind_of,
    spec_field,
    spec_fields,
)

if TYPE_CHECKING:
    from ..ir.host import Pass
    from ..ir.kernels import ForeignKernel
    from ..ir.program import Program
    from .signature import Signature

QK_DOC = "Width of a query and of a key."
V_DOC = "Width of a value."
NAME_DOC = "Name of the layer and of its operators; equal to the name of the file."
DTYPES_DOC = "Dtypes of the inputs that this layer serves."


@dataclass(frozen=True)
class Conflict:
    """What is wrong with the values of several fields, each of them right by itself."""

    path: tuple[str | int, ...]
    """The field to show it at, by keys and places in lists."""
    message: str
    grave: bool
    """Whether it is a fault; else it is worth a warning."""


@dataclass(frozen=True)
class HeadDims:
    """Widths of one head.  The mixer says how wide is allowed."""

    qk: int = spec_field(Integer(8, 128), QK_DOC)
    v: int = spec_field(Integer(16, 256), V_DOC)


WIDEST = 64
"""The most components that queries and keys of a polynomial may have."""
MOST_ROWS = 2145
"""The most rows of a polynomial's state: those that the second order has of as many components."""
RAISED = ("", "", "²", "³", "⁴")


@dataclass(frozen=True)
class TaylorExp:
    """A_ij = Σ_{n ≤ order} (scale·q_i·k_j)ⁿ / n!, the start of the series of exp."""

    kind: ClassVar[Literal["taylor_exp"]] = "taylor_exp"
    order: int = spec_field(Integer(1, 3), "Highest power of q·k that is kept.")

    def features(self, qk: int) -> int:
        """Features of a key: the symmetric power of (k, 1)."""
        return comb(qk + self.order, self.order)

    @property
    def widest(self) -> int:
        """The most components that queries and keys may have: the state grows with their power."""
        return _widest(self.features)

    @property
    def label(self) -> str:
        """One word for it, as in `facts`."""
        return f"taylor{self.order}"

    @property
    def weight(self) -> str:
        """What a key weighs for a query, as a formula; s is the scale."""
        return " + ".join(("1", "s·q·k", "(s·q·k)²/2", "(s·q·k)³/6")[: self.order + 1])

    def signs(self) -> Conflict | None:
        """Why the sum of weights can vanish, if it can.  Of order 2 no weight is below 1/2."""
        if self.order % 2 == 0:
            return None
        what, below = (
            ("1 + scale·q·k", "-1") if self.order == 1 else ("a third order of exp(scale·q·k)", "-1.6")
        )
        return Conflict(("order",), f"sums of {what}, which is negative where scale·q·k < {below}", True)


@dataclass(frozen=True)
class Power:
    """A_ij = (scale·q_i·k_j)^degree."""

    kind: ClassVar[Literal["power"]] = "power"
    degree: int = spec_field(Integer(2, 4), "The power to which q·k is raised.")

    def features(self, qk: int) -> int:
        """Features of a key: its symmetric power."""
        return comb(qk + self.degree - 1, self.degree)

    @property
    def widest(self) -> int:
        """The most components that queries and keys may have: the state grows with their power."""
        return _widest(self.features)

    @property
    def label(self) -> str:
        """One word for it, as in `facts`."""
        return f"power{self.degree}"

    @property
    def weight(self) -> str:
        """What a key weighs for a query, as a formula; s is the scale."""
        return f"(s·q·k){RAISED[self.degree]}"

    def signs(self) -> Conflict | None:
        """Why the sum of weights can vanish, if it can.  An even power is 0 only where q·k is."""
        if self.degree % 2 == 0:
            return None
        what = "an odd power of scale·q·k, which is negative where that is"
        return Conflict(("degree",), f"sums of {what}", True)


@dataclass(frozen=True)
class Elementwise:
    """A_ij = φ(q_i)·φ(k_j) with φ applied to each component; `expression` is φ(x) in canonical form."""

    kind: ClassVar[Literal["elementwise"]] = "elementwise"
    widest: ClassVar[int] = 256
    """The most components that queries and keys may have."""
    expression: str = spec_field(Expression(), "The map φ as an expression in x, such as elu(x) + 1.")

    def features(self, qk: int) -> int:
        """Features of a key: its components, mapped."""
        return qk

    @property
    def label(self) -> str:
        """The same in `facts`."""
        return self.expression

    @property
    def weight(self) -> str:
        """What a key weighs for a query, as a formula; s is the scale."""
        return f"s·φ(q)·φ(k), φ(x) = {self.expression}"

    def signs(self) -> Conflict | None:
        """Why the sum of weights can vanish, or be no number, if it can."""
        from .feature_map import parse
        from .signs import objection  # sympy takes a third of a second, and most layers have no expression

        found = objection(parse(self.expression))
        if found is None:
            return None
        return Conflict(("expression",), f"sums of φ(q)·φ(k), but {found.shown}", found.grave)


FeatureMap = TaylorExp | Power | Elementwise
FEATURE_MAPS: dict[str, type[FeatureMap]] = {cls.kind: cls for cls in (TaylorExp, Power, Elementwise)}


def _widest(features: Callable[[int], int]) -> int:
    """The most components of which a polynomial has no more features than `MOST_ROWS`."""
    return max(qk for qk in range(WIDEST + 1) if features(qk) <= MOST_ROWS)


def too_wide(feature_map: FeatureMap, qk: int) -> Iterable[Conflict]:
    """What is wrong with a map of queries and keys of that many components."""
    if qk > feature_map.widest:
        rows = feature_map.features(qk)
        message = f"must be at most {feature_map.widest} for this map, whose state would have {rows} rows"
        yield Conflict(("head_dims", "qk"), message, True)


class LayerSpec(ABC):
    """A layer of some mixer.  A subclass is all that the compiler knows of a mixer: nobody asks which it is.

    A subclass is a frozen dataclass whose fields are those of a spec file, `name` first and `dtypes` last.
    """

    mixer: ClassVar[str]
    """The mixer's name in specs, and that of its modules."""
    summary: ClassVar[str]
    """One line for whoever reads a generated package or a list."""
    fact_types: ClassVar[Mapping[str, type]]
    """What `facts` gives: a tuning record can name these."""
    template_options: ClassVar[tuple[str, ...]]
    """What `template` takes."""

    calls: ClassVar[Mapping[str, tuple[int, int, int]]]
    """By pass: batch, heads (or so many times 64 channels) and tokens of a call that a GPU is tuned for."""

    name: str
    dtypes: tuple[str, ...]

    @property
    def core(self) -> LayerSpec:
        """The layer that its operators are of: of features, where queries and keys become some first."""
        return self

    @property
    def origin(self) -> str:
        """The layer of whose spec it is made."""
        return self.name

    @property
    def kept_dtype(self) -> str:
        """The dtype of the state that a user holds between calls, where inputs are not float64."""
        return "float32"

    def operand_dtype(self, dtype: str) -> str:
        """What the matrix units read for inputs of `dtype`."""
        return dtype

    @abstractmethod
    def describe(self) -> str:
        """A few words that tell this layer from others of its mixer."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What decides which programs the layer has and how large their tensors are, besides the mixer."""

    @classmethod
    @abstractmethod
    def template(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a new spec but its name, some of them as `given`."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterable[Conflict]:
        """What is wrong with fields together; `values` are what a file gives, wrong ones of any type."""
        return ()

    @property
    @abstractmethod
    def extents(self) -> dict[str, int]:
        """The static extents that constants of its programs tile, by the names of the constants."""

    @abstractmethod
    def signature(self) -> Signature:
        """What its operators take and give."""

    @abstractmethod
    def programs(self) -> tuple[Program, ...]:
        """Every kernel of the layer, in the order in which they run."""

    @abstractmethod
    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        """The host functions that launch them: forward, backward and step, and what these call before them.

        `faster` are kernels that a backend has in place of programs, by the names of those.
        """


def spec_to_dict(spec: LayerSpec) -> dict[str, Any]:
    """The spec as plain data, in the order of a spec file.

    A null that is the default is left out, and so is the default of a quiet field.
    """
    data: dict[str, Any] = {"name": spec.name, "mixer": spec.mixer}
    for name, item in spec_fields(type(spec)).items():
        value = getattr(spec, name)
        if value != item.default or value is not None and not is_quiet(item):
            data[name] = _plain(value, kind_of(item))
    return data


def _plain(value: Any, kind: Kind) -> Any:
    """A value of a field as plain data."""
    match kind:
        case _ if value is None:
            return None
        case Tagged(tag=tag):
            return {tag: getattr(value, tag)} | plain_fields(value)
        case Record():
            return plain_fields(value)
        case Several(item=item):
            return [_plain(x, item) for x in value]
        case Choices():
            return list(value)
        case _:
            return value


def plain_fields(value: Any) -> dict[str, Any]:
    """The fields of a spec's dataclass as plain data."""
    items = spec_fields(type(value)).items()
    return {name: _plain(getattr(value, name), kind_of(item)) for name, item in items}


def spec_from_dict(data: Mapping[str, Any]) -> LayerSpec:
    """The inverse of `spec_to_dict`.  It trusts `data`; text from a user goes through `load` instead."""
    from ..mixers import mixer

    return _made(mixer(data["mixer"]), {name: value for name, value in data.items() if name != "mixer"})


def _made(cls: type[Any], data: Mapping[str, Any]) -> Any:
    items = spec_fields(cls)
    return cls(**{name: _value(value, kind_of(items[name])) for name, value in data.items()})


def _value(data: Any, kind: Kind) -> Any:
    """The inverse of `_plain`."""
    match kind:
        case _ if data is None:
            return None
        case Tagged(tag=tag, types=types):
            return _made(types[data[tag]], {name: value for name, value in data.items() if name != tag})
        case Record(type=record):
            return _made(record, data)
        case Several(item=item):
            return tuple(_value(x, item) for x in data)
        case Choices():
            return tuple(data)
        case _:
            return data


_YAML_WORDS = frozenset({"yes", "no", "on", "off", "true", "false", "null"})


def yaml_scalar(value: bool | int | float | str | None) -> str:
    """One value as YAML 1.1 reads it back: its floats need a point, and some of its words are not text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        mantissa, _, exponent = repr(value).partition("e")
        return mantissa + ("" if "." in mantissa else ".0") + (f"e{int(exponent):+d}" if exponent else "")
    if isinstance(value, str) and value in _YAML_WORDS:
        return f'"{value}"'
    return str(value)


def dump_yaml(spec: LayerSpec) -> str:
    """The spec as the text of a spec file; loading it gives an equal spec."""
    kinds = {name: kind_of(item) for name, item in spec_fields(type(spec)).items()}
    lines = []
    for name, value in spec_to_dict(spec).items():
        match kinds.get(name):
            case Tagged():
                lines += [f"{name}:", *(f"  {inner}: {yaml_scalar(item)}" for inner, item in value.items())]
            case Several() if value is not None:
                lines += [f"{name}:", *(f"  - {in_one_line(item)}" for item in value)]
            case _:
                lines.append(f"{name}: {in_one_line(value)}")
    return "\n".join(lines) + "\n"


def in_one_line(value: Any) -> str:
    """Plain data as YAML in a line."""
    match value:
        case dict():
            return "{" + ", ".join(f"{key}: {_between(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_between, value)) + "]"
        case _:
            return yaml_scalar(value)


def _between(value: Any) -> str:
    """A value in a list or mapping of one line, where text may not have everything."""
    if isinstance(value, str) and _MARKS.intersection(value):
        return f'"{value}"'
    return in_one_line(value)


_MARKS = frozenset(",[]{}:#&*!|>%@`'")
