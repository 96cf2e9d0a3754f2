"""The calibration that is kept: measured once for a machine and a kind of engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kvgen.engine import calibration
from kvgen.engine.calibration import Calibration, known_calibration
from kvgen.engine.config import ModelConfig

CONFIG = ModelConfig(
    n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, d_model=8, d_ff=16, vocab_size=10,
    max_context=16, norm="rms", norm_eps=1e-5, mlp="gated", activation="silu", attn_scales=(1.0,),
)  # fmt: skip
RATES = Calibration(
    read_bytes_per_second=1e10, flops_per_second=2e10, attention_flops_per_second=3e10
)


@dataclass
class Engine:
    """As much of an engine as is calibrated; counts how often it is measured."""

    dtype: str = "f32"
    threads: int = 2
    config: ModelConfig = CONFIG
    backend: str = "numba"
    weight_bytes: int = 2**20
    rates: list[Calibration] = field(default_factory=list)  # to measure, one after another
    measured: list[Calibration] = field(default_factory=list)

    def calibrate(self) -> Calibration:
        self.measured.append(self.rates.pop(0) if self.rates else RATES)
        return self.measured[-1]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the calibration is kept; the folder is not there yet."""
    monkeypatch.setattr(calibration, "user_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "calibration.json"


def test_the_same_engine_is_measured_once(kept: Path) -> None:
    engine = Engine()
    assert known_calibration(engine) == known_calibration(engine) == RATES
    assert len(engine.measured) == 1
    (key,) = json.loads(kept.read_text())
    assert key.endswith(", 2 threads, numba: 1 MiB in rows of 8 as f32")


def test_another_kind_of_weights_or_number_of_threads_is_measured_too(kept: Path) -> None:
    engines = [Engine(), Engine(dtype="int8"), Engine(threads=1)]
    for engine in engines * 2:
        known_calibration(engine)
    assert [len(engine.measured) for engine in engines] == [1, 1, 1]
    assert len(json.loads(kept.read_text())) == 3


def test_one_that_a_run_has_beaten_is_measured_again_and_the_faster_one_kept(kept: Path) -> None:
    rate, slow = RATES.read_bytes_per_second, replace(RATES, read_bytes_per_second=1.0)
    engine = Engine(rates=[slow, RATES, slow])
    assert known_calibration(engine) == known_calibration(engine, reached=1.2) == slow
    assert known_calibration(engine, reached=2.0) == RATES
    assert known_calibration(engine, reached=rate) == RATES and len(engine.rates) == 1
    assert known_calibration(engine, reached=2 * rate) == RATES and not engine.rates
    assert known_calibration(Engine()) == RATES and len(json.loads(kept.read_text())) == 1


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"x": 3}', '{"x": {"read_bytes_per_second": "fast"}}', '{"x": {"older_name": 1}}'],
)
def test_a_file_that_says_something_else_is_replaced(content: str, kept: Path) -> None:
    kept.parent.mkdir()
    kept.write_text(content)
    assert known_calibration(Engine()) == RATES
    again = Engine()
    assert known_calibration(again) == RATES and not again.measured


def test_where_nothing_can_be_kept_it_is_measured_every_time(kept: Path) -> None:
    kept.parent.touch()  # a file where the folder should be
    engine = Engine()
    assert known_calibration(engine) == known_calibration(engine) == RATES
    assert len(engine.measured) == 2
