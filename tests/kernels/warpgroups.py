"""Kernels for warpgroups, alone and in passes of generated modules, that run as Python: see `gluon.py`."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from copy import copy
from inspect import signature
from math import lcm
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from based_ops import reference
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.names import RECURRENCE, on_warpgroups, second_look
from based_ops.codegen.spec.model import LayerSpec
from based_ops.state import LinearAttentionState, feature_count
from based_ops.support.host import cdiv, cleared, packed_length, packed_plan, packed_window_plan
from tests.kernels.gluon import run
from tests.layers import build, import_text

B, H = 2, 2
ALIKE = (H, H, H)
SCALE = 0.3
GRAIN = 128
"""Of what the tokens of a segment are a multiple."""
FEW_PROGRAMS = {"SEGMENT": GRAIN, "LENGTH": GRAIN, "SHORTEST": 1, "PROGRAMS": 4, "FEWEST": 1}
"""With which packed sequences of some hundreds of tokens are cut into segments of one grain, or of more."""


class Call:
    """One launch of a recurrence; `heads` are those of q, k and v."""

    def __init__(
        self,
        spec: LinearAttention,
        dtype: torch.dtype,
        length: int,
        heads: tuple[int, int, int] = ALIKE,
        batch: int = B,
    ) -> None:
        torch.manual_seed(length)
        self.batch = batch
        d, v = spec.head_dims.qk, spec.head_dims.v
        self.spec, self.dtype, self.length, self.heads = spec, dtype, length, heads
        self.every, self.of_states = lcm(*heads), lcm(*heads[1:])
        widths = zip(heads, (d, d, v), strict=True)
        self.qkv = tuple(torch.randn(batch, length, count, width).to(dtype) for count, width in widths)
        places = {"head": (self.of_states,), "token": (batch, length, self.of_states)}.get(spec.decay)
        self.decay = None if places is None else -torch.rand(places) / 16
        self.rows = feature_count(spec)
        self.kept = getattr(torch, spec.state_dtype)

    def launch(
        self,
        segments: int,
        initial: tuple[Tensor, ...],
        before: tuple[Tensor, ...],
        final: bool,
        module: ModuleType | None = None,
        table: Tensor | None = None,
        **other: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """o, the final state and its normaliser; `other` replaces settings of the schedule.

        `table` says where the segments of packed sequences lie.
        """
        module = module or build(self.spec, "triton")
        q, k, v = self.qkv
        every, kept = self.every, (self.batch, self.of_states, self.rows)
        o = torch.full((self.batch, self.length, every, v.shape[-1]), float("nan"), dtype=self.dtype)
        n = torch.full((self.batch, every, self.length), float("nan"))
        state = torch.full((*kept, v.shape[-1]), float("nan"), dtype=self.kept)
        normalizer = torch.full(kept, float("nan"), dtype=self.kept)
        present = {"initial_state": initial[:1], "initial_normalizer": initial[1:]}
        present |= {"state": before[:1], "normalizer": before[1:]}
        present |= {"final_state": (state,) * final, "final_normalizer": (normalizer,) * final}
        kernel = getattr(module, on_warpgroups(RECURRENCE))
        always = {"q": q, "k": k, "v": v, "o": o, "n": n, "log_decay": self.decay}
        always |= {"segment_tokens": table}
        tensors = [
            always.get(name, next(iter(present.get(name, ())), None))
            for name in kernel.arg_names[: kernel.arg_names.index("q_b")]
        ]
        strides = [stride for x in (q, k, v) for stride in x.stride()[:-1]]
        settings = module.SCHEDULE[on_warpgroups(RECURRENCE)][self.dtype] | other
        constants = [value for name, value in settings.items() if name != "num_warps"]
        flags: tuple[bool, ...] = (bool(initial), bool(before), final, table is not None)
        groups: tuple[int, ...] = ()
        if "GROUPED" in kernel.arg_names:
            groups, flags = (*self.heads, self.of_states), (*flags, self.heads != (every,) * 3)
        blocks = cdiv(v.shape[-1], 64)
        numbers = (*strides, self.batch, self.length, every, segments, SCALE, *groups, *flags, *constants)
        run(kernel, self.batch * every * segments * blocks, tensors, *numbers)
        return o, state, normalizer

    def expected(self, initial: LinearAttentionState | None) -> tuple[Tensor, LinearAttentionState]:
        q, k, v = (x.double() for x in self.qkv)
        wide = initial and LinearAttentionState(*(None if x is None else x.double() for x in initial))
        return reference.linear_attention(self.spec, q, k, v, SCALE, wide, self.decay)

    def earlier(self, tokens: int) -> LinearAttentionState:
        """The state after some random tokens, as it is kept."""
        d, v = self.spec.head_dims.qk, self.spec.head_dims.v
        k, values = (torch.randn(self.batch, tokens, self.of_states, width).double() for width in (d, v))
        state, normalizer = reference.linear_attention(self.spec, k, k, values, SCALE)[1]
        return LinearAttentionState(
            state.to(self.kept), None if normalizer is None else normalizer.to(self.kept)
        )

    def after(self, start: int, stop: int) -> LinearAttentionState:
        """The state after some tokens of the call, before which there was none."""
        _, k, v = (x[:, start:stop].double() for x in self.qkv)
        return reference.linear_attention(self.spec, k, k, v, SCALE, None, self.decay_of(start, stop))[1]

    def part(self, start: int, stop: int) -> Call:
        """The call of some of the tokens as a sequence of their own."""
        own = copy(self)
        own.qkv = tuple(x[:, start:stop].contiguous() for x in self.qkv)
        own.length, own.decay = stop - start, self.decay_of(start, stop)
        return own

    @property
    def decays(self) -> tuple[Tensor, ...]:
        """g, of a layer that has it."""
        return () if self.decay is None else (self.decay,)

    def decay_of(self, start: int, stop: int) -> Tensor | None:
        """The decays of some of the tokens."""
        of_tokens = self.decay is not None and self.spec.decay == "token"
        return self.decay[:, start:stop].contiguous() if of_tokens else self.decay

    def states_before(self, segments: int) -> tuple[Tensor, ...]:
        """The state before each segment, and its normaliser."""
        length = cdiv(cdiv(self.length, GRAIN), segments) * GRAIN
        return kept_before([self.after(0, end) for end in range(0, segments * length, length)])

    def states_of(self, table: Tensor) -> tuple[Tensor, ...]:
        """The same of segments of packed sequences; those without tokens have none."""
        return kept_before([self.after(begin, first) for first, _, begin, _, _ in table.tolist()])


def kept_before(states: list[LinearAttentionState]) -> tuple[Tensor, ...]:
    """States as a recurrence reads them, and their normalisers."""
    state = torch.stack([s.state for s in states], 2).bfloat16()
    normalizers = [s.normalizer for s in states if s.normalizer is not None]
    return (state, torch.stack(normalizers, 2).float()) if normalizers else (state,)


def passes(module: ModuleType, segments: int, spec: LayerSpec | None = None) -> tuple[Any, Any]:
    """forward and backward of a generated module, with this many segments; portable programs need its spec.

    These are run as the torch backend has them.
    """

    def launch(kernel: Any, grid: Any, tensors: Any, numbers: Any, settings: dict[str, int]) -> None:
        if kernel.is_gluon():
            constants = [value for name, value in settings.items() if name != "num_warps"]
            contiguous = [None if x is None else x.contiguous() for x in tensors]
            assert all(x is y for x, y in zip(tensors, contiguous, strict=True))
            run(kernel, grid(settings)[0], contiguous, *numbers, *constants)
            return
        assert spec is not None
        torchs = build(spec, "torch")
        name = kernel.fn.__name__
        program = getattr(torchs, name)
        given = torchs.SCHEDULE[name][torch.bfloat16]
        given = given | {constant: settings[constant] for constant in ("SEGMENT",) if constant in settings}
        given |= dict(zip(kernel.arg_names, (*tensors, *numbers), strict=False))
        program(**{parameter: given[parameter] for parameter in signature(program).parameters})

    names = vars(module) | {
        "launch": launch,
        "on_warpgroups": lambda *tensors: True,
        "forward_plan": lambda *sizes, **plan: (segments, True),
        "window_plan": lambda *sizes, **plan: segments,
        "hybrid_plan": lambda T, *sizes, CHUNK, **plan: (segments, T % CHUNK == 0),
        "segment_plan": lambda *sizes, **plan: segments,
        "packed_length": lambda *sizes, **plan: packed_length(*sizes, **FEW_PROGRAMS),
        "packed_forward_plan": lambda *sizes, **plan: (packed_length(*sizes, **FEW_PROGRAMS), True),
        "packed_plan": packed_plan,
        "packed_window_plan": lambda *sizes, CHUNK, **plan: packed_window_plan(*sizes, CHUNK, segments),
        "cleared": cleared,
    }
    part = ("packed_warpgroups", "warpgroups", "packed")
    called = (*(f"{x}_{y}" for x in ("forward", "backward") for y in part),)
    for name in (*called, "forward", "backward"):
        if name in names:
            found = names[name]
            names[name] = FunctionType(found.__code__, names, name, found.__defaults__)
    return names["forward"], names["backward"]


WAITS = re.compile(
    r"\b(barrier|fence_async_shared|async_copy\.wait_group|warpgroup_mma_wait|mbarrier\.wait|tcgen05_commit)\("
)


def fails_without_any_wait(
    module: ModuleType, kernel: str, least: int, compute: Callable[[ModuleType], object]
) -> None:
    """Without any one barrier, fence, commit or wait of its loop a kernel must fail here: all are seen.

    There are `least` at least.  No second look mends what comes of it.  Only the kernel is imported anew.
    """
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    tree = ast.parse(text).body
    imports = [ast.unparse(node) for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    (own,) = (node for node in tree if isinstance(node, ast.FunctionDef) and node.name == kernel)
    lines = text.replace(f"  {second_look(kernel)}(", "  (lambda *_: None)(").splitlines()
    lines = lines[own.lineno - 1 : own.end_lineno]

    def compute_with(changed: list[str]) -> None:
        mutant = import_text("\n".join([*imports, "@gluon.jit", *changed]) + "\n", "mutant")
        vars(mutant).update({name: x for name, x in vars(module).items() if name not in vars(mutant)})
        compute(mutant)

    compute_with(lines)
    end = next(i for i, line in enumerate(lines) if "async_copy.wait_group(0)" in line)
    waits = [i for i, line in enumerate(lines[:end]) if WAITS.search(line) and "frees" not in line]
    assert len(waits) >= least
    for i in waits:
        without = WAITS.sub("(lambda *_: None)(", lines[i])
        if "warpgroup_mma_wait" in lines[i]:
            without = re.sub(r"wait\((\d)", lambda found: f"wait({int(found[1]) + 1}", lines[i])
        with pytest.raises((AssertionError, AttributeError, TypeError)):  # products in flight are no tensors
            compute_with([*lines[:i], without, *lines[i + 1 :]])
            pytest.fail(f"nothing is missed without line {i + 1}: {lines[i].strip()}")
