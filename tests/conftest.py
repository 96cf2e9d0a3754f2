"""Models that many tests share, written and loaded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import kvgen
from kvgen.engine import calibration
from kvgen.model import Model
from tests import tiny

os.environ["HF_HUB_OFFLINE"] = "1"  # the suite asks no Hub but its own (tests/test_hub.py)
os.environ.pop("PYTHONUNBUFFERED", None)  # users have buffers, which may fail to be written
os.environ.pop("COLUMNS", None)  # output that is no terminal's has a width of its own
BACKENDS = ("numpy", "numba")

Loader = Callable[..., Model]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def quick_calibration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test needs the true speed of this machine: measured shortly, and kept for the run only."""
    folder = tmp_path_factory.mktemp("calibration")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "FEWEST_SAMPLES", 1)
        patch.setattr(calibration, "MEASURED_SECONDS", 0.0)
        patch.setattr(calibration, "user_cache", lambda: folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models run in one thread where a test names no number: more would wait for each other.

    That teams compute the same bits is a test of every model (tests/test_fast.py).
    """
    with pytest.MonkeyPatch.context() as patch:
        for place in ("open", "reference.decoder"):
            patch.setattr(f"kvgen.engine.{place}.usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the checkpoint folder of a configuration, stored as F32, F16 or BF16."""

    @cache
    def folder(name: str, kind: str = "F32") -> Path:
        path = tmp_path_factory.mktemp(f"{name}-{kind}")
        return tiny.write_checkpoint(path, name, kind=kind)

    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Callable[..., Path]) -> Loader:
    """Gives the loaded model of a configuration; keywords as in `kvgen.load`."""

    @cache
    def model(name: str, *, kind: str = "F32", **options: Any) -> Model:
        return kvgen.load(tiny_folder(name, kind), **options)

    return model


@pytest.fixture(scope="session", params=BACKENDS)
def storyteller(request: pytest.FixtureRequest) -> Model:
    """The default model on each backend, its cache in float32."""
    return kvgen.load(backend=request.param, cache_dtype="f32")
