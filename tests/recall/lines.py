"""Lines of results as tests make them up."""

from __future__ import annotations

from typing import Any

from based_ops.recall.designs import Design
from based_ops.recall.results import Line


def line(design: str, accuracy: float = 0.5, state_bytes: int = 1000, **changes: Any) -> Line:
    """A line of a design whose accuracy is the same in all tests."""
    tests = ((64, 4), (64, 16), (1024, 256))
    given: dict[str, Any] = {
        "design": str(Design.read(design)),
        "seed": 0,
        "rate": 1e-3,
        "recipe": "zoology",
        "epochs": 8,
        "trained": 8,
        "state_bytes": state_bytes,
        "parameters": 600_000,
        "loss": 0.1,
        "accuracy": accuracy,
        "tests": " ".join(f"{length}/{pairs}={accuracy}" for length, pairs in tests),
        "seconds": 2.5,
        "beside": 4,
        "dtype": "bfloat16",
        "device": "a device",
        "versions": "torch 2.11",
        "date": "2026-11-29",
    }
    return Line(**(given | changes))
