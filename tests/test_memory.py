"""Memory that cannot be had is told before it is taken; what may fit is never refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kvgen
from kvgen.engine import memory
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.cgroups import memory_left
from kvgen.engine.fast import engine
from kvgen.engine.fast.layout import CHUNK
from kvgen.engine.memory import free_bytes
from kvgen.engine.trace import Capture
from kvgen.errors import KvgenError
from kvgen.session import Session
from tests import tiny
from tests.command import assert_fails, inside
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader
from tests.test_machine import V2, system, write

IDS = tiny.make_ids(20, seed=4)
V1 = "31 23 0:28 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
Folder = Callable[..., Path]
SetFree = Callable[[int | None], None]


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> SetFree:
    """Says how many bytes are free; needs of any size are then looked at, but for engines' own."""
    monkeypatch.setattr(memory, "_LARGE", 1)
    monkeypatch.setattr(engine, "require_memory", lambda *_, **__: None)
    return lambda size: monkeypatch.setattr(memory, "free_bytes", lambda: size)


# --- what is free -----------------------------------------------------------------------------


def meminfo(available_kib: int, swap_kib: int) -> dict[str, str]:
    lines = f"MemTotal: 999 kB\nMemAvailable:  {available_kib} kB\nSwapFree: {swap_kib} kB\n"
    return {"proc/meminfo": lines}


def v2(group: str, limit: object, used: int, files: int) -> dict[str, str]:
    stat = f"anon {used - files}\ninactive_file {files - 1}\nactive_file 1"
    return {f"{group}memory.{name}": f"{text}\n" for name, text in
            (("max", limit), ("current", used), ("stat", stat))}  # fmt: skip


def test_free_memory_is_what_is_available_and_free_swap(tmp_path: Path) -> None:
    assert free_bytes(write(tmp_path, meminfo(3000, 500))) == 3500 * 1024


@pytest.mark.parametrize("text", ["", "MemFree: 3 kB\n", "MemAvailable:\n", "MemAvailable: x kB\n"])
def test_a_system_that_does_not_say_has_no_limit(
    text: str, tmp_path: Path, set_free: SetFree
) -> None:
    assert free_bytes(tmp_path / "nothing") is None
    assert free_bytes(write(tmp_path, {"proc/meminfo": text})) is None
    set_free(None)
    memory.require_memory("", weights=2**60)


@pytest.mark.parametrize(
    ("own", "limits", "left"),
    [
        ("/", {}, None),
        ("/app", v2("app/", "max", 700, 100), None),
        ("/app", v2("app/", 1000, 700, 100), 400),
        ("/app", v2("", 500, 400, 50) | v2("app/", 1000, 700, 100), 150),  # the one around it
        ("/app", v2("app/", 500, 700, 100), 0),
        ("/app", {"app/memory.max": "1000\n"}, None),  # what is used cannot be read
    ],
)
def test_memory_that_groups_of_version_2_leave(
    own: str, limits: dict[str, str], left: int | None, tmp_path: Path
) -> None:
    root = system(tmp_path, f"0::{own}\n", [V2], limits)
    assert memory_left(root) == left
    write(root, meminfo(1, 1))
    assert free_bytes(root) == min(1024, 1024 if left is None else left) + 1024


def test_memory_that_groups_of_version_1_leave(tmp_path: Path) -> None:
    limits = {
        "memory/app/memory.limit_in_bytes": "5000\n",
        "memory/app/memory.usage_in_bytes": "4500\n",
        "memory/app/memory.stat": "inactive_file 7\ntotal_inactive_file 300\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "8000\n",
    }
    assert memory_left(system(tmp_path, "4:memory:/app\n0::/\n", [V1], limits)) == 800


# --- what is needed ---------------------------------------------------------------------------


def test_exactly_what_is_free_fits_and_a_byte_more_does_not(set_free: SetFree) -> None:
    set_free(3 * 2**30)
    memory.require_memory("", weights=2 * 2**30, KV_cache=2**30)
    with pytest.raises(KvgenError) as raised:
        memory.require_memory("ask for less", weights=2 * 2**30, KV_cache=2**30 + 1)
    assert str(raised.value) == (
        "not enough memory: 3.00 GiB more are needed (weights 2.00 GiB, KV cache 1.00 GiB) and "
        "3.00 GiB are free: ask for less"
    )


def test_small_needs_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", None)  # nobody may call it
    memory.require_memory("", weights=2**20)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
