"""References are complete: environment variables, errors, feature maps, and every field of a spec."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from based_ops.codegen.mixers import mixers
from based_ops.codegen.spec.feature_map import parse
from based_ops.codegen.spec.fields import spec_fields
from based_ops.codegen.spec.load import parse_spec
from docs.site_pages import GENERATED, cookbook, errors, spec_reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = [
    path
    for room in ("based_ops", "codegen", "examples", "benchmarks")
    for path in sorted((ROOT / room).rglob("*.py"))
    if not any((ROOT / room / part).is_symlink() for part in path.relative_to(ROOT / room).parts[:1])
]


def constants() -> dict[str, str]:
    """Module-level names of texts in capitals, which may be names of variables."""
    found = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                if isinstance(node.value.value, str) and re.fullmatch("[A-Z][A-Z_]+", node.value.value):
                    found[f"{path.stem}.{ast.unparse(node.targets[0])}"] = node.value.value
    return found


def asked(path: Path, known: dict[str, str]) -> Iterator[str]:
    """Names of environment variables that a module reads, sets or looks for."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(value=of, attr="get" | "setdefault" | "pop"), args=[key, *_]):
                pass
            case ast.Subscript(value=of, slice=key):
                pass
            case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[of]):
                pass
            case _:
                continue
        if ast.unparse(of) not in ("os.environ", "environ"):
            continue
        if isinstance(key, ast.Constant):
            yield str(key.value)
        else:
            name = ast.unparse(key)
            yield known[name if "." in name else f"{path.stem}.{name}"]


def test_every_environment_variable_is_documented() -> None:
    known = constants()
    read = {name for path in SOURCES for name in asked(path, known)}
    assert {"BASED_OPS_BACKEND", "BASED_OPS_CACHE", "BASED_OPS_LOG", "TRITON_INTERPRET"} <= read
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    rows = {x for row in re.findall(r"^\| (`[^|]+) \|", page, re.M) for x in re.findall(r"`(\w+)`", row)}
    assert rows == read


@pytest.mark.parametrize("cls", errors.classes(), ids=lambda cls: cls.__name__)
def test_every_error_says_what_it_means_and_what_to_do(cls: type) -> None:
    assert cls.__doc__ and cls.remedy
    raised = cls.__new__(cls, "text")
    assert raised.next_step == cls.remedy
    assert raised.__notes__ == [f"next: {raised.next_step}"]
    assert f"### {cls.__name__}\n" in GENERATED["errors"]()


@pytest.mark.parametrize("cls", errors.classes(), ids=lambda cls: cls.__name__)
def test_what_to_do_names_pages_and_commands_that_there_are(cls: type) -> None:
    from based_ops.cli import main

    step = cls.remedy
    for page in re.findall(r"[\w/-]+\.md", step):
        assert (ROOT / page).is_file(), page
    for command in re.findall(r"based-ops ([a-z]+)", step):
        assert command in main.commands, command


def test_every_class_that_is_raised_is_found() -> None:
    defined = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any("BasedOpsError" in ast.unparse(x) for x in node.bases):
                defined.add(node.name)
    assert defined == {cls.__name__ for cls in errors.classes()}


def test_every_shipped_feature_map_has_an_entry() -> None:
    layers = spec_reference.shipped_layers()
    entries = [cookbook.map_of(layers[name]) for name in cookbook.words()]
    assert len(set(entries)) == len(entries), "two entries of one map"
    missing = [
        n for n, spec in layers.items() if cookbook.map_of(spec) and cookbook.map_of(spec) not in entries
    ]
    assert not missing
    for name, said in cookbook.words().items():
        assert set(said) == {"title", "paper", "use", "fails"}, name


@pytest.mark.parametrize("name", cookbook.words())
def test_the_spec_of_an_entry_is_that_layer(name: str) -> None:
    text = cookbook.short(spec_reference.shipped_layers()[name])
    assert parse_spec(text, f"{name}.yaml") == spec_reference.shipped_layers()[name]


@pytest.mark.parametrize("mixer", mixers())
def test_every_field_is_in_the_reference_with_an_example(mixer: str) -> None:
    text = GENERATED["spec_layers"]()
    section = text.partition(f"### `mixer: {mixer}`")[2].partition("### `mixer:")[0]
    rows = {
        x[0]: x for x in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", section, re.M)
    }
    assert set(spec_fields(mixers()[mixer])) <= set(rows)
    for name in ("eps", "scale", "dtypes", "window", "state_dtype", "activation"):
        if name in rows:
            assert rows[name][3], name


def test_expressions_of_examples_can_be_read() -> None:
    text = "".join(GENERATED[name]() for name in ("spec_feature_maps", "spec_parts"))
    shown = re.findall(r"kind: elementwise, expression: \"?([^\"}]+)", text)
    assert shown and all(parse(x) is not None for x in shown)
