"""Where kernels can be run, and which layers and shapes are affordable there."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from hypothesis import strategies as st

from based_ops.codegen.mixers.hybrid import Hybrid, WindowDims
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.schedule.model import HOST_C
from based_ops.codegen.spec.feature_map import canonical_text, parse
from based_ops.codegen.spec.model import Elementwise, HeadDims, LayerSpec, Power, TaylorExp
from tests.layers import FORMS, HYBRID_FORMS, HYBRIDS, LINEAR, WINDOW_FORMS, WINDOWS, Sizes, build
from tests.strategies import expressions, positive_expressions

LOW = (torch.bfloat16, torch.float16)
LENGTHS_ON_GPU = (1, 16, 64, 65, 1111, 4097)
SMALL_TILES: Sizes = (
    ("CHUNK", 16),
    ("KEYS", 16),
    ("QUERIES", 16),
    ("SEGMENT", 32),
    ("SCAN", 16),
    ("BLOCK", 8),
    ("forward.LENGTH", 32),
    ("backward.LENGTH", 64),
    ("forward_packed.LENGTH", 32),
    ("backward_packed.LENGTH", 32),
    ("FEATURES", 32),
)
"""Tiles with which a short sequence has several chunks and segments."""


@dataclass(frozen=True)
class Runner:
    """One backend on one device."""

    backend: str
    device: str

    @property
    def id(self) -> str:
        return f"{self.backend}-{self.device}"

    @property
    def interpreted(self) -> bool:
        return self.backend == "triton" and self.device == "cpu"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        plain = (torch.float32, *LOW)
        return (torch.float64, *plain) if self.backend == "torch" else plain

    def module(self, spec: LayerSpec, form: str | None = None) -> ModuleType:
        """The layer's generated module for this backend and device; its passes in `form`, if given."""
        target = HOST_C if (self.backend, self.device) == ("tilelang", "cpu") else self.backend
        sizes = (FORMS | WINDOW_FORMS | HYBRID_FORMS)[form] if form else ()
        return build(spec, target, (SMALL_TILES if self.interpreted else ()) + sizes)

    def window_forms(self) -> list[str]:
        """The forms in which passes of a window can be asked to run."""
        return list(WINDOW_FORMS) if (self.backend, self.device) == ("triton", "cuda") else ["as planned"]

    def forms(self, dtype: torch.dtype) -> list[str]:
        """The forms in which a forward pass of linear attention can be asked to run."""
        on_gpu = self.device == "cuda" and self.backend != "torch"
        return ["direct"] if on_gpu and dtype == torch.float32 else list(FORMS)

    def linear_attentions(self, dtype: torch.dtype) -> st.SearchStrategy[LinearAttention]:
        """Layers to test with inputs of `dtype`: any where compiling is cheap, else a fixed pool.

        Low precision stays with well-conditioned maps: where an arbitrary one cancels, rounded inputs have no
        digits left.
        """
        pool = st.sampled_from(self.linear_pool())
        cheap = self.backend == "torch" or self.interpreted
        return pool | any_linear_attention() if cheap and dtype not in LOW else pool

    def windows(self) -> st.SearchStrategy[SlidingWindow]:
        pool = st.sampled_from(self.window_pool())
        return pool | any_window() if self.backend == "torch" else pool

    def linear_pool(self) -> tuple[LinearAttention, ...]:
        """The fixed pool: smaller where a layer takes half a minute to compile."""
        if self.interpreted:  # the interpreter truncates bfloat16, so a state in it drifts with every token
            return tuple(
                s if s.state_dtype != "bfloat16" else replace(s, state_dtype="float32") for s in LINEAR
            )
        return LINEAR[1:3] if self.backend == "tilelang" else LINEAR

    def window_pool(self) -> tuple[SlidingWindow, ...]:
        return WINDOWS[1:2] if self.backend == "tilelang" else WINDOWS

    def hybrids(self, dtype: torch.dtype) -> st.SearchStrategy[Hybrid]:
        """As `linear_attentions`."""
        pool = st.sampled_from(self.hybrid_pool())
        return pool | any_hybrid() if self.backend == "torch" and dtype not in LOW else pool

    def hybrid_pool(self) -> tuple[Hybrid, ...]:
        if self.backend != "tilelang":
            return HYBRIDS
        return HYBRIDS[2:3] if self.device == "cpu" else HYBRIDS[1:4]  # each takes minutes to compile to C

    def hybrid_forms(self) -> list[str]:
        """The forms in which passes of a hybrid can be asked to run.

        On a GPU small tiles are not legal, and on a host TileLang has them anyway.
        """
        one = self.backend == "tilelang" or (self.device == "cuda" and self.backend != "torch")
        return ["as planned"] if one else list(HYBRID_FORMS)

    def lengths(self, most: int = 5000) -> st.SearchStrategy[int]:
        """At most `most` tokens; numbers shorter than a chunk and no multiples of it are among them."""
        if self.device == "cuda":
            return st.sampled_from([n for n in LENGTHS_ON_GPU if n <= most])
        longest = min(most, {"torch": 300, "triton": 70, "tilelang": 150}[self.backend])
        return st.integers(1, longest) | st.sampled_from(
            [n for n in (1, 16, 17, 64, 128, 129) if n <= longest]
        )

    def steps(self, most: int) -> int:
        """How many single tokens in a row are affordable."""
        return min(most, 6) if self.interpreted else most

    def why_not(self) -> str | None:
        """Why nothing can run here; None if it can."""
        if self.backend != "torch" and importlib.util.find_spec(self.backend) is None:
            return f"the package {self.backend} is not installed"
        if self.backend == "tilelang" and self.device == "cpu" and shutil.which("gcc") is None:
            return "no gcc on the PATH"
        return None


