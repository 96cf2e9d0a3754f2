"""Weights copied out of the mapped file: the same numbers, and none that are kept twice."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kvgen
from kvgen.engine import huge_pages
from kvgen.engine.huge_pages import _file_of, in_memory, pays
from tests import tiny
from tests.configs import CONFIGS

IDS = tiny.make_ids(40, seed=2)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_copied_weights_give_the_same_bits(
    name: str, dtype: str, tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder(name, "BF16")
    mapped, copied = (
        kvgen.load(folder, backend="numba", dtype=dtype, mmap=each)  # type: ignore[arg-type]
        for each in (True, False)
    )
    np.testing.assert_array_equal(copied.logits(IDS), mapped.logits(IDS))
    for one, other in zip(copied.params.weights, mapped.params.weights, strict=True):
        assert one is not other
        assert one.stored.ctypes.data % 64 == 0
        np.testing.assert_array_equal(one.stored.view(np.int8), other.stored.view(np.int8))
    tied = mapped.params.head.weight is mapped.params.embed
    assert (copied.params.head.weight is copied.params.embed) == tied


def test_a_small_model_is_copied_and_a_tiny_one_is_not(tiny_folder: Callable[..., Path]) -> None:
    def holds(model: kvgen.Model) -> str:
        return "memory" if _file_of(model.params.embed.stored) is None else "file"

    assert holds(kvgen.load(tiny_folder("llama_gqa"))) == "file"
    assert holds(kvgen.load(tiny_folder("llama_gqa"), mmap=False)) == "memory"
    assert holds(kvgen.load()) == ("memory" if hasattr(mmap, "MADV_HUGEPAGE") else "file")
    assert holds(kvgen.load(mmap=True)) == "file"
    assert holds(kvgen.load(backend="numpy")) == "file"


def test_nothing_is_copied_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    params = kvgen.load(mmap=True).params
    monkeypatch.setattr(huge_pages, "_available_bytes", lambda: 3 * params.nbytes)
    assert not pays(params)


def test_a_kernel_without_huge_pages_gives_its_usual_ones(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = kvgen.load(tiny_folder("gpt2"), mmap=True).params
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345, raising=False)  # EINVAL
    copied = in_memory(params)
    np.testing.assert_array_equal(copied.embed.stored, params.embed.stored)
