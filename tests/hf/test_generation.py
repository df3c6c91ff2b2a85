"""`generate` in all its ways against whole forward passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from based_ops import errors
from based_ops.generate import Engine
from based_ops.hf import BasedForCausalLM, engine

from .tiny import TINY, model


def greedy(net: BasedForCausalLM, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, by whole passes."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(net(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def beams(net: BasedForCausalLM, prompt: list[int], count: int, width: int) -> list[list[int]]:
    """The best continuations that a beam of `width` finds, by whole passes."""
    found = [(0.0, list(prompt))]
    for _ in range(count):
        longer = []
        for score, ids in found:
            with torch.no_grad():
                logits = net(torch.tensor([ids]), use_cache=False).logits[0, -1]
            for value, token in zip(*logits.log_softmax(-1).topk(width), strict=True):
                longer.append((score + float(value), [*ids, int(token)]))
        found = sorted(longer, key=lambda x: -x[0])[:width]
    return [ids[len(prompt) :] for _, ids in found]


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [200], [9, 8, 9, 8, 9]]


def together(prompts: list[list[int]]) -> dict[str, Tensor]:
    """Prompts in one batch, padded in front with a token that matters where it is taken for one."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[77] * (longest - len(x)) + x for x in prompts])
    mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def new(ids: Tensor, inputs: dict[str, Tensor]) -> list[list[int]]:
    rows: list[list[int]] = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return rows


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"prefill_chunk_size": 3},
    ],
)
def test_greedy_with_padding(name: str, options: dict[str, Any]) -> None:
    net, inputs = model(name), together(PROMPTS)
    got = net.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
    assert new(got, inputs) == [greedy(net, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize("name", TINY)
def test_beams_with_padding(name: str) -> None:
    net, inputs = model(name), together(PROMPTS)
    got = net.generate(
        **inputs, max_new_tokens=7, num_beams=3, num_return_sequences=3, do_sample=False, length_penalty=1.0
    )
    assert new(got, inputs) == [ids for prompt in PROMPTS for ids in beams(net, prompt, 7, 3)]


@pytest.mark.parametrize("name", TINY)
def test_beams_that_end(name: str) -> None:
    """With a token that ends them, and penalties, as without a cache."""
    net, inputs = model(name), together(PROMPTS)
    ends = [greedy(net, PROMPTS[0], 4)[-1], greedy(net, PROMPTS[2], 2)[-1]]
    how = {
        "max_new_tokens": 8,
        "num_beams": 4,
        "eos_token_id": ends,
        "pad_token_id": 0,
        "length_penalty": 0.6,
    }
    want = net.generate(**inputs, **how, do_sample=False, use_cache=False)
    assert torch.equal(net.generate(**inputs, **how, do_sample=False), want)


@settings(max_examples=12)
@given(st.data())
def test_assisted_is_unassisted(data: st.DataObject) -> None:
    """Whatever the drafts are, the tokens are those of greedy search."""
    net = model(data.draw(st.sampled_from(TINY)))
    prompt = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=24))
    drafts = data.draw(st.sampled_from(["self", "other", "lookup"]))
    how: dict[str, Any] = {"assistant_model": net} if drafts == "self" else {"prompt_lookup_num_tokens": 4}
    if drafts == "other":
        other = model(data.draw(st.sampled_from(TINY)), seed=1)
        other.generation_config.num_assistant_tokens = data.draw(st.integers(1, 20))
        how = {"assistant_model": other}
    ids = torch.tensor([[77, *prompt]])
    mask = torch.tensor([[0] + [1] * len(prompt)])
    got = net.generate(ids, attention_mask=mask, max_new_tokens=14, do_sample=False, **how)
    assert got[0, ids.shape[1] :].tolist() == greedy(net, prompt, 14)


