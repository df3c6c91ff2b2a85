"""The compiler's driver: load → validate → lower → schedule → emit."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from . import artifacts
from .emit import features, registry, tilelang, torch, triton, warpgroups
from .emit.gluon.kernel import GluonKernel
from .emit.gluon.machines import HOPPER
from .emit.layer import ScheduledForeign, ScheduledLayer, scheduled
from .emit.writer import Writer
from .ir.check import check
from .ir.check_host import check_passes
from .ir.host import Launch, Pass
from .ir.kernels import ForeignKernel, Kernel, LaunchPlan
from .ir.program import Program
from .ir.rewrite import drop_unused, without_second_look
from .ir.tidy import tidy
from .ir.traits import RECURS
from .names import FEATURES, features_module, variant_file
from .parts.layer import FeatureLayer, feature_layers
from .parts.pieces import NoTile
from .schedule.choose import choose
from .schedule.legal import recurs
from .schedule.model import HOST_C
from .schedule.records import require_current
from .spec.featured import Featured
from .spec.load import load_dir
from .spec.model import LayerSpec, spec_to_dict

Each = Callable[[Callable[[LayerSpec], dict[str, str]], Iterable[LayerSpec]], Iterable[dict[str, str]]]
"""What applies a function to each of several layers, in their order."""
EMITTERS: dict[str, Callable[[ScheduledLayer], str]] = {
    "triton": triton.emit,
    "tilelang": tilelang.emit,
    HOST_C: tilelang.emit,
    "torch": torch.emit,
}
"""The printer of each generated module of a layer."""


@dataclass(frozen=True)
class Lowered:
    """A layer as programs and as the passes that launch them; no sizes are chosen yet."""

    spec: LayerSpec
    programs: tuple[Program, ...]
    passes: tuple[Pass, ...]

    @property
    def plans(self) -> tuple[LaunchPlan, ...]:
        """By what these passes choose what they launch."""
        return _plans(self.passes)


def load(specs: Path, names: Iterable[str] = ()) -> dict[str, LayerSpec]:
    """Load and validate the specs of a directory; raises `SpecErrors` with every error of every file."""
    return load_dir(specs, names)


def lower(spec: LayerSpec) -> Lowered:
    """The tile programs of a layer, or of its core if it has parts, checked."""
    spec = spec.core
    written = spec.programs()
    for program in written:
        check(program)
    programs = tuple(tidy(drop_unused(program)) for program in written)
    return Lowered(spec, programs, _passes(spec, programs))


def kernels(lowered: Lowered, target: str) -> tuple[Kernel, ...]:
    """The kernels of a layer's generated module, without recurrences if none of its dtypes recurs.

    Triton's has more where a layer suits warpgroups; PyTorch's products select, and need no second look.
    """
    recur = any(recurs(target, dtype) for dtype in lowered.spec.dtypes)
    run = tuple(program for program in lowered.programs if recur or RECURS not in program.does)
    if target == "torch":
        run = tuple(map(without_second_look, run))
    return (*run, *_foreign(lowered, target))


def passes_of(lowered: Lowered, target: str) -> tuple[Pass, ...]:
    """The passes of a layer's generated module."""
    return _passes(lowered.spec, kernels(lowered, target))


def plans_of(lowered: Lowered, target: str) -> tuple[LaunchPlan, ...]:
    """The plans of a layer's generated module, those that go with foreign kernels last."""
    return _plans(passes_of(lowered, target))


def _passes(spec: LayerSpec, kernels: Collection[Kernel]) -> tuple[Pass, ...]:
    """The passes of a layer with these kernels, of which they launch no others, checked."""
    faster = {kernel.instead_of: kernel for kernel in kernels if isinstance(kernel, ForeignKernel)}
    names = {kernel.name for kernel in kernels}
    passes = tuple(
        replace(part, body=tuple(s for s in part.body if not isinstance(s, Launch) or s.kernel in names))
        for part in spec.passes(faster)
    )
    check_passes(passes, kernels)
    return passes


def _plans(passes: Iterable[Pass]) -> tuple[LaunchPlan, ...]:
    found = [plan for part in passes for plan in part.plans]
    return tuple(sorted(found, key=lambda plan: plan.kernel is not None))


def _foreign(lowered: Lowered, target: str) -> tuple[ForeignKernel, ...]:
    return warpgroups.kernels(lowered.spec, lowered.programs) if target == "triton" else ()


def schedule(lowered: Lowered, target: str) -> ScheduledLayer:
    """Bind every choice that the programs leave open, for one kind of generated module.

    Raises `RecordError` if a tuning record of this layer no longer fits it.
    """
    found, run, planned = kernels(lowered, target), passes_of(lowered, target), plans_of(lowered, target)
    require_current(lowered.spec, (*found, *planned), run, target)
    launched = tuple(scheduled(kernel, choose(lowered.spec, kernel, target)) for kernel in found)
    chosen = tuple(choose(lowered.spec, plan, target) for plan in planned)
    return ScheduledLayer(lowered.spec, target, launched, run, chosen)


def emit(layer: ScheduledLayer) -> str:
    """The source text of one generated module."""
    return artifacts.signed(EMITTERS[layer.backend](layer))


