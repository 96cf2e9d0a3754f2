"""Conversation: messages in turn, whose positions stay in the KV cache from answer to answer.

Every answer continues the whole conversation, as the chat template writes it. The ids that the
session holds already are not run again as far as both begin alike: the session is cut back to
their longest common prefix, and only what follows is fed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TypedDict

from kvgen.errors import UsageError
from kvgen.generate import ChooseToken, Step, generate
from kvgen.model import Model
from kvgen.piece import Piece, pieces_of
from kvgen.session import Session, shared_prefix

MOST_ANSWER_TOKENS = 512  # of an answer whose length nobody says
_MOST_POSITIONS = 32768  # that memory is asked for where nobody says


class ContextFullError(UsageError):
    """The conversation has become longer than the context."""


class Turn(TypedDict):
    """A message: its role ("system", "user", "assistant") and its text."""

    role: str
    content: str


def usual_context(model: Model) -> int:
    """Positions of a conversation where nobody says: the model's context, up to 32768."""
    return min(model.config.max_context, _MOST_POSITIONS)


class Conversation:
    """A system message, questions and answers; one session holds the positions of their text.

    `reused`, `processed` and `answer_processed` tell of the last answer, as the session counted:
    positions of the prompt that were kept, those that ran before the first new token, and those
    that ran for the tokens after it. Where rotary frequencies change with the length
    (`kvgen.engine.rope`), kept positions run again and count as processed.
    """

    def __init__(
        self,
        model: Model,
        *,
        context: int | None = None,
        reuse_cache: bool = True,
        template: bool = True,
        system: str | None = None,
        turns: Sequence[Turn] = (),
    ) -> None:
        """A conversation of at most `context` positions (None: see `usual_context`).

        Without `template` the text of all messages, each on a line, is continued as it is. Raises
        UsageError where the context is longer than the model's.
        """
        self.model = model
        self.session = Session(model.engine, usual_context(model) if context is None else context)
        self.session.reuses_prefix = True
        self.reuse_cache = reuse_cache
        self.template = template
        self.system = system
        self.turns: list[Turn] = list(turns)  # questions and answers take turns
        self.prompt_ids: list[int] = []  # of the last answer
        self.n_waiting = 0  # positions that run before its first token, as far as is known before
        self.reused = self.processed = self.answer_processed = 0

    @property
    def messages(self) -> list[Turn]:
        """All messages, the system message first."""
        first: list[Turn] = []
        if self.system is not None:
            first = [{"role": "system", "content": self.system}]
        return [*first, *self.turns]

    @property
    def capacity(self) -> int:
        """The longest conversation, in positions."""
        return self.session.cache.capacity

    def ask(
        self, question: str, *, sampler: ChooseToken, max_new_tokens: int | None = None
    ) -> Generator[Piece]:
        """Answer a question, one record per token; both are kept when the iterator ends.

        An answer ends at a stop id, after `max_new_tokens` (None: 512), or where the context is
        full. If the iterator is closed or fails earlier, the answer so far is kept; without any
        token neither is. Raises ContextFullError, before anything has changed, where not one new
        token would fit; KvgenError where the template turns the messages down.
        """
        asked: Turn = {"role": "user", "content": question}
        ids = self._encode([*self.messages, asked])
        if not ids:
            raise UsageError("the prompt is empty, and this model's tokenizer adds no start token")
        room = self.capacity - len(ids) + 1
        if room < 1:
            raise ContextFullError(
                f"the conversation has {len(ids)} tokens now, but the context ends at "
                f"{self.capacity}: /undo drops the last question and answer, /reset all of them"
            )
        self.n_waiting = len(ids) - self._kept(ids)
        most = MOST_ANSWER_TOKENS if max_new_tokens is None else max_new_tokens
        return self._answer(asked, ids, sampler, min(most, room))

    def undo(self) -> bool:
        """Drop the last question and its answer; False where there is none."""
        dropped = self.turns[-2:]
        del self.turns[-2:]
        return bool(dropped)

    def reset(self) -> None:
        """Drop all questions and answers; the system message stays."""
        self.turns.clear()

    def _encode(self, messages: Sequence[Turn]) -> list[int]:
        if self.template:
            return self.model.encode(self.model.render_chat(messages), special_tokens=False)
        return self.model.encode(_plain_text(messages))

    def _kept(self, ids: Sequence[int]) -> int:
        """How many positions of the session begin these ids, but for the last: it always runs.

        Its logits choose the next token, and they are not kept.
        """
        return min(shared_prefix(self.session.ids, ids), len(ids) - 1) if self.reuse_cache else 0

    def _answer(
        self, asked: Turn, ids: list[int], sampler: ChooseToken, most: int
    ) -> Generator[Piece]:
        model = self.model
        stream = model.require_tokenizer().stream(ids)
        self.prompt_ids = ids
        steps = generate(
            self.session,
            ids,
            sampler=sampler,
            max_new_tokens=most,
            stop_ids=model.stop_ids,
            reuse_cache=self.reuse_cache,
        )
        text = None
        try:
            for piece in pieces_of(self._counted(steps), stream, most=most):
                text = (text or "") + piece.text
                yield piece
        finally:
            if text is not None:
                self.turns += [asked, {"role": "assistant", "content": text}]

    def _counted(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps as they come; what ran for each is counted, also for one that is cut short."""
        cache = self.session.cache
        self.reused = self.processed = self.answer_processed = 0
        began, of_prompt = cache.positions_run, True
        while True:
            try:
                step = next(steps, None)
            finally:
                ran = cache.positions_run - began
                if of_prompt:
                    self.processed, self.reused = ran, max(0, cache.length - ran)
                else:
                    self.answer_processed = ran - self.processed
            if step is None:
                return
            of_prompt = False
            yield step


def _plain_text(messages: Sequence[Turn]) -> str:
    """The text of a conversation for a model without template: answers follow their questions."""
    text = ""
    for message in messages:
        between = "\n" if text and message["role"] != "assistant" else ""
        text += between + message["content"]
    return text
