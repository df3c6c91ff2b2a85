"""The benchmark of language models: what is timed is what they compute, and a failure costs one number."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import based_ops
from based_ops.benchmarks.models import clock, cost, hub, points, profile, results, run, worker
from based_ops.benchmarks.models.contenders import Transformer
from based_ops.benchmarks.models.points import LARGEST, Point, chosen
from based_ops.benchmarks.ops.measure import Ceilings
from based_ops.benchmarks.ops.tables import rewritten
from based_ops.cli import main
from based_ops.errors import ArgumentValueError
from based_ops.layers import ImplicitConv
from based_ops.models import LanguageModel, merge_norms, merge_projections, shipped
from based_ops.train import flops

CEILINGS = Ceilings(10.0, 0.1, "float32")
TINY = ("based-tiny", "transformer-tiny", "hybrid-tiny", "mamba2-tiny")
HERE = {"machine": {"device": "none", "torch": "1", "date": "today"}, "ceilings": vars(CEILINGS)}


def point(model: str = "based-tiny", task: str = "generate", way: str = "eager", **fields: int) -> Point:
    return Point(task, model, **{"batch": 2, "prompt": 8, "new": 4, **fields}, way=way)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "SECONDS", 0.01)
    monkeypatch.setattr(clock, "BACKEND", "aot_eager")


@pytest.mark.parametrize("way", ["eager", "blocks", "whole"])
@pytest.mark.parametrize("model", TINY)
def test_lines(model: str, way: str) -> None:
    contender = worker.make(model, "cpu")
    methods = vars(contender.net.blocks[0]).keys()  # type: ignore[union-attr, index]
    for task in points.TASKS:
        line = worker.line_of(contender, point(model, task, way), CEILINGS)
        assert 0 < line.limit_ms < line.ms and line.parameters == contender.parameters
        tokens = 2 if task == "generate" else 16
        assert line.tokens_per_second == pytest.approx(1000 * tokens / line.ms)
        assert line.state_mb > 0 and line.bytes > 4 * contender.weights
    assert vars(contender.net.blocks[0]).keys() == methods, "what was compiled is there no more"  # type: ignore


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("model", [*TINY, "llama-tiny", "gla-tiny", "gated-deltanet-tiny"])
def test_lines_on_a_gpu(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "BACKEND", "inductor")
    if why := hub.missing(model):
        pytest.skip(why)
    contender = worker.make(model, "cuda")
    for task in points.TASKS:
        for way in points.FLA_WAYS if model in hub.FLA else points.WAYS:
            if not way.endswith("cudnn"):  # heads of 16 are too narrow for it
                for batch in (1, 2):  # of a single row Inductor writes the products
                    line = worker.line_of(contender, point(model, task, way, batch=batch), CEILINGS)
                    assert line.ms > 0 and line.limit_ms > 0
    monkeypatch.setattr(contender, "largest", lambda length, free: 3)
    assert worker.line_of(contender, point(model, batch=LARGEST, way="graph"), CEILINGS).batch == 3


def test_steps_of_constant_states_are_measured_once_and_others_over_the_span() -> None:
    based = worker.line_of(worker.make("based-tiny", "cpu"), point(new=9), CEILINGS)
    full = worker.line_of(worker.make("transformer-tiny", "cpu"), point("transformer-tiny", new=9), CEILINGS)
    assert based.constant and list(based.at) == ["9"]
    assert not full.constant and list(full.at) == ["17", "13", "9"]
    last, middle, first = full.at.values()
    assert full.ms == pytest.approx((first + 4 * middle + last) / 6)


def test_memory_of_constant_states_does_not_grow() -> None:
    def state_mb(model: str, prompt: int) -> float:
        return worker.line_of(worker.make(model, "cpu"), point(model, prompt=prompt), CEILINGS).state_mb

    assert state_mb("based-tiny", 8) == state_mb("based-tiny", 200)
    assert state_mb("transformer-tiny", 200) > 10 * state_mb("transformer-tiny", 8)


def test_kernels_of_a_step_are_counted_where_they_begin() -> None:
    def event(name: str, ts: float, dur: float, *grid: int) -> dict[str, Any]:
        args = {"grid": grid, "block": (64, 2, 1)} if grid else {}
        return {"name": name, "ts": ts, "dur": dur, "args": args}

    seen = [event("a", 0, 4, 7, 1, 3), event("b", 5, 1), event("a", 10, 2, 7, 1, 3), event("b", 11, 1)]
    first, second = profile.alike(seen, 2)
    assert first == profile.Kernel("a", "7×3:128", 1.0, 3.0, 2.0)
    assert second == profile.Kernel("b", "", 1.0, 1.0, 0.5), "what overlaps has not waited"


def test_where_the_time_of_a_step_goes() -> None:
    found = CliRunner().invoke(
        main, ["bench", "step", "--model", "based-tiny", "--batch", "2", "--prompt", "8", "--device", "cpu"]
    )
    assert found.exit_code == 0, found.output
    launches = {line.split()[0]: line.split()[1] for line in found.output.splitlines()}
    assert launches["aten::argmax"] == launches["based_ops::window16_d64_step"] == "1"
    assert "a step takes" in found.output
    found = CliRunner().invoke(main, ["bench", "step", "--device", "cpu", "--way", "quick"])
    assert found.exit_code == 2 and "--way: got 'quick', not one of 'eager', 'blocks'" in found.output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
def test_where_the_time_of_a_step_goes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "BACKEND", "inductor")
    found = profile.profile("based-tiny", "cuda", 2, 8, "graph, blocks")
    assert found.ms > 0 and len(found.kernels) > 9
    assert all(x.launches == round(x.launches) and x.us > 0 for x in found.kernels)
    assert any(x.grid for x in found.kernels)


@torch.no_grad()
def test_a_step_of_the_baseline_is_that_of_the_model() -> None:
    contender = worker.make("transformer-tiny", "cpu")
    assert isinstance(contender, Transformer)
    own = merge_norms(merge_projections(LanguageModel("transformer-tiny", dtype=torch.float32))).eval()
    net = contender.net
    own.load_state_dict(net.state_dict())
    ids = torch.randint(256, (3, 12))
    want = own(ids)[0][:, -1]
    _, state = own(ids[:, :-1], output_state=True)
    caches = tuple(block.mixer.cache(3, 12) for block in net.blocks)  # type: ignore[operator]
    for cache, known in zip(caches, state, strict=True):
        cache.k[:, :, :-1, : known.k.shape[-1]] = known.k
        cache.v[:, :, :-1, : known.v.shape[-1]] = known.v
    assert torch.allclose(net.step(ids[:, -1:], caches)[:, -1], want, atol=1e-5)


@torch.no_grad()
def test_a_step_of_llama_is_that_of_transformers() -> None:
    pytest.importorskip("transformers")
    contender: Any = worker.make("llama-tiny", "cpu")
    ids = torch.randint(256, (2, 9))
    want = contender.net(input_ids=ids).logits[:, -1]
    known = contender.net(input_ids=ids[:, :-1], use_cache=True).past_key_values
    cache = contender._cache(2, 9)
    for mine, theirs in zip(cache.layers, known.layers, strict=True):
        mine.keys[:, :, :-1], mine.values[:, :, :-1] = theirs.keys, theirs.values
    found = contender.net(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
    assert torch.allclose(found, want, atol=1e-5)
    contender.net.set_attn_implementation("sdpa")
    assert torch.allclose(contender.net(input_ids=ids).logits[:, -1], want, atol=1e-5)
    for task in points.TASKS:
        assert worker.line_of(contender, point("llama-tiny", task), CEILINGS).ms > 0


def test_a_step_of_a_model_whose_states_are_new_tensors_begins_with_the_same() -> None:
    class Peer(hub.Fla):
        def __init__(self) -> None: ...

    state = {"recurrent_state": torch.zeros(1), "conv_state": None}
    cache = SimpleNamespace(layers=[SimpleNamespace(state=state)])
    begin = Peer()._beginning(cache)
    for _ in range(2):
        begin()
        layer = cache.layers[0]
        assert layer.state["recurrent_state"] is state["recurrent_state"]
        layer.state["recurrent_state"] = torch.ones(1)


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_is_there", lambda package: package == "transformers")
    stub(monkeypatch)
    report = measured([point("gla-tiny"), point("based-tiny"), point("llama-tiny")])
    assert [line.point.model for line in report.lines] == ["based-tiny", "llama-tiny"]
    assert [x.reason for x in report.missing] == ["fla.models: not installed"]


def test_a_process_ends_after_a_capture_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    some = [vars(point(way=way)) for way in ("cudnn", "graph", "eager")]
    some[0]["batch"] = -1  # an error without a capture
    worker.run_job(
        {"device": "cpu", "model": "based-tiny", "until": 1e12, "ceilings": vars(CEILINGS), "points": some}
    )
    said = [list(json.loads(line))[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["begin", "missing"] * 2, "and leaves the third to another"


def test_costs_are_those_counted_by_hand() -> None:
    contender = worker.make("transformer-tiny", "cpu")
    d, inner, vocabulary, layers = 64, 128, 256, 2
    matrices = layers * (d * d + 2 * d * d // 2 + d * d + 3 * d * inner)
    norms = layers * 2 * d + d
    assert contender.weights == matrices + norms + vocabulary * d
    found = contender.step_cost(3, 10, carried=1000.0)
    assert found.bytes == 4 * contender.weights + 1000
    assert found.flops == 3 * (2 * contender.weights + layers * 4 * 10 * d)
    assert cost.Cost(8e9, 1e9).limit_ms(10, 0.1) == 800 and cost.Cost(1, 1e11).limit_ms(10, 0.1) == 1000
    assert contender.largest(100, 0) == 0
    each = contender.sequence_bytes(100) + 8 * vocabulary
    assert contender.largest(100, 7.5 * each) == 7 and contender.largest(100, 47 * each) == 40


def test_what_a_step_carries() -> None:
    net = LanguageModel("based-tiny")
    conv, linear, window, _ = net.init_state(2)
    assert cost.carried((conv, linear)) == 2 * sum(x.nbytes for x in (*conv, *linear))
    assert cost.carried(window) == sum(x.nbytes for x in window) + window.position.nbytes


def test_telling_points_come_first() -> None:
    steps = chosen("generate", "cuda")
    assert [(x.model, x.batch) for x in steps[:8:2]] == [("based-1b", x) for x in (1, 128, 512, 1024)]
    assert {x.model for x in steps[8:16]} == {"based-replay-1b"} and steps[15].batch == LARGEST
    assert {x.prompt for x in steps[16:30]} == {1024, 4096, 16384} and steps[16].model == "transformer-1b"
    assert {x.prompt for x in steps} == {1, 1024, 4096, 16384, 65536}
    assert {x.model for x in steps} == {
        "based-1b",
        "based-replay-1b",
        "transformer-1b",
        "llama-1b",
        "gla-1b",
        "gated-deltanet-1b",
    }
    largest = {(x.model, x.prompt) for x in steps if x.batch == LARGEST}
    assert {(x, n) for x in ("transformer-1b", "llama-1b") for n in (16384, 65536)} <= largest
    assert {x.way for x in chosen("generate", "cuda", ["gla-1b"], [0])} == set(points.FLA_WAYS)
    prompts = chosen("prefill", "cuda")
    assert [(x.batch, x.prompt) for x in prompts[:6:3]] == [(1, 8192), (1, 32768)]
    for some in (steps, prompts):
        assert len(set(some)) == len(some) and {x.way for x in some} <= set(points.WAYS)


# Runs

GOOD = """
import json, sys
job = json.load(sys.stdin)
if not job["points"]:
    print(json.dumps({here}))
