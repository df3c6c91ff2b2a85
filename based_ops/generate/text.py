"""Text of tokens as they come, and the stop strings in it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]
UNFINISHED = "\ufffd"
"""What a decoder gives for bytes that are no character yet."""


class Text:
    """The text of a list of tokens that grows, and the first of the `stop` strings in it.

    Only the last few tokens are decoded again, so a token costs the same after any number of them.  Those
    before them are there because decoders look back: a token may have a space in front or none.
    """

    def __init__(self, decode: Decode, tokens: list[int], stop: Sequence[str]) -> None:
        self.decode, self.tokens, self.stop = decode, tokens, stop
        self.stopped = False
        """Whether a stop string was there; nothing is taken in any more then."""
        self.found = ""
        """All text so far, up to a stop string."""
        self._ends: list[int] = []
        """Characters after each token, as far as its last byte is part of one."""
        self._first, self._known, self._shown = (
            0,
            0,
            0,
        )  # of the window: its first token, whole ones, its text

    def advance(self, ended: bool = False) -> bool:
        """Takes in what the tokens have more; whether there is a stop string, where text and tokens are cut.

        `ended`: nothing follows, so bytes that are no character stay as their sign.
        """
        if self.stopped:
            return True
        window = self.decode(self.tokens[self._first :])
        whole = window if ended else window.rstrip(UNFINISHED)
        before = len(self.found)
        self.found += whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if whole == window:
            self._ends += [len(self.found)] * (len(self.tokens) - len(self._ends))
            self._first, self._known = self._known, len(self.tokens)
            self._shown = len(self.decode(self.tokens[self._first :]))
        return self._cut(before)

    def _cut(self, before: int) -> bool:
        """Cuts at the first stop string that ends after the first `before` characters."""
        places = [self.found.find(word, max(0, before - len(word) + 1)) for word in self.stop]
        places = [place for place in places if place >= 0]
        if not places:
            return False
        self.stopped = True
        self.found = self.found[: min(places)]
        del self.tokens[bisect_right(self._ends, min(places)) :]
        return True

    @property
    def safe(self) -> int:
        """How many characters no stop string can cut off any more."""
        longest = max(map(len, self.stop), default=1) - 1
        for count in range(min(longest, len(self.found)), 0, -1):
            end = self.found[-count:]
            if any(word.startswith(end) for word in self.stop):
                return len(self.found) - count
        return len(self.found)

    @property
    def safe_tokens(self) -> int:
        """How many tokens no stop string can cut off any more."""
        return bisect_right(self._ends, self.safe)
