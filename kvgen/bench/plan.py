"""What to measure: lengths of texts, and the arms that run them."""

from __future__ import annotations

from dataclasses import dataclass

from kvgen.choices import ArmName
from kvgen.engine.config import ModelConfig, RopeConfig
from kvgen.engine.rope import positions_run_again
from kvgen.errors import UsageError

MOST_POSITIONS = 256  # whose kept rows are changed: all of them up to here, a sample beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A text to run: positions that are there already, a prompt that is timed, decode steps."""

    ids: tuple[int, ...]  # [depth + n_prompt]
    n_prompt: int
    n_gen: int
    depth: int = 0  # of the ids, those that are fed before the clock starts
    # The model's kinds of RoPE whose frequencies depend on the length, see `length_dependent`.
    ropes: tuple[RopeConfig, ...] = ()

    @property
    def length(self) -> int:
        """Positions before the first decode step."""
        return len(self.ids)

    def fed(self, arm: ArmName, step: int) -> int:
        """Positions run through the model for a decode step, from 0 on."""
        before = self.length + step
        return 1 + (before if arm == "off" else positions_run_again(self.ropes, before))

    def start(self, arm: ArmName, step: int) -> int:
        """Where the positions begin that a decode step, from 0 on, runs through the model."""
        return self.length + step + 1 - self.fed(arm, step)

    def positions(self, arm: ArmName) -> int:
        """Positions that one pass of an arm runs through the model."""
        return self.length + sum(self.fed(arm, step) for step in range(self.n_gen))


def check_steps(config: ModelConfig, n_before: int, n_steps: int) -> None:
    """Raise UsageError where decode steps behind so many tokens exceed the context."""
    if n_before < 1:
        raise UsageError("the prompt is empty, and this model's tokenizer adds no start token")
    if n_before + n_steps > config.max_context:
        room = config.max_context - n_before
        advice = f"at most {room} steps fit" if room >= 0 else "shorten the prompt"
        raise UsageError(
            f"{n_before} tokens and {n_steps} decode steps exceed the context of "
            f"{config.max_context}: {advice}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """Texts, arms and repetitions.

    Every arm feeds the ids that the first engine's cached arm chooses greedily, so that a near-tie
    cannot send them different ways.
    """

    workloads: tuple[Workload, ...]
    arms: tuple[ArmName, ...] = ("on",)  # the arms to time
    repetitions: int = 5
    warmup: int = 1  # passes of each arm before the clock counts; the first compares the logits
    over_seconds: float = 0.1  # the time of an uncached token whose length is looked for
    most_positions: int = MOST_POSITIONS  # whose kept rows are changed, one at a time
    seed: int = 0  # of the random rows
    head: tuple[int, int] | None = None  # layer and head to draw; None: the one least on its sink
