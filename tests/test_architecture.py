"""Who may import whom, and that the first screen comes at once."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import kvgen
from kvgen.checkpoint.families import FAMILIES

PACKAGE = Path(kvgen.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Who may import whom: rooms of the house, each with the rooms below it. Everyone may import the
# ground: choices, errors, visible, forks, atomic_write.
GROUND = {"choices", "errors", "visible", "forks", "atomic_write"}
_SHARED = {"engine.config", "engine.params", "engine.tensors"}
_ENGINES = {
    *_SHARED,
    "engine.cache",
    "engine.calibration",
    "engine.contract",
    "engine.machine",
    "engine.rope",
    "engine.trace",
}
MAY_IMPORT = {
    "choices": set(),
    "errors": set(),
    "visible": set(),
    "forks": set(),
    "atomic_write": set(),
    "engine.tensors": set(),
    "engine.places": set(),
    "engine.config": set(),
    "engine.cgroups": set(),
    "engine.machine": {"engine.cgroups"},
    "engine.memory": {"engine.cgroups"},
    "engine.params": {"engine.config", "engine.tensors"},
    "engine.rope": {"engine.config", "engine.tensors"},
    "engine.formula": {"engine.tensors"},
    "engine.edits": {"engine.formula", "engine.places", "engine.tensors"},
    "engine.kept_rows": {"engine.tensors"},
    "engine.cache": {
        "engine.config", "engine.kept_rows", "engine.memory", "engine.rope", "engine.tensors",
    },
    "engine.trace": {"engine.config", "engine.tensors"},
    "engine.calibration": {"engine.config", "engine.machine"},
    "engine.huge_pages": {"engine.params", "engine.tensors"},
    "engine.contract": {
        "engine.cache", "engine.calibration", "engine.config", "engine.tensors", "engine.trace",
    },
    "engine.finite": {"engine.contract", "engine.tensors", "engine.trace"},
    "engine.reference": {*_ENGINES, "engine.edits", "engine.formula", "engine.memory"},
    "engine.fast": {*_ENGINES, "engine.kept_rows", "engine.memory"},
    "engine.open": {
        *_SHARED, "engine.contract", "engine.fast", "engine.machine", "engine.reference",
    },
    "checkpoint.files": set(),
    "checkpoint.header": set(),
    "checkpoint.folder": {"checkpoint.files", "checkpoint.header", "engine.tensors"},
    "checkpoint.identity": {"checkpoint.files", "checkpoint.folder", "checkpoint.header"},
    "checkpoint.families": {"engine.config"},
    "checkpoint.widths": {"checkpoint.folder", "engine.memory", "engine.tensors"},
    "checkpoint.bind": {
        *_SHARED, "checkpoint.families", "checkpoint.folder", "checkpoint.widths",
    },
    "checkpoint.hub": {"checkpoint.families", "checkpoint.files", "checkpoint.folder"},
    "text": {"checkpoint.files"},
    "filters": {"engine.tensors"},
    "sampling": {"engine.tensors", "filters"},
    "recommendation": {
        "checkpoint.families", "checkpoint.files", "engine.config", "sampling", "text",
    },
    "session": {
        "engine.cache", "engine.config", "engine.contract", "engine.finite", "engine.memory",
        "engine.tensors", "engine.trace",
    },
    "generate": {"engine.config", "engine.tensors", "sampling", "session"},
    "piece": {"generate", "text"},
    "scoring": {
        "engine.config", "engine.contract", "engine.tensors", "generate", "session",
    },
    "page": {"attention", "bench", "engine.tensors", "engine.trace"},
    "recording_file": {"attention", "page", "render"},
    "source": {"engine.contract", "engine.params"},
    "recording": {
        "attention", "engine.places", "engine.tensors", "page", "recording_file", "render",
        "source",
    },
    "experiment": {
        "bench", "checkpoint.folder", "engine.machine", "engine.rope", "page", "render", "source",
    },
    "inspection": {"attention", "engine.places", "recording", "sampling", "source"},
    "model": {
        *_SHARED, "attention", "checkpoint.families", "checkpoint.folder", "engine.contract",
        "experiment", "generate", "inspection", "piece", "recommendation", "recording", "sampling",
        "scoring", "session", "source", "text",
    },
    "conversation": {"generate", "model", "piece", "sampling", "session"},
    "loading": {
        "checkpoint.bind", "checkpoint.families", "checkpoint.folder", "checkpoint.hub",
        "engine.huge_pages", "engine.memory", "engine.open", "model",
    },
    "prompt_cache": {
        "checkpoint.files", "checkpoint.identity", "engine.cache", "engine.rope",
        "engine.tensors", "model", "session",
    },
    "facts": {
        *_SHARED, "checkpoint.bind", "checkpoint.families", "checkpoint.folder", "recommendation",
        "text",
    },
    "attention": {
        "engine.config", "engine.contract", "engine.edits", "engine.finite", "engine.formula",
        "engine.machine", "engine.params", "engine.places", "engine.reference", "engine.tensors",
        "engine.trace", "generate", "session",
    },
    "bench": {
        *_ENGINES, "attention", "engine.edits", "engine.finite", "engine.reference", "generate",
        "session",
    },
    "render": {
        "attention", "bench", "engine.calibration", "engine.config", "engine.edits",
        "engine.machine", "engine.tensors", "engine.trace", "facts", "scoring",
    },
    "cli": set(),  # the top: it may import everything
}  # fmt: skip
TOP = {"__init__", "__main__", "cli"}

# The one home of each dependency.
HOMES = {
    "numba": {"engine.fast"},
    "llvmlite": {"engine.fast"},
    "safetensors": {"attention", "prompt_cache"},
    "huggingface_hub": {"checkpoint.hub"},
    "jinja2": {"text"},
    "tokenizers": {"text"},
    "llguidance": {"text"},
    "rich": {"render", "cli"},
    "click": {"cli"},
    "matplotlib": {"render"},
    "threadpoolctl": {"engine.reference", "engine.machine"},
    "platformdirs": {"engine.machine"},
    "prompt_toolkit": {"cli"},
    "torch": set(),
    "transformers": set(),
}


def room(name: str) -> str:
    """The room of a module, given by its dotted name within the package: the longest that fits."""
    parts = name.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return next((each for each in reversed(names) if each in MAY_IMPORT), parts[0])


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def rooms_used(path: Path) -> set[str]:
    """The other rooms that a file imports from, but for the ground."""
    ours = {name.removeprefix("kvgen.") for name in imports(path) if name.startswith("kvgen.")}
    known = {room(name) for name in ours} & MAY_IMPORT.keys()
    return known - GROUND - {room(name_of(path))}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_keep_to_the_rules(path: Path) -> None:
    if room(name_of(path)) not in TOP and path.name != "__init__.py":
        assert rooms_used(path) <= MAY_IMPORT[room(name_of(path))]


def test_no_imports_go_round_in_a_circle() -> None:
    """Rooms can be put in an order in which each imports from those before it only."""
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        arrows.setdefault(room(name_of(path)), set()).update(rooms_used(path))
    order = list(graphlib.TopologicalSorter(arrows).static_order())
    assert len(order) >= len(arrows)
    print(len(order), "rooms,", sum(map(len, arrows.values())), "arrows")  # noqa: T201


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_dependencies_have_one_home(path: Path) -> None:
    here = room(name_of(path))
    for name in {name.split(".")[0] for name in imports(path)}:
        assert here in HOMES.get(name, {here}), f"{name} in {path}"


def test_no_module_has_outgrown_the_house_style() -> None:
    long = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in long.items() if length > 320} == {}


FAST = PACKAGE / "engine" / "fast"
FAST_FILES = sorted(FAST.rglob("*.py"))


@pytest.mark.parametrize("path", FAST_FILES, ids=name_of)
def test_no_kernel_takes_more_than_eight_arguments(path: Path) -> None:
    """`self` and an intrinsic's unused typing context (`_`) do not count."""
    long = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            names = [each.arg for each in arguments if each.arg not in ("self", "_")]
            if len(names) > 8:
                long[getattr(node, "name", "lambda")] = names
    assert long == {}


