"""Tests of the models for Transformers, which takes Python 3.11; without it there is nothing to collect."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from based_ops.extras import installed

if not installed("transformers"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No bars of progress."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
