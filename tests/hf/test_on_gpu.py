"""`generate` on a GPU, by the kernels and in the dtypes that serve there, against whole forward passes."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from based_ops.generate import Engine
from based_ops.hf import BasedForCausalLM, engine

from .tiny import TINY, model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
    pytest.mark.skipif(
        tuple(map(int, version("transformers").split(".")[:2])) < (5, 24), reason="Transformers before 5.24"
    ),
]
DEVICE = "cuda"
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [200], [9, 8, 9, 8, 9]]


def on_gpu(name: str = "based-tiny", dtype: torch.dtype = torch.float32, seed: int = 0) -> BasedForCausalLM:
    net: BasedForCausalLM = model(name, seed).to(DEVICE, dtype)
    return net


def padded() -> dict[str, Tensor]:
    """Prompts in one batch, padded in front with a token that matters where it is taken for one."""
    longest = max(map(len, PROMPTS))
    ids = [[77] * (longest - len(x)) + x for x in PROMPTS]
    mask = [[0] * (longest - len(x)) + [1] * len(x) for x in PROMPTS]
    return {
        "input_ids": torch.tensor(ids, device=DEVICE),
        "attention_mask": torch.tensor(mask, device=DEVICE),
    }


def greedy(net: BasedForCausalLM, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, by whole passes."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            logits = net(torch.tensor([ids], device=DEVICE), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}])
def test_greedy_with_padding(name: str, options: dict[str, Any]) -> None:
    net, inputs = on_gpu(name), padded()
    got = net.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
    assert got[:, inputs["input_ids"].shape[1] :].tolist() == [greedy(net, x, 8) for x in PROMPTS]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "how", [{"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True, "top_k": 5}]
)
def test_beams_and_samples_are_those_without_a_cache(name: str, how: dict[str, Any]) -> None:
    net, inputs = on_gpu(name), padded()
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        options = {"do_sample": False} | how
        found.append(net.generate(**inputs, **options, max_new_tokens=7, use_cache=use_cache))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("drafts", ["self", "other", "lookup"])
def test_assisted_is_unassisted(name: str, drafts: str) -> None:
    net, prompt = on_gpu(name), [1, 2, 1, 2, 1, 2, 1]
    how: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
    if drafts != "lookup":
        how = {"assistant_model": net if drafts == "self" else on_gpu("based-tiny", seed=1)}
    ids = torch.tensor([prompt], device=DEVICE)
    got = net.generate(ids, max_new_tokens=14, do_sample=False, **how)
    assert got[0, len(prompt) :].tolist() == greedy(net, prompt, 14)


@pytest.mark.parametrize("name", TINY)
def test_steps_in_two_bytes(name: str) -> None:
    """A prompt in two pieces, padded, and tokens after it: near a whole pass in float32, as one pass is."""
    net, inputs = on_gpu(name, torch.bfloat16), padded()
    cache = DynamicCache(config=net.config)
    got = net.generate(
        **inputs,
        max_new_tokens=6,
        do_sample=False,
        cache=cache,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids, mask = got.sequences, torch.ones_like(got.sequences)
    mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
    steps = torch.stack(got.logits, 1).double()
    with torch.no_grad():
        whole = net(ids, attention_mask=mask, use_cache=False).logits[:, -7:-1].double()
        exact = net.float()(ids, attention_mask=mask, use_cache=False).logits[:, -7:-1].double()
    assert cache.get_seq_length() == ids.shape[1] - 1
    assert (steps - exact).norm() < 3 * (whole - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize(
    ("name", "kind"), [("based-tiny", "dynamic"), ("based-tiny", "static"), ("transformer-tiny", "static")]
)
def test_compiled(name: str, kind: str) -> None:
    """By Inductor: a pass, and steps with a cache."""
    net, ids = on_gpu(name), torch.randint(256, (2, 12), device=DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True)
    cache = DynamicCache(config=net.config)
    if kind == "static":
        cache = StaticCache(net.config, max_cache_len=16)
    with torch.no_grad():
        want = net(ids, use_cache=False).logits
        assert_close(compiled(ids, use_cache=False).logits, want, atol=1e-3, rtol=1e-3)
        net(ids[:, :8], cache=cache)
        for i in range(8, 12):
            last = compiled(ids[:, i : i + 1], cache=cache).logits
            assert_close(last, want[:, i : i + 1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", TINY)
def test_the_engine_is_generate(name: str) -> None:
    """Graphs, where there is one."""
    net, inputs = on_gpu(name), padded()
    how = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": 255, "pad_token_id": 3}
    want = net.generate(**inputs, **how)
    slots = Engine(net.language_model(), slots=2, most=64)
    assert torch.equal(net.generate(**inputs, **how, custom_generate=engine, engine=slots), want)
