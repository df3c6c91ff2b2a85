"""What is measured, its floors and its targets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from based_ops.benchmarks.ops.floors import floor
from based_ops.benchmarks.ops.measure import Ceilings
from based_ops.benchmarks.ops.run import target_ms
from based_ops.benchmarks.ops.works import SPECS, Target, Work, entries

from .conftest import line

TAYLOR = Work("taylor2_qk16_v64", "forward", 16, 16, 16384)
SIZE = {"batch": TAYLOR.batch, "heads": TAYLOR.heads, "length": TAYLOR.length}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_line_is_valid_and_stands_once(device: str) -> None:
    found = entries(device)
    works = [entry.work for entry in found]
    assert len(set(works)) == len(works) > 5
    for entry in found:
        assert floor(entry.work).bytes > 0
        for other in entry.target.of if entry.target else ():
            assert other in works
            assert other != entry.work


def test_the_sweep_spans_the_lengths_and_rows() -> None:
    found = {(x.work.length, x.work.rows) for x in entries("cuda") if replace(x.work, **SIZE) == TAYLOR}
    assert {(length, 16) for length in (512, 2048, 8192, 32768, 131072)} <= found
    assert not [entry for entry in entries("cuda", sweep=False) if entry.sweep]


def test_a_group_brings_what_its_targets_refer_to() -> None:
    chosen = entries("cuda", only=["float16"])
    assert {entry.group for entry in chosen} == {"float16", "taylor", "training"}
    assert [e.work.dtype for e in chosen].count("bfloat16") == [e.work.dtype for e in chosen].count("float16")


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(ValueError, match="got nosuch, must be among plain, taylor"):
        entries("cuda", only=["nosuch"])


def test_a_wrong_task_or_clock_is_refused() -> None:
    with pytest.raises(ValueError, match="task: got 'back', must be one of forward, training, step"):
        Work("taylor2_qk16_v64", "back", 1, 1, 1)
    with pytest.raises(ValueError, match="clock"):
        Work("taylor2_qk16_v64", "forward", 1, 1, 1, clock="sun")


def test_specs_that_are_not_shipped_compile() -> None:
    for path in SPECS.glob("*.yaml"):
        op = Work(path.stem, "forward", 1, 1, 1).op
        assert op.name.startswith(path.stem + "_")


def test_floor_of_the_forward() -> None:
    tokens = 16 * 16 * 16384
    assert floor(TAYLOR).bytes == tokens * 320
    assert floor(TAYLOR).flops == tokens * 4 * 153 * 64
    # The ceilings of an H200 make that 0.315 ms, by bandwidth.
    assert floor(TAYLOR).limit_ms(4263, 781) == pytest.approx(0.3148, abs=1e-3)


def test_a_short_sequence_costs_its_pairs() -> None:
    work = Work("taylor2_qk16_v64", "forward", 1, 1, 16)
    assert floor(work).flops == 2 * (16 + 64) * 16 * 17 // 2


def test_floor_of_training() -> None:
    work = Work("taylor2_qk16_v64", "training", 8, 16, 2048)
    assert floor(work).bytes == 8 * 16 * 2048 * (320 + 512)
    assert floor(work).flops == 8 * 16 * 2048 * 4 * 153 * 64 * 7 // 2


def test_floor_of_a_window() -> None:
    work = Work("window64_d64", "forward", 8, 16, 2048)
    pairs = sum(min(i + 1, 64) for i in range(2048))
    assert floor(work).bytes == 8 * 16 * 2048 * 512
    assert floor(work).flops == 8 * 16 * pairs * 4 * 64


def test_floor_of_a_decay() -> None:
    work = Work("simple_gla_qk64_v64", "training", 2, 16, 16384)
    assert floor(work).bytes == 2 * 16 * 16384 * (5 * 64 + 2 * 64 + 4 * 64) * 2 + 3 * 2 * 16 * 16384 * 4


def test_floor_of_a_convolution() -> None:
    tokens, taps = 8 * 4096 * 3584 * 2, 3584 * 4 * 2
    assert floor(Work("conv3_silu_ungated", "forward", 8, 3584, 4096)).bytes == 2 * tokens + taps
    assert floor(Work("conv3_silu", "training", 8, 3584, 4096)).bytes == 8 * tokens + 3 * taps


def test_floor_of_shared_heads() -> None:
    work = Work("taylor2_qk16_v64", "forward", 4, 16, 8192, kv_heads=4)
    tokens = 4 * 8192
    assert floor(work).bytes == tokens * 2 * (16 * (16 + 64) + 4 * (16 + 64))
    assert floor(work).flops == tokens * 2 * 153 * 64 * (16 + 4)
    packed = Work("taylor2_qk16_v64", "forward", 4, 16, 8192, form="packed")
    assert floor(packed) == floor(Work("taylor2_qk16_v64", "forward", 4, 16, 8192))


def test_floor_of_a_hybrid() -> None:
    """Inputs and outputs once, where its parts by themselves read and write them twice."""
    work = Work("hybrid_taylor2_qk16_v64_w64", "forward", 4, 16, 8192)
    assert floor(work).bytes == 4 * 16 * 8192 * 320
    window = Work("window64_qk16_v64", "forward", 4, 16, 8192)
    assert floor(work).flops > floor(window).flops


def test_floor_of_features() -> None:
    """Queries and keys as they are, where without parts they are features, twice as wide."""
    work = Work("hedgehog_qk64_v64", "forward", 8, 16, 2048, form="featured")
    mixed = replace(work, form="dense")
    assert floor(work).bytes == 8 * 16 * 2048 * 512
    assert floor(mixed).bytes == 8 * 16 * 2048 * 768
    assert floor(work).flops - floor(mixed).flops == 8 * 16 * 2048 * 2 * 2 * 64 * 64


def test_floor_of_steps() -> None:
    linear = Work("taylor2_qk16_v64", "step", 128, 16, 1)
    assert floor(linear).bytes == 2048 * (2 * 153 * 65 * 4 + 320)
    window = Work("window64_d64", "step", 128, 16, 1)
    assert floor(window).bytes == 2048 * (64 * 128 * 2 + 4 + 128 * 2 + 512)


def test_targets_in_milliseconds() -> None:
    ceilings = Ceilings(1000.0, 100.0, "bfloat16")
    other = Work("taylor2_qk16_v64_plain", "forward", 16, 16, 16384)
    measured = line(TAYLOR, own=2.0, peer=3.0)
    lines = {other: line(other, own=1.8, peer=3.0)}
    assert target_ms(measured, None, lines, ceilings) is None
    assert target_ms(measured, Target(ms=0.5), lines, ceilings) == 0.5
    assert target_ms(measured, Target(times=1.1, of=(other,)), lines, ceilings) == pytest.approx(1.98)
    assert target_ms(measured, Target(times=1.1, of=(other,)), {}, ceilings) is None
    # 1000 bytes at half of 1000 GB/s
    assert target_ms(measured, Target(copy_share=0.5), lines, ceilings) == pytest.approx(2e-6)


def test_a_target_of_several_lines() -> None:
    """A hybrid's is the sum of what its parts take."""
    parts = Work("taylor2_qk16_v64", "forward", 16, 16, 8192), Work("window64_d64", "forward", 16, 16, 8192)
    target, ceilings = Target(times=1.2, of=parts), Ceilings(1.0, 1.0, "bfloat16")
    lines = {parts[0]: line(parts[0], own=2.0, peer=3.0)}
    assert target_ms(line(TAYLOR, own=2.0, peer=3.0), target, lines, ceilings) is None
    lines[parts[1]] = line(parts[1], own=0.5, peer=3.0)
    assert target_ms(line(TAYLOR, own=2.0, peer=3.0), target, lines, ceilings) == pytest.approx(3.0)


def test_a_target_per_limit_scales_with_the_limits() -> None:
    other = Work("taylor2_qk16_v64", "forward", 16, 16, 8192)
    measured = replace(line(TAYLOR, own=2.0, peer=3.0), limit_ms=3.0)
    target = Target(times=1.3, of=(other,), per_limit=True)
    lines = {other: line(other, own=2.0, peer=3.0)}
    assert target_ms(measured, target, lines, Ceilings(1.0, 1.0, "bfloat16")) == pytest.approx(
        1.3 * 2.0 * 3.0
    )