def test_assisted_takes_back_what_it_rejects() -> None:
    """A draft that is always wrong is rejected each time; its tokens leave no trace in the cache."""
    net = model()
    cache = DynamicCache(config=net.config)
    ids = torch.tensor([[5, 6, 7]])
    got = net.generate(
        ids,
        assistant_model=model("mamba2-tiny", seed=3),
        max_new_tokens=10,
        do_sample=False,
        cache=cache,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert got.sequences[0, 3:].tolist() == greedy(net, [5, 6, 7], 10) and len(got.scores) == 10
    length = cache.get_seq_length()
    assert length == got.sequences.shape[1] - 1
    with torch.no_grad():
        after = net(got.sequences[:, length:], cache=cache).logits
        assert_close(after, net(got.sequences, use_cache=False).logits[:, -1:])


@pytest.mark.parametrize("name", TINY)
def test_what_is_returned(name: str) -> None:
    net, ids = model(name), torch.tensor([[1, 2, 3], [4, 5, 6]])
    got = net.generate(
        ids,
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        output_hidden_states=True,
    )
    with torch.no_grad():
        want = net(got.sequences, output_hidden_states=True)
    for i in range(4):
        assert_close(got.logits[i], want.logits[:, i + 2].float())
        last = [x[:, -1] for x in got.hidden_states[i]]
        assert_close(last, [x[:, i + 2] for x in want.hidden_states])
    assert len(want.hidden_states) == net.config.num_hidden_layers + 1
    assert got.cache.get_seq_length() == 6


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("padded", [False, True])
def test_a_conversation_goes_on(name: str, padded: bool) -> None:
    """With the cache of an earlier call, and all tokens so far or the new ones alone."""
    net = model(name)
    inputs = together(PROMPTS) if padded else {"input_ids": torch.tensor([[1, 2], [3, 4]])}
    cache = StaticCache(net.config, max_cache_len=64)
    first = net.generate(**inputs, max_new_tokens=5, do_sample=False, cache=cache)
    more = torch.cat([first, torch.full((first.shape[0], 2), 11)], 1)
    mask = None
    if padded:
        ones = torch.ones(
            first.shape[0], more.shape[1] - inputs["attention_mask"].shape[1], dtype=torch.int64
        )
        mask = torch.cat([inputs["attention_mask"], ones], 1)
    got = net.generate(more, attention_mask=mask, max_new_tokens=5, do_sample=False, cache=cache)
    want = net.generate(more, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(got, want)


def test_embeddings_instead_of_tokens() -> None:
    net, ids = model(), torch.tensor([[1, 2, 3]])
    x = net.get_input_embeddings()(ids)
    got = net.generate(inputs_embeds=x, max_new_tokens=5, do_sample=False)
    assert got[0].tolist() == greedy(net, [1, 2, 3], 5)


def test_logits_that_are_asked_for() -> None:
    net, ids = model(), torch.randint(256, (2, 9))
    with torch.no_grad():
        whole = net(ids).logits
        assert_close(net(ids, logits_to_keep=1).logits, whole[:, -1:])
        assert_close(net(ids, logits_to_keep=torch.tensor([0, 4])).logits, whole[:, [0, 4]])


def test_drafts_end_where_greedy_search_does() -> None:
    net, prompt = model(), [1, 2, 1, 2, 1, 2]
    want = greedy(net, prompt, 12)
    end = want[5]
    got = net.generate(
        torch.tensor([prompt]),
        max_new_tokens=12,
        prompt_lookup_num_tokens=5,
        eos_token_id=end,
        do_sample=False,
    )
    assert got[0, 6:].tolist() == want[: want.index(end) + 1]


@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"num_return_sequences": 2}, {"top_p": 0.5}]
)
def test_sampling_in_other_ways(how: dict[str, Any]) -> None:
    """The same draws with a cache and without one."""
    found = []
    for use_cache in (True, "prompt_lookup_num_tokens" in how):
        torch.manual_seed(0)
        ids = torch.tensor([[1, 2, 3]])
        found.append(model().generate(ids, max_new_tokens=6, do_sample=True, use_cache=use_cache, **how))
    assert torch.equal(*found) and found[0].shape[1] == 9


