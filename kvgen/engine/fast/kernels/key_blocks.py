"""Keys lie in blocks of positions [blocks, D, BLOCK]: see `kvgen.engine.cache.KeyValueCache`."""

from __future__ import annotations

from kvgen.engine.fast.compiler import kernel
from kvgen.engine.fast.layout import BLOCK


@kernel
def first_number_of_key(position, D):
    """Where a head's keys hold the first number of a position's; the next one is BLOCK further."""
    return position // BLOCK * BLOCK * D + position % BLOCK
