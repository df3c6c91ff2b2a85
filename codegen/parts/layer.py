"""The operator that makes features of queries or of keys, as the compiler has every operator: as a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..dtypes import ACC, IO
from ..ir.host import Pass
from ..ir.kernels import ForeignKernel
from ..ir.program import Program
from ..names import features_name, features_of
from ..spec.featured import Featured, Side, numbered
from ..spec.model import LayerSpec
from ..spec.parts import Parameter, Part, Positions, width_after
from ..spec.signature import Argument, Extent, Signature

ROWS = ("B", "T", "H")


@dataclass(frozen=True)
class FeatureLayer(LayerSpec):
    """y = φ(x), token by token: x [B,T,H,D] and parameters to y [B,T,H,F].  It has no state and no step."""

    mixer: ClassVar[str] = "features"
    summary: ClassVar[str] = "Features of queries or of keys."
    fact_types: ClassVar[Mapping[str, type]] = {"width": int, "features": int}
    template_options: ClassVar[tuple[str, ...]] = ()

    name: str
    of: str
    """The layer whose features these are."""
    parts: tuple[Part, ...]
    parameters: tuple[Parameter, ...]
    """In the order in which the parts read them."""
    width: int
    dtypes: tuple[str, ...]

    @property
    def origin(self) -> str:
        return self.of

    @property
    def features(self) -> int:
        return width_after(self.parts, self.width)

    @property
    def learned(self) -> tuple[Parameter, ...]:
        """Those that have gradients."""
        return tuple(x for x in self.parameters if x.learned)

    @property
    def turns(self) -> bool:
        """Whether features depend on the number of a token."""
        return isinstance(self.parts[-1], Positions)

    @property
    def operations(self) -> int:
        """Those of the matrices of a token in a head, a multiplication and an addition each two."""
        return 2 * sum(math.prod(x.shape) for x in self.parameters if len(x.shape) == 2)

    def role(self, parameter: Parameter) -> str:
        """The dtype of a parameter: what is a side of a product, or is added to one, has that of x."""
        wide = parameter.name.startswith(("gain", "shift", "random"))
        return ACC if wide else IO

    def dims(self, parameter: Parameter) -> tuple[Extent, ...]:
        """Those of a tensor: learned ones are of each head."""
        return ("H", *parameter.shape) if parameter.learned else parameter.shape

    def describe(self) -> str:
        return f"{self.features} features of {self.width}"

    def facts(self) -> dict[str, Any]:
        return {"width": self.width, "features": self.features}

    @classmethod
    def template(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    @property
    def extents(self) -> dict[str, int]:
        return {}

    def signature(self) -> Signature:
        inputs = [Argument("x", (*ROWS, self.width), "queries or keys")]
        for x in self.parameters:
            inputs.append(Argument(x.name, self.dims(x), "", self.role(x), differentiable=x.learned))
        if self.turns:
            doc = "the number of each token in its sequence"
            inputs.append(Argument("tokens", ("B", "T"), doc, "int32", True, False))
        output = Argument("y", (*ROWS, self.features), "features")
        return Signature(tuple(inputs), output, state=(), keeps_output=False)

    def programs(self) -> tuple[Program, ...]:
        from .programs import programs

        return programs(self)

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        from .programs import passes

        return passes(self)


def feature_layers(spec: Featured) -> dict[str, FeatureLayer]:
    """The layers that make features of queries and of keys; one for both where their parts are the same."""
    queries, keys = spec.sides
    if queries.parts == keys.parts:
        return {features_of(None): _layer(spec, features_of(None), queries)}
    return {features_of(x.name): _layer(spec, features_of(x.name), x) for x in (queries, keys) if x.parts}


def _layer(spec: Featured, which: str, side: Side) -> FeatureLayer:
    width = spec.head_dims.qk
    parameters = tuple(numbered(side.parts, width))
    name = features_name(spec.name, which)
    return FeatureLayer(name, spec.name, side.parts, parameters, width, spec.dtypes)
