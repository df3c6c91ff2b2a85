"""Every public name says what it takes, gives and raises, and its example runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from based_ops.attention import AttentionVariant
from based_ops.layers.base import AttentionLayer

MODULES = ("based_ops", "based_ops.layers", "based_ops.models", "based_ops.generate", "based_ops.train")
MODULES += ("based_ops.hippo", "based_ops.distill")
NO_CLASS = {
    "based_ops.models.ModelState": "an alias of a tuple",
    "based_ops.hippo.BASES": "a dictionary",
}
"""Public names that are neither classes nor functions nor modules."""
GIVEN = {
    *("HybridState", "LinearAttentionState", "LongConvHistory", "ReplayState", "ShortConvState"),
    *("SlidingWindowState", "Variant"),
    *(
        "DeltaNetState",
        "H3State",
        "HyenaState",
        "LongConvState",
        "Mamba2State",
        "S4State",
        "ModalState",
        "StateSpaceState",
    ),
    *("Fitted", "based_ops.distill.Layer", "Pace", "Words", "ModelSpec", "Request", "Text", "Share"),
    *("based_ops.generate.Progress", "based_ops.train.Progress", "Bytes"),
}
"""Classes whose objects the library makes, and those that take nothing: they have no `Args`."""


def public() -> Iterator[tuple[str, Any]]:
    """Every public class and function, by its full name."""
    for module in MODULES:
        found = importlib.import_module(module)
        for name in found.__all__:
            what = getattr(found, name)
            if not isinstance(what, ModuleType) and f"{module}.{name}" not in NO_CLASS:
                yield f"{module}.{name}", what
    for method in ("__call__", "step"):
        yield f"based_ops.attention.AttentionVariant.{method}", getattr(AttentionVariant, method)


PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_takes(name: str) -> None:
    what = PUBLIC[name]
    text = inspect.getdoc(what) or ""
    assert text and not text.startswith(f"{name.rpartition('.')[2]}("), "dataclasses write this by themselves"
    assert "\nExamples:\n" in text
    if name in GIVEN or name.rpartition(".")[2] in GIVEN:
        return
    parameters = [x for x in inspect.signature(what).parameters if x not in ("self", "foreign")]
    assert ("\nArgs:\n" in text) == bool(parameters)
    said = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    missing = [x for x in parameters if not any(x in line.partition(":")[0] for line in said.splitlines())]
    assert not missing


@pytest.mark.parametrize("name", PUBLIC)
def test_its_example_runs(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", [name for name, x in PUBLIC.items() if not inspect.isclass(x)])
def test_errors_that_a_function_raises_are_named(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    source = inspect.getsource(PUBLIC[name])
    if "raise " in source or "fail(" in source:
        assert "\nRaises:\n" in text


@pytest.mark.parametrize("layer", AttentionLayer.__subclasses__(), ids=lambda x: x.__name__)
@pytest.mark.parametrize("method", ["forward", "step", "init_state", "state_bytes"])
def test_methods_of_layers_say_shapes_or_sizes(layer: type, method: str) -> None:
    text = inspect.getdoc(getattr(layer, method)) or ""
    assert "[B,T,d_model]" in text or "state" in text.lower()
