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


def counted(n: int, one: str, several: str | None = None) -> str:
    """So many things, `several` where more than an s is added: `1 layer`, `1,024 layers`."""
    return f"{n:,} {one if n == 1 else several or f'{one}s'}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, none where all its digits are 0: `+0.120`, `-3.000`, `0.000`."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text
