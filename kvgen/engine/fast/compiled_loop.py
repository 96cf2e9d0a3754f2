"""Compiles a loop of kernels into object code that needs neither Numba nor Python when it runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import carray, types
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np import arrayobj
from numba.np.numpy_support import from_dtype

from kvgen.engine.fast import target
from kvgen.engine.fast.compiler import FAST_MATH, unoptimised
from kvgen.engine.fast.layout import N_SHARED
from kvgen.engine.fast.object_code import SYMBOL
from kvgen.engine.fast.records import ArrayKind, Kind, RecordKind

_ADDRESS = types.CPointer(types.int64)


def check_target() -> None:
    """Raise ValueError where Numba compiles for another CPU than target.py has found."""
    _, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    if (cpu, features) != (target.CPU, target.FEATURES):
        raise ValueError(
            "a file .numba_config.yaml sets another CPU: set NUMBA_CPU_NAME and "
            "NUMBA_CPU_FEATURES in the environment instead"
        )


def object_code_of(loop: Callable[..., int], kinds: tuple[Kind, ...]) -> bytes:
    """The object code of `loop(thread, n_threads, shared, last_ticket, *records)`.

    Its function takes the address of `shared`, and in the place of the records the address of their
    table (records.py).
    """
    records = _records_of(types.Tuple([_type_of(kind) for kind in kinds]))

    def entry(thread, n_threads, shared, last_ticket, table):
        return loop(thread, n_threads, carray(shared, (N_SHARED,)), last_ticket, *records(table))

    signature = (types.int64, types.int64, _ADDRESS, types.int64, _ADDRESS)
    with global_compiler_lock, unoptimised(), _no_collections():
        compiled = numba.njit(
            fastmath=FAST_MATH,
            nogil=True,
            error_model="numpy",
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
        )(entry)
        compiled.compile(signature)
        overload = compiled.overloads[signature]
        module = overload.library._get_module_for_linking()
        return _object_code(module, overload.fndesc.llvm_func_name)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep what a compilation has made until its end: to look through it takes a fifth of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _type_of(kind: Kind) -> Any:
    if isinstance(kind, RecordKind):
        return types.BaseTuple.from_types([_type_of(each) for each in kind.fields], kind.record)
    if isinstance(kind, ArrayKind):
        return types.Array(from_dtype(np.dtype(kind.dtype)), kind.n_dimensions, "C")
    return types.none if kind is None else getattr(types, {"bool": "boolean"}.get(kind, kind))


def _records_of(kind: Any) -> Any:
    """A function for compiled code: records of a type, built from the numbers of their table."""

    @intrinsic
    def records(_: Any, table: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            return _Reader(context, builder, arguments[0]).read(kind)

        return kind(table), generate

    return records


class _Reader:
    """Instructions that read one place of a table after another."""

    def __init__(self, context: Any, builder: Any, table: Any) -> None:
        self._context, self._builder, self._table = context, builder, table
        self._place = 0

    def read(self, kind: Any) -> Any:
        """The value of a Numba type that begins at the next place."""
        context, builder = self._context, self._builder
        if isinstance(kind, types.NoneType):
            return context.get_dummy_value()
        if isinstance(kind, types.BaseTuple):
            return context.make_tuple(builder, kind, [self.read(each) for each in kind])
        if isinstance(kind, types.Array):
            return self._array(kind)
        number = self._number()
        if kind == types.int64:
            return number
        if kind == types.boolean:
            return builder.trunc(number, ir.IntType(1))
        assert kind == types.float32
        return builder.bitcast(builder.trunc(number, ir.IntType(32)), ir.FloatType())

    def _number(self) -> Any:
        place = self._builder.gep(
            self._table, [self._context.get_constant(types.intp, self._place)]
        )
        self._place += 1
        return self._builder.load(place)

    def _array(self, kind: Any) -> Any:
        context, builder = self._context, self._builder
        address = self._number()
        shape = [self._number() for _ in range(kind.ndim)]
        item = context.get_data_type(kind.dtype)
        item_bytes = context.get_constant(types.intp, context.get_abi_sizeof(item))
        strides = [item_bytes]
        for size in shape[:0:-1]:
            strides.insert(0, builder.mul(strides[0], size))
        array = context.make_array(kind)(context, builder)
        arrayobj.populate_array(
            array,
            data=builder.inttoptr(address, item.as_pointer()),
            shape=cgutils.pack_array(builder, shape),
            strides=cgutils.pack_array(builder, strides),
            itemsize=item_bytes,
            meminfo=None,  # compiled code neither frees nor counts what Python owns
        )
        return array._getvalue()


def _object_code(module: Any, name: str) -> bytes:
    """A module's machine code, with one function to be called from outside."""
    codegen = cpu_target.target_context.codegen()
    module.link_in(binding.parse_assembly(str(_no_counting())))
    for function in module.functions:
        if function.name == name:
            function.name, function.linkage = SYMBOL, "external"
        elif not function.is_declaration:
            function.linkage = "internal"
    whole = JITCodeLibrary(codegen, "kvgen")
    whole._final_module.link_in(module)
    whole._optimize_final_module()
    whole._final_module.verify()
    return bytes(codegen._tm.emit_object(whole._final_module))


def _no_counting() -> ir.Module:
    """Functions that do nothing in the place of those that count references to Python's arrays."""
    module = cpu_target.target_context.codegen()._create_empty_module("kvgen_no_counting")
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    for name in ("NRT_incref", "NRT_decref"):
        ir.IRBuilder(ir.Function(module, kind, name).append_basic_block()).ret_void()
    return module
