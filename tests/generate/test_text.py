"""Text as it comes is the text of all tokens, and stop strings end it wherever they lie."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from based_ops.generate.text import Text

TEXTS = st.text(st.sampled_from("ab\né€😀"), max_size=12)


def of_bytes(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def of_words(tokens: list[int]) -> str:
    """A space before each but the first, as SentencePiece has it."""
    return " ".join("ab"[x % 2] * (x + 1) for x in tokens)


def fed(tokens: list[int], stop: list[str], decode=of_bytes):  # type: ignore[no-untyped-def]
    """What a reader sees after each token, and the text at the end."""
    held: list[int] = []
    text = Text(decode, held, stop)
    seen = []
    for n, token in enumerate(tokens):
        held.append(token)
        stopped = text.advance(n == len(tokens) - 1)
        seen.append((text.found[: text.safe], text.safe_tokens))
        if stopped:
            break
    return text, held, seen


@given(TEXTS, st.lists(st.text(st.sampled_from("ab\né€😀"), min_size=1, max_size=4), max_size=3))
@example("aab", ["ab"])
@example("a😀b", ["😀"])
def test_stop_strings(whole: str, stop: list[str]) -> None:
    tokens = list(whole.encode())
    text, held, seen = fed(tokens, stop)
    ends = [whole.index(word) + len(word) for word in stop if word in whole]
    if not ends:
        assert text.found == whole and held == tokens and not text.stopped
    else:
        # The first to be complete ends it: of those that are so at one character, the longest.
        begin = min(whole.index(word) for word in stop if word in whole[: min(ends)])
        want = whole[:begin]
        assert text.found == want and text.stopped and held == list(want.encode())
    for part, count in seen[:-1]:
        assert text.found.startswith(part) and count <= len(held), "what was shown is never taken back"
    assert not any(word in part for part, _ in seen for word in stop)


@given(st.lists(st.integers(0, 255), max_size=12))
def test_bytes_that_are_no_text(tokens: list[int]) -> None:
    text, held, _ = fed(tokens, [])
    assert text.found == of_bytes(tokens) and held == tokens


@given(st.lists(st.integers(0, 3), max_size=12))
def test_decoders_that_look_back(tokens: list[int]) -> None:
    text, *_ = fed(tokens, [], of_words)
    assert text.found == of_words(tokens)


def test_a_token_is_cut_where_a_stop_string_begins_in_it() -> None:
    words = ["lo\n", "\n and"]
    text, held, _ = fed([0, 1], ["\n\n"], lambda tokens: "".join(words[x] for x in tokens))
    assert text.found == "lo" and held == [] and text.stopped


def test_only_the_last_tokens_are_decoded() -> None:
    sizes = []

    def decode(tokens: list[int]) -> str:
        sizes.append(len(tokens))
        return of_bytes(tokens)

    fed(list("ein ziemlich langer Text mit Umlauten: äöü".encode()), ["Ende"], decode)
    assert max(sizes) <= 4
