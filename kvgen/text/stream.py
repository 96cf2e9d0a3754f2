"""Text out of tokens as they come, ended by stop texts.

The library's own `DecodeStream` ends with an error at bytes that make no character, which any
sampled text may hold; it has no end at which the last bytes come out, and knows no stop texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kvgen.errors import UsageError


class TextStream:
    """New tokens in, whole characters out; ends before the first stop text.

    Text that may be the beginning of a stop text is held back until that is settled. A special
    token takes part in the search for stop texts by its name, but never comes out.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        prompt_ids: Sequence[int],
        *,
        stops: Sequence[str],
        special: Mapping[int, str],
    ) -> None:
        """`decode` leaves special tokens out; `special` gives their names by their ids."""
        if not all(stops):
            raise UsageError("a stop text must not be empty")
        self._decode = decode
        ids = list(prompt_ids)
        self._said = self._decode(ids)  # the text that is out
        # The prompt may end within a character, with one to three of its bytes.
        ends = [len(ids) - n_open for n_open in range(min(4, len(ids) + 1))]
        whole = (end for end in ends if not self._decode(ids[:end]).endswith("\ufffd"))
        end = next(whole, len(ids))
        self._before = ids[:end]  # what decoding has to know of the past
        self._undecoded = ids[end:]  # tokens that do not make whole characters yet
        self._stops = tuple(stops)
        self._special = special
        self._held = ""
        self._hidden: list[bool] = []  # for each character held: whether it is a special token's
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token settles, often empty."""
        self._undecoded.append(token)
        text = self._decode([*self._before, *self._undecoded])
        out = ""
        if text != self._said and not text.endswith("\ufffd"):
            fresh = self._fresh(text)
            self._before, self._undecoded = self._undecoded, []
            self._said = self._decode(self._before)
            out = self._settle(fresh)
        if token in self._special and not self.stopped:
            out += self._settle(self._special[token], hidden=True)
        return out

    def finish(self) -> str:
        """What is left at the end; bytes that never became a character come out as U+FFFD."""
        rest = self._settle(self._fresh(self._decode([*self._before, *self._undecoded])))
        rest += self._take(len(self._held))
        self._before, self._undecoded, self._said = [], [], ""
        return rest

    def _fresh(self, text: str) -> str:
        """What the undecoded tokens add, where `text` is that of the tokens before and of them."""
        for said in (self._said, self._decode(self._before)):  # all that is out, or whole of it
            if text.startswith(said):
                return text[len(said) :]
        # A byte too many turns the characters before it into bytes again, but they are out.
        return self._decode(self._undecoded)

    def _settle(self, text: str, *, hidden: bool = False) -> str:
        """What may come out now that `text` follows what is held."""
        if self.stopped:
            return ""
        self._held += text
        self._hidden += [hidden] * len(text)
        held = self._held
        found = [position for stop in self._stops if (position := held.find(stop)) >= 0]
        if found:
            self.stopped = True
            before = self._take(min(found))
            self._held, self._hidden = "", []
            return before
        longest = max(
            (
                n
                for stop in self._stops
                for n in range(1, min(len(stop), len(held)) + 1)
                if held.endswith(stop[:n])
            ),
            default=0,
        )
        return self._take(len(held) - longest)

    def _take(self, count: int) -> str:
        """The first characters of what is held, without those of special tokens."""
        characters = zip(self._held[:count], self._hidden[:count], strict=True)
        taken = "".join(character for character, hidden in characters if not hidden)
        self._held, self._hidden = self._held[count:], self._hidden[count:]
        return taken
