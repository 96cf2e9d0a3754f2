"""Recording from Python: what it gives, what it refuses, and what its files hold."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from kvgen.attention import export as export_module
from kvgen.attention import extras
from kvgen.attention.extras import LAYOUTS
from kvgen.choices import FIGURES, Measure, names
from kvgen.errors import KvgenError, UsageError
from kvgen.model import Model
from kvgen.recording import Recording
from tests.conftest import Loader

IDS = [5, 9, 2, 7, 2, 9, 2]


@pytest.fixture(scope="module")
def model(tiny_model: Loader) -> Model:
    """6 query heads on 2 key/value heads in 3 layers; it has no tokenizer."""
    return tiny_model("llama_gqa", backend="numpy")


@pytest.fixture(scope="module")
def seen(model: Model) -> Recording:
    """Five prompt tokens and two decoded ones, with a lens and contributions."""
    recording = model.inspect(IDS[:5], max_new_tokens=3)
    recording.lens(layers=[0, 2], positions=[1, -1])
    recording.contributions(query=3, token=5, against=7)
    return recording


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same to the bit, through dataclasses and tuples."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype != bool)
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other or (one != one and other != other))


def test_shapes_of_a_recording_with_grouped_heads(seen: Recording) -> None:
    L, T, H, G, D = 3, 7, 6, 2, 20
    assert [seen.q.shape, seen.z.shape] == [(L, T, H, D)] * 2
    assert [seen.k.shape, seen.v.shape] == [(L, T, G, D)] * 2
    assert seen.states is not None and seen.states.shape[:2] == (L + 1, T)
    assert (seen.layers, seen.heads, seen.n_prompt) == ((0, 1, 2), tuple(range(H)), 5)
    assert seen.tokens[:2] == ["<5>", "<9>"]
    assert repr(seen).endswith("7 tokens (5 prompt + 2 decode), 3 layers x 6 heads>")
    for name in names(Measure):
        numbers = seen.measure(name, 1, 4)  # type: ignore[arg-type]
        assert numbers.shape == (T, T) and np.isnan(numbers[0, 1:]).all()
    assert set(seen.diagnostics()) == set(seen.run.diagnostics.scores)


def test_negative_numbers_count_from_the_end(seen: Recording) -> None:
    np.testing.assert_array_equal(seen.weights(-1, -1), seen.weights(2, 5))
    assert same(seen.explain(0, 1, -2), seen.explain(0, 1, 5))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda seen: seen.weights(3, 0), "layer 3: this recording has layers 0-2"),
        (lambda seen: seen.scores(0, 6), "head 6: this recording has heads 0-5"),
        (lambda seen: seen.weights("0", 0), "layer '0' is not a whole number"),
        (lambda seen: seen.weights(0.5, 0), r"layer 0\.5 is not a whole number"),
        (lambda seen: seen.explain(0, 0, 7), "query 7: this recording has queries 0-6"),
        (lambda seen: seen.measure("norms", 0, 0), "'norms' is not one of weights, scores, scal"),
        (lambda seen: seen.measure("rollout", 0, 0), "'rollout' is not one of weights"),
        (lambda seen: seen.lens(layers=[3]), "layer 3: this recording has layers 0-2"),
        (lambda seen: seen.lens(layers=[]), "no layer is named: this recording has layers 0-2"),
        (lambda seen: seen.lens(layers=1), r"layer 1 is not a list: write \[1\]"),
        (lambda seen: seen.lens(positions=[7]), "position 7: this recording has positions 0-6"),
        (lambda seen: seen.lens(n_candidates=0), "at least one candidate, not 0"),
        (lambda seen: seen.contributions(query=7), "query 7: this recording has queries 0-6"),
        (lambda seen: seen.contributions(token=10**6), "token id 1000000 is outside the vocab"),
        (lambda seen: seen.contributions(token=5, against=5), "token and against are both id 5"),
        (lambda seen: seen.contributions(token="a"), "tokenizer.json is missing"),
        (lambda seen: seen.sources(0, 6), "head 6: this recording has heads 0-5"),
        (lambda seen: seen.multi_head(3), "layer 3: this recording has layers 0-2"),
        (lambda seen: seen.save("a.exe"), r"a\.exe: the name must end in \.npz, \.safetensors"),
        (lambda seen: seen.save("a.txt", layers=[3]), "layer 3: this recording has layers 0-2"),
        (lambda seen: seen.save("a.txt", heads=[1]), "heads are those of layers: name layers too"),
        (lambda seen: seen.save("a.txt", show="zz"), "show 'zz' is not one of weights, scores"),
        (lambda seen: seen.save("no/folder/a.npz"), "cannot be written: No such file"),
        (lambda _: Recording.open("a.json"), r"a\.json: only \.npz and \.safetensors hold"),
        (lambda _: Recording.open("a.npz"), r"a\.npz: No such file"),
    ],
)
def test_what_a_recording_cannot_give_is_refused_in_one_line(
    ask: Any, message: str, seen: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KvgenError, match=message) as caught:
        ask(seen)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_part_of_the_heads_says_what_it_lacks(model: Model) -> None:
    part = model.inspect(IDS, layers=[1], heads=[0, -1])
    assert (part.layers, part.heads, part.q.shape[:3]) == ((1,), (0, 5), (1, 7, 2))
    assert part.weights(1, 5).shape == (7, 7)
    with pytest.raises(UsageError, match="layer 0: this recording has layer 1 only"):
        part.weights(0, 0)
    assert part.lens().layers == (0, 1, 2)  # it reads the stream, which is whole
    with pytest.raises(UsageError, match="contributions need every layer and head: record all"):
        part.contributions()
    without = model.inspect(IDS, states=False)
    for ask in (without.lens, without.contributions):
        with pytest.raises(UsageError, match="needs the residual stream, which was not recorded"):
            ask()


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_a_file_gives_every_result_again_to_the_bit(
    ending: str, seen: Recording, model: Model, tmp_path: Path
) -> None:
    file = tmp_path / f"seen{ending}"
    seen.save(file)
    for again in (Recording.open(file), Recording.open(file, model=model)):
        assert again.token_ids == seen.token_ids and again.tokens == seen.tokens
        for name in ("q", "k", "v", "z", "states", "predictions"):
            assert same(getattr(again, name), getattr(seen, name)), name
        assert same(again.diagnostics(), seen.diagnostics())
        assert same(again.saved_lens, seen.saved_lens)
        assert same(again.saved_contributions, seen.saved_contributions)
        assert same(again.explain(1, 3), seen.explain(1, 3))
        assert same(again.measure("norm", 2, 1), seen.measure("norm", 2, 1))
        assert again.names == seen.names
        for kind in ("npz", "json"):
            for recording, name in ((seen, f"one.{kind}"), (again, f"other.{kind}")):
                recording.save(tmp_path / name)
            one, other = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("one", "other"))
            assert one == other


def test_a_file_without_its_model_gives_the_saved_lens_and_contributions_alone(
    seen: Recording, tmp_path: Path
) -> None:
    file = tmp_path / "seen.npz"
    seen.save(file)
    again = Recording.open(file)
    assert same(again.lens(), seen.saved_lens)
    assert again.lens(layers=[2], positions=[6]).ranks.shape == (1, 1)
    assert same(again.contributions(), seen.saved_contributions)
    assert again.contributions(query=-4, token=5, against=7).query == 3
    for options in ({"layers": [1]}, {"positions": [0]}):
        with pytest.raises(UsageError, match=r"this saved lens has (layers 0, 2|positions 1, 6)"):
            again.lens(**options)  # type: ignore[arg-type]
    for wanted in ({"query": 2}, {"token": 6}, {"against": 5}, {"token": "<6>"}):
        with pytest.raises(UsageError, match="logit of token '<5>' less token '<7>' after posit"):
            again.contributions(**wanted)  # type: ignore[arg-type]
    for ask in (lambda: again.sources(0, 0), lambda: again.multi_head(0)):
        with pytest.raises(UsageError, match=r"use Recording.open\(path, model=...\)"):
            ask()


def test_a_file_with_its_model_gives_any_lens_and_contributions(
    seen: Recording, model: Model, tiny_model: Loader, tmp_path: Path
) -> None:
    file = tmp_path / "seen.npz"
    seen.save(file)
    again = Recording.open(file, model=model)
    fresh = model.inspect(IDS[:5], max_new_tokens=3)
    assert same(again.lens(), fresh.lens())
    assert same(again.contributions(query=1), fresh.contributions(query=1))
    assert same(again.sources(1, 2), fresh.sources(1, 2))
    with pytest.raises(UsageError, match="of a model of another shape"):
        Recording.open(file, model=tiny_model("gpt2", backend="numpy"))


def test_a_probe_needs_its_tokens_twice(model: Model) -> None:
    assert model.inspect([1, *range(2, 5), *range(2, 5)], probe=3).facts["probe"] == 3
    for probe in (0, 4):
        with pytest.raises(UsageError, match=f"probe {probe}: the 7 ids end in so many random to"):
            model.inspect(IDS, probe=probe)


def test_texts_and_figures_show_what_is_named(seen: Recording, tmp_path: Path) -> None:
    seen.save(tmp_path / "all.txt", width=80)
    seen.save(tmp_path / "one.txt", layers=[1], heads=[2], show="cos")
    assert (tmp_path / "all.txt").read_text().startswith("layers x heads")
    assert (tmp_path / "one.txt").read_text().startswith("layer 1 head 2")
    pytest.importorskip("matplotlib")
    for ending in FIGURES:
        seen.save(tmp_path / f"one{ending}", layers=[1], heads=[2])
        assert (tmp_path / f"one{ending}").stat().st_size > 1000


def test_a_frame_has_a_row_for_each_head(seen: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    frame = seen.frame()
    assert frame.index.names == ["layer", "head"] and len(frame) == 18
    assert frame.loc[(1, 4), "entropy"] == seen.diagnostics()["entropy"][1, 4]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(UsageError, match="a frame needs pandas: pip install pandas"):
        seen.frame()


ENTRY = re.compile(r"((?:[a-z_]+, )*[a-z_]+) +(f32|i32|u8|str) +\[(.*?)\]")


def described() -> dict[str, tuple[str, int]]:
    """The arrays of the docstring of export.py: their numbers, and how many axes they have."""
    return {
        name: (numbers, sizes.count(",") + 1)
        for names, numbers, sizes in ENTRY.findall(export_module.__doc__ or "")
        for name in names.split(", ")
    }


def test_the_docstring_of_a_file_names_each_of_its_arrays(seen: Recording, tmp_path: Path) -> None:
    file = tmp_path / "seen.npz"
    seen.save(file)
    with np.load(file, allow_pickle=False) as opened:
        held = {name: opened[name] for name in opened.files}
    layouts = {
        f"{part}_{name}": form.split()
        for part, one in LAYOUTS.items()
        for name, form in one.items()
    }
    kinds = {"f32": "f4", "i32": "i4", "u8": "u1"}
    words = described()
    for name, array in held.items():
        numbers = array.dtype.str[1:]
        if name in layouts:
            assert (numbers, array.ndim) == (layouts[name][0], len(layouts[name][1])), name
        elif name != "meta":
            kind, n_axes = words.pop(name)
            assert (kinds.get(kind, numbers), n_axes) == (numbers, array.ndim), name
    assert not words, "the file lacks these"
    assert layouts.keys() <= held.keys()
    for part in LAYOUTS:
        assert f"{part}_*" in (export_module.__doc__ or "")
        assert part in (extras.__doc__ or "")


def test_both_array_files_hold_the_same_arrays(seen: Recording, tmp_path: Path) -> None:
    for ending in (".npz", ".safetensors"):
        seen.save(tmp_path / f"seen{ending}")
    with np.load(tmp_path / "seen.npz", allow_pickle=False) as npz:
        arrays = {name: npz[name] for name in npz.files}
    with safe_open(tmp_path / "seen.safetensors", framework="numpy") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert file.metadata().keys() == {"meta", "tokens"}
    assert arrays.keys() == held.keys() | {"meta", "tokens"}
    assert all(same(held[name], arrays[name]) for name in held)
