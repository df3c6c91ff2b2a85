"""Language models: a sequence, pieces, padding, packing and token by token agree; they train and compile."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from based_ops import errors
from based_ops.models import LanguageModel, inference, merge_norms, merge_projections, products, shipped
from based_ops.models.blocks import bytes_of, over_tensors
from based_ops.models.spec import load_spec

TINY = [name for name in shipped() if name.endswith("tiny")]
PACKING = TINY
F64 = torch.float64
LONG = torch.zeros(1, 17, dtype=torch.int64)


def model(name: str, dtype: torch.dtype = F64) -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(name, dtype=dtype)
    for x in made.parameters():  # so that a mixer matters beside the embedding
        x.data.mul_(4.0) if x.dim() > 1 else None
    return made


@given(st.sampled_from(TINY), st.integers(2, 40), st.data())
def test_pieces_and_steps_are_the_whole(name: str, length: int, data: st.DataObject) -> None:
    net = model(name)
    ids = torch.randint(256, (2, length))
    with torch.no_grad():
        want, nothing = net(ids)
        assert nothing is None and want.shape == (2, length, 256)
        state = net.init_state(2, length)
        cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4)))
        parts = []
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
            piece = ids[:, start:stop]
            if stop - start <= 16 and data.draw(st.booleans()):
                parts.append(net.step(piece, state))
            else:
                logits, state = net(piece, state, output_state=True)
                parts.append(logits)
    assert_close(torch.cat(parts, 1), want)


@pytest.mark.parametrize("rows", [1, 2])
def test_what_is_compiled_takes_keywords(rows: int) -> None:
    """As blocks of models of Transformers' conventions are called."""
    call = inference.compiled(lambda x, *, scale: x * scale, rows)
    assert_close(call(torch.ones(rows, 3), scale=2.0), torch.full((rows, 3), 2.0))


@pytest.mark.parametrize("name", PACKING)
def test_sequences_of_several_lengths(name: str) -> None:
    net = model(name)
    lengths = (9, 1, 20)
    sequences = [torch.randint(256, (1, n)) for n in lengths]
    with torch.no_grad():
        alone = [net(ids)[0] for ids in sequences]
        packed, _ = net(torch.cat(sequences, 1), cu_seqlens=torch.tensor([0, 9, 10, 30]))
        assert_close(packed, torch.cat(alone, 1))
        mask = torch.zeros(3, 24, dtype=torch.bool)
        padded = torch.randint(256, (3, 24))
        for n, ids in enumerate(sequences):
            mask[n, 24 - lengths[n] :] = True  # as for generation, in front
            padded[n, 24 - lengths[n] :] = ids[0]
        logits, state = net(padded, output_state=True, attention_mask=mask)
        for n, want in enumerate(alone):
            assert_close(logits[n, 24 - lengths[n] :], want[0])
        if not net.packs:
            return  # its state has no room for more
        more = torch.randint(256, (3, 3))
        got = net.step(more, state)
        for n, ids in enumerate(sequences):
            whole = net(torch.cat([ids, more[n : n + 1]], 1))[0]
            assert_close(got[n], whole[0, -3:])


@pytest.mark.parametrize("name", TINY)
def test_logits_of_some_tokens(name: str) -> None:
    net = model(name)
    ids = torch.randint(256, (2, 9))
    whole = net(ids)[0]
    assert_close(net(ids, logits_to_keep=2)[0], whole[:, -2:])
    some = torch.tensor([8, 0, 3])
    assert_close(net(ids, logits_to_keep=some)[0], whole[:, some])


