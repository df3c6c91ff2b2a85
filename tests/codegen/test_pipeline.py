"""The compiler as a whole: what it writes, that it always writes the same, and what it never imports."""

from __future__ import annotations

import ast
import functools
import io
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from based_ops.codegen import artifacts, pipeline
from based_ops.codegen.emit import registry
from based_ops.codegen.ir.printer import print_program
from based_ops.codegen.ir.rewrite import gather_by_product
from based_ops.codegen.parts.layer import feature_layers
from based_ops.codegen.spec.featured import Featured
from based_ops.codegen.spec.load import load_file
from based_ops.codegen.spec.model import HeadDims, LayerSpec, dump_yaml
from tests.conftest import ROOT, SPECS
from tests.strategies import linear_attentions, sliding_windows

NAMES = sorted(path.stem for path in SPECS.glob("*.yaml"))
GENERATED = ROOT / "generated"
PRINTED = ("taylor2_qk16_v64", "pos_elu_qk64_v64", "window64_d64")
"""One layer of each kind stands in the golden files."""


def modules(name: str) -> int:
    """How many files a shipped layer has: those with parts make features, by PyTorch and by kernels."""
    spec = load_file(SPECS / f"{name}.yaml")
    if isinstance(spec, Featured) and spec.has_parts:
        return 6 + 4 * len(feature_layers(spec))
    return 5


@pytest.fixture(scope="module")
def specs() -> dict[str, LayerSpec]:
    return pipeline.load(SPECS)


@pytest.fixture(scope="module")
def printed_once() -> Callable[..., dict[str, str]]:
    """The printing of a layer, which takes seconds and gives the same each time."""
    return functools.cache(pipeline.sources)


# Golden files


@pytest.mark.parametrize("name", PRINTED)
def test_printed_programs(name: str, specs: dict[str, LayerSpec], golden: Callable[[str, str], None]) -> None:
    golden(
        f"{name}.program",
        "\n".join(print_program(program) for program in pipeline.lower(specs[name]).programs),
    )


def test_a_rewrite_before_and_after(specs: dict[str, LayerSpec], golden: Callable[[str, str], None]) -> None:
    (program,) = (p for p in pipeline.lower(specs["taylor2_qk16_v64"]).programs if p.name == "states")
    golden(
        "gather_by_product.program",
        print_program(program) + "\n" + print_program(gather_by_product(program, lambda constant: 64)),
    )


@pytest.mark.parametrize("name", PRINTED)
@pytest.mark.parametrize("module", ["torch", "triton", "tilelang", "tilelang_cpu", "__init__"])
def test_generated_sources(
    name: str,
    module: str,
    specs: dict[str, LayerSpec],
    printed_once: Callable[..., dict[str, str]],
    golden: Callable[[str, str], None],
) -> None:
    """Builds hash all modules of a layer, so they are taken out."""
    text = printed_once(specs[name])[f"{name}/{module}.py"]
    golden(f"{name}/{module}.py.txt", re.sub(r"(build\b\W+)[0-9a-f]{8}\b", r"\1--------", text))


# What is generated


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_headed_formatted_and_compiles(name: str) -> None:
    """As committed, which is what is printed now."""
    paths = sorted(GENERATED.joinpath(name).glob("*.py"))
    assert len(paths) == modules(name)
    for path in paths:
        text = path.read_text()
        first, second = text.splitlines()[:2]
        assert (
            first.startswith(artifacts.MARK) and f"specs/{name}.yaml" in first and "Do not edit" in first
        ), path
        unsigned = text.replace(f"{second}\n", "", 1)
        assert second == f"# build: {artifacts.hashed(unsigned)}" and artifacts.signed(unsigned) == text, path
        tree = ast.parse(text, str(path))
        assert ast.get_docstring(tree), path
        assert text.endswith("\n") and not text.endswith("\n\n") and "\t" not in text, path
        assert not [line for line in text.splitlines() if line != line.rstrip()], path
        assert "issue" not in text and "/work" not in text and "/tmp" not in text, path


@given(spec=linear_attentions() | sliding_windows())
def test_every_spec_becomes_modules(spec: LayerSpec) -> None:
    """Of any map, width and set of dtypes; what the modules hold is what these dtypes run."""
    sources = pipeline.sources(spec)
    for target in pipeline.EMITTERS:
        tree = ast.parse(sources[f"{spec.name}/{artifacts.module_name(target)}.py"])
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert {"forward", "backward", "step"} <= defined
        recurs = target not in ("triton", "tilelang") or spec.dtypes != ("float32",)
        if spec.mixer == "linear_attention":
            assert ("recurrence" in defined) == recurs


def _builds(spec: LayerSpec) -> tuple[str, str]:
    """What a layer is found by in the cache, and what its kernels are known by."""
    text = pipeline.sources(spec)[f"{spec.name}/__init__.py"]
    (build,) = re.findall(r'"build": "([0-9a-f]{8})"', text)
    return pipeline.cache_key(spec), build


def test_builds_change_with_the_meaning(specs: dict[str, LayerSpec]) -> None:
    spec = specs["taylor2_qk16_v64"]
    others = [
        replace(spec, eps=1e-5),
        replace(spec, head_dims=HeadDims(16, 65)),
        replace(spec, normalize=False),
    ]
    keys, builds = zip(*map(_builds, (spec, *others)), strict=True)
    assert len(set(keys)) == len(set(builds)) == 4
    assert _builds(spec) == _builds(replace(spec))


