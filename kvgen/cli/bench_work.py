"""The work of `kvgen bench`: ids of a text or random ones, and as much of it as a minute takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING

from kvgen.choices import ArmName
from kvgen.cli.bench_options import (
    CHANGED_ROWS,
    NEW_TOKENS,
    PROMPT_TOKENS,
    REPETITIONS,
    ArmFlags,
    WorkFlags,
)
from kvgen.cli.output import note
from kvgen.cli.progress import counting_phases, working
from kvgen.engine.places import check_number
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.bench.plan import BenchPlan, Workload
    from kvgen.bench.report import BenchReport
    from kvgen.engine.calibration import Calibration
    from kvgen.engine.contract import Engine
    from kvgen.model import Model

_SECONDS = 60.0  # for a whole run, where options leave it open
_CHANGING_SECONDS = 45.0  # of these, for changing kept rows
_LONG_SECONDS = 20.0  # longer runs are announced before they start
_MOST_HALVINGS = 10
_FEWEST_REPETITIONS, _FEWEST_ROWS = 3, 16  # where there is time for more, or sizes can be halved


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The ids to run, and their description."""

    workloads: tuple[Workload, ...]
    prompt: str  # where the ids come from, in words
    seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A planned run of the benchmark."""

    models: Sequence[Model]
    calibrations: Sequence[Calibration]
    work: Work
    plan: BenchPlan
    seconds: float  # expected


def plan_job(
    models: Sequence[Model],
    text: str | None,
    work_flags: WorkFlags,
    arm_flags: ArmFlags,
    *,
    quiet: bool,
) -> Job:
    """Calibrate, and plan as much as takes about a minute where options leave that open.

    Raises UsageError where the run does not fit the context, or takes longer than --limit.
    """
    from kvgen.bench.cost import calibrate_with_overhead
    from kvgen.bench.phases import expected_seconds

    choose_work(models[0], text, work_flags)  # refuse before anything takes time
    head = chosen_head(models[0], arm_flags)
    engines = [model.engine for model in models]
    with working("calibrating", quiet=quiet):
        calibrations = [calibrate_with_overhead(engine) for engine in engines]
    for n_halvings in range(_MOST_HALVINGS + 1):
        work = choose_work(models[0], text, work_flags, n_halvings=n_halvings)
        plan = _plan(engines, calibrations, work, work_flags, arm_flags, head)
        seconds = sum(expected_seconds(engines, calibrations, plan).values())
        open_sizes = text is None and (work_flags.n_prompt is None or work_flags.n_gen is None)
        if seconds <= _SECONDS or not open_sizes:
            break
    if work_flags.repetitions is None and seconds > _SECONDS:
        plan = replace(plan, repetitions=1)
        seconds = sum(expected_seconds(engines, calibrations, plan).values())
    if seconds > work_flags.limit:
        raise UsageError(
            f"the run needs about {seconds:,.0f} s, more than --limit {work_flags.limit:g}: lower "
            "-p, -n, -r or --changed-rows, or raise the limit"
        )
    if not quiet and n_halvings:
        first = work.workloads[0]
        note(
            f"-p {first.length} -n {first.n_gen} are chosen to take about a minute here; give "
            "others for a longer run"
        )
    if not quiet and seconds > _LONG_SECONDS:
        note(f"about {seconds:.0f} s; lower -r, -p or -n make it shorter")
    return Job(models=models, calibrations=calibrations, work=work, plan=plan, seconds=seconds)


def _plan(
    engines: Sequence[Engine],
    calibrations: Sequence[Calibration],
    work: Work,
    work_flags: WorkFlags,
    arm_flags: ArmFlags,
    head: tuple[int, int] | None,
) -> BenchPlan:
    """A plan for this work, with as many repetitions and changed rows as there is time for."""
    from kvgen.bench.phases import expected_seconds
    from kvgen.bench.plan import BenchPlan

    arms: list[ArmName] = [] if arm_flags.no_baseline else ["on"]
    arms += [] if arm_flags.cached_only else ["off"]
    arms += ["on+q"] if arm_flags.q_cache else []
    plan = BenchPlan(
        workloads=work.workloads,
        arms=tuple(arms),
        repetitions=work_flags.repetitions or REPETITIONS,
        warmup=work_flags.warmup,
        over_seconds=arm_flags.over / 1e3,
        most_positions=CHANGED_ROWS if work_flags.changed_rows is None else work_flags.changed_rows,
        seed=work.seed or 0,
        head=head,
    )
    seconds = expected_seconds(engines, calibrations, plan)
    if work_flags.changed_rows is None and seconds["changing kept rows"] > _CHANGING_SECONDS:
        n_rows = min(CHANGED_ROWS, work.workloads[0].length)
        fewer = int(n_rows * _CHANGING_SECONDS / seconds["changing kept rows"])
        if fewer < 0.75 * n_rows:
            plan = replace(plan, most_positions=max(_FEWEST_ROWS, fewer))
            seconds = expected_seconds(engines, calibrations, plan)
    while (
        work_flags.repetitions is None
        and plan.repetitions > _FEWEST_REPETITIONS
        and sum(seconds.values()) > _SECONDS
    ):
        plan = replace(plan, repetitions=plan.repetitions - 1)
        seconds = expected_seconds(engines, calibrations, plan)
    return plan


def run_job(job: Job, *, quiet: bool) -> BenchReport:
    """Run the benchmark, with its progress on a terminal."""
    from kvgen.bench.run import bench

    with counting_phases("benchmark", job.seconds, quiet=quiet) as advance:
        return bench(
            [model.engine for model in job.models],
            job.models[0].params,
            job.plan,
            calibrations=job.calibrations,
            on_progress=advance,
        )


def chosen_head(model: Model, arms: ArmFlags) -> tuple[int, int] | None:
    """The layer and head of -l and -H. Raises UsageError for one that the model lacks."""
    if arms.layer is None or arms.head is None:
        return None
    config = model.config
    return (
        check_number(arms.layer, range(config.n_layers), "layer"),
        check_number(arms.head, range(config.n_heads), "head"),
    )


def choose_work(model: Model, text: str | None, flags: WorkFlags, *, n_halvings: int = 0) -> Work:
    """The ids to run: of the given text, of the text that ships with kvgen, or random ones.

    Numbers of tokens that nobody has given are halved, the new ones first, then the prompt's, and
    so on by turns.
    """
    from kvgen.bench.plan import Workload, check_steps
    from kvgen.engine.rope import length_dependent

    ropes = length_dependent(model.config)
    context = model.config.max_context
    # Defaults shrink to fit the context; a given number is taken or refused.
    most_new = max(4, NEW_TOKENS >> (n_halvings + 1) // 2)
    n_new = flags.n_gen if flags.n_gen is not None else min(most_new, max(1, context // 5))
    if text is not None:
        ids = tuple(model.encode(text))
        check_steps(model.config, len(ids), n_new)
        only = Workload(ids=ids, n_prompt=len(ids), n_gen=n_new, ropes=ropes)
        return Work(workloads=(only,), prompt=f"{len(ids)} tokens", seed=None)
    most_prompt = max(16, PROMPT_TOKENS >> n_halvings // 2)
    usual = max(1, min(most_prompt, context - n_new))
    if flags.n_prompt is None and flags.depth is None and model.tokenizer is not None:
        own = model.encode(files("kvgen.bench").joinpath("text.txt").read_text("utf-8"))
        ids = tuple(own[:usual])
        scaled = f", scaled to the context of {context}" if usual < most_prompt else ""
        words = f"{len(ids)} tokens of the text that ships with the benchmark{scaled}"
        only = Workload(ids=ids, n_prompt=len(ids), n_gen=n_new, ropes=ropes)
        return Work(workloads=(only,), prompt=words, seed=None)

    import numpy as np

    from kvgen.sampling import Sampler, SamplingOptions

    seed = Sampler(SamplingOptions(), seed=flags.seed).seed
    vocab_size = model.config.vocab_size
    n_tokens = min(vocab_size, model.tokenizer.n_tokens if model.tokenizer else vocab_size)
    workloads = []
    for n_prompt in flags.n_prompt or (usual,):
        for depth in flags.depth or (0,):
            check_steps(model.config, n_prompt + depth, n_new)
            random_ids = np.random.default_rng(seed).integers(0, n_tokens, n_prompt + depth)
            workloads.append(
                Workload(
                    ids=tuple(random_ids.tolist()),
                    n_prompt=n_prompt,
                    n_gen=n_new,
                    depth=depth,
                    ropes=ropes,
                )
            )
    lengths = ", ".join(dict.fromkeys(f"{work.n_prompt}" for work in workloads))
    words = f"{lengths} random ids, seed {seed}"
    return Work(workloads=tuple(workloads), prompt=words, seed=seed)
