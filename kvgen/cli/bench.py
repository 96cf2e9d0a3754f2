"""`kvgen bench`: time prefill and decode, with and without the KV cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvgen.atomic_write import write_file
from kvgen.cli.bench_options import (
    ArmFlags,
    Report,
    ReportFlags,
    WorkFlags,
    arm_options,
    report_of,
    report_options,
    work_options,
)
from kvgen.cli.bench_work import plan_job, run_job
from kvgen.cli.command import PromptCommand
from kvgen.cli.options import (
    DisplayFlags,
    ModelFlags,
    display_options,
    load_models,
    several_model_options,
)
from kvgen.cli.output import make_canvas, show, write_text
from kvgen.cli.page_options import open_page
from kvgen.cli.prompt import PromptFlags, given_prompt
from kvgen.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from kvgen.bench.report import BenchReport
    from kvgen.experiment import Experiment


@click.command(
    cls=PromptCommand,
    short_help="Time prefill and decode, with and without the KV cache.",
    epilog="""\b
With --no-cache both arms run interleaved (A B A B ...) on the same ids,
which the cached arm chooses greedily. The first pass of each arm is not
timed: it warms up and compares the logits of every step. Loading,
compiling, progress and drawing are not timed either. -n counts decode
steps; in `kvgen generate` -n 64 makes 63 of them.

\b
Examples:
  kvgen bench
  kvgen bench --no-cache
  kvgen bench --no-cache -p 64,256 -n 16 --dtype bf16,int8
  kvgen bench --no-cache --q-cache -o today.json
  kvgen bench --no-cache -o report.html --open
  kvgen bench --compare yesterday.json today.json
""",
)
@click.argument("prompt", required=False)
@click.option("--prompt", "prompt_option", metavar="TEXT", help="PROMPT, given as an option.")
@several_model_options
@work_options
@arm_options
@report_options
@click.option(
    "--compare", nargs=2, metavar="A B", help="Compare two reports written by -o FILE.json."
)
@display_options
@click.option("-q", "--quiet", is_flag=True, help="No notes or progress.")
@click.option("-v", "--verbose", is_flag=True, help="Print more about the model.")
def bench(
    prompt: str | None,
    prompt_option: str | None,
    model_flags: ModelFlags,
    work_flags: WorkFlags,
    arm_flags: ArmFlags,
    report_flags: ReportFlags,
    compare: tuple[str, str] | None,
    display_flags: DisplayFlags,
    quiet: bool,
    verbose: bool,
) -> None:
    """Time prefill and decode; with --no-cache, show what the KV cache saves.

    The prompt is a text that ships with kvgen, or PROMPT, or random ids with -p. An arm is the same
    work in one way: with the cache, without it, or with Q kept too. Where an option takes a list,
    every combination runs.
    """
    if compare is not None:
        _compare(*compare, report_flags, display_flags)
        return
    text = given_prompt(PromptFlags(prompt, prompt_option))
    _check(text, model_flags, work_flags, arm_flags)
    destinations = report_of(report_flags)
    if destinations.figure is not None:
        from kvgen.render.plot import check_figures

        check_figures()
    models = load_models(model_flags, quiet=quiet, verbose=verbose)

    from kvgen.bench.report import ReportContext
    from kvgen.checkpoint.folder import fingerprint
    from kvgen.engine.machine import environment
    from kvgen.experiment import Experiment

    job = plan_job(models, text, work_flags, arm_flags, quiet=quiet)
    model = models[0]
    context = ReportContext(
        model=model.name,
        model_hash=fingerprint(model.folder),
        family=model.family,
        n_parameters=model.params.n_parameters,
        prompt=job.work.prompt,
        seed=job.work.seed,
        environment=environment(),
    )
    if destinations.figure is not None:
        from kvgen.render.plot import check_latency_figure

        check_latency_figure(context, kind=destinations.figure.kind)
    report = run_job(job, quiet=quiet)
    _deliver(Experiment(report, context), destinations, display_flags)
    if report.interrupted:
        raise KeyboardInterrupt
    _judge(report)


def _check(text: str | None, model: ModelFlags, work: WorkFlags, arms: ArmFlags) -> None:
    """Raise UsageError for flags that contradict each other, before anything is loaded."""
    if text is not None and (work.n_prompt is not None or work.depth is not None):
        raise UsageError("-p and -d ask for random ids: leave them out, or leave out the text")
    if work.n_gen == 0 and not arms.cached_only:
        raise UsageError("--no-cache compares decode steps: ask for at least -n 1")
    if arms.no_baseline and arms.cached_only:
        raise UsageError(
            "--no-baseline leaves out the cached arm: add --no-cache to measure the other one"
        )
    if model.stepwise_prefill:
        raise UsageError(
            "--prefill stepwise runs the prompt as decode steps, which bench times as tg: leave it "
            "out"
        )
    if not arms.cached_only and model.fast_prefill:
        raise UsageError(
            "--prefill fast rounds activations, and --no-cache compares logits: leave out one"
        )
    if (arms.layer is None) != (arms.head is None):
        raise UsageError("the maps show one head: give both -l LAYER and -H HEAD")


def _deliver(done: Experiment, to: Report, display: DisplayFlags) -> None:
    """Print the report and write its files."""
    from kvgen.render.bench import bench_view

    if to.shown == "table":
        canvas = make_canvas(**display._asdict())
        show(bench_view(done.report, done.context, canvas, details=to.details), canvas)
    else:
        write_text(done.content(to.shown).decode())
    for file in (to.file, to.figure):
        if file is not None and file.path is not None:
            write_file(file.path, done.content(file.kind))
    if to.opens and to.file is not None and to.file.path is not None:
        open_page(to.file.path)


def _judge(report: BenchReport) -> None:
    """Raise VerificationError where the arms or the row counts disagree."""
    for run in report.runs:
        checked = run.verification
        if checked is not None and not checked.passed:
            raise VerificationError(
                f"cached and uncached logits differ by {checked.max_abs_logit_difference:.2g}, "
                f"more than rounding explains ({checked.tolerance:.2g}); same tokens at "
                f"{checked.n_equal} of {checked.n_steps} steps"
            )
    ledger = report.ledger
    if ledger is not None and not ledger.agrees:
        raise VerificationError(
            f"{ledger.n_different} of {ledger.n_compared} row counts are not what they should be"
        )
    if not report.passed:
        raise VerificationError(
            "a step needs other rows than its visible rows of K and V and its own of Q"
        )


def _compare(one: str, other: str, flags: ReportFlags, display: DisplayFlags) -> None:
    """Two saved reports side by side, or as JSON. Raises UsageError for options of a new report."""
    from kvgen.bench.compare import compare_reports
    from kvgen.render.bench_files import comparison_json
    from kvgen.render.compare import comparison_view

    of_report = {
        f"-o {flags.output}": flags.output not in (None, "table", "json"),
        "--out": flags.out, "--plot": flags.plot, "--details": flags.details, "--open": flags.opens,
    }  # fmt: skip
    if wrong := [name for name, given in of_report.items() if given]:
        raise UsageError(f"--compare prints a table or JSON (-o json): leave out {wrong[0]}")
    comparison = compare_reports(_read_json(one), _read_json(other))
    if flags.as_json or flags.output == "json":
        write_text(json.dumps(comparison_json(comparison, names=(one, other))) + "\n")
        return
    canvas = make_canvas(**display._asdict())
    show(comparison_view(comparison, names=(one, other)), canvas)


def _read_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"{path}: this is not JSON as -o FILE.json writes it") from None