for point in job["points"]:
    print("a compiler speaks")
    print(json.dumps({{"begin": ""}}), flush=True)
    {fault}
    line = dict(point=point, batch=point["batch"], parameters=1, ms=2.0, tokens_per_second=5.0, bytes=1.0,
                flops=1.0, limit_ms=1.0, state_mb=1.0, at={{"9": 2.0}})
    print(json.dumps({{"line": line}}), flush=True)
"""


def stub(monkeypatch: pytest.MonkeyPatch, fault: str = "") -> None:
    """A worker that measures nothing, and does `fault` at every point."""
    monkeypatch.setattr(run, "COMMAND", [sys.executable, "-c", GOOD.format(here=HERE, fault=fault)])


def measured(some: list[Point], minutes: float = 1.0, **more: Any) -> results.Report:
    return run.run(some, "cpu", minutes, lambda text: None, **more)


@pytest.mark.parametrize("name", [x for x in shipped() if x.endswith("tiny") and x != "transformer-tiny"])
def test_a_prompt_costs_what_a_training_counts(name: str) -> None:
    """Whatever its mixers, besides the products of its weights and what makes a convolution's filters."""
    net, length = LanguageModel(name, device="meta"), 300
    linear = {x for x in net.modules() if isinstance(x, nn.Linear)}
    besides = sum(2.0 * length * x.in_features * x.out_features for x in linear)
    besides += sum(x.products(length) for x in net.modules() if isinstance(x, ImplicitConv))
    trained = flops.of_token(net, length) * length / 3
    counted = cost.mixing(net, length, prompt=True) + besides
    assert 0.999 * trained < counted < 1.2 * trained  # and a final state
    assert 0 < cost.mixing(net, length, prompt=False) < cost.mixing(net, length, prompt=True)


