"""Layers that were compiled for a model: their specs travel with it, for no package has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from based_ops.codegen.spec.language_model import Mixer, ModelSpec

from ..record import names, record

SHIPPED = "based_ops.generated"


def specs_of(model: ModelSpec) -> dict[str, str]:
    """The text of the spec of every layer that `model` names and that was compiled just in time."""
    from based_ops.codegen.spec.model import dump_yaml

    found = {}
    for mixer in model.mixers():
        for name in _layers(mixer).values():
            if name in names() and record(name).package != SHIPPED:
                found[name] = dump_yaml(record(name).layer)
    return found


def compiled(model: ModelSpec, specs: Mapping[str, str]) -> ModelSpec:
    """The model with these layers compiled, under the names that they have here.

    Raises `SpecErrors` for a text that is none of a layer.
    """
    from ..jit import pickled

    here = {name: pickled(name, text).name for name, text in specs.items()}
    return _renamed(model, lambda name: here.get(name, name)) if here else model


def _layers(mixer: Mixer) -> dict[str, str]:
    """The names of the layers of a mixer, by field."""
    return {x.name: getattr(mixer, x.name) for x in fields(mixer) if x.name in ("variant", "conv")}


def _renamed(model: ModelSpec, new: Callable[[str], str]) -> ModelSpec:
    def of(mixer: Mixer) -> Mixer:
        layers: dict[str, Any] = {field: new(name) for field, name in _layers(mixer).items()}
        return replace(mixer, **layers)

    placement = tuple(replace(entry, mixer=of(entry.mixer)) for entry in model.placement)
    return replace(model, mixer=of(model.mixer), placement=placement)
