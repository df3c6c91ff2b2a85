"""The engine: what a request gets is what it would get alone, token by token."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from based_ops import errors
from based_ops.generate import Engine, Request, Sampling
from based_ops.generate.sampling import chosen, uniform
from based_ops.models import LanguageModel, merge_projections, shipped
from based_ops.models.blocks import over_tensors

TINY = [name for name in shipped() if name.endswith("tiny")]
F64 = torch.float64


def model(name: str = "based-tiny") -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(name, dtype=F64)
    for x in made.parameters():
        if x.dim() > 1:
            x.data.mul_(5.0)
    return made.eval()


def greedy(net: LanguageModel, prompt: Sequence[int], count: int) -> list[int]:
    """By whole forward passes."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(net(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", TINY)
def test_greedy_is_that_of_whole_passes(name: str) -> None:
    net = model(name)
    prompts = [[1, 2, 3], [200], [7] * 20, [5, 4, 3, 2, 1], [250, 1]]
    got = Engine(net, slots=3, most=64).generate(prompts, most=9)
    assert got == [greedy(net, prompt, 9) for prompt in prompts]


@settings(max_examples=10)
@given(st.data())
def test_requests_do_not_meet(data: st.DataObject) -> None:
    """The same request has the same tokens alone and among others that join and leave."""
    net = model(data.draw(st.sampled_from(TINY)))
    how = Sampling(temperature=1.3, top_k=data.draw(st.sampled_from([0, 5])), top_p=0.9, seed=3)
    prompt = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=12))
    (alone,) = Engine(net, 1, most=64).generate([prompt], sampling=how, most=12)
    engine = Engine(net, slots=data.draw(st.integers(1, 4)), most=64)
    for n in range(data.draw(st.integers(0, 5))):
        engine.submit([n] * (n + 1), Sampling(1.0, seed=n), most=n + 1)
    for _ in range(data.draw(st.integers(0, 3))):
        engine.step()
    request = engine.submit(prompt, how, most=12)
    joined = 0
    while engine.busy:
        engine.step()
        if joined < 3 and data.draw(st.booleans()):
            engine.submit([9] * (joined + 1), Sampling(0.7, seed=joined), most=2)
            joined += 1
    assert request.tokens == alone and request.ended == "length"


@functools.cache
def alone(prompt: tuple[int, ...], seed: int, most: int) -> list[int]:
    (found,) = Engine(model(), 1).generate([prompt], sampling=Sampling(1.0, seed=seed), most=most)
    return found


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whatever_callers_do(data: st.DataObject) -> None:
    """Slots are neither lost nor shared, and what was not cancelled is as if it were alone."""
    slots = data.draw(st.integers(1, 3))
    engine = Engine(model(), slots, batch_invariant=data.draw(st.booleans()))
    requests: list[Request] = []
    streams: list[Iterator[int]] = []
    for act in data.draw(
        st.lists(st.sampled_from(["submit", "step", "cancel", "stream", "close"]), max_size=25)
    ):
        chosen_one = data.draw(st.integers(0, 99))
        if act == "submit":
            prompt = (chosen_one,) * (1 + chosen_one % 3)
            how = Sampling(1.0, seed=chosen_one % 4)
            requests.append(engine.submit(prompt, how, most=1 + chosen_one % 5))
        elif act == "step":
            engine.step()
        elif act == "cancel" and requests:
            engine.cancel(requests[chosen_one % len(requests)])
        elif act == "stream" and requests:
            streams.append(engine.stream(requests[chosen_one % len(requests)]))
            next(streams[-1], None)
        elif act == "close" and streams:
            streams[chosen_one % len(streams)].close()  # type: ignore[attr-defined]
        running = list(engine._running.values())
        assert len(running) + len(engine._free) == slots and len(set(running)) == len(running)
        assert all(request.ended is None for request in (*running, *engine._waiting))
        assert set(running).isdisjoint(engine._waiting)
    while engine.busy:
        engine.step()
    assert sorted(engine._free) == list(range(slots))
    for request in requests:
        want = alone(tuple(request.prompt), request.sampling.seed or 0, request.most)
        assert request.ended in ("length", "cancelled")
        assert request.tokens == (want if request.ended == "length" else want[: len(request.tokens)])


def test_streaming_and_cancelling() -> None:
    net = model()
    engine = Engine(net, slots=2)
    first, second = engine.submit([1, 2], most=6), engine.submit([3], most=50)
    seen = []
    for token in engine.stream(first):
        seen.append(token)
    assert seen == first.tokens == greedy(net, [1, 2], 6)
    assert 5 <= len(second.tokens) < 50
    engine.cancel(second)
    assert second.ended == "cancelled" and not engine.busy
    assert engine.generate([[1, 2]], most=6) == [seen]


def test_a_stream_that_is_closed_frees_its_slot() -> None:
    net = model()
    engine = Engine(net, slots=1)
    first, second = engine.submit([1, 2], most=60), engine.submit([3], most=4)
    tokens = engine.stream(first)
    assert next(tokens) == greedy(net, [1, 2], 1)[0]
    tokens.close()  # type: ignore[attr-defined]
    assert first.ended == "cancelled"
    assert list(engine.stream(second)) == greedy(net, [3], 4) and not engine.busy


