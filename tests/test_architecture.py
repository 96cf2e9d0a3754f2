"""Who may import whom, and that the first screen comes at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kvgen
from kvgen.families import FAMILIES

PACKAGE = Path(kvgen.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# What a module of ours may import of ours; everyone may import errors and visible.
MAY_IMPORT = {
    "errors": set(),
    "visible": set(),
    "forks": set(),
    "config": set(),
    "tensors": set(),
    "files": set(),
    "header": set(),
    "checkpoint": {"files", "header", "tensors"},
    "families": {"config", "families"},
    "params": {"config", "tensors"},
    "bind": {"checkpoint", "config", "families", "params", "tensors"},
    "rope": {"config", "tensors"},
    "edits": {"tensors"},
    "trace": {"config", "tensors"},
    "engine": {"config", "fast", "machine", "params", "reference", "tensors", "trace"},
    "cache": {"config", "rope", "tensors"},
    "reference": {
        "cache", "config", "edits", "engine", "forks", "machine", "params", "reference", "rope",
        "tensors", "trace",
    },
    "fast": {"cache", "config", "engine", "fast", "forks", "machine", "params", "tensors", "trace"},
    "sampling": {"tensors"},
    "added_tokens": {"checkpoint"},
    "patience": {"forks"},
    "stream": set(),
    "tokenizer": {"added_tokens", "checkpoint", "files", "patience", "stream"},
    "chat": {"checkpoint", "files", "sandbox"},
    "sandbox": set(),
    "template": set(),
    "recommendation": {"checkpoint", "families", "sampling"},
    "hub": {"checkpoint", "families"},
    "generate": {"config", "engine", "sampling", "tensors", "trace"},
    "model": {
        "bind", "chat", "checkpoint", "config", "engine", "families", "generate", "hub", "params",
        "recommendation", "sampling", "tensors", "tokenizer", "trace",
    },
    "facts": {
        "bind", "chat", "checkpoint", "config", "families", "model", "recommendation", "tensors",
        "tokenizer",
    },
    "attention": {
        "attention", "config", "edits", "engine", "generate", "machine", "tensors", "trace",
    },
    "bench": {
        "attention", "bench", "cache", "config", "engine", "generate", "params", "rope", "tensors",
        "trace",
    },
    "cgroups": set(),
    "machine": {"cgroups"},
    "calibration": {"engine", "machine"},
    "render": {
        "attention", "bench", "config", "edits", "facts", "render", "tensors", "trace", "visible",
    },
}  # fmt: skip

# The one home of each dependency.
HOMES = {
    "numba": {"fast"},
    "llvmlite": {"fast"},
    "safetensors": {"attention"},
    "huggingface_hub": {"hub"},
    "jinja2": {"template"},
    "tokenizers": {"added_tokens", "tokenizer"},
    "rich": {"render", "cli"},
    "click": {"cli"},
    "matplotlib": {"render"},
    "threadpoolctl": {"reference", "machine"},
    "torch": set(),
    "transformers": set(),
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_keep_to_the_rules(path: Path) -> None:
    here = room(path)
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("kvgen.")}
    rooms = {
        name for name in ours if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
    }
    if here not in ("__init__", "__main__", "cli"):
        assert rooms - {"errors", "visible", here} <= MAY_IMPORT[here]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_have_one_home(path: Path) -> None:
    for name in {name.split(".")[0] for name in imports(path)}:
        assert room(path) in HOMES.get(name, {room(path)}), f"{name} in {path}"


def test_no_module_has_outgrown_the_house_style() -> None:
    long = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in long.items() if length > 320} == {}


def test_the_core_never_names_a_family() -> None:
    for path in FILES:
        if room(path) != "families":
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


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["bench", "--help"]])
def test_help_imports_no_engine(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from kvgen.cli import run\n"
        f"assert run({arguments}) == 0\n"
        "heavy = {'numpy', 'numba', 'tokenizers', 'safetensors', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


def test_importing_kvgen_imports_no_engine() -> None:
    script = "import sys, kvgen; assert not {'numpy', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
