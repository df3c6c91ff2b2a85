"""A launch that is remembered runs the kernel that Triton itself would choose, on the same arguments."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from triton.runtime.interpreter import InterpretedFunction  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from based_ops.support import triton as support  # noqa: E402

from .fake_triton import LAUNCHES, Driver, fake_device  # noqa: E402


def _scaled(x, y, x_step, length, scale, PLUS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """y = x * scale, or x * scale + 1, of `length` numbers that lie `x_step` apart."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    numbers = tl.load(x + i * x_step, mask=i < length, other=0.0) * scale
    if PLUS:
        numbers += 1.0
    tl.store(y + i, numbers, mask=i < length)


SETTINGS = [dict(BLOCK=block, num_warps=warps) for block in (16, 32) for warps in (1, 4)]
MEMORY = {dtype: torch.zeros(256, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}


def kernel(kind: Any = JITFunction) -> Any:
    return kind(_scaled, do_not_specialize=["length"])


def launch(function: Any, arguments: dict[str, Any], through: Any = support.launch) -> None:
    length = arguments["length"]
    numbers = tuple(arguments[name] for name in ("x_step", "length", "scale", "PLUS"))
    through(
        function,
        lambda c: (triton.cdiv(length, c["BLOCK"]),),
        (arguments["x"], arguments["y"]),
        numbers,
        arguments["settings"],
    )


def as_triton(function: Any, grid: Any, tensors: Any, numbers: Any, settings: dict[str, Any]) -> None:
    function[grid](*tensors, *numbers, **settings)


@pytest.fixture
def device() -> Iterator[Driver]:
    with fake_device() as fake:
        yield fake


@pytest.fixture
def slow_ones(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for every launch that went Triton's own way."""
    seen = []
    monkeypatch.setattr(JITFunction, "run", _counting(JITFunction.run, seen))
    return seen


def _counting(run: Any, seen: list[Any]) -> Any:
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)
        return run(self, *args, **kwargs)

    return counted


def good(**changes: Any) -> dict[str, Any]:
    x = MEMORY[torch.float32]
    return dict(x=x, y=x, x_step=32, length=100, scale=0.5, PLUS=False, settings=SETTINGS[0]) | changes


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor | None:
    memory = MEMORY[draw(st.sampled_from(list(MEMORY)))]
    return draw(st.sampled_from([memory, memory[1:], memory[8:], memory[16:], memory[:0], None]))


INTEGERS = st.sampled_from([0, 1, 2, 8, 16, 17, 32, 48, 2**31 - 16, 2**31, 2**31 + 1])
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = dict(
    x=tensors(),
    y=tensors(),
    x_step=INTEGERS,
    length=INTEGERS,
    scale=st.sampled_from([0.5, 1.0, 2.0, float("nan")]),
    PLUS=st.booleans(),
    settings=st.sampled_from(SETTINGS),
    device=st.integers(0, 1),
)


@st.composite
def neighbours(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Launches each of which differs from the first in one argument."""
    first = draw(st.fixed_dictionaries(ARGUMENTS))
    return [first, *({**first, name: draw(values)} for name, values in ARGUMENTS.items() for _ in range(2))]


@given(neighbours())
def test_a_remembered_launch_is_tritons_own(drawn: list[dict[str, Any]]) -> None:
    function = kernel()
    with fake_device() as fake:
        for arguments in drawn * 2:
            fake.device = arguments["device"]
            launch(function, arguments)
            launch(function, arguments, through=as_triton)
            got, want = LAUNCHES[-2:]
            assert got["kernel"] is want["kernel"]
            assert (got["programs"], got["stream"]) == (want["programs"], want["stream"])
            # As text, in which NaN is itself, and None the null pointer that the driver makes of it.
            assert repr(got["arguments"]) == repr(want["arguments"])


@pytest.mark.parametrize(
    "changes",
    [
        dict(x=MEMORY[torch.float32][1:]),
        dict(x=MEMORY[torch.bfloat16]),
        dict(x=None),
        dict(x_step=1),
        dict(x_step=33),
        dict(length=2**31),
        dict(PLUS=True),
        dict(settings=SETTINGS[2]),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_triton_tells_apart(device: Driver, slow_ones: list[Any], changes: dict[str, Any]) -> None:
    function = kernel()
    for _ in range(3):
        launch(function, good())
        launch(function, good(**changes))
    assert len(slow_ones) == 2
    assert len({id(record["kernel"]) for record in LAUNCHES}) == 2


def test_two_kernels_with_one_dictionary_of_settings(device: Driver) -> None:
    first, second = kernel(), kernel()
    for function in (first, second, first, second):
        launch(function, good())
    kernels = [record["kernel"] for record in LAUNCHES]
    assert kernels[0] is kernels[2] and kernels[1] is kernels[3] and kernels[0] is not kernels[1]


def test_which_tensor_is_absent(device: Driver) -> None:
    function = kernel()
    for x, y in [(None, MEMORY[torch.float32]), (MEMORY[torch.float32], None)] * 2:
        launch(function, good(x=x, y=y))
        signature = LAUNCHES[-1]["kernel"].src.signature
        assert (signature["x"] == "constexpr", signature["y"] == "constexpr") == (x is None, y is None)


def test_a_new_length_is_the_same_kernel(device: Driver) -> None:
    function = kernel()
    for length in (5, 16, 100, 5):
        launch(function, good(length=length))
    assert len({id(record["kernel"]) for record in LAUNCHES}) == 1
    assert [record["programs"] for record in LAUNCHES] == [1, 1, 7, 1]


def _copied(x, y, step, length, BLOCK: tl.constexpr, OFFSET: tl.constexpr = tl.int32):  # type: ignore[no-untyped-def]
    """y = x, of which two numbers lie `step` apart."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + tl.cast(i, OFFSET) * step, mask=i < length), mask=i < length)


@pytest.mark.parametrize(
    ("shape", "strides", "wide"),
    [
        ((2, 1000, 2, 8), (2**33, 2**23, 8, 1), False),  # a tile has 64 tokens
        ((2, 1000, 2, 8), (2**33, 2**25, 8, 1), True),
        ((2, 3, 2, 8), (2**33, 2**29, 8, 1), False),
        ((2, 4, 2, 8), (2**33, 2**29, 8, 1), True),
        ((2, 5, 16, 8), (2**33, 8, 2**27, 1), True),
        ((2, 1, 2**20, 2**11, 1), (2**31, 2**31, 2**11, 1, 1), True),
    ],
)
def test_only_far_tensors_take_offsets_of_64_bits(
    device: Driver, shape: tuple[int, ...], strides: tuple[int, ...], wide: bool
) -> None:
    function, settings = JITFunction(_copied), dict(BLOCK=64, num_warps=4)
    x = torch.empty_strided(shape, strides, device="meta")
    for _ in range(2):  # as Triton launches it, and as it is remembered
        support.launch(function, lambda c: (1,), (x, MEMORY[torch.float32]), (strides[1], 5), settings)
    first, again = LAUNCHES
    assert first["kernel"] is again["kernel"]
    assert first["kernel"].src.constants[5,] == (tl.int64 if wide else tl.int32)
    assert settings == dict(BLOCK=64, num_warps=4)


def test_the_interpreter_runs_one_kernel_at_a_time() -> None:
    """It replaces functions of the language while a kernel runs."""
    function, faults = kernel(InterpretedFunction), []

    def work() -> None:
        x, y = torch.arange(100.0), torch.zeros(100)
        try:
            for _ in range(5):
                launch(function, good(x=x, y=y, x_step=1))
            assert torch.equal(y, x * 0.5)
        except Exception as fault:
            faults.append(fault)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_hooks_see_every_launch(
    device: Driver, slow_ones: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    function = kernel()
    launch(function, good())
    launch(function, good())
    assert len(slow_ones) == 1 and LAUNCHES[-1]["hooks"] == []

    def hook(_: Any) -> None: ...

    runtime = triton.knobs.runtime
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(runtime.launch_enter_hook, "calls"):
            patch.setattr(runtime.launch_enter_hook, "calls", [hook])
        else:
            patch.setattr(runtime, "launch_enter_hook", hook)
        launch(function, good())
    assert len(slow_ones) == 2 and len(LAUNCHES[-1]["hooks"]) == 1
    launch(function, good())
    assert len(slow_ones) == 2 and LAUNCHES[-1]["hooks"] == []


def test_an_unknown_triton_launches_its_own_way(
    device: Driver, slow_ones: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "_KNOWN", False)
    function = kernel()
    for _ in range(2):
        launch(function, good())
    assert len(slow_ones) == len(LAUNCHES) == 2


def test_memory_of_launches_is_bounded(device: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "KEPT", 3)
    monkeypatch.setattr(support, "_launches", {})
    function = kernel()
    for length in range(1, 11):
        launch(function, good(length=length))
        assert LAUNCHES[-1]["arguments"][-2] == length
        assert len(support._launches) <= 3


def test_interpreted() -> None:
    function = kernel(InterpretedFunction)
    x, y = torch.randn(70), torch.empty(35)
    for scale, plus in ((2.0, False), (3.0, True)):
        launch(function, good(x=x, y=y, x_step=2, length=35, scale=scale, PLUS=plus))
        torch.testing.assert_close(y, x[::2] * scale + plus)


@pytest.mark.gpu
def test_on_a_device() -> None:
    function = kernel()
    x, y = torch.randn(65, device="cuda"), torch.empty(33, device="cuda")
    for start, step, scale, plus in [(0, 2, 2.0, False), (1, 2, 2.0, True), (0, 1, 3.0, False)] * 3:
        launch(function, good(x=x[start:], y=y[1:], x_step=step, length=32, scale=scale, PLUS=plus))
        torch.testing.assert_close(y[1:], x[start:][::step][:32] * scale + plus)


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    function = kernel()
    x, y = torch.randn(64, device="cuda"), torch.empty(64, device="cuda")
    arguments = good(x=x, y=y, x_step=1, length=64, scale=2.0)
    launch(function, arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(function, arguments)
    x.fill_(3.0)
    graph.replay()
    torch.testing.assert_close(y, torch.full_like(y, 6.0))
