"""Numbers in memory that several threads read and change at the same time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvgen.engine.fast.kernels.vector_types import pointer_to

_COUNT = ir.IntType(64)


@intrinsic
def atomic_add(_: Any, array: Any, offset: Any, number: Any) -> Any:
    """Add to one int64 that other threads change too; returns the number before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = pointer_to(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", pointer, arguments[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def atomic_load(_: Any, array: Any, offset: Any) -> Any:
    """Read one int64 that other threads change."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(
            pointer_to(context, builder, signature.args[0], *arguments[:2]), "acquire", 8
        )

    return types.int64(array, types.intp), generate


@intrinsic
def atomic_store(_: Any, array: Any, offset: Any, number: Any) -> Any:
    """Write one int64 that other threads read: with it, all that was written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = pointer_to(context, builder, signature.args[0], *arguments[:2])
        builder.store_atomic(arguments[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.int64), generate


@intrinsic
def ticks(_: Any) -> Any:
    """A clock that runs at a constant rate, which one is unknown; always 0 where there is none."""

    def generate(_: Any, builder: Any, __: Any, ___: Any) -> Any:
        triple = builder.module.triple
        if "x86" in triple or "i686" in triple:
            name = "llvm.readcyclecounter"
        elif "aarch64" in triple or "arm64" in triple:
            name = "llvm.readsteadycounter"  # the cycle counter is not for programs there
        else:
            return ir.Constant(_COUNT, 0)
        return builder.call(
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(_COUNT, []), name), []
        )

    return types.int64(), generate


@intrinsic
def pause(_: Any) -> Any:
    """Tell the CPU that this loop waits, where it has an instruction for that."""

    def generate(context: Any, builder: Any, _: Any, __: Any) -> Any:
        if "x86" in builder.module.triple or "i686" in builder.module.triple:
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"
            )
            builder.call(function, [])
        return context.get_dummy_value()

    return types.none(), generate
