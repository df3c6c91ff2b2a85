"""A measured report that no device was needed for."""

from __future__ import annotations

import pytest

from based_ops.benchmarks.ops.measure import Ceilings
from based_ops.benchmarks.ops.results import Line, Report, Time, with_speedups
from based_ops.benchmarks.ops.works import Work


def line(work: Work, own: float, peer: float, target_ms: float | None = None, sweep: bool = False) -> Line:
    """A line with one backend, which is the default, and one peer; its limit is one millisecond."""
    times = [Time("triton", True, True, own, 1.0, 1.0, 100 / own, 1.0), Time("rival", False, True, peer)]
    return Line(
        group="taylor",
        sweep=sweep,
        work=work,
        bytes=1000,
        flops=1000,
        limit_ms=1.0,
        default="triton",
        times=with_speedups(times),
        missing={"absent": "is not installed"},
        target_ms=target_ms,
    )


@pytest.fixture
def report() -> Report:
    """Three lines: a target met, a target missed with a faster peer, and none."""
    lines = [
        line(Work("taylor2_qk16_v64", "forward", 1, 16, 8192), own=2.0, peer=6.0, target_ms=2.5),
        line(Work("taylor2_qk16_v64", "forward", 1, 16, 2048), own=4.0, peer=3.0, target_ms=2.0),
        line(Work("taylor2_qk16_v64", "forward", 1, 16, 512), own=1.5, peer=1.6, sweep=True),
    ]
    return Report({"device": "none"}, Ceilings(1000.0, 100.0, "bfloat16"), lines, ["something else"], 1.5)
