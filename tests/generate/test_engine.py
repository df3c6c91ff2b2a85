"""The engine: what a request gets is what it would get alone, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from based_ops import errors
from based_ops.generate import Engine, Sampling
from based_ops.generate.sampling import chosen
from based_ops.models import LanguageModel, shipped

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


def test_memory_and_steps_do_not_grow() -> None:
    engine = Engine(model(), slots=4)
    before = [x.data_ptr() for part in engine.pool for x in part if x is not None]
    engine.generate([[1], [2], [3]], most=40)
    assert before == [x.data_ptr() for part in engine.pool for x in part if x is not None]
    assert set(engine._steps) <= {1, 2, 4}


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ({"prompt": []}, errors.ArgumentValueError, "^prompt: got no tokens"),
        ({"prompt": "text"}, errors.ArgumentTypeError, "^prompt: got str"),
        ({"prompt": [256]}, errors.ArgumentValueError, "^prompt: got 256"),
        ({"prompt": [1], "most": 0}, errors.ArgumentValueError, "^most: got 0"),
        ({"prompt": [1], "stop": ["x"]}, errors.ArgumentValueError, "^stop: got texts"),
    ],
)
def test_bad_requests(bad, error, text) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=text):
        Engine(model()).submit(**bad)


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_bad_sampling(bad: dict[str, float]) -> None:
    with pytest.raises(errors.ArgumentValueError, match=f"^{next(iter(bad))}: got"):
        Sampling(**bad)  # type: ignore[arg-type]