@pytest.mark.parametrize("name", TINY)
def test_merged_projections_change_nothing(name: str) -> None:
    """But the names of weights, which say so; merging twice is merging once."""
    net = model(name)
    ids = torch.randint(256, (2, 9))
    with torch.no_grad():
        want, _ = net(ids)
        merged = merge_projections(merge_projections(copy.deepcopy(net)))
        got, state = merged(ids[:, :-1], merged.init_state(2), output_state=True)
        last = merged.step(ids[:, -1:], state)
    assert_close(torch.cat([got, last], 1), want)
    kept = {
        key
        for key in net.state_dict()
        if not key.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
    }
    assert {key for key in merged.state_dict() if "qkv_proj" not in key} == kept
    assert sum(x.numel() for x in merged.parameters()) == sum(x.numel() for x in net.parameters())


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_merged_norms_change_nothing(name: str, one_row: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as PyTorch runs them nor as sums for a compiler, before and after `merge_projections`."""
    net = model(name)
    for norm in net.modules():
        if isinstance(norm, torch.nn.RMSNorm):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    ids = torch.randint(256, (1, 9))
    rows: list[int] = []
    if one_row:

        def is_one_row(x: torch.Tensor) -> bool:
            rows.append(x.numel() // x.shape[-1])
            return rows[-1] == 1

        monkeypatch.setattr(products, "is_one_row", is_one_row)
    with torch.no_grad():
        want, _ = net(ids)
        for merged in (copy.deepcopy(net), merge_projections(copy.deepcopy(net))):
            merged = merge_norms(merge_norms(merged))
            got, state = merged(ids[:, :-1], merged.init_state(1), output_state=True)
            last = merged.step(ids[:, -1:], state)
            assert_close(torch.cat([got, last], 1), want)
    assert sum(x.numel() for x in merged.parameters()) == sum(x.numel() for x in net.parameters())
    found = any(isinstance(x, products.Product) for x in merged.modules())
    assert found == (net.spec.mlp is not None)
    if one_row and found:
        assert {1, 8} <= set(rows)


@pytest.mark.parametrize("name", TINY)
def test_it_learns(name: str) -> None:
    torch.manual_seed(0)
    net = LanguageModel(name)
    ids = torch.randint(256, (4, 24))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        logits, _ = net(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(x.grad is not None for x in net.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", TINY)
def test_compiled(name: str) -> None:
    net = model(name)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    ids = torch.randint(256, (2, 12))
    assert_close(compiled(ids)[0], net(ids)[0])


@pytest.mark.parametrize("name", TINY)
def test_the_residual_stream_is_wide(name: str) -> None:
    net = model(name, torch.bfloat16)
    seen = []
    net.norm.register_forward_hook(lambda *_: None)
    for block in net.blocks:
        block.register_forward_hook(lambda _, given, made: seen.append(made[0].dtype))
    logits, _ = net(torch.randint(256, (1, 5)))
    assert seen == [torch.float32] * len(net.blocks) and logits.dtype == torch.bfloat16


@pytest.mark.parametrize("name", TINY)
def test_state_bytes(name: str) -> None:
    net = model(name, torch.float32)
    assert bytes_of(net.init_state(3, 50)) == net.state_bytes(3, 50)


def test_states_know_their_layers_when_they_are_copied() -> None:
    net = model("mamba2-tiny")
    state = net(torch.randint(256, (1, 5)), output_state=True)[1]
    copied = over_tensors(torch.clone, state)
    assert [x.conv.variant for x in copied] == ["conv4_silu"] * 2
    assert [x.ssm.variant for x in copied] == ["mamba2_qk64_v64"] * 2
    with (
        torch.no_grad(),
        pytest.raises(errors.StateError, match="^state: got ShortConvState, must be a Mamba2"),
    ):
        net.step(torch.tensor([[1]]), LanguageModel("hybrid-tiny", dtype=F64).init_state(1))


@pytest.mark.parametrize(
    "bad",
    [
        lambda net: LanguageModel("hybrid-tiny").init_state(1),
        lambda net: net.init_state(2),
        lambda net: tuple(x._replace(k=x.k[..., :3]) for x in net.init_state(1)),
    ],
)
def test_caches_of_others(bad) -> None:  # type: ignore[no-untyped-def]
    net = LanguageModel("transformer-tiny")
    with torch.no_grad(), pytest.raises(errors.StateError, match=r"^state(\.k)?: got"):
        net.step(torch.tensor([[1]]), bad(net))


def test_padding_behind_a_cache() -> None:
    """Full attention takes tokens and padding in any order after others."""
    net = model("transformer-tiny")
    ids = torch.randint(256, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 5:7] = mask[1, 9:] = False
    with torch.no_grad():
        state = net.init_state(2, 20)
        net.step(ids[:, :4], state)
        logits, state = net(ids[:, 4:], state, output_state=True, attention_mask=mask[:, 4:])
        assert state[0].length.tolist() == [10, 9]
        more = net.step(ids[:, :1], state)
        for i in range(2):
            whole = net(torch.cat([ids[i, mask[i]], ids[i, :1]])[None])[0][0]
            there = mask[i, 4:]
            assert_close(torch.cat([logits[i, there], more[i]]), whole[4:])


def test_parameters_of_the_published() -> None:
    sizes = {"based-360m": 362_655_744, "based-1b": 1_349_531_904}
    for name, count in sizes.items():
        assert sum(x.numel() for x in LanguageModel(name, device="meta").parameters()) == count


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (lambda net: net([1]), errors.ArgumentTypeError, "^ids: got list"),
        (lambda net: net(torch.zeros(1, 2)), errors.DtypeError, "^ids: got torch.float32"),
        (lambda net: net(torch.zeros(3, dtype=torch.int64)), errors.ShapeError, r"^ids: got \(3,\)"),
        (
            lambda net: net(torch.tensor([[256]])),
            errors.ArgumentValueError,
            "^ids: got 256, must be from 0 to 255",
        ),
        (lambda net: net(torch.tensor([[-1]])), errors.ArgumentValueError, "^ids: got -1"),
        (lambda net: net.step(torch.tensor([[1]]), (None,)), errors.StateError, "^state: got a tuple of 1"),
        (
            lambda net: net.step(torch.tensor([[1]]), LanguageModel("transformer-tiny").init_state(1)),
            errors.StateError,
            "^state: got a tuple of 2",
        ),
        (
            lambda net: net.step(torch.zeros(1, 17, dtype=torch.int64), net.init_state(1)),
            errors.ShapeError,
            "17 tokens",
        ),
    ],
)
def test_bad_calls(bad, error, text) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad(), pytest.raises(error, match=text):
        bad(LanguageModel("based-tiny"))


def test_a_cache_that_is_full() -> None:
    net = LanguageModel("transformer-tiny")
    with torch.no_grad():
        state = net.init_state(1, 3)
        net.step(torch.tensor([[1, 2]]), state)
        with pytest.raises(errors.StateError, match="room for 3 tokens after 2"):
            net.step(torch.tensor([[3, 4]]), state)


def test_no_tokens() -> None:
    net = LanguageModel("based-tiny")
    logits, state = net(torch.zeros(2, 0, dtype=torch.int64), output_state=True)
    assert logits.shape == (2, 0, 256) and len(state) == 4


def test_specs_say_where_each_mixer_is() -> None:
    kinds = [mixer.kind for mixer in load_spec("based-360m").mixers()]
    assert [i for i, kind in enumerate(kinds) if kind == "linear_attention"] == [1, 6, 11, 16, 21]
    assert [i for i, kind in enumerate(kinds) if kind == "sliding_window"] == [2, 7, 12, 17, 22]
    assert kinds.count("gated_conv") == 17