def test_a_waiting_request_can_be_cancelled() -> None:
    engine = Engine(model(), slots=1)
    first, second, third = (engine.submit([n], most=3) for n in (1, 1, 2))
    engine.cancel(second)
    engine.cancel(second)
    while engine.busy:
        engine.step()
    assert [x.ended for x in (first, second, third)] == ["length", "cancelled", "length"]
    assert second.tokens == []
    engine.cancel(first)
    assert first.ended == "length"


class Broken(Exception):
    pass


def break_once(engine: Engine, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The model's next call raises."""

    def fail(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise Broken

    monkeypatch.setattr(engine.model, method, fail)


@pytest.mark.parametrize("method", ["forward", "step"])
def test_an_error_ends_its_requests_and_no_others(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    engine = Engine(net, slots=2)
    older = engine.submit([1, 2], most=5)
    engine.step()
    newer, later = engine.submit([3], most=4), engine.submit([4], most=4)
    break_once(engine, monkeypatch, method)
    with pytest.raises(Broken):
        engine.step()
    lost, kept = (newer, older) if method == "forward" else (older, newer)
    assert lost.ended == "error" and isinstance(lost.error, Broken) and kept.ended is None
    with pytest.raises(Broken):
        list(engine.stream(lost))
    while engine.busy:
        engine.step()
    assert kept.tokens == greedy(net, kept.prompt, kept.most)
    assert later.tokens == greedy(net, [4], 4) and sorted(engine._free) == [0, 1]


def test_an_error_of_generate_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model(), slots=1)
    break_once(engine, monkeypatch, "step")
    with pytest.raises(Broken):
        engine.generate([[1], [2]], most=3)
    assert not engine.busy and engine.generate([[1]], most=2) == [greedy(engine.model, [1], 2)]


def test_long_prompts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("based_ops.generate.engine.PIECE", 16)
    net = model()
    sizes: list[int] = []
    net.embedding.register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    prompts = [[1] * 40, [2] * 10, [3] * 5, [4] * 5]
    got = Engine(net, slots=4).generate(prompts, most=3)
    assert max(sizes) == 16 and got == [greedy(net, prompt, 3) for prompt in prompts]


@pytest.mark.parametrize("name", TINY)
def test_the_same_bits_in_any_company(name: str) -> None:
    """In float32, where rows of products of other shapes differ: states, not only tokens."""
    net = model(name).float()
    prompt, how = [5, 6, 7, 8], Sampling(1.0, seed=1)

    def state_after(others: int) -> tuple[list[int], list[torch.Tensor]]:
        engine = Engine(net, slots=5, most=64, batch_invariant=True)
        for n in range(others):
            engine.submit([n] * (3 * n + 1), Sampling(1.0, seed=n), most=4 + 3 * n)
        engine.step()
        request = engine.submit(prompt, how, most=12)
        while request.ended is None:
            (slot,) = [n for n, x in engine._running.items() if x is request] or [-1]
            engine.step()
            if others and len(request.tokens) == 6:
                engine.submit([9], most=2)
        bits: list[torch.Tensor] = []
        over_tensors(lambda x: bits.append(x[slot].clone()), engine.pool)
        return request.tokens, bits

    tokens, states = state_after(0)
    for others in (1, 3):
        found, bits = state_after(others)
        assert found == tokens
        for a, b in zip(bits, states, strict=True):
            assert torch.equal(a, b)


def test_a_compiled_step() -> None:
    net = model()
    prompts = [[1, 2, 3], [200], [7] * 20]
    want = Engine(net, slots=3).generate(prompts, most=6)
    torch._dynamo.reset()
    net.step = torch.compile(net.step, backend="aot_eager", fullgraph=True)  # type: ignore[method-assign]
    assert Engine(net, slots=3).generate(prompts, most=6) == want


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_compiled_blocks() -> None:
    net = merge_projections(model("based-tiny"))
    prompts = [[1, 2, 3], [200], [7] * 20]
    want = Engine(net, slots=2).generate(prompts, most=5)
    assert Engine(net, slots=2, compiled=True).generate(prompts, most=5) == want
    assert Engine(net, slots=1, compiled=True).generate(prompts, most=5) == want


def test_seeds() -> None:
    engine = Engine(model(), slots=4)

    def sampled(seed: int | None) -> list[int]:
        (found,) = engine.generate([[1]], sampling=Sampling(2.0, seed=seed), most=12)
        return found

    assert sampled(7) == sampled(7) != sampled(8) and sampled(None) != sampled(None)
    assert sampled(-1) == sampled(2**64 - 1)
    numbers = torch.stack(
        [uniform(torch.tensor([Sampling(seed=n).start()]), torch.arange(500)) for n in range(40)]
    )
    assert float(numbers.min()) >= 0.0 and float(numbers.max()) < 1.0
    assert abs(float(numbers.mean()) - 0.5) < 0.01 and abs(float(numbers.std()) - 12**-0.5) < 0.01
    assert abs(float(torch.corrcoef(numbers).fill_diagonal_(0).abs().max())) < 0.25


def test_stop_tokens_and_strings() -> None:
    net = model()
    want = greedy(net, [1, 2, 3], 20)
    stop = want[7]
    first = want.index(stop)
    engine = Engine(net, decode=lambda tokens: "".join(f"<{x}>" for x in tokens))
    request = engine.submit([1, 2, 3], most=20, stop_tokens=[stop])
    while engine.busy:
        engine.step()
    assert request.tokens == want[:first] and request.ended == "stop"
    text = f"{want[5]}><{want[6]}"
    request = engine.submit([1, 2, 3], most=20, stop=[text])
    assert list(engine.stream(request)) == request.tokens
    whole = "".join(f"<{x}>" for x in want)
    assert request.text == whole[: whole.index(text)]
    assert request.ended == "stop" and len(engine.decode(request.tokens)) <= whole.index(text)  # type: ignore[misc]


def test_sampling() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 9).expand(20000, -1)
    one = torch.ones(20000)
    drawn = torch.rand(20000, dtype=F64)

    def frequencies(temperature: float, top_k: int, top_p: float) -> torch.Tensor:
        tokens = chosen(logits, one * temperature, one.long() * top_k, one * top_p, drawn)
        return torch.bincount(tokens, minlength=9) / 20000

    probabilities = (logits[0] / 0.7).softmax(-1)
    assert torch.allclose(frequencies(0.7, 0, 1.0), probabilities, atol=0.02)
    top = probabilities.sort(descending=True)
    kept = torch.zeros(9).index_fill(0, top.indices[:3], 1.0) * probabilities
    assert torch.allclose(frequencies(0.7, 3, 1.0), kept / kept.sum(), atol=0.02)
    count = int((top.values.cumsum(0) < 0.6).sum()) + 1
    kept = torch.zeros(9).index_fill(0, top.indices[:count], 1.0) * probabilities
    assert torch.allclose(frequencies(0.7, 0, 0.6), kept / kept.sum(), atol=0.02)
    assert frequencies(0.0, 0, 1.0)[logits[0].argmax()] == 1.0
    for cold in (1e-30, 1e-45, 1e-60):
        assert frequencies(cold, 0, 1.0)[logits[0].argmax()] == 1.0
    assert frequencies(1.0, 0, 1e-60)[logits[0].argmax()] == 1.0


def test_memory_and_steps_do_not_grow() -> None:
    engine = Engine(model(), slots=4)
    before = [x.data_ptr() for part in engine.pool for x in part if x is not None]
    engine.generate([[1], [2], [3]], most=40)
    assert before == [x.data_ptr() for part in engine.pool for x in part if x is not None]
    assert {size for size, _ in engine._steps} <= {1, 2, 4}


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ({"prompt": []}, errors.ArgumentValueError, "^prompt: got no tokens"),
        ({"prompt": "text"}, errors.ArgumentTypeError, "^prompt: got str"),
        ({"prompt": [256]}, errors.ArgumentValueError, "^prompt: got 256"),
        ({"prompt": [1], "most": 0}, errors.ArgumentValueError, "^most: got 0"),
        ({"prompt": [1], "stop": ["x"]}, errors.ArgumentValueError, "^stop: got texts"),
        ({"prompt": [1], "stop": "x"}, errors.ArgumentTypeError, "^stop: got str"),
        ({"prompt": [1], "stop": [""]}, errors.ArgumentValueError, "^stop: got an empty text"),
        ({"prompt": [1.0]}, errors.ArgumentTypeError, "^prompt: got list"),
        ({"prompt": [1], "stop_tokens": ["x"]}, errors.ArgumentTypeError, "^stop_tokens: got list"),
    ],
)
def test_bad_requests(bad, error, text) -> None:  # type: ignore[no-untyped-def]
    engine = Engine(model())
    with pytest.raises(error, match=text):
        engine.submit(**bad)
    assert not engine.busy
    with pytest.raises(error, match=text):
        engine.generate([[1], bad.pop("prompt")], **bad)
    assert not engine.busy, "the first prompt was right, and is not left behind"


def test_prompts_may_be_tensors() -> None:
    engine = Engine(model())
    assert engine.generate([torch.tensor([1, 2])], most=3) == engine.generate([[1, 2]], most=3)  # type: ignore[list-item]


def test_what_there_is_no_room_for() -> None:
    engine = Engine(model("transformer-tiny"), slots=1, most=10)
    with pytest.raises(
        errors.ArgumentValueError, match="^prompt: got 8 tokens and 3 more, must be 10 together"
    ):
        engine.submit([1] * 8, most=3)
    assert engine.generate([[1] * 8], most=2) == [greedy(engine.model, [1] * 8, 2)]
    with pytest.raises(errors.ArgumentValueError, match="^slots: got 1000000000000, must be as many as"):
        Engine(model(), slots=10**12)


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")}]
    + [{"top_k": -1}, {"top_p": 0.0}],
)
def test_bad_sampling(bad: dict[str, float]) -> None:
    with pytest.raises(errors.ArgumentValueError, match=f"^{next(iter(bad))}: got"):
        Sampling(**bad)  # type: ignore[arg-type]
