"""Tables of results in documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from based_ops.benchmarks.ops.results import Report, Time, with_speedups
from based_ops.benchmarks.ops.tables import BLOCK, DOCUMENTS, report_tables, rewritten
from based_ops.cli import main
from tests.conftest import ROOT

BEFORE = """# Title

<!-- from result.json: based-ops bench tables -->
whatever stood here
<!-- end -->

after
"""


def test_the_documents_say_what_their_files_say() -> None:
    done = CliRunner().invoke(main, ["bench", "tables", "--check"])
    assert done.exit_code == 0, done.output
    named = {block[2] for name in DOCUMENTS for block in BLOCK.finditer((ROOT / name).read_text())}
    assert "benchmarks/results/h200.json" in named and "benchmarks/results/thunderkittens.yaml" in named


def test_a_block_is_rewritten_and_nothing_else(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path / "result.json")
    after = rewritten(BEFORE, tmp_path)
    assert after.startswith(BEFORE[: BEFORE.index("whatever")]) and after.endswith("<!-- end -->\n\nafter\n")
    assert "whatever" not in after and "| **2.00** | 50 % | rival 6.00 |  |" in after
    assert rewritten(after, tmp_path) == after


def test_a_table_names_the_fastest_of_each_kind(report: Report) -> None:
    """The same layer and full attention apart; lost lines of the sweep too."""
    attention = [Time("slow", False, False, 9.0), Time("attention", False, False, 1.0)]
    line = replace(report.lines[2], group="sweep-taylor", times=[*report.lines[2].times, *attention])
    text = report_tables(replace(report, lines=[*report.lines[:2], line]))
    rows = [row for row in text.splitlines() if row.startswith("| taylor2")]
    assert rows == [
        "| taylor2_qk16_v64 forward B1 H16 T8192 | **2.00** | 50 % | rival 6.00 |  |",
        "| taylor2_qk16_v64 forward B1 H16 T2048 | 4.00 | 25 % | **rival 3.00** |  |",
        "| taylor2_qk16_v64 forward B1 H16 T512 | 1.50 | 67 % | rival 1.60 | **attention 1.00** |",
    ]
    assert "A peer is faster on 2 of the 3 lines that have one, also on these:" in text


def test_a_line_without_peers_has_nothing_in_bold(report: Report) -> None:
    alone = replace(report.lines[0], times=with_speedups(report.lines[0].times[:1]))
    text = report_tables(replace(report, lines=[alone]))
    assert "| 2.00 | 50 % |  |  |" in text and "**" not in text


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        rewritten(BEFORE, tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="not a result of"):
        rewritten(BEFORE, tmp_path)