def interpreting() -> bool:
    """Whether this process runs Triton kernels under Triton's interpreter, and so nothing else."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runners() -> list[object]:
    """The parameters of the fixture `runner`."""
    if interpreting():
        return [pytest.param(Runner("triton", "cpu"), id="triton-cpu")]
    on_cpu = [Runner("torch", "cpu"), Runner("tilelang", "cpu")]
    on_gpu = [Runner(backend, "cuda") for backend in ("triton", "tilelang", "torch")]
    return [pytest.param(runner, id=runner.id) for runner in on_cpu] + [
        pytest.param(runner, id=runner.id, marks=pytest.mark.gpu) for runner in on_gpu
    ]


def head_dims(most_qk: int = 64) -> st.SearchStrategy[HeadDims]:
    widths_qk = st.integers(8, most_qk) | st.sampled_from([n for n in (8, 16, 32, 64) if n <= most_qk])
    widths_v = st.integers(16, 80) | st.sampled_from((16, 64, 112, 128, 256))
    return st.builds(HeadDims, qk=widths_qk, v=widths_v)


def elementwise(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Elementwise]:
    return texts.map(lambda text: Elementwise(canonical_text(parse(text))))


@functools.cache
def any_linear_attention() -> st.SearchStrategy[LinearAttention]:
    """Any layer whose sums of weights stay away from zero where it divides by them."""
    taylor = st.builds(TaylorExp, order=st.integers(1, 2))
    common = {
        "head_dims": head_dims(),
        "eps": st.sampled_from((0.0, 1e-6, 1e-3, 0.5)),
        "decay": st.sampled_from(("none", "none", "head", "token")),
    }
    return st.one_of(
        st.builds(
            LinearAttention,
            name=st.just("normalized"),
            normalize=st.just(True),
            **common,
            feature_map=taylor | elementwise(positive_expressions()),
        ),
        st.builds(
            LinearAttention,
            name=st.just("plain"),
            normalize=st.just(False),
            **common,
            feature_map=taylor | elementwise(expressions(3)),
        ),
        st.builds(
            LinearAttention,
            name=st.just("polynomial"),
            normalize=st.just(False),
            **common | {"head_dims": head_dims(10)},
            feature_map=st.sampled_from((TaylorExp(3), Power(2), Power(3))),
        ),
    )


@functools.cache
def any_hybrid() -> st.SearchStrategy[Hybrid]:
    """Any hybrid whose sums of weights stay away from zero."""
    drawn = st.builds(
        Hybrid,
        name=st.just("hybrid"),
        window=st.integers(1, 100) | st.sampled_from((1, 16, 64, 200)),
        feature_map=st.just(TaylorExp(2)) | elementwise(positive_expressions()),
        head_dims=head_dims(),
        window_dims=st.none() | st.builds(WindowDims, qk=st.integers(8, 64)),
        combine=st.sampled_from(("normalizer", "sum")),
        rescale=st.sampled_from(("shared", "window")),
        window_factor=st.booleans(),
        linear_factor=st.booleans(),
        eps=st.sampled_from((1e-6, 1e-3, 0.5)),
    )
    return drawn.filter(lambda spec: spec.combine == "normalizer" or spec.rescale == "shared")


@functools.cache
def any_window() -> st.SearchStrategy[SlidingWindow]:
    windows = st.integers(1, 300) | st.sampled_from((1, 16, 64, 128))
    return st.builds(SlidingWindow, name=st.just("window"), window=windows, head_dims=head_dims(128))