def test_a_build_does_not_change_with_what_is_not_printed(
    specs: dict[str, LayerSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another compiler that prints the same kernels: what was exported with them can still be run."""
    spec = specs["relu_qk64_v64"]
    key, build = _builds(spec)
    monkeypatch.setattr(pipeline, "compiler_hash", lambda: "another compiler")
    other_key, same_build = _builds(spec)
    assert other_key != key and same_build == build


def test_committed_files_are_current_for_every_hash_seed(tmp_path: Path) -> None:
    """Each half of the layers by another one; the committed files were printed by a third."""
    found = {"__init__.py": registry.package(NAMES)}
    for seed, names in (("1", NAMES[::2]), ("4242", NAMES[1::2])):
        out = tmp_path / seed
        code = (
            "from pathlib import Path; from codegen import pipeline; "
            f"pipeline.generate(Path({str(SPECS)!r}), Path({str(out)!r}), {names!r})"
        )
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)
        found |= {path: text for path, text in contents(out).items() if path != "__init__.py"}
    committed = contents(GENERATED)
    differ = sorted(path for path in {*found, *committed} if found.get(path) != committed.get(path))
    assert not differ, f"{differ}\nrun: based-ops generate"


def test_generating_twice_changes_nothing(tmp_path: Path) -> None:
    names = NAMES[:2]
    first = pipeline.generate(SPECS, tmp_path, names)
    assert len(first.missing) == 1 + sum(map(modules, names)) and not first.stale
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")}
    assert not pipeline.generate(SPECS, tmp_path, names)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")}


# Interruption


@pytest.fixture
def small(
    tmp_path: Path,
    specs: dict[str, LayerSpec],
    printed_once: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path]:
    """A directory of two specs, and one that holds what an older version of them generated."""
    monkeypatch.setattr(pipeline, "sources", printed_once)
    source, out = tmp_path / "specs", tmp_path / "out"
    source.mkdir()
    for name in ("taylor1_qk16_v64", "window16_d64"):
        (source / f"{name}.yaml").write_text(dump_yaml(specs[name]), encoding="utf-8")
    pipeline.generate(source, out)
    for name in ("taylor1_qk16_v64", "window16_d64"):
        newer = replace(specs[name], head_dims=HeadDims(24, 48))
        (source / f"{name}.yaml").write_text(dump_yaml(newer), encoding="utf-8")
    return source, out


def contents(out: Path) -> dict[str, str]:
    return {path.relative_to(out).as_posix(): path.read_text(encoding="utf-8") for path in out.rglob("*.py")}


@pytest.mark.parametrize("survivors", [0, 1, 4])
@pytest.mark.parametrize("operation", ["write", "replace"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupt"]
)
def test_an_interruption_leaves_whole_files(
    small: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    survivors: int,
    error: BaseException,
) -> None:
    """Each file is the old one or the new one; the next run finishes the work."""
    source, out = small
    old, new = contents(out), pipeline.plan(source)
    calls = 0

    def failing(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls > survivors:
                if operation == "write":  # half of the text reaches the disk
                    path, text = args
                    original(path, str(text)[: len(str(text)) // 2], **kwargs)
                raise error
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if operation == "write":
            patch.setattr(Path, "write_text", failing(Path.write_text))
        else:
            patch.setattr(os, "replace", failing(os.replace))
        with pytest.raises(type(error)):
            pipeline.generate(source, out)
    left = contents(out)
    assert left.keys() == old.keys()
    assert all(text in (old[path], new[path]) for path, text in left.items())
    assert sum(text != old[path] for path, text in left.items()) == (
        survivors if operation == "replace" else 0
    )
    assert not list(out.glob(".*")), "the staging directory is gone"
    pipeline.generate(source, out)
    assert contents(out) == new


def test_a_wrong_spec_stops_before_anything_is_written(small: tuple[Path, Path]) -> None:
    from based_ops.codegen.errors import SpecErrors

    source, out = small
    before = contents(out)
    (source / "window16_d64.yaml").write_text("name: window16_d64\nmixer: nonsense\n", encoding="utf-8")
    with pytest.raises(SpecErrors):
        pipeline.generate(source, out)
    assert contents(out) == before


# Rooms


def test_the_compiler_imports_no_backend() -> None:
    """For a layer of each mixer, and one with parts."""
    names = sorted({spec.mixer: name for name, spec in pipeline.load(SPECS).items()}.values())
    names.append("hedgehog_qk64_v64")
    code = f"""
import sys
from pathlib import Path
from codegen import pipeline
from codegen.ir.printer import print_program
files = pipeline.plan(Path({str(SPECS)!r}), {names!r})
assert len(files) > 15
for spec in pipeline.load(Path({str(SPECS)!r})).values():
    for program in pipeline.lower(spec).programs:
        print_program(program)
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(loaded & {{"torch", "triton", "tilelang", "tvm", "based_ops", "numpy"}}))
"""
    # Without the site's path hooks: those of an editable install import parts of setuptools only.
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


TILE_SIZES = {16, 32, 64, 128, 256, 512, 1024, 2048, 4096}
OUTSIDE_SCHEDULE = sorted(
    path for room in ("lower", "emit", "ir") for path in (ROOT / "codegen" / room).glob("*.py")
)


@pytest.mark.parametrize("path", OUTSIDE_SCHEDULE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tile_sizes_live_in_schedule(path: Path) -> None:
    """No number that could be a tile size, a warp count's keyword or a stage count's stands elsewhere."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NUMBER and token.string.isdigit() and int(token.string) in TILE_SIZES:
            found.append(f"line {token.start[0]}: {token.line.strip()}")
    assert not found, "\n".join(found)
