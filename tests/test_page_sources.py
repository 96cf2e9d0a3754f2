"""The page's sources: their own tests, the linter, and that the bundle is all of them.

JavaScript is run by node (20.19 or later), linted by what `npm ci` installs in tests/page. Without
them these tests are skipped; with KVGEN_REQUIRE_BROWSER=1 they fail.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

import kvgen
from kvgen.choices import Scale
from kvgen.page.bundle import page, script, source
from kvgen.page.content import Content
from kvgen.render.ink import Ink
from tests.browser import require

WEB = Path(kvgen.__file__).parent / "page" / "web"
SOURCES = sorted(path for path in WEB.rglob("*") if path.is_file())
TESTS = Path(__file__).parent / "page"
PAGES: list[dict[str, Any]] = [
    {"skeleton": "index.html", "styles": ("style.css",), "entry": "main.js"},
    {"skeleton": "report.html", "styles": ("style.css", "report.css"), "entry": "report.js"},
]
SVG = "http://www.w3.org/2000/svg"  # the name of a language; nothing is loaded from there


def name_of(path: Path) -> str:
    return path.relative_to(WEB).as_posix()


@pytest.fixture(scope="module")
def node() -> str:
    """The path of node, in a version that reads ES modules without a package.json beside them."""
    found = shutil.which("node")
    require(found, "node")
    assert found is not None
    version = run(found, "--version").stdout.strip()
    numbers = tuple(int(part) for part in version.removeprefix("v").split(".")[:2])
    new_enough = (20, 19) <= numbers < (21, 0) or numbers >= (22, 7)
    require(new_enough, "node 20.19, 22.7 or later")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", check=False, timeout=120, cwd=TESTS
    )


def test_the_modules_pass_their_own_tests(node: str) -> None:
    files = sorted(TESTS.glob("*.test.js"))
    done = run(node, "--test", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name.removesuffix(".test.js") for path in files} >= {
        path.stem for path in (WEB / "pure").glob("*.js") if path.stem != "text"
    }


@pytest.mark.parametrize("look", [("lint", "--error-on-warnings"), ("format",)])
def test_the_linter_and_the_formatter_find_nothing(look: tuple[str, ...], node: str) -> None:
    biome = TESTS / "node_modules" / "@biomejs" / "biome" / "bin" / "biome"
    require(biome.exists(), "the linter, which `npm ci` in tests/page installs,")
    done = run(node, biome, *look, "--config-path=.", WEB, ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_is_pinned_and_its_lock_names_no_registry() -> None:
    wanted = json.loads((TESTS / "package.json").read_text(encoding="utf-8"))["devDependencies"]
    packages = json.loads((TESTS / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    for name, version in wanted.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert packages[f"node_modules/{name}"]["version"] == version
    assert not [name for name, package in packages.items() if "resolved" in package]


@pytest.mark.parametrize("files", PAGES)
def test_the_bundle_is_a_module_that_parses(
    files: dict[str, Any], node: str, tmp_path: Path
) -> None:
    module = tmp_path / "page.mjs"
    whole = page(Content({}, {}), title="", summary="", **files)
    module.write_text(module_of(whole), encoding="utf-8")
    done = run(node, "--check", module)
    assert done.returncode == 0, done.stderr


def test_colours_are_those_of_the_terminal(node: str, tmp_path: Path) -> None:
    """One step of a channel is allowed: Python rounds halves to even numbers, JavaScript up."""
    inks = [
        Ink(scale=scale, most=most, signed=signed)
        for scale, most, signed in itertools.product(get_args(Scale), (1.0, 7.0), (False, True))
    ]
    values = [step / 40 for step in range(-45, 46)] + [1e-7, 1e-4, 3.0, -3.0, 9.0]
    cases = [
        (ink, value) for ink, value in itertools.product(inks, values) if ink.signed or value >= 0
    ]
    asked = [
        [value, {"scale": ink.scale, "most": ink.most, "signed": ink.signed}]
        for ink, value in cases
    ]
    program = tmp_path / "colours.mjs"
    program.write_text(
        f"import {{ colorOf }} from {json.dumps((WEB / 'pure' / 'ink.js').as_uri())};\n"
        f"const asked = {json.dumps(asked)};\n"
        'console.log(JSON.stringify(asked.map(([value, ink]) => colorOf(value, ink, "dark"))));\n',
        encoding="utf-8",
    )
    done = run(node, program)
    assert done.returncode == 0, done.stderr
    for (ink, value), color in zip(cases, json.loads(done.stdout), strict=True):
        wanted = ink.color(value).triplet
        assert wanted is not None
        assert max(abs(a - b) for a, b in zip(color, wanted, strict=True)) <= 1, (ink, value)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_source_names_an_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(SVG, "")
    assert not re.search(r"https?:|\bwss?:|[\"'(]//", text)


def test_every_source_is_in_the_page() -> None:
    found = set()
    for files in PAGES:
        parts = [source(files["skeleton"]).split("<title>")[0], script(files["entry"])]
        parts += map(source, files["styles"])
        whole = page(Content({}, {}), title="", summary="", **files)
        assert all(part in whole for part in parts)
        found |= {files["skeleton"], *files["styles"]}
        found |= set(re.findall(r"^// ([\w/]+\.js)\nconst ", script(files["entry"]), re.M))
    assert found == {name_of(path) for path in SOURCES}


def module_of(html: str) -> str:
    """The one module of a page, as a browser's parser finds it."""
    found: list[str] = []

    class Finder(HTMLParser):
        inside = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "script" and ("type", "module") in attrs

        def handle_endtag(self, tag: str) -> None:
            self.inside = self.inside and tag != "script"

        def handle_data(self, data: str) -> None:
            if self.inside:
                found.append(data)

    parser = Finder()
    parser.feed(html)
    parser.close()
    return "".join(found)