def printed_for(layer: ScheduledLayer, architecture: str) -> ScheduledLayer:
    """A layer with the kernels for warpgroups that such GPUs have; those that they have not are left out."""
    kernels = (
        warpgroups.printed_for(kernel, architecture) if isinstance(kernel, ScheduledForeign) else kernel
        for kernel in layer.kernels
    )
    return replace(layer, kernels=tuple(kernel for kernel in kernels if kernel is not None))


def on_warpgroups(lowered: Lowered, architecture: str = HOPPER) -> str:
    """The text of a layer's kernels for warpgroups of such GPUs, "" if it has none."""
    w = Writer()
    for kernel in printed_for(schedule(lowered, "triton"), architecture).kernels:
        if isinstance(kernel, ScheduledForeign):
            warpgroups.emit(w, lowered.spec, kernel)
            w.blank(2)
    return w.text().lstrip("\n")


def places(lowered: Lowered) -> dict[str, list[str]]:
    """The plan of places of each of those that are printed from tile programs, by their names."""
    return {
        kernel.kernel.name: GluonKernel(kernel).plan.lines()
        for kernel in schedule(lowered, "triton").kernels
        if isinstance(kernel, ScheduledForeign) and kernel.kernel.program is not None
    }


def sources(spec: LayerSpec, directory: str | None = None) -> dict[str, str]:
    """Every generated file of a layer, by its path below the output directory."""
    lowered = lower(spec)
    directory = directory or spec.name
    files = {
        str(variant_file(directory, artifacts.module_name(target))): emit(schedule(lowered, target))
        for target in EMITTERS
    }
    makers = feature_makers(spec)
    if isinstance(spec, Featured) and spec.has_parts:
        files[str(variant_file(directory, FEATURES))] = artifacts.signed(features.emit(spec))
    for which, layer in makers.items():
        if isinstance(layer, FeatureLayer):
            for target in EMITTERS:
                path = variant_file(directory, features_module(which, artifacts.module_name(target)))
                files[str(path)] = emit(schedule(lower(layer), target))
    build = artifacts.hashed(_text(spec), *files.values())
    init = registry.variant(spec, build, makers)
    return {str(variant_file(directory, "__init__")): artifacts.signed(init)} | files


def feature_makers(spec: LayerSpec) -> dict[str, FeatureLayer | NoTile]:
    """What makes a layer's features by kernels, or why nothing does but PyTorch; empty without parts."""
    found: dict[str, FeatureLayer | NoTile] = {}
    if isinstance(spec, Featured) and spec.has_parts:
        for which, layer in feature_layers(spec).items():
            try:
                layer.programs()
                found[which] = layer
            except NoTile as reason:
                found[which] = reason
    return found


def plan(
    specs: Path,
    names: Iterable[str] = (),
    out: Path | None = None,
    progress: Callable[[str], None] | None = None,
    each: Each = map,
) -> dict[str, str]:
    """Every file that `specs` generates, by its path; only the layers `names`, if any are given.

    Layers that are in `out` already then stay registered although they are not generated again.  Layers know
    nothing of each other, so `each` may be the `map` of an executor.
    """
    names = tuple(names)
    loaded = load(specs, names)
    also: list[str] = []
    if names and out is not None:
        known = (path.stem for path in specs.glob("*.yaml"))
        also = [name for name in known if out.joinpath(variant_file(name, "__init__")).is_file()]
    files: dict[str, str] = {}
    made = iter(each(sources, loaded.values()))
    for name in loaded:
        if progress:
            progress(name)
        files |= next(made)
    return {"__init__.py": registry.package(sorted({*loaded, *also}))} | files


def generate(
    specs: Path,
    out: Path,
    names: Iterable[str] = (),
    progress: Callable[[str], None] | None = None,
    each: Each = map,
) -> artifacts.Changes:
    """Bring the generated files in `out` up to date; nothing is written if any spec is wrong."""
    names = tuple(names)
    return artifacts.write(out, plan(specs, names, out, progress, each), remove_others=not names)


def compare(
    specs: Path,
    out: Path,
    names: Iterable[str] = (),
    progress: Callable[[str], None] | None = None,
    each: Each = map,
) -> artifacts.Changes:
    """What `generate` would change; `out` is left alone."""
    names = tuple(names)
    return artifacts.compare(out, plan(specs, names, out, progress, each), look_for_others=not names)


def generate_one(spec: LayerSpec, out: Path, variant: str) -> None:
    """Generate one layer as the package `out`, registered as `variant`."""
    files = {"__init__.py": registry.package([variant])} | sources(spec, directory=variant)
    artifacts.write(out, files, remove_others=False)


def cache_key(spec: LayerSpec) -> str:
    """Eight hexadecimal digits that change whenever the spec's meaning or the compiler does.

    They are known before anything is generated; a layer's *build*, which hashes what was generated, is not.
    """
    return artifacts.hashed(compiler_hash(), _text(spec))


def _text(spec: LayerSpec) -> str:
    return json.dumps(spec_to_dict(spec), sort_keys=True)


@functools.cache
def compiler_hash() -> str:
    """Hash of the compiler's own sources and of the schedule records."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
