"""The script for compute-sanitizer: that it calls every kernel, and understands what the tools say."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import based_ops
from based_ops.benchmarks import sanitize
from based_ops.benchmarks.sanitize import Case, calls, cases
from based_ops.benchmarks.sanitizer_report import Found, parsed
from based_ops.codegen.names import variant_of
from based_ops.record import record

OUTPUT = """\
========= COMPUTE-SANITIZER
form: short
form: packed
========= Invalid __global__ read of size 4 bytes
=========     at token+0x1f0
=========     by thread (3,0,0) in block (0,0,0)
form: step
========= ERROR SUMMARY: 2 errors
"""


WALKS = ("walk", "walk_back", "mode_sums", "mode_gradients", "skip_gradients")
"""What a state space launches that goes from token to token."""


def kernels(module: ModuleType, dtype: str) -> set[str]:
    """Those that a generated module may launch in a dtype: entries of its table that are no plans."""
    triton = pytest.importorskip("triton")
    jit, table = triton.runtime.JITFunction, module.SCHEDULE
    names = {name for name in table if isinstance(getattr(module, name, None), jit)}
    found = {name for name in names if getattr(torch, dtype) in table[name]}
    least = table.get("forward_packed", {}).get(getattr(torch, dtype), {}).get("LEAST")
    if least == 1:  # however short, packed sequences go in chunks then, so that lengths decide on no bit
        found -= {"walk_packed", "walk_back_packed", "mode_sums_packed"}
    elif least is not None:  # no call goes in chunks
        found &= {*WALKS, *(f"{name}_packed" for name in WALKS), "poles", "token"}
    return found


@pytest.mark.parametrize("name", based_ops.names())
def test_every_kernel_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its module's own host functions, which launch nothing here, as on a Hopper GPU."""
    for case in (case for case in cases(["triton"]) if variant_of(case.layer) == name):
        module, launched = case.module, set[str]()
        if not kernels(module, case.dtype):
            pytest.skip("under the interpreter there are no kernels to tell")
        monkeypatch.setattr(module, "launch", lambda kernel, *_: launched.add(kernel.__name__))  # noqa: B023
        monkeypatch.setattr("based_ops.support.triton.launch", lambda *_: None)  # of what is no layer's own
        if hasattr(module, "on_warpgroups"):
            monkeypatch.setattr(module, "on_warpgroups", lambda *_: True)
        for _, run in calls(case, "cpu"):
            run()
        assert launched == kernels(module, case.dtype), case


def test_every_layer_backend_and_dtype_is_a_case() -> None:
    found = {(case.backend, case.layer) for case in cases()}
    layers = {x.name for name in based_ops.names() for x in (record(name), *record(name).makers.values())}
    assert found == {(backend, name) for backend in sanitize.BACKENDS for name in layers}
    assert Case("triton", "taylor2_qk16_v64", "bfloat16") in cases()
    kinds = {case.kind for case in cases()}
    assert {case.kind for case in cases()[: len(kinds)]} == kinds


def test_the_summary_is_read() -> None:
    assert parsed(OUTPUT) == Found(2, ("packed",))
    clean = "form: short\n========= ERROR SUMMARY: 0 errors\n"
    assert parsed(clean) == Found(0)
    one = "form: a\n========= Error: Race reported between Write access at k\n"
    race = one + "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    assert parsed(race) == Found(1, ("a",))
    raised = (
        "Traceback (most recent call last):\n  File x\nRuntimeError: no\n========= ERROR SUMMARY: 0 errors\n"
    )
    assert parsed(raised) == Found(0, (), "raised RuntimeError: no")
    assert parsed("Killed\n") == Found(None, failed="no summary; it ended with: Killed")


def test_a_run_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    asked: list[str] = []

    def under(tool: str, case: Case, seconds: float) -> Found:
        asked.append(sanitize.key(tool, case))
        return Found(0) if tool != "racecheck" else Found(3, ("packed",))

    about = {"device": "none", "date": "2026-01-01"}
    monkeypatch.setattr(sanitize, "under", under)
    monkeypatch.setattr(sanitize, "why_not", lambda: None)
    monkeypatch.setattr(sanitize, "machine", lambda device: about)
    monkeypatch.setattr(sanitize, "RESULTS", tmp_path / "found.json")
    run = ["--backend", "triton", "--only", "window16", "--tool", "racecheck"]
    sanitize.main(run)
    assert asked and len(set(asked)) == len(asked)
    before = len(asked)
    sanitize.main(["--backend", "triton", "--only", "window16", "--resume"])
    assert len(asked) == 3 * before and len(set(asked)) == len(asked)
    document = json.loads((tmp_path / "found.json").read_text())
    assert document["machine"] == about and set(document["found"]) == set(asked)
    out = capsys.readouterr().out
    assert "3 errors in packed" in out and f"memcheck: {before} of {before} processes without an error" in out
    later = ["--backend", "triton", "--only", "window16", "--minutes", "0", "--resume"]
    about |= {"date": "2026-01-02", "compiler": "another"}
    sanitize.main(later)
    assert "not done" not in capsys.readouterr().out, "the same kernels"
    monkeypatch.setattr(sanitize, "text", lambda case: "other kernels")
    sanitize.main(later)
    assert f"not done: {3 * before}" in capsys.readouterr().out
    monkeypatch.undo()
    for name, value in (("why_not", lambda: None), ("machine", lambda _: about | {"device": "another"})):
        monkeypatch.setattr(sanitize, name, value)
    monkeypatch.setattr(sanitize, "RESULTS", tmp_path / "found.json")
    sanitize.main(later)
    assert f"not done: {3 * before}" in capsys.readouterr().out


def test_what_the_end_cuts_off_is_no_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """It is left for a run that goes on; what takes longer than any may is one."""
    for name, value in (("under", lambda *_: None), ("why_not", lambda: None), ("machine", lambda _: {})):
        monkeypatch.setattr(sanitize, name, value)
    monkeypatch.setattr(sanitize, "RESULTS", tmp_path / "found.json")
    run = ["--backend", "triton", "--only", "window16", "--tool", "memcheck", "--minutes"]
    sanitize.main([*run, "1"])
    assert "not done" in capsys.readouterr().out and not (tmp_path / "found.json").exists()
    sanitize.main([*run, "60"])
    assert f"took longer than {sanitize.SECONDS} s" in capsys.readouterr().out
