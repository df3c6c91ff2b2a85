"""The cache: pieces are the whole, with padding too; it goes back, and sequences are chosen and repeated."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from based_ops import errors
from based_ops.hf import BasedForCausalLM

from .tiny import TINY, model


def whole(net: BasedForCausalLM, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    logits: torch.Tensor = net(ids, attention_mask=mask, use_cache=False).logits
    return logits


def padded(lengths: list[int], length: int) -> torch.Tensor:
    """A mask of sequences that are padded in front."""
    return torch.stack([torch.arange(length) >= length - n for n in lengths]).long()


@given(st.sampled_from(TINY), st.integers(2, 40), st.data())
def test_pieces_are_the_whole(name: str, length: int, data: st.DataObject) -> None:
    net = model(name)
    ids = torch.randint(256, (3, length))
    lengths = data.draw(st.lists(st.integers(1, length), min_size=3, max_size=3))
    mask = padded(lengths, length)
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4)))
    cache = (
        DynamicCache(config=net.config)
        if data.draw(st.booleans())
        else StaticCache(net.config, max_cache_len=9)
    )
    parts = []
    with torch.no_grad():
        want = whole(net, ids, mask)
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
            found = net(ids[:, start:stop], attention_mask=mask[:, :stop], cache=cache)
            assert found.cache is cache and cache.get_seq_length() == stop
            parts.append(found.logits)
    there = mask.bool()
    assert_close(torch.cat(parts, 1)[there], want[there])


@given(st.sampled_from(TINY), st.data())
def test_it_goes_back(name: str, data: st.DataObject) -> None:
    """After any calls and crops, what comes next is as if the cropped tokens had never been."""
    net = model(name)
    cache = DynamicCache(config=net.config)
    cache.activate_past_recording()
    lengths = data.draw(st.sampled_from([[20, 20], [20, 3]]))
    ids, mask = torch.randint(256, (2, 20)), padded(lengths, 20)
    cropped = False
    with torch.no_grad():
        net(ids, attention_mask=mask, cache=cache)
        free, waiting = 20, 0  # tokens that may go: those since the last crop, or what that one left of them
        for _ in range(data.draw(st.integers(1, 4))):
            counts = data.draw(st.lists(st.integers(1, 18), max_size=3))
            for i, count in enumerate(counts):
                more = torch.randint(256, (2, count))
                ids, mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
                logits = net(more, attention_mask=mask, cache=cache).logits
                assert_close(logits, whole(net, ids, mask)[:, -count:])
                free, waiting = count if cropped and i == 0 else free + count, 0
            for _ in range(data.draw(st.integers(1, 2))):
                gone = data.draw(st.integers(0, min(free, ids.shape[1] - 1)))
                cache.crop(-gone)
                free = waiting = free - gone if gone else waiting
                ids, mask = ids[:, : ids.shape[1] - gone], mask[:, : mask.shape[1] - gone]
                assert cache.get_seq_length() == ids.shape[1]
            cropped = True
        last = torch.randint(256, (2, 1))
        got = net(last, attention_mask=torch.cat([mask, torch.ones_like(last)], 1), cache=cache).logits
        want = whole(net, torch.cat([ids, last], 1), torch.cat([mask, torch.ones_like(last)], 1))
    assert_close(got, want[:, -1:])


@given(
    st.sampled_from(["based-replay-tiny", "based-tiny"]),
    st.integers(1, 40),
    st.lists(st.integers(1, 24).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=6),
    st.integers(1, 24),
)
@example("based-replay-tiny", 9, [(20, 6), (12, 5)], 7)  # a draft that outgrows the ring on its way
def test_rejected_drafts_leave_no_trace(
    name: str, prompt: int, rounds: list[tuple[int, int]], piece: int
) -> None:
    """After drafts, in pieces, of which some tokens are accepted, all is as if these alone had come."""
    net = model(name)
    drafted, plain = DynamicCache(config=net.config), DynamicCache(config=net.config)
    drafted.activate_past_recording()
    ids = torch.randint(256, (2, prompt))
    with torch.no_grad():
        for cache in (drafted, plain):
            net(ids, cache=cache)
        drafted.crop(0)
        for length, accepted in [*rounds, (1, 1)]:
            draft = torch.randint(256, (2, length))
            logits = torch.cat([net(x, cache=drafted).logits for x in draft.split(piece, 1)], 1)
            drafted.crop(accepted - length)
            for i in range(accepted):
                assert_close(logits[:, i : i + 1], net(draft[:, i : i + 1], cache=plain).logits)
            assert drafted.get_seq_length() == plain.get_seq_length()


@pytest.mark.parametrize("length", [5, 16, 17])
def test_a_ring_takes_back_what_it_holds_without_a_copy(length: int) -> None:
    """Its layer goes on with the state that there is, as long as no more than L tokens are recorded."""
    net = model("based-replay-tiny")
    cache = DynamicCache(config=net.config)
    cache.activate_past_recording()
    with torch.no_grad():
        net(torch.randint(256, (1, 9)), cache=cache)
        cache.crop(0)
        for part in torch.randint(256, (1, length)).split(4, 1):
            net(part, cache=cache)
        before = [x.state for x in cache.layers]
        cache.crop(-3)
    same = [x.state is state for x, state in zip(cache.layers, before, strict=True)]
    assert same == [i == 1 and length <= 16 for i in range(4)]


@pytest.mark.parametrize("name", TINY)
def test_all_of_it_may_go(name: str) -> None:
    net, ids = model(name), torch.randint(256, (1, 7))
    cache = DynamicCache(config=net.config)
    cache.activate_past_recording()
    with torch.no_grad():
        net(ids, cache=cache)
        cache.crop(-7)
        assert cache.get_seq_length() == 0
        assert_close(net(ids, cache=cache).logits, whole(net, ids))
        cache.reset()
        assert cache.get_seq_length() == 0
        assert_close(net(ids[:, :3], cache=cache).logits, whole(net, ids[:, :3]))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("cropped", [False, True])
def test_sequences_are_chosen_and_repeated(name: str, cropped: bool) -> None:
    net, ids = model(name), torch.randint(256, (3, 9))
    cache = DynamicCache(config=net.config)
    cache.activate_past_recording()
    with torch.no_grad():
        net(ids, cache=cache)
        if cropped:
            cache.crop(-2)
            ids = ids[:, :-2]
        for change, index in (
            (lambda x: x.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
            (lambda x: x.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
            (lambda x: x.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
            (lambda x: x.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
        ):
            other = copy.deepcopy(cache)
            change(other)
            more = torch.randint(256, (len(index), 2))
            want = whole(net, torch.cat([ids[index], more], 1))[:, -2:]
            assert_close(net(more, cache=other).logits, want)
            other.crop(-2)  # they go back as well
            assert_close(net(more, cache=other).logits, want)


def test_a_cache_forgets_only_what_it_recorded() -> None:
    net = model()
    cache = DynamicCache(config=net.config)
    with torch.no_grad():
        net(torch.tensor([[1, 2, 3]]), cache=cache)
        with pytest.raises(errors.StateError, match="^tokens_to_remove: got -1, must be of the 0 that"):
            cache.crop(-1)
        cache.activate_past_recording()
        net(torch.tensor([[4, 5]]), cache=cache)
        with pytest.raises(errors.StateError, match="^tokens_to_remove: got 1, must be from -5 to 0"):
            cache.crop(1)
        with pytest.raises(errors.StateError, match="^tokens_to_remove: got -6, must be from -5 to 0"):
            cache.crop(-6)


@pytest.mark.parametrize(
    ("cache", "text"),
    [
        (lambda net: DynamicCache(), "^cache: got made without a config"),
        (lambda net: net.language_model().init_state(1), "^cache: got tuple"),
        (
            lambda net: DynamicCache(config=model("hybrid-tiny").config),
            "^cache: got one of 2 layers, must be of the",
        ),
        (lambda net: DynamicCache(config=net.config, offloading=True), "^cache: got one that is offloaded"),
    ],
)
def test_caches_that_are_not_its_own(cache, text) -> None:  # type: ignore[no-untyped-def]
    net = model()
    with pytest.raises(errors.StateError, match=text):
        net(torch.tensor([[1]]), cache=cache(net))


def test_the_states_of_another_model() -> None:
    ids = torch.tensor([[1, 2]])
    two_layers = [net for net in map(model, TINY) if net.config.num_hidden_layers == 2]
    assert len(two_layers) > 1
    with torch.no_grad():
        for one in two_layers:
            for two in two_layers:
                if one is not two:
                    cache = one(ids, use_cache=True).cache
                    with pytest.raises(errors.StateError, match=r"State|state|KeyValueCache"):
                        two(ids, cache=cache)
        one = model("hybrid-tiny")
        with pytest.raises(errors.StateError, match="^cache: got one of 1 sequences, must be of 2"):
            one(torch.tensor([[1], [2]]), cache=one(ids, use_cache=True).cache)