def test_converted_weights_need_what_they_take(
    name: str, dtype: str, tiny_folder: Folder, set_free: SetFree
) -> None:
    folder = tiny_folder(name, "BF16")
    set_free(None)
    params = kvgen.load(folder, dtype=dtype, backend="numba", mmap=True).params  # type: ignore[arg-type]
    apart = 0 if params.positions is None else params.positions.stored.nbytes
    need = sum(tensor.stored.nbytes for tensor in params.weights) - apart
    set_free(need)
    kvgen.load(folder, dtype=dtype, backend="numba", mmap=True)  # type: ignore[arg-type]
    set_free(need - 1)
    with pytest.raises(KvgenError, match=rf"needed \(weights as {dtype} .*leave out --dtype"):
        kvgen.load(folder, dtype=dtype, backend="numba", mmap=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_mapped_weights_need_no_memory(
    backend: str, tiny_folder: Folder, set_free: SetFree
) -> None:
    set_free(0)
    kvgen.load(tiny_folder("mistral", "F32"), backend=backend, mmap=True)  # type: ignore[arg-type]


def test_copied_weights_need_their_bytes(tiny_folder: Folder, set_free: SetFree) -> None:
    folder = tiny_folder("mistral", "BF16")
    need = kvgen.load(folder, backend="numba", mmap=True).params.nbytes
    set_free(need)
    kvgen.load(folder, backend="numba", mmap=False)
    set_free(need - 1)
    with pytest.raises(KvgenError, match=r"needed \(weights .*leave out --no-mmap"):
        kvgen.load(folder, backend="numba", mmap=False)


@pytest.mark.parametrize("name", CONFIGS)
def test_widened_weights_need_what_they_take(
    name: str, tiny_folder: Folder, set_free: SetFree
) -> None:
    folder = tiny_folder(name, "BF16")
    reference = kvgen.load(folder, backend="numpy").engine
    projections = [
        each
        for block in reference._blocks  # type: ignore[attr-defined]
        for each in (block.q, block.k, block.v, block.o, block.gate, block.up, block.down)
        if each is not None
    ]
    need = sum(each.weight.nbytes for each in [*projections, reference._head])  # type: ignore[attr-defined]
    set_free(need)
    kvgen.load(folder, backend="numpy")
    set_free(need - 1)
    with pytest.raises(KvgenError, match=r"needed \(weights as f32 .*--backend numba"):
        kvgen.load(folder, backend="numpy")


@pytest.mark.parametrize("name", ["mistral", "gpt2", "gemma2"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache_dtype", ["f32", "f16", "int8"])
def test_a_session_needs_its_cache_and_what_it_records(
    name: str, backend: str, cache_dtype: str, tiny_model: Loader, set_free: SetFree
) -> None:
    engine = tiny_model(name, backend=backend, cache_dtype=cache_dtype).engine
    session = Session(engine, len(IDS))
    session.feed(IDS)
    need, cache = session.cache.nbytes, session.cache
    assert isinstance(cache, KeyValueCache)
    arrays = (cache.k, cache.v, cache.k_scales, cache.v_scales)
    allocated = sum(array.nbytes for array in arrays if array is not None)
    assert need == allocated if backend == "numpy" else need <= allocated
    set_free(need)
    Session(engine, len(IDS))
    capture = Capture(engine.config, [0, 1], len(IDS), heads=[1], states=True)
    assert capture.states is not None
    recorded = 2 * capture.q.nbytes + capture.states.nbytes
    set_free(need + recorded)
    Session(engine, len(IDS), capture=capture)
    set_free(need + recorded - 1)
    with pytest.raises(KvgenError, match=r"\(KV cache .* recorded activations .*fewer tokens"):
        Session(engine, len(IDS), capture=capture)
    set_free(need - 1)
    with pytest.raises(KvgenError, match=r"needed \(KV cache [0-9.]+ GiB\) and .* fewer tokens"):
        Session(engine, len(IDS))


def test_the_compiled_engine_needs_its_working_memory(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tiny_folder("llama_gqa"), {}
    monkeypatch.setattr(engine, "require_memory", lambda _, **parts: asked.update(parts))
    for threads in (1, 2):
        loaded = kvgen.load(folder, backend="numba", threads=threads)
        assert asked["working_memory"] > 4 * CHUNK * loaded.config.d_ff
    monkeypatch.undo()
    monkeypatch.setattr(memory, "_LARGE", 1)
    monkeypatch.setattr(memory, "free_bytes", lambda: asked["working_memory"] - 1)
    with pytest.raises(KvgenError, match=r"\(working memory .*: take a smaller model or fewer"):
        kvgen.load(folder, backend="numba", threads=2, mmap=True)


@pytest.mark.parametrize("queries", [False, True])
def test_a_cache_by_itself_needs_its_memory(
    queries: bool, tiny_model: Loader, set_free: SetFree
) -> None:
    one = tiny_model("llama_gqa", backend="numba").engine
    config, n = one.config, len(IDS)
    need = n * config.kv_bytes_per_position(one.cache_dtype)
    need += 4 * n * config.n_layers * config.n_heads * config.head_dim * queries
    set_free(need)
    one.new_cache(n, queries=queries)
    set_free(need - 1)
    with pytest.raises(KvgenError, match=r"\(KV cache .*: ask for fewer tokens"):
        one.new_cache(n, queries=queries)


@pytest.mark.parametrize("command", [["generate", "Once"], ["inspect-attention", "Once"]])
@pytest.mark.parametrize("more", [["--dtype", "int8"], ["--no-mmap", "--backend", "numba"], []])
def test_the_commands_end_in_one_line(
    command: list[str], more: list[str], set_free: SetFree
) -> None:
    set_free(1000)
    assert_fails(inside(*command, *more), 1, "not enough memory: ")