def test_states_that_grow_are_not_stepped_again_and_again() -> None:
    contender = worker.make("hyena-tiny", "cpu")
    assert contender.prompt(2, 8)().shape == (2, 1, 256)
    with pytest.raises(ArgumentValueError, match="model: got 'hyena-tiny', must be of full attention"):
        contender.step(1, 8)


def test_what_is_replayed_is_written_once_in_so_many_tokens() -> None:
    state = based_ops.get("taylor2_replay_qk16_v64").init_state(3, 2)
    assert state.normalizer is not None
    read = sum(x.nbytes for x in state)
    sums = sum(x.nbytes for x in (state.state, state.normalizer))
    counters = state.position.nbytes + state.entered.nbytes
    assert cost.carried((None, state)) == pytest.approx(read + sums / 16 + counters)


def test_a_process_that_dies_costs_one_point(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [point(batch=batch) for batch in (1, 2, 3)]
    stub(monkeypatch, 'if point["batch"] == 2: sys.exit(7)')
    saved: list[results.Report] = []
    report = measured(some, save=saved.append)
    assert [line.batch for line in report.lines] == [1, 3] and len(saved) == 3
    (lost,) = report.missing
    assert lost.reason == "its process ended with 7" and not lost.final and report.not_measured == []


def test_a_process_that_dies_between_points_costs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        run, "COMMAND", [sys.executable, "-c", GOOD.format(here=HERE, fault="") + "    sys.exit(3)\n"]
    )
    report = measured([point(batch=batch) for batch in (1, 2, 3)])
    assert [line.batch for line in report.lines] == [1, 2, 3] and report.missing == []


