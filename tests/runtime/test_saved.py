"""What is written to disk or sent to another process: variants, states and exported programs."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import based_ops
from based_ops import cache, dispatch, errors, jit, registry, state
from based_ops.codegen.pipeline import generate_one
from based_ops.codegen.spec.model import dump_yaml
from based_ops.layers import SlidingWindowAttention
from based_ops.variant import Variant

from .inputs import leaves, qkv

SPEC = "name: saved\nmixer: sliding_window\nwindow: 200\nhead_dims: {qk: 128, v: 256}\n"
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Variant:
    """A layer that was compiled just in time."""
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "saved.yaml").write_text(SPEC)
    return based_ops.load(tmp_path / "saved.yaml")


class Model(torch.nn.Module):
    """Outputs of a variant, and its state."""

    def __init__(self, variant: Variant, backend: str | None = None) -> None:
        super().__init__()
        self.variant, self.backend = variant, backend

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return self.variant(q, k, v, output_final_state=True, backend=self.backend)


def test_a_fresh_process_has_what_load_made(mine: Variant, tmp_path: Path) -> None:
    """A pickle, a whole model, and a program that calls the operators."""
    inputs = qkv(mine)
    layer = SlidingWindowAttention(32, 2, mine)
    (tmp_path / "variant").write_bytes(pickle.dumps(mine))
    torch.save(layer, tmp_path / "model")
    torch.export.save(torch.export.export(Model(mine), inputs), tmp_path / "program")
    torch.save((inputs, *mine(*inputs, output_final_state=True)), tmp_path / "results")
    code = """
import pickle, torch, based_ops
(inputs, want, want_state) = torch.load("results")
o, state = torch.export.load("program").module()(*inputs)
print(torch.equal(o, want), type(state) is type(want_state), all(map(torch.equal, state, want_state)))
variant = pickle.load(open("variant", "rb"))
print(variant.name, torch.load("model", weights_only=False).op is variant)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={**os.environ}
    )
    assert run.stdout.split() == ["True", "True", "True", mine.name, "True"], run.stderr


def test_a_pickle_finds_a_registered_variant_of_its_meaning(any_layer: Variant) -> None:
    assert jit.pickled("not_known_here_00000000", dump_yaml(any_layer.spec)) is any_layer
    assert pickle.loads(pickle.dumps(any_layer)) is any_layer is copy.deepcopy(any_layer)


def test_a_pickle_is_compiled_where_nothing_has_its_meaning(mine: Variant) -> None:
    text = dump_yaml(mine.spec).replace("window: 200", "window: 201")
    other = jit.pickled(mine.name, text)
    assert other.name != mine.name and other.window == 201  # type: ignore[attr-defined]
    assert (cache.cache_directory() / other.name).is_dir()


def test_operators_that_nobody_can_find(mine: Variant) -> None:
    with pytest.raises(errors.UnknownVariant, match="nothing_01234567.*load its spec first"):
        torch.ops.based_ops.nothing_01234567_forward  # noqa: B018
    for name in ("nothing_forward", f"{mine.name}_sideways", "nothing"):
        assert not hasattr(torch.ops.based_ops, name)


