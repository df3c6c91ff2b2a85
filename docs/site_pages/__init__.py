"""What pages of the site are generated from: a function for each name that a page may ask for."""

from __future__ import annotations

from collections.abc import Callable

from . import algebra, api, compiler, cookbook, errors, spec_reference

GENERATED: dict[str, Callable[[], str]] = {
    "spec_layers": spec_reference.layers,
    "spec_feature_maps": spec_reference.feature_maps,
    "spec_parts": spec_reference.parts,
    "spec_functions": spec_reference.functions,
    "spec_models": spec_reference.model_fields,
    "cookbook": cookbook.entries,
    "algebra": algebra.sentence,
    "without_queries": algebra.without_queries,
    "states": algebra.states,
    "tolerances": algebra.tolerances,
    "errors": errors.sections,
    "stages": compiler.stages,
    **api.pages(),
}
"""By the names in `<!-- generated: NAME -->`."""


def pictures() -> dict[str, bytes]:
    """Pictures that are drawn for the site, by their paths in it."""
    return cookbook.pictures()
