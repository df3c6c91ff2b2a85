"""The engine's CUDA graphs give what steps without them give."""

from __future__ import annotations

import pytest
import torch

from based_ops.generate import Engine, Sampling
from based_ops.models import LanguageModel, inference, merge_norms, merge_projections, shipped
from based_ops.models.blocks import over_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
TINY = [name for name in shipped() if name.endswith("tiny")]


def model(name: str, dtype: torch.dtype) -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(name, device="cuda", dtype=dtype)
    for x in made.parameters():
        if x.dim() > 1:
            x.data.mul_(5.0)
    return made.eval()


@torch.no_grad()
def by_steps(net: LanguageModel, prompt: list[int], count: int) -> list[int]:
    state = net.init_state(1, 64)
    ids = torch.tensor([prompt], device="cuda")
    if net.packs:
        logits, state = net(ids, output_state=True)
    else:
        logits, state = net(ids, state, output_state=True)
    found = []
    for _ in range(count):
        token = logits[:, -1:].argmax(-1)
        found.append(int(token))
        logits = net.step(token, state)
    return found


def test_compiled_blocks_are_blocks() -> None:
    """In float32, where another order of sums changes no token."""
    net = merge_projections(model("based-tiny", torch.float32))
    prompts = [[1, 2, 3], [200], [7] * 20]
    want = Engine(net, slots=3).generate(prompts, most=12)
    assert Engine(net, slots=3, compiled=True).generate(prompts, most=12) == want
    assert Engine(net, slots=1, compiled=True).generate(prompts, most=12) == want


@pytest.mark.parametrize("name", ["based-tiny", "hybrid-tiny", "transformer-tiny"])
def test_norms_in_products_are_norms(name: str) -> None:
    """Of one request each product is a sum that Inductor writes, with its norm, bias and gate."""
    want = Engine(net := model(name, torch.float32), slots=1, most=64).generate([[1, 2, 3]], most=12)
    merged = merge_norms(merge_projections(net))
    assert Engine(merged, slots=1, most=64).generate([[1, 2, 3]], most=12) == want
    torch._dynamo.reset()
    assert Engine(merged, slots=1, most=64, compiled=True).generate([[1, 2, 3]], most=12) == want


@torch.no_grad()
def test_a_block_of_one_row_is_a_kernel_for_each_product() -> None:
    from torch._inductor import config, metrics
    from torch._inductor.utils import run_and_get_code

    net = merge_norms(merge_projections(model("based-tiny", torch.bfloat16)))
    x, state = torch.randn(1, 1, 64, device="cuda"), net.init_state(1)
    y = torch.randn(1, 1, 64, device="cuda", dtype=torch.bfloat16)
    counts = (4, 4, 6)  # of a window's, q and k turn in one each
    for block, part, count in zip(net.blocks[:3], state[:3], counts, strict=True):
        want = sum(block.step(x, y, over_tensors(torch.clone, part), None))  # type: ignore[operator]
        torch._dynamo.reset()
        metrics.reset()
        step = inference.compiled(block.step, 1)  # type: ignore[arg-type]
        found, (code,) = run_and_get_code(step, x, y, over_tensors(torch.clone, part), None)
        assert (sum(found) - want).norm() < 0.02 * want.norm()
        assert metrics.generated_kernel_count == count
        assert "triton_red" not in code and "extern_kernels.addmm" not in code
        if torch.cuda.get_device_capability() >= (9, 0) and hasattr(config.triton, "enable_pdl"):
            assert code.count("gdc_wait()") >= count


@pytest.mark.parametrize("name", TINY)
def test_graphs_are_steps(name: str) -> None:
    net = model(name, torch.float32)
    prompts = [[1, 2, 3], [200], [7] * 20, [5, 4, 3, 2, 1], [250, 1]]
    engine = Engine(net, slots=3, most=64)
    assert engine.generate(prompts, most=9) == [by_steps(net, prompt, 9) for prompt in prompts]
    assert all((step._graph is not None) == net.records for step in engine._steps.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TINY)
def test_the_same_bits_in_any_company(name: str, dtype: torch.dtype) -> None:
    net = model(name, dtype)

    def found(others: int) -> tuple[list[int], list[torch.Tensor]]:
        engine = Engine(net, slots=5, most=64, batch_invariant=True)
        for n in range(others):
            engine.submit([n] * (3 * n + 1), Sampling(1.0, seed=n), most=4 + 3 * n)
        engine.step()
        request = engine.submit([5, 6, 7, 8], Sampling(1.0, seed=1), most=12)
        slot = -1
        while request.ended is None:
            slot = next((n for n, x in engine._running.items() if x is request), slot)
            engine.step()
        bits: list[torch.Tensor] = []
        over_tensors(lambda x: bits.append(x[slot].clone()), engine.pool)
        return request.tokens, bits

    tokens, states = found(0)
    for others in (1, 3):
        again, bits = found(others)
        assert again == tokens
        for a, b in zip(bits, states, strict=True):
            assert torch.equal(a, b)


def test_sampling_is_that_of_a_cpu() -> None:
    """The numbers that are drawn are the same to the bit."""
    from based_ops.generate.sampling import uniform

    start, number = torch.tensor([Sampling(seed=n).start() for n in range(9)]), torch.arange(9)
    assert torch.equal(uniform(start.cuda(), number.cuda()).cpu(), uniform(start, number))


def test_memory_does_not_grow() -> None:
    engine = Engine(model("based-tiny", torch.bfloat16), slots=4)
    engine.generate([[1], [2], [3], [4]], most=40, sampling=Sampling(1.0, seed=0))
    before = torch.cuda.memory_allocated()
    engine.generate([[1], [2], [3], [4]], most=400, sampling=Sampling(1.0, seed=0))
    assert torch.cuda.memory_allocated() == before
