"""That ours are checked before they are timed, and that peers compute what they are compared on."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch

from based_ops.benchmarks.ops import ours
from based_ops.benchmarks.ops.inputs import another, another_state, make
from based_ops.benchmarks.ops.ours import Ours
from based_ops.benchmarks.ops.peers import FEATURED, ON_CUDA, peers, too_long
from based_ops.benchmarks.ops.peers.common import taylor_features
from based_ops.benchmarks.ops.peers.features import Features
from based_ops.benchmarks.ops.peers.pytorch import Conv1d, Sdpa, naive_step, window_mask
from based_ops.benchmarks.ops.warm import ended_well, jobs
from based_ops.benchmarks.ops.works import Entry, Work, entries

WORKS = [
    Work("taylor2_qk16_v64", "forward", 1, 2, 70, "float32"),
    Work("taylor2_qk16_v64", "forward", 1, 2, 70, "float32", state=True),
    Work("taylor2_qk16_v64", "training", 2, 1, 33, "float32"),
    Work("taylor2_qk16_v64", "step", 2, 2, 1, "float32"),
    Work("window64_d64", "forward", 1, 2, 130, "float32"),
    Work("window64_d64", "training", 1, 1, 70, "float32"),
    Work("window64_d64", "step", 2, 2, 1, "float32"),
    Work("simple_gla_qk64_v64", "training", 2, 2, 70, "float32"),
    Work("retention_qk64_v64", "training", 2, 2, 70, "float32"),
    Work("simple_gla_qk64_v64", "step", 2, 2, 1, "float32"),
    Work("conv3_silu", "forward", 2, 5, 70, "float32"),
    Work("conv3_silu_ungated", "training", 2, 5, 70, "float32"),
    Work("hybrid_taylor2_qk16_v64_w64", "forward", 2, 2, 70, "float32"),
    Work("hybrid_taylor2_qk16_v64_w64", "training", 1, 2, 70, "float32"),
    *(
        Work(name, task, 3, 2, 70, "float32", form="packed")
        for name in ("taylor2_qk16_v64", "window64_d64", "simple_gla_qk64_v64", "retention_qk64_v64")
        for task in ("forward", "training")
    ),
    Work("conv3_silu", "training", 2, 5, 70, "float32", form="packed"),
    Work("taylor2_qk16_v64", "forward", 2, 4, 70, "float32", kv_heads=2),
    Work("taylor2_qk16_v64", "training", 2, 4, 70, "float32", kv_heads=2),
    Work("simple_gla_qk64_v64", "training", 2, 4, 70, "float32", kv_heads=1),
    Work("window64_d64", "training", 2, 4, 70, "float32", kv_heads=2),
    Work("hedgehog_qk64_v64", "forward", 1, 2, 70, "float32", form="featured"),
    Work("hedgehog_qk64_v64", "training", 2, 2, 70, "float32", form="featured"),
    Work("taylor2_qk16_v64", "training", 2, 2, 70, "float32", form="batch invariant"),
    Work("hybrid_taylor2_qk16_v64_w64", "forward", 2, 2, 70, "float32", form="batch invariant"),
]


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_ours_pass_the_check_and_a_wrong_result_does_not(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "PIECE", 32)  # so that the naive mathematics hands on its state
    inputs = make(work, "cpu")
    exact = ours.expected(work, inputs)
    results = Ours("torch").prepare(work, inputs)()
    assert ours.fault(work, results, exact) is None
    broken = (results[0].clone(), *results[1:])
    broken[0][(-1,) * broken[0].dim()] += 1
    assert "wrong: " in str(ours.fault(work, broken, exact))
    missing = (torch.full_like(results[0], float("nan")), *results[1:])
    assert ours.fault(work, missing, exact) is not None


def test_inputs_are_random_and_states_are_not_shared() -> None:
    work = WORKS[3]
    inputs = make(work, "cpu")
    assert all(float(x.std()) > 0.5 for x in inputs.leaves)
    other = another_state(inputs)
    before = inputs.state.state.clone()
    Ours("torch").prepare(work, other)()
    assert torch.equal(inputs.state.state, before)
    assert not torch.equal(other.state.state, before)


def test_other_inputs_are_the_same_elsewhere() -> None:
    inputs = make(WORKS[2], "cpu")
    other = another(inputs)
    assert WORKS[2].task == "training"
    for x, y in zip(inputs.leaves, other.leaves, strict=True):
        assert torch.equal(x, y) and x.data_ptr() != y.data_ptr() and y.is_leaf and y.requires_grad


def test_expanded_features_are_the_taylor_series() -> None:
    q, k = torch.randn(2, 5, 16, dtype=torch.float64)
    s = 0.25 * (q * k).sum(-1)
    product = (taylor_features(q, 0.25) * taylor_features(k, 0.25)).sum(-1)
    torch.testing.assert_close(product, 1 + s + s * s / 2)


def test_the_naive_step_is_the_step() -> None:
    work = WORKS[3]
    op, tokens = work.op, 5
    q, k, v = (torch.randn(2, tokens, 2, width, dtype=torch.float32) for width in (op.qk, op.qk, op.v))
    state, total = torch.zeros(2, 2, 273, op.v), torch.zeros(2, 2, 273)
    steps = [
        naive_step(q[:, t], k[:, t], v[:, t], state, total, op.default_scale, op.spec.eps)
        for t in range(tokens)
    ]
    exact = op.reference(q.double(), k.double(), v.double())
    torch.testing.assert_close(torch.stack(steps, 1).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [1, 16, 64, 128, 129, 256])
def test_the_block_mask_is_that_of_the_window(window: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    length = 512
    mask = window_mask(window, length, torch.device("cpu"))
    known = create_block_mask(mask.mask_mod, None, None, length, length, device="cpu")
    assert torch.equal(mask.to_dense() > 0, known.to_dense() > 0)
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = mask.mask_mod(0, 0, query, key).sum(1)
    assert seen.tolist() == [min(i + 1, window) for i in range(length)]


def test_sdpa_gives_an_output_or_three_gradients() -> None:
    peer = Sdpa("SDPA", None)
    forward, training = WORKS[0], WORKS[2]
    assert [x.shape for x in peer.prepare(forward, make(forward, "cpu"))()] == [(1, 2, 70, 64)]
    assert len(peer.prepare(training, make(training, "cpu"))()) == 3


def test_convolutions_of_peers_are_ours() -> None:
    work = next(work for work in WORKS if work.variant == "conv3_silu_ungated")
    inputs = make(work, "cpu")
    got, exact = Conv1d().prepare(work, inputs)(), Ours("torch").prepare(work, inputs)()
    for x, y in zip(got, exact, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_long_quadratic_peers_are_predicted() -> None:
    flash = next(peer for peer in ON_CUDA if peer.by.startswith("FlashAttention"))
    long = Work("taylor2_qk16_v64", "forward", 32, 16, 131072)
    assert "not run: quadratic, predicted" in str(too_long(flash, long, "cuda", 781))
    assert too_long(flash, Work("taylor2_qk16_v64", "forward", 1, 16, 2048), "cuda", 781) is None
    linear = next(peer for peer in ON_CUDA if peer.by == "fla fused_chunk_based")
    assert too_long(linear, long, "cuda", 781) is None


def test_every_peer_is_compared_on_some_line() -> None:
    taken = {peer.by for entry in entries("cuda") for peer in peers(entry.work, "cuda")}
    assert taken == {peer.by for peer in (*ON_CUDA, *FEATURED)}


@pytest.mark.parametrize("task", ["forward", "training"])
def test_features_by_pytorch_are_ours(task: str) -> None:
    work = Work("hedgehog_qk64_v64", task, 1, 2, 40, "float32", form="featured")
    inputs = make(work, "cpu")
    peer = Features("features by PyTorch", compiled=False, own=True)
    assert peer.takes(work) and not peer.takes(WORKS[0])
    got, exact = peer.prepare(work, inputs)(), Ours("torch").prepare(work, inputs)()
    for x, y in zip(got, exact, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.skipif(importlib.util.find_spec("fla") is not None, reason="flash-linear-attention is here")
def test_an_absent_peer_says_so() -> None:
    entry = Entry("taylor", WORKS[0])
    reasons = {peer.why_not(entry, "cuda") for peer in ON_CUDA if peer.by.startswith("fla ")}
    assert reasons == {"flash-linear-attention is not installed"}


def test_compiling_ahead_covers_each_kernel_once() -> None:
    works = entries("cuda", only=["window", "step"])
    found = [(by, {(w.variant, w.task, w.dtype) for w in job}) for by, job in jobs(works)]
    assert all(len(kinds) == 1 for _, kinds in found)
    assert len({(by, *kinds) for by, kinds in found}) == len(found)
    assert "FlexAttention" in {by for by, _ in found}
    assert "torch" not in {by for by, _ in found}


def test_a_job_that_is_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """What it started would use the cores while others are measured."""
    begun, written = tmp_path / "begun", tmp_path / "written"
    later = f"import time, pathlib; time.sleep(4); pathlib.Path({str(written)!r}).touch()"
    start = f"""import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {later!r}])
pathlib.Path({str(begun)!r}).touch()
time.sleep(60)"""
    assert not ended_well([sys.executable, "-c", start], "", 2)
    assert begun.exists()
    time.sleep(3)
    assert not written.exists()


def test_a_job_gets_its_text_and_says_how_it_ended() -> None:
    read = "import sys; sys.exit(0 if sys.stdin.read() == 'text' else 1)"
    assert ended_well([sys.executable, "-c", read], "text", 60)
    assert not ended_well([sys.executable, "-c", read], "other", 60)
