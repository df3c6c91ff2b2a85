"""What is printed for Blackwell, as far as it can be tested without one: see `gluon.py` for how."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.names import RECURRENCE, on_warpgroups
from based_ops.support.host import cdiv, packed_plan
from tests.kernels.test_warpgroup_windows import LAYERS as WINDOWS
from tests.kernels.test_warpgroup_windows import in_groups
from tests.kernels.test_warpgroups import DTYPES, FADING, MAPS, OBLONG, OF_FADING, OF_MAPS, compute_gradients
from tests.kernels.warpgroups import ALIKE, GRAIN, Call, fails_without_any_wait, passes
from tests.layers import build, for_blackwell, import_text
from tests.tolerance import FORWARD, assert_close

SPECS = MAPS + FADING + OBLONG
KERNEL = on_warpgroups(RECURRENCE)
HEADS = (ALIKE, (4, 2, 2), (2, 2, 4), (6, 3, 2), (1, 2, 2))


def equal(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    """Whether all bits are the same, but for which NaN it is."""
    return all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip(found, wanted, strict=True))


@given(data=st.data())
@settings(max_examples=30)
def test_one_sequence(data: st.DataObject) -> None:
    """As naive mathematics say, and the same bits as on Hopper; those also of what is not finite."""
    spec = data.draw(st.sampled_from(SPECS), "layer")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    heads = data.draw(st.sampled_from(HEADS), "heads")
    call = Call(spec, dtype, data.draw(st.integers(1, 333), "length"), heads)
    segments, stages = data.draw(st.integers(1, 3), "segments"), data.draw(st.integers(2, 4), "stages")
    initial = call.earlier(7) if segments == 1 and data.draw(st.booleans(), "initial") else None
    final = segments == 1 and data.draw(st.booleans(), "final")
    if spoilt := data.draw(st.sampled_from((None, float("nan"), float("inf"))), "what is not finite"):
        x = data.draw(st.sampled_from(call.qkv), "where")
        x[0, data.draw(st.integers(0, call.length - 1), "token"), 0, 0] = spoilt
    parts = () if initial is None else tuple(x for x in initial if x is not None)
    before = call.states_before(segments) if segments > 1 else ()
    found = call.launch(segments, parts, before, final, module=for_blackwell(spec), STAGES=stages)
    assert equal(found, call.launch(segments, parts, before, final, STAGES=stages))
    if spoilt is None:
        o, after = call.expected(initial)
        assert_close("o", found[0], o, FORWARD[dtype])
        if final:
            tolerance = max(FORWARD[dtype], FORWARD[call.kept], key=lambda t: t.norm)
            for name, got, want in zip(after._fields, found[1:], after, strict=True):
                if want is not None:
                    assert_close(name, got, want, tolerance)


@given(data=st.data())
@settings(max_examples=10)
def test_packed_sequences(data: st.DataObject) -> None:
    """The same bits as on Hopper; tokens of no sequence are left alone."""
    spec = data.draw(st.sampled_from(SPECS), "layer")
    length = data.draw(st.integers(1, 400), "length")
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=8), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    call = Call(spec, torch.bfloat16, length, batch=1)
    segments, _, table, _ = packed_plan(torch.tensor(edges), length, GRAIN, GRAIN)
    before = call.states_of(table)

    def launch(module: ModuleType | None) -> tuple[Tensor, ...]:
        return call.launch(segments, (), before, False, module=module, table=table.int())

    found = launch(for_blackwell(spec))
    assert equal(found, launch(None))
    nobodys = torch.ones(length, dtype=torch.bool)
    for start, stop in edges:
        nobodys[start:stop] = False
    assert found[0][:, nobodys].isnan().all() and found[0][:, ~nobodys].isfinite().all()


def compute(spec: LinearAttention, module: ModuleType) -> tuple[Tensor, ...]:
    found = Call(spec, torch.float16, 400).launch(1, (), (), final=True, module=module)
    assert found[0].isfinite().all()
    return found


@pytest.mark.parametrize(
    ("spec", "least"),
    [(MAPS[0], 9), (MAPS[3], 9), (FADING[0], 12), (FADING[3], 14), (OBLONG[0], 9)],
    ids=lambda x: getattr(x, "name", ""),
)
def test_no_wait_is_forgotten(spec: LinearAttention, least: int) -> None:
    module = for_blackwell(spec)
    fails_without_any_wait(module, KERNEL, least, lambda mutant: compute(spec, mutant))


@pytest.mark.parametrize("spec", OF_MAPS + OF_FADING, ids=lambda spec: spec.name)
def test_gradients(spec: LinearAttention) -> None:
    assert equal(compute_gradients(spec, for_blackwell(spec)), compute_gradients(spec, build(spec, "triton")))


@pytest.mark.parametrize("program", ["query_gradients", "key_gradients"])
def test_no_wait_of_gradients_is_forgotten(program: str) -> None:
    """Wide ones have a barrier too many here: outputs are stored between what it shows and its reader."""
    spec, kernel = OF_MAPS[0], on_warpgroups(program)
    module = for_blackwell(spec)
    fails_without_any_wait(module, kernel, 9, lambda mutant: compute_gradients(spec, mutant, torch.float16))


@pytest.mark.parametrize("window", [63, 64, 128])
@given(data=st.data())
@settings(max_examples=8)
def test_windows(window: int, data: st.DataObject) -> None:
    """The same bits as on Hopper, of one sequence a batch entry and of packed ones."""
    spec, length = WINDOWS[window], data.draw(st.integers(1, 333), "length")
    dtype, past = data.draw(st.sampled_from(DTYPES), "dtype"), 0
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    sequences = torch.tensor(edges) if edges else None
    if not edges:
        past = data.draw(st.sampled_from((0, 7, 130)), "keys before the first query")
    q, k, v = (x[:1].to(dtype) for x in in_groups(spec, data.draw(st.sampled_from(HEADS)), length, past))
    chunks = cdiv(length, 64)
    segments = cdiv(chunks, data.draw(st.integers(1, chunks), "chunks a segment"))
    found, wanted = (
        passes(module, segments)[0](q, k, v, 0.2, None, sequences)
        for module in (for_blackwell(spec), build(spec, "triton"))
    )
    assert equal(found, wanted)


def test_no_wait_of_windows_is_forgotten() -> None:
    spec = WINDOWS[128]
    q, k, v = (x.half() for x in in_groups(spec, (2, 2, 2), 320))

    def compute_outputs(module: ModuleType) -> None:
        for tensor in passes(module, 1)[0](q, k, v, 0.2, None, None):
            assert tensor.isfinite().all()

    module = for_blackwell(spec)
    fails_without_any_wait(module, on_warpgroups("outputs"), 7, compute_outputs)


@pytest.mark.parametrize(
    "line", ["phase = phase ^ 1", "S_sums.store(", "Q_features.store(", "mbarrier.init(", "S = S_sums.load("]
)
def test_tensor_memory_is_what_it_should_be(line: str) -> None:
    """Phases change, tiles are stored and loaded, barriers begun: without any of it nothing is right."""
    spec = FADING[0]
    module = for_blackwell(spec)
    lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
    begin = next(i for i, text in enumerate(lines) if text.startswith(f"def {KERNEL}("))
    end = next(i for i, text in enumerate(lines) if i > begin and text.startswith("def "))
    found = [i for i in range(begin, end) if lines[i].strip().startswith(line)]
    assert found
    for i in found:
        indent = lines[i][: -len(lines[i].lstrip())]
        mutant = import_text("\n".join([*lines[:i], f"{indent}pass", *lines[i + 1 :]]) + "\n", "mutant")
        with pytest.raises((AssertionError, KeyError)):
            assert equal(compute(spec, mutant), compute(spec, module))
            pytest.fail(f"nothing is missed without line {i + 1}: {lines[i].strip()}")
