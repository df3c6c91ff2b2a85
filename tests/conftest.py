"""What every test shares: Hypothesis profiles, golden files, and the GPU marker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "specs"
GOLDEN = Path(__file__).resolve().parent / "golden"

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=12,
    suppress_health_check=_SLOW,
    phases=[Phase.explicit, Phase.generate, Phase.target, Phase.shrink],
)
settings.register_profile(
    "quick", parent=settings.get_profile("ci"), max_examples=2, phases=[Phase.explicit, Phase.generate]
)
settings.register_profile("search", parent=settings.get_profile("ci"), derandomize=False, max_examples=500)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files with what is there now"
    )
    parser.addoption(
        "--all-kernels", action="store_true", help="compile the kernels of every layer ahead of time"
    )
    parser.addoption(
        "--update-budgets", action="store_true", help="rewrite the budgets of the compiled kernels"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all-kernels"):
        for item in items:
            if item.get_closest_marker("all_kernels"):
                item.add_marker(pytest.mark.skip(reason="--all-kernels compiles it"))
    reason = why_no_gpu()
    if reason is None:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


def why_no_gpu() -> str | None:
    """Why tests marked gpu cannot run here; None if they can."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"needs a CUDA device, and PyTorch {torch.__version__} was built without CUDA"
    return "needs a CUDA device, and PyTorch sees none"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests use small tensors, and other workers want the other cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with a file of `tests/golden`, or writes that file under ``--update-golden``."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        expected = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert text == expected, f"{path} differs; if that is intended: pytest --update-golden"

    return compare
