"""The table of generated variants that this process knows: what each is, and where its kernels live."""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from based_ops.codegen.names import features_module, features_name

from .errors import RegistrationError, UnknownVariant

_NAME = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII)
_BUILD = re.compile(r"[0-9a-f]{8}", re.ASCII)


@dataclass(frozen=True, eq=False)
class Record:
    """One generated variant: `package.name` holds its modules, `build` hashes its spec and its modules."""

    name: str
    package: str
    build: str
    spec: Mapping[str, Any]
    schemas: Mapping[str, str]
    """The schema of each operator."""
    features: Mapping[str, Mapping[str, str] | str] = field(default_factory=dict)
    """Of a layer with parts: the schemas of the operators that make features, or why PyTorch alone does."""

    @staticmethod
    def of(name: str, package: str, entry: Mapping[str, Any]) -> Record:
        """What a generated package says of a variant; `RegistrationError` if it does not say enough."""
        found = Record(
            name,
            package,
            str(entry.get("build")),
            entry.get("spec", {}),
            entry.get("schemas", {}),
            entry.get("features", {}),
        )
        if (
            _NAME.fullmatch(name)
            and _BUILD.fullmatch(found.build)
            and {"forward", "backward", "step"} <= found.schemas.keys()
            and "mixer" in found.spec
        ):
            return found
        raise RegistrationError(f"variant {name!r} of package {package!r}: not a description of a variant")

    @property
    def variant(self) -> str:
        """The name of the variant that its operators serve."""
        return self.name

    def counted(self) -> Any:
        """What says how many operations its operators are."""
        from .registry import get

        return get(self.name)

    @functools.cached_property
    def makers(self) -> Mapping[str, FeatureRecord]:
        """What makes features of queries and of keys by kernels: by the same names as `features`."""
        found = {}
        for which, schemas in self.features.items():
            if not isinstance(schemas, str):
                name = features_name(self.name, which)
                own = name, self.package, self.build, self.spec, schemas
                found[which] = FeatureRecord(*own, whole=self, which=which)
        return found

    @property
    def mixer(self) -> str:
        """The name of its mixer."""
        mixer: str = self.spec["mixer"]
        return mixer

    @functools.cached_property
    def layer(self) -> Any:
        """The spec, as the compiler's model has it."""
        from based_ops.codegen.spec.model import spec_from_dict

        return spec_from_dict(self.spec)

    @property
    def core(self) -> Record:
        """The layer that its operators are of, under the same name; itself unless it has parts."""
        from based_ops.codegen.spec.model import spec_to_dict

        core = self.layer.core
        return self if core is self.layer else replace(self, spec=spec_to_dict(core))

    def module(self, backend: str) -> ModuleType:
        """The generated module of `backend`, imported now (Triton and TileLang are slow to import)."""
        return importlib.import_module(f"{self.package}.{self.name}.{backend}")


@dataclass(frozen=True, eq=False)
class FeatureRecord(Record):
    """Operators that make features of a variant's queries, of its keys, or of both."""

    whole: Record = field(kw_only=True)
    which: str = field(kw_only=True)

    @property
    def variant(self) -> str:
        return self.whole.name

    def counted(self) -> Any:
        from .registry import get

        return get(self.variant).makers[self.which]

    @functools.cached_property
    def layer(self) -> Any:
        """What it computes, as the compiler's model has it."""
        from based_ops.codegen.parts.layer import feature_layers

        return feature_layers(self.whole.layer)[self.which]

    def module(self, backend: str) -> ModuleType:
        name = features_module(self.which, backend)
        return importlib.import_module(f"{self.package}.{self.whole.name}.{name}")


RECORDS: dict[str, Record] = {}


def names() -> list[str]:
    """The names that `get` knows, sorted.

    Examples:
        >>> import based_ops
        >>> "taylor2_qk16_v64" in based_ops.names()
        True
    """
    return sorted(RECORDS)


def record(name: str) -> Record:
    """The record of a registered variant; `UnknownVariant` names the nearest."""
    if name in RECORDS:
        return RECORDS[name]
    if not isinstance(name, str):
        raise UnknownVariant(f"name: got {name!r}, must be the name of a variant, a str")
    near = difflib.get_close_matches(name, RECORDS, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(names()) or 'none'}"
    raise UnknownVariant(f"name: got {name!r}, must be the name of a registered variant; {hint}")
