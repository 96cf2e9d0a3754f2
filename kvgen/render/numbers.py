"""Numbers with their units."""

from __future__ import annotations


def three_digits(number: float) -> str:
    """A number in three digits, or in all that stand before its point: `0.0123`, `1,234`."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def size(n_bytes: float) -> str:
    """A number of bytes: `512 bytes`, `1.5 KiB`, `16.4 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:,.0f} {unit}" if unit == "bytes" else f"{n_bytes:,.1f} {unit}"
