"""Layers whose queries and keys become features, part by part, before a feature map makes weights of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from .fields import Flag, Several, spec_field
from .model import Conflict, Elementwise, FeatureMap, HeadDims, LayerSpec
from .parts import PIPELINE, Parameter, Part, Positions, is_nonnegative, parameters_of, problems, width_after

Spec = TypeVar("Spec", bound="Featured")

SIDES = ("query", "key")
"""What has parameters of its own, where those are not `tied`."""


def parts_field() -> Any:
    kind = Several(PIPELINE.item, 0, PIPELINE.high)
    doc = "What queries and keys go through, part by part, before `feature_map`."
    return spec_field(kind, doc, (), quiet=True)


def key_parts_field() -> Any:
    kind = Several(PIPELINE.item, 0, PIPELINE.high, optional=True)
    return spec_field(kind, "The same of keys; null means as of queries.", None, quiet=True)


def tied_field() -> Any:
    return spec_field(Flag(), "Whether queries and keys share the parameters of `parts`.", False, quiet=True)


@dataclass(frozen=True)
class Side:
    """What queries, or keys, go through."""

    name: str
    parts: tuple[Part, ...]
    parameters: tuple[Parameter, ...]
    """In the order in which the parts read them, with the names that calls give them by."""


class Featured(LayerSpec):
    """A layer with `parts`.

    Its kernels, operators and state are those of its `core`: the same layer without parts, whose queries and
    keys are features already.
    """

    feature_map: FeatureMap
    head_dims: HeadDims
    parts: tuple[Part, ...]
    key_parts: tuple[Part, ...] | None
    tied: bool

    without_parts: ClassVar[Mapping[str, Any]] = {"parts": (), "key_parts": None, "tied": False}
    """The fields that differ where features are given."""

    @property
    def pipelines(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """What queries and what keys go through."""
        return self.parts, self.parts if self.key_parts is None else self.key_parts

    @property
    def has_parts(self) -> bool:
        return any(self.pipelines)

    @functools.cached_property
    def core(self: Spec) -> Spec:
        if not self.has_parts:
            return self
        dims = replace(self.head_dims, qk=width_after(self.parts, self.head_dims.qk))
        return replace(self, head_dims=dims, **self.without_parts)  # type: ignore[type-var]

    @property
    def one_sign(self) -> bool:
        """Whether its features cannot be negative, nor then its weights."""
        return weights_of_one_sign({x: getattr(self, x) for x in ("parts", "key_parts", "feature_map")})

    @functools.cached_property
    def sides(self) -> tuple[Side, Side]:
        """The same with their parameters."""
        queries, keys = self.pipelines
        return self._side(SIDES[0], queries), self._side(SIDES[1], keys)

    def _side(self, name: str, parts: tuple[Part, ...]) -> Side:
        found = []
        for x in numbered(parts, self.head_dims.qk):
            prefix = "" if self.tied or self.key_parts is None and not x.learned else f"{name}_"
            found.append(replace(x, name=f"{prefix}{x.name}"))
        return Side(name, parts, tuple(found))

    @property
    def turns(self) -> Positions | None:
        """The positions that its features have, if they have any."""
        last = self.parts[-1] if self.parts else None
        return last if isinstance(last, Positions) else None

    @property
    def after_parts(self) -> str:
        """What comes before the map, in a few words that follow its own."""
        parts = self.pipelines[0]
        kinds = (getattr(x, "expression", x.kind.replace("_", " ")) for x in parts)
        return f" after {', '.join(kinds)}" if parts else ""


def numbered(parts: tuple[Part, ...], width: int) -> Iterable[Parameter]:
    """What parts read, each by a name of its own."""
    seen = dict[str, int]()
    for x in parameters_of(parts, width):
        seen[x.name] = seen.get(x.name, 0) + 1
        yield replace(x, name=f"{x.name}_{seen[x.name]}") if seen[x.name] > 1 else x


def conflicts(values: Mapping[str, Any], widest: int, streams: bool) -> Iterable[Conflict]:
    """What is wrong with parts, for a layer that takes up to `widest` features.

    `streams`: whether its state can turn with positions.
    """
    dims, parts, keys = values.get("head_dims"), values.get("parts", ()), values.get("key_parts")
    if not isinstance(dims, HeadDims) or not isinstance(dims.qk, int) or not isinstance(parts, tuple):
        return
    lists = {"parts": parts} | ({"key_parts": keys} if isinstance(keys, tuple) else {})
    wrong = False
    for name, found in lists.items():
        for place, message in problems(found, dims.qk):
            wrong = True
            yield Conflict((name, place), message, True)
    if wrong or not any(lists.values()):
        return
    at = next(name for name, found in lists.items() if found)
    widths = {name: width_after(found, dims.qk) for name, found in lists.items()}
    if len(set(widths.values())) > 1:
        message = f"gives {widths['key_parts']} features, those of queries are {widths['parts']}"
        yield Conflict(("key_parts",), message, True)
    elif not 8 <= widths["parts"] <= widest:
        yield Conflict((at,), f"gives {widths['parts']} features, must be from 8 to {widest}", True)
    if values.get("tied") is True and len(lists) > 1:
        yield Conflict(("tied",), "parameters can be shared where queries and keys have the same parts", True)
    turning = [found[-1] if found and isinstance(found[-1], Positions) else None for found in lists.values()]
    if not any(turning):
        return
    if not streams:
        yield Conflict((at,), "a hybrid's state cannot turn with positions", True)
    if len(set(turning)) > 1:
        yield Conflict(("key_parts",), "positions of keys must be those of queries", True)
    if values.get("feature_map") != Elementwise("x"):
        message = "positions turn the features themselves: `feature_map: {kind: elementwise, expression: x}`"
        yield Conflict((at,), message, True)
    if values.get("state_dtype", "float32") != "float32":
        yield Conflict(("state_dtype",), "positions turn the state with every token: float32 only", True)


def has_parts(values: Mapping[str, Any]) -> bool:
    """Whether a file gives any."""
    return bool(values.get("parts") or values.get("key_parts"))


def weights_of_one_sign(values: Mapping[str, Any]) -> bool:
    """Whether parts make features that cannot be negative, nor then what `feature_map` makes of them."""
    parts, keys, feature_map = values.get("parts", ()), values.get("key_parts"), values.get("feature_map")
    lists = [x for x in (parts, keys) if isinstance(x, tuple)]
    if not any(lists) or isinstance(feature_map, Elementwise) and feature_map.expression != "x":
        return False
    return all(is_nonnegative(x) for x in lists)
