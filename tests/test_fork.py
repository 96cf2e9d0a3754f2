"""Children that are forked while other threads of the process are at work."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numba
import pytest
from numba.core.compiler_lock import global_compiler_lock

from kvgen.model import Model
from tests import tiny
from tests.conftest import BACKENDS, Loader

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]

SECONDS = 60  # a child that takes longer hangs
IDS = tiny.make_ids(40)


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest, tiny_model: Loader) -> Model:
    return tiny_model("llama_gqa", backend=request.param, threads=2)


def generated(model: Model) -> list[int]:
    """Greedy tokens, each by a forward of its own."""
    return [piece.token for piece in model.generate(IDS, max_new_tokens=24)]


@contextmanager
def another_thread(work: Callable[[], object]) -> Iterator[None]:
    """Some work again and again in another thread, which has begun."""
    begun, enough = threading.Event(), threading.Event()

    def repeat() -> None:
        while not enough.is_set():
            work()
            begun.set()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        assert begun.wait(SECONDS)
        yield
    finally:
        enough.set()
        thread.join(SECONDS)
        assert not thread.is_alive()


def fork(work: Callable[[], bool]) -> int:
    """A child that does the work and leaves with 0 where that gave True."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = 0 if work() else 1
    finally:
        os._exit(code)


def require_success(child: int) -> None:
    """Fail where the child does not leave with 0 in time."""
    for _ in range(20 * SECONDS):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def test_children_forked_while_another_thread_generates_do_the_same(model: Model) -> None:
    expected = generated(model)
    with another_thread(lambda: generated(model)):
        children = [fork(lambda: generated(model) == expected) for _ in range(5)]
        for child in children:
            require_success(child)
    assert generated(model) == expected


def test_processes_of_multiprocessing_forked_by_pool_threads_do_the_same(model: Model) -> None:
    expected = generated(model)
    context = multiprocessing.get_context("fork")

    def in_a_process(_: int) -> int:
        process = context.Process(target=_exit_by, args=(model, expected))
        process.start()
        process.join(SECONDS)
        process.kill()
        # Starting a process waits for the others too: the thread that does may just have got the
        # exit code of this one, and is about to note it.
        while process.exitcode is None:
            time.sleep(0.01)
        return process.exitcode

    with another_thread(lambda: generated(model)), ThreadPoolExecutor(3) as pool:
        assert list(pool.map(in_a_process, range(5))) == [0] * 5


def _exit_by(model: Model, expected: list[int]) -> None:
    # At once: the usual end of such a process joins the pool's thread, which is this one.
    os._exit(0 if generated(model) == expected else 1)


def test_a_child_goes_on_with_its_copy_of_a_text_that_is_half_done(model: Model) -> None:
    expected = generated(model)
    pieces = model.generate(IDS, max_new_tokens=24)
    first = [next(pieces).token for _ in range(9)]

    def rest() -> bool:
        return first + [piece.token for piece in pieces] == expected

    with another_thread(lambda: generated(model)):
        children = [fork(rest) for _ in range(3)]
        for child in children:
            require_success(child)
    assert rest()


def test_a_fork_waits_for_a_compilation_in_another_thread() -> None:
    importlib.import_module("kvgen.engine.fast.compiler")  # not needed where kernels are kept
    held, enough = threading.Event(), threading.Event()

    def compile_for_a_while() -> None:
        with global_compiler_lock:
            held.set()
            enough.wait(SECONDS)

    def compile_something() -> bool:
        return bool(numba.njit(lambda x: x + 1)(1) == 2)

    thread = threading.Thread(target=compile_for_a_while)
    thread.start()
    assert held.wait(SECONDS)
    threading.Timer(0.2, enough.set).start()
    child = fork(compile_something)
    thread.join()
    require_success(child)


LEAVE = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
import kvgen
model = kvgen.load(sys.argv[1], backend="numba", threads=2)
ids = list(range(40))
def generate():
    return [piece.token for piece in model.generate(ids, max_new_tokens=24)]
expected = generate()
enough = threading.Event()
def repeat():
    while not enough.is_set():
        generate()
thread = threading.Thread(target=repeat)
thread.start()
children = []
for _ in range(5):
    child = os.fork()
    if not child:
        sys.exit(0 if generate() == expected else 1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
enough.set()
thread.join()
sys.exit(max(map(abs, codes)))
"""


def test_children_leave_as_any_process_does(tiny_folder: Callable[..., Path]) -> None:
    process = subprocess.run(
        [sys.executable, "-c", LEAVE, str(tiny_folder("llama_gqa"))],
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