def test_streams() -> None:
    """A streamer sees the prompt, and then each token."""

    class Streamer:
        def __init__(self) -> None:
            self.seen: list[int] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.seen += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    streamer = Streamer()
    net = model()
    net.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False, streamer=streamer)
    assert streamer.ended and streamer.seen == [1, 2, 3, *greedy(net, [1, 2, 3], 5)]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "^input_ids: got no tokens"),
        (
            {"input_ids": torch.tensor([[1], [2]]), "attention_mask": torch.tensor([[0], [1]])},
            "^attention_mask: got a prompt of padding",
        ),
        (
            {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 0, 1]])},
            "^attention_mask: got padding between tokens of sequence 0",
        ),
        ({"input_ids": torch.tensor([[300]])}, "^ids: got 300"),
    ],
)
def test_bad_prompts(given: dict[str, Tensor], text: str) -> None:
    with pytest.raises(errors.ArgumentValueError, match=text):
        model().generate(**given, max_new_tokens=2)


def test_sampling_is_that_of_the_logits() -> None:
    net, ids = model(), torch.tensor([[1, 2, 3]])
    net.lm_head.weight.data.mul_(0.1)  # embeddings too: nothing is nearly certain
    torch.manual_seed(0)
    got = net.generate(
        ids, max_new_tokens=1, do_sample=True, num_return_sequences=800, top_k=4, temperature=0.5
    )
    with torch.no_grad():
        logits = net(ids).logits[0, -1]
    top = logits.topk(4)
    counts = torch.bincount(got[:, -1], minlength=256)
    assert counts[top.indices].sum() == 800
    assert_close(
        counts[top.indices] / 800,
        (top.values / 0.5).softmax(-1).float(),
        atol=0.06,
        rtol=0,
        check_dtype=False,
    )


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("given", [False, True])
def test_the_engine_is_generate(name: str, given: bool) -> None:
    net, inputs = model(name), together(PROMPTS)
    end = greedy(net, PROMPTS[1], 4)[-1]
    how = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": [255, end], "pad_token_id": 3}
    want = net.generate(**inputs, **how)
    more = {"engine": Engine(net.language_model(), slots=2, most=64)} if given else {}
    assert torch.equal(net.generate(**inputs, **how, custom_generate=engine, **more), want)


def test_the_engine_samples() -> None:
    net, inputs = model(), together(PROMPTS)
    how = {"max_new_tokens": 9, "do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 2.0}
    torch.manual_seed(0)
    one = net.generate(**inputs, **how, custom_generate=engine)
    torch.manual_seed(0)
    assert torch.equal(net.generate(**inputs, **how, custom_generate=engine), one)
    assert not torch.equal(net.generate(**inputs, **how, custom_generate=engine), one)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"repetition_penalty": 1.2}, "^logits_processor: got RepetitionPenaltyLogitsProcessor"),
        ({"num_beams": 2}, "^num_beams: got 2"),
        ({"return_dict_in_generate": True}, "^return_dict_in_generate: got True"),
        ({"max_time": 3.0}, "^stopping_criteria: got MaxTimeCriteria"),
        ({"engine": Engine(model().language_model())}, "^engine: got that of another model"),
    ],
)
def test_what_the_engine_cannot_do(how: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.ArgumentValueError, match=text):
        model().generate(torch.tensor([[1]]), custom_generate=engine, max_new_tokens=2, **how)


@pytest.mark.parametrize("implementation", ["offloaded", "quantized"])
def test_caches_that_it_does_not_have(implementation: str) -> None:
    with pytest.raises(ValueError, match="cache: got|only full attention"):
        model().generate(torch.tensor([[1]]), max_new_tokens=2, cache_implementation=implementation)
