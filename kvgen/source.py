"""The model behind a recording, as far as looking further needs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvgen.engine.contract import Engine
from kvgen.engine.params import Params


class Source(NamedTuple):
    """The model that a recording was made with."""

    name: str
    family: str
    folder: Path
    engine: Engine
    params: Params
    token_id: Callable[[int | str | None], int | None]  # of a text of one token
    token_bytes: Callable[[int], bytes]