def test_the_ground_floor_of_the_fast_engine_imports_nothing_of_ours() -> None:
    assert not [name for name in imports(FAST / "layout.py") if name.startswith("kvgen")]


def test_vector_types_are_made_in_one_file() -> None:
    """Also: no file of the kernels imports private names of another."""
    for path in FAST_FILES:
        text = path.read_text(encoding="utf-8")
        if path.name != "vector_types.py":
            assert "VectorType(" not in text and "register_model" not in text, path
        assert not [name for name in imports(path) if ".engine.fast" in name and "._" in name], path


def test_kernels_import_nothing_of_the_floors_above_them() -> None:
    ground = {"compiler", "layout", "target", "kernels"}
    for path in FAST.joinpath("kernels").glob("*.py"):
        ours = {name for name in imports(path) if name.startswith("kvgen.")}
        assert {name.split(".")[3] for name in ours if name.count(".") >= 3} <= ground, path


def test_the_core_never_names_a_family() -> None:
    for path in FILES:
        if room(name_of(path)) != "checkpoint.families":
            text = path.read_text(encoding="utf-8").lower()
            code = ast.unparse(_without_docstrings(ast.parse(text)))
            for family in FAMILIES:
                assert f"'{family}'" not in code, f"{family} in {path}"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in ("generate", "chat", "bench", "info")),
                  ["inspect-attention", "--help"], ["score", "--help"]]
)  # fmt: skip
def test_help_imports_no_engine(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from kvgen.cli import run\n"
        f"assert run({arguments}) == 0\n"
        "heavy = {'numpy', 'numba', 'tokenizers', 'safetensors', 'rich', 'prompt_toolkit'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


def test_importing_kvgen_imports_no_engine() -> None:
    script = "import sys, kvgen; assert not {'numpy', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_generating_imports_neither_the_compiler_nor_what_draws() -> None:
    script = (
        "import sys\n"
        "from kvgen.cli import run\n"
        "assert run(['generate', 'hi', '-n', '2', '-q']) == 0\n"
        "others = {'numba', 'rich', 'jinja2', 'huggingface_hub', 'safetensors', 'threadpoolctl',\n"
        "          'kvgen.cli.bench', 'kvgen.attention', 'kvgen.bench', 'kvgen.experiment',\n"
        "          'kvgen.inspection', 'kvgen.recording', 'kvgen.render.canvas', 'kvgen.page'}\n"
        "assert not others & set(sys.modules), others & set(sys.modules)\n"
    )
    for _ in range(2):  # the first may have to compile
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100
        )
    assert run.returncode == 0, run.stderr