@pytest.mark.parametrize("equal", [True, False], ids=["prints the same", "prints something else"])
def test_a_program_of_another_compiler(mine: Variant, equal: bool) -> None:
    """It made an entry under another key."""
    name = f"saved_{'a' if equal else 'b'}0000000"

    def generate(out: Path) -> None:
        generate_one(mine.spec, out, name)
        if not equal:
            with (out / name / "torch.py").open("a") as file:
                file.write("# another compiler\n")

    cache.entry(name, dump_yaml(mine.spec), generate)
    if not equal:
        with pytest.raises(errors.VersionError, match=f"the present one is {mine.name}: export the program"):
            getattr(torch.ops.based_ops, f"{name}_forward")
        return
    inputs = qkv(mine)
    o, _ = getattr(torch.ops.based_ops, f"{name}_forward")(*inputs, mine.default_scale, None, "default")
    assert_close(o, mine(*inputs)[0], **EXACT)


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_program_holds_what_was_asked_for(variant: Variant, backend: str | None, strict: bool) -> None:
    inputs = qkv(variant)
    program = torch.export.export(Model(variant, backend), inputs, strict=strict)
    (node,) = (node for node in program.graph.nodes if "based_ops" in str(node.target))
    build = variant._record.build
    assert node.args[-1] == f"{backend or 'default'}-{build}"
    module = program.module()
    assert_close(module(*inputs)[0], variant(*inputs)[0], **EXACT)
    for called in module.graph.nodes:
        if "based_ops" in str(called.target):
            called.args = (*called.args[:-1], "default-" + build[::-1])
    module.recompile()
    with pytest.raises(errors.VersionError, match=f"must be of build {build}.*export or compile it again"):
        module(*inputs)


def test_default_is_resolved_where_it_runs(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "why_not", lambda *_: None)
    dispatch._kernel.cache_clear()
    record = variant._record
    for kernel, device, dtype, module in [
        ("default", "cuda", torch.bfloat16, "triton"),
        ("default", "cpu", torch.bfloat16, "torch"),
        ("default", "cuda", torch.float64, "torch"),
        ("torch", "cuda", torch.bfloat16, "torch"),
        ("tilelang", "cpu", torch.bfloat16, "tilelang_cpu"),
        ("tilelang_cpu", "cuda", torch.bfloat16, "tilelang"),
    ]:
        asked = f"{kernel}-{record.build}"
        found = dispatch.served(record, asked, torch.device(device), dtype)
        assert found == f"{module}-{record.build}"
    dispatch._kernel.cache_clear()


def test_states_go_to_disk_and_back(any_variant: Variant) -> None:
    _, final = any_variant(*qkv(any_variant), output_final_state=True)
    file = io.BytesIO()
    torch.save({"state": final, "tokens": 21}, file)
    file.seek(0)
    for found in (torch.load(file)["state"], pickle.loads(pickle.dumps(final)), copy.deepcopy(final)):
        assert type(found) is type(final) and len(leaves(found)) == len(leaves(final))
        for got, want in zip(leaves(found), leaves(final), strict=True):
            assert_close(got, want, **EXACT)
            assert got.data_ptr() != want.data_ptr()
        any_variant.step(*(x[:, :1] for x in qkv(any_variant)), found)


def test_a_state_of_another_layout_is_refused(layer: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    final = layer.init_state(1, 1)
    data = pickle.dumps(final)
    kind = type(final).__name__
    monkeypatch.setitem(state.LAYOUTS, kind, state.LAYOUTS[kind] + 1)
    with pytest.raises(errors.VersionError, match=f"^{kind}: got layout 1 of a saved state, must be 2"):
        pickle.loads(data)
    with pytest.raises(errors.VersionError, match="of a known kind"):
        state.loaded("Unknown", 1)


def test_a_fork_waits_for_who_makes_a_variant_known(variant: Variant) -> None:
    held = threading.Event()

    def hold() -> None:
        with registry.LOCK:
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        taken = registry.LOCK.acquire(timeout=5) and based_ops.get(variant.name) is variant
        others = []
        registry.LOCK.release()
        reader = threading.Thread(target=lambda: others.append(based_ops.get(variant.name)), daemon=True)
        reader.start()
        reader.join(5)
        os._exit(0 if taken and others == [variant] else 1)
    assert time.monotonic() - start > 0.2
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert registry.LOCK.acquire(timeout=1)
    registry.LOCK.release()


def test_threads_get_one_object(variant: Variant) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            registry._variant.cache_clear()
            start, found = threading.Barrier(4), []

            def take(start: threading.Barrier = start, found: list[Variant] = found) -> None:
                start.wait()
                found.append(based_ops.get(variant.name))

            threads = [threading.Thread(target=take) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len({id(x) for x in found}) == 1
    finally:
        sys.setswitchinterval(interval)
