"""What a benchmark's report says besides the measurements, invented."""

from __future__ import annotations

from kvgen.bench.report import ReportContext
from kvgen.engine.machine import Environment


def make_context(
    *, model: str = "tiny", cpu: str = "CPU", prompt: str = "9 tokens"
) -> ReportContext:
    """A model, a prompt and a machine."""
    return ReportContext(
        model=model,
        model_hash="0123",
        family="llama",
        n_parameters=1000,
        prompt=prompt,
        seed=None,
        environment=Environment(
            cpu=cpu,
            cores=2,
            cpus=2,
            last_level_cache_bytes=None,
            system="Linux x86_64",
            python="3.13.0",
            kvgen="1.0",
            numpy="2.0",
            numba=None,
            blas="openblas 0.3",
            blas_threads=2,
            blas_architecture=None,
            load_average=0.5,
            openblas_core_type=None,
        ),
    )