def test_silence_costs_one_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE", 1.0)
    stub(monkeypatch, 'if point["batch"] == 1: import time; time.sleep(60)')
    report = measured([point(batch=batch) for batch in (1, 2)])
    assert [line.batch for line in report.lines] == [2]
    assert [x.reason for x in report.missing] == ["no answer for 1 s"]


def test_resuming(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    some = [point(batch=batch) for batch in (1, 2, 3)]
    stub(monkeypatch, 'if point["batch"] == 2: sys.exit(7)')
    path = tmp_path / "r.json"
    measured(some[:2]).write(path)
    earlier = results.read(path)
    assert results.is_one(path) and earlier == results.read(path) and len(earlier.lines) == 1
    stub(monkeypatch)
    report = measured(some, earlier=earlier)
    assert [line.batch for line in report.lines] == [1, 2, 3] and report.missing == []
    assert report.lines[0] == earlier.lines[0] and report.seconds > earlier.seconds
    without = replace(earlier, machine={**earlier.machine, "torch": None})
    assert measured(some, earlier=without).machine == report.machine, "what was not there took no part"
    with pytest.raises(ValueError, match="a result of bench generate"):
        measured([point(task="prefill")], earlier=earlier)
    other = json.loads(path.read_text())
    other["machine"]["torch"] = "2"
    path.write_text(json.dumps(other))
    with pytest.raises(ValueError, match="torch 2, here 1"):
        measured(some, earlier=results.read(path))


def test_no_point_begins_after_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch)
    report = measured([point()], minutes=0.0)
    assert report.lines == [] and report.not_measured == [str(point())]


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch)
    monkeypatch.setattr(hub, "missing", lambda name: "x is not installed" if name == "llama-1b" else None)
    report = measured([point("llama-1b"), point()])
    assert [x.reason for x in report.missing] == ["x is not installed"] and len(report.lines) == 1


def test_what_is_there_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.missing("based-1b") is None
    monkeypatch.setattr(hub, "_is_there", lambda package: package == "transformers")
    assert hub.missing("llama-1b") is None and hub.missing("gla-1b") == "fla.models: not installed"
    monkeypatch.undo()
    assert hub._is_there("based_ops.generate") and not hub._is_there("based_ops.nothing")
    assert not hub._is_there("nothing_of_that_name")


