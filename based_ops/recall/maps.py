"""The feature maps of Based's figure 3 (arXiv 2402.18668) and newer ones, for queries of any width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .recipe import LENGTH

Fields = dict[str, Any]
"""Those of a layer's spec besides its name, mixer and widths of heads."""


def elementwise(expression: str, **more: Any) -> Callable[[int], Fields]:
    """φ is an expression of each component."""
    return lambda qk: {"feature_map": {"kind": "elementwise", "expression": expression}, **more}


def parted(parts: Callable[[int], list[Fields]], kind: Fields | None = None, **more: Any) -> Any:
    """φ is made of parts, of queries and keys alike; `more` may depend on the width."""
    feature_map = kind or {"kind": "elementwise", "expression": "x"}
    return lambda qk: {"feature_map": feature_map, "parts": parts(qk), **more}


def step(expression: str) -> Fields:
    """A part."""
    return {"kind": "elementwise", "expression": expression}


PERFORMER_FEATURES = 256

MAPS: dict[str, Callable[[int], Fields]] = {
    "identity": elementwise("x", normalize=False),
    "relu": elementwise("relu(x)"),
    "square": elementwise("x**2"),
    "pos_elu": elementwise("elu(x) + 1"),
    "exp": elementwise("exp(x)"),
    "silu": elementwise("silu(x)", normalize=False),
    "sigmoid": elementwise("sigmoid(x)"),
    "cosformer": parted(
        lambda qk: [step("relu(x)"), {"kind": "positions", "period": LENGTH}], signed_weights=True
    ),
    "performer": parted(
        lambda qk: [
            step(f"x/sqrt(sqrt({qk}))"),
            {"kind": "random_projection", "features": PERFORMER_FEATURES, "seed": 0, "half_squares": True},
            step("exp(x)"),
        ],
        scale=1 / PERFORMER_FEATURES,
    ),
    "allpoly": parted(
        lambda qk: [
            {
                "kind": "branches",
                "join": "add",
                "of": [
                    [{"kind": "projection", "features": qk}, step("x**2")],
                    [step("x**2"), {"kind": "projection", "features": qk}],
                ],
            },
            step("x/sqrt(2)"),
        ],
        signed_weights=True,
    ),
    "hedgehog": parted(
        lambda qk: [
            {"kind": "projection", "features": qk, "bias": True, "start": "identity"},
            {"kind": "signs"},
            {"kind": "softmax"},
        ]
    ),
    "dpfp": parted(lambda qk: [{"kind": "signs"}, step("relu(x)"), {"kind": "rolled_products", "rolls": 1}]),
    "t2r": parted(lambda qk: [{"kind": "projection", "features": qk, "bias": True}, step("relu(x)")]),
    "rebased": parted(
        lambda qk: [{"kind": "layer_norm"}, {"kind": "affine"}], {"kind": "power", "degree": 2}, scale=1.0
    ),
    "power2": lambda qk: {"feature_map": {"kind": "power", "degree": 2}},
}
"""By name: what a spec says for queries and keys of a width."""
