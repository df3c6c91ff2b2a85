"""``based-ops hippo``."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from based_ops.cli import main


def test_pictures_come_for_light_and_dark_pages(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = CliRunner().invoke(main, ["hippo", "plots", str(tmp_path / "pictures")])
    assert done.exit_code == 0, done.output
    written = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    names = ("bases", "kernels", "signals")
    assert written == [f"hippo-{name}-{theme}.png" for name in names for theme in ("dark", "light")]
    assert all((tmp_path / "pictures" / name).stat().st_size > 10_000 for name in written)
    assert done.output.count("written: ") == 6