def test_too_little_memory_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        try:
            raise torch.OutOfMemoryError("full")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("a capture was left") from error

    monkeypatch.setattr(worker, "_measured", full)
    fields = vars(point("transformer-tiny", batch=5))
    job = {"device": "cpu", "model": "transformer-tiny", "until": 1e12, "ceilings": vars(CEILINGS)}
    worker.run_job(job | {"points": [fields]})
    begun, said = map(json.loads, capsys.readouterr().out.splitlines())
    assert "begin" in begun and said == {"missing": "does not fit", "final": True}


def test_the_largest_batch_shrinks_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    contender = worker.make("transformer-tiny", "cpu")
    tried: list[int] = []

    def fits_few(contender: Any, point: Point, batch: int, ceilings: Any) -> int:
        tried.append(batch)
        if batch > 90:
            raise torch.OutOfMemoryError
        return batch

    monkeypatch.setattr(worker, "_measured", fits_few)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (worker.RESERVE + 1, 0))
    monkeypatch.setattr(contender, "largest", lambda length, free: 100)
    assert worker.line_of(contender, point("transformer-tiny", batch=LARGEST), CEILINGS) == 88
    assert tried == [100, 94, 88]


# What people see


def two_models(task: str = "generate") -> results.Report:
    def line(model: str, batch: int, prompt: int, rate: float, constant: bool) -> results.Line:
        own = point(model, task, batch=batch, prompt=prompt)
        return results.Line(own, batch, 1, 1000 / rate, rate, 1.0, 1.0, 500 / rate, 1.0, {}, constant)

    lines = [
        line("ours", 1, 8, 10.0, True),
        line("ours", 64, 8, 90.0, True),
        line("theirs", 1, 8, 20.0, False),
        line("theirs", 1, 99, 5.0, False),
    ]
    return results.Report(task, HERE["machine"], CEILINGS, lines, [], [], 1.0)


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    block = f"<!-- from {path.name}: based-ops bench tables -->\n<!-- end -->\n"
    two_models().write(path)
    text = rewritten(block, tmp_path)
    assert "none, float32, today, torch 1. In brackets the share of what 10 GB/s, 0 TFLOP/s allow." in text
    assert "| prompt | ours, tokens/s | theirs, tokens/s | batch 1, ms |" in text
    assert "| 8 | **90 at B64 (50 %)** | 20 at B1 (50 %) | 100.00, 50.00 |" in text
    assert "| 99 | **90 at B64 (50 %)** | 5 at B1 (50 %) | 100.00, 200.00 |" in text
    assert rewritten(text, tmp_path) == text
    two_models("prefill").write(path)
    text = rewritten(block, tmp_path)
    assert "| 1 × 8 | 100 (50 %) | **50.0 (50 %)** |" in text and "| 64 × 8 | **11.1 (50 %)** |  |" in text


def test_best_and_summary() -> None:
    report = two_models()
    assert report.best("ours", 99).tokens_per_second == 90  # type: ignore[union-attr]
    assert report.best("ours", 99, 1).tokens_per_second == 10  # type: ignore[union-attr]
    assert report.best("theirs", 99, 64) is None
    text = "\n".join(results.summary(report))
    assert "prompt 99, tokens/s, each at its best batch: ours 90 (B64), theirs 5 (B1)" in text
    assert "prompt 8, batch 1: ours is 0.50 times as fast as theirs" in text


def test_the_commands(tmp_path: Path) -> None:
    def invoke(*words: str) -> str:
        found = CliRunner().invoke(main, ["bench", *words], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    path = tmp_path / "r.json"
    options = [
        "--device",
        "cpu",
        "--model",
        "based-tiny",
        "--prompt",
        "4",
        "--prompt",
        "8",
        "--json",
        str(path),
    ]
    assert "based-tiny" in invoke("generate", *options, "--batch", "1", "--new", "2")
    first = results.read(path)
    assert len(first.lines) == 2 and first.task == "generate" and first.machine["date"]
    invoke("generate", *options, "--batch", "1", "--new", "2", "--resume")
    assert results.read(path).lines == first.lines
    assert "generate-against-prompt-light.png" in invoke("plots", str(path), "--out", str(tmp_path))
    result = CliRunner().invoke(main, ["bench", "prefill", *options, "--batch", "1", "--resume"])
    assert result.exit_code == 2 and "a result of bench generate" in result.output
    invoke("prefill", *options, "--batch", "1")
    assert "prefill-against-length-dark.png" in invoke("plots", str(path), "--out", str(tmp_path))
    assert len(list(tmp_path.glob("*.png"))) == 6
