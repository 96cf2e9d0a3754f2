"""Mutated files: a model loads and runs, or is refused in one line; nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import offences


@pytest.mark.parametrize(
    "n_cases", [600, pytest.param(8_000, marks=pytest.mark.slow)], ids=["quick", "slow"]
)
def test_mutated_checkpoints_are_run_or_refused_in_one_line(n_cases: int, tmp_path: Path) -> None:
    found = [
        f"case {case.number}: {what}"
        for case, what in offences(range(n_cases), seed=1, folder=tmp_path)
    ]
    assert found == []
