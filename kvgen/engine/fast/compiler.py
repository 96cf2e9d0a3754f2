"""`@kernel`: Numba's compiler with our flags, so that LLVM optimises every function once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from kvgen.engine.fast.kernel_folder import FOLDER
from kvgen.forks import wait_before_fork

# Never `True`: that folds isfinite to true, and a NaN must reach the check of the logits.
FAST_MATH = {"nsz", "arcp", "contract", "afn", "reassoc"}

wait_before_fork(global_compiler_lock)  # a child cannot finish half a compilation


class _Unoptimised(JITCodeLibrary):  # type: ignore[misc]
    """The code of a kernel as Numba writes it, for LLVM to work on as a part of what calls it.

    Numba's own libraries are optimised and turned into machine code one by one, each with a copy of
    everything that it calls: three quarters of the work are thrown away.
    """

    def finalize(self) -> None:
        """Nothing comes to it any more; what it calls is added to the function that is run."""
        self._raise_if_finalized()
        self._finalized = True

    def get_pointer_to_function(self, _: str) -> int:
        """None: this code is never run by itself."""
        self._ensure_finalized()
        return 0

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _get_module_for_linking(self) -> Any:
        """This code and all that it calls, each function once however often it is linked."""
        module = self._final_module.clone()
        for called in _called_modules(self):
            module.link_in(called, preserve=True)
        for function in module.functions:
            if not function.is_declaration and function.linkage.name == "external":
                function.linkage = "linkonce_odr"
        return module


def _called_modules(library: Any) -> Iterator[Any]:
    """The code of everything that a library calls, however far down."""
    seen, waiting = {library}, [library]
    while waiting:
        for called in waiting.pop()._linking_libraries:
            if called in seen:
                continue
            seen.add(called)
            if isinstance(called, _Unoptimised):
                waiting.append(called)
                yield called._final_module
            else:
                yield called._get_module_for_linking()


@contextmanager
def unoptimised() -> Iterator[None]:
    """Leave what is compiled inside this block to be optimised later; under the compiler's lock."""
    codegen = cpu_target.target_context.codegen()
    before = {name: vars(codegen).get(name) for name in ("_library_class", "set_env")}
    codegen._library_class = _Unoptimised
    codegen.set_env = lambda *_: None  # a table for Python's objects, which kernels have none of
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                delattr(codegen, name)
            else:
                setattr(codegen, name, value)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function of a module that compiled functions call."""
    dispatcher = numba.njit(
        fastmath=FAST_MATH,
        nogil=True,
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )(function)
    compile_now = dispatcher.compile

    def compile_as_it_is(signature: Any) -> Any:
        with global_compiler_lock, unoptimised():
            return compile_now(signature)

    dispatcher.compile = compile_as_it_is
    return dispatcher


def jit_entry(function: Callable[..., Any]) -> Any:
    """Compile a function of a module that Python calls; its machine code is kept on disk.

    Never a closure over kernels: that would be compiled at every start.
    """
    outside = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(FOLDER or "")
    try:
        return numba.njit(
            fastmath=FAST_MATH,
            nogil=True,
            error_model="numpy",
            cache=FOLDER is not None,
            no_cfunc_wrapper=True,
        )(function)
    finally:
        numba.config.CACHE_DIR = outside


@intrinsic
def noinline(_: Any) -> Any:
    """At the start of a kernel: its callers share its code, none gets a copy of it.

    Without this the compiler copies large functions into larger ones and optimises them at every
    level, which takes a minute instead of seconds.
    """

    def generate(context: Any, builder: Any, _: Any, __: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), generate
