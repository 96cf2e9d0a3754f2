"""The page in a real browser: opened from disk, clicked and keyed, its numbers those of Python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvgen
from kvgen.attention.measures import MEASURES
from kvgen.attention.steps import explain_query
from kvgen.choices import Detail
from kvgen.errors import UsageError
from kvgen.model import Model
from kvgen.page.bundle import page, script
from kvgen.recording import Recording
from kvgen.recording_file import page_text
from tests import tiny
from tests.browser import chromium, opened, require
from tests.command import inside
from tests.conftest import Loader

HOSTILE = (
    b"</script><script>document.title='owned'</script>", b"__proto__", "\u202eevil".encode(),
    "月".encode()[:2], b"x" * 300, b"<!--", b"\x1b[2J", b"&lt;", "\u2028".encode(), b"${1}",
)  # fmt: skip
FAMILIES = ["llama_gqa", "gpt2", "gemma2", "mistral"]  # grouped heads, one each, soft caps, windows


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def written(
    recording: Recording, path: Path, tokens: Sequence[bytes] | None = None, detail: Detail = "auto"
) -> Path:
    parts = recording.parts._replace(tokens=list(tokens or recording.token_bytes))
    text = page_text(parts, detail=detail)
    path.write_text(text, encoding="utf-8")
    return path


def recorded(model: Model, n: int = 14) -> Recording:
    recording = model.inspect(tiny.make_ids(n, seed=4), max_new_tokens=4)
    recording.lens()
    recording.contributions()
    return recording


@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_of_the_page_are_those_of_python_to_the_printed_digit(
    name: str, tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    recording = recorded(tiny_model(name))
    file = written(recording, tmp_path / "page.html")
    places = [(0, 0, 0), (1, 2, 9), (recording.layers[-1], recording.heads[-1], 16)]
    for layer, head, query in places:
        address = f"#l={layer}&h={head}&q={query}"
        with opened(browser, file, address=address) as shown:
            rows = shown.locator("#explained-table tbody tr").all()
            cells = [[cell.inner_text() for cell in row.locator("td, th").all()] for row in rows]
        row = explain_query(recording.run.trace.layer(layer), head, query)
        assert [int(line[0]) for line in cells] == sorted(int(line[0]) for line in cells)
        for j, _, product, cosine, scaled, weight, length, share in cells:
            key = int(j)
            for text, number, digits in (
                (product, row.products[key], 2),
                (cosine, row.cosines[key], 3),
                (weight, row.weights[key], 4),
                (length, row.value_lengths[key], 2),
                (share, row.shares[key], 3),
            ):
                assert_printed(text, float(number), digits)
            if np.isfinite(row.scaled[key]):
                assert_printed(scaled, float(row.scaled[key]), 3)


def assert_printed(text: str, number: float, digits: int) -> None:
    """The text is the number to so many digits, or its neighbour where it lies between the two."""
    between = 1e-5 * max(1.0, abs(number))
    assert float(text) in (round(number - between, digits), round(number + between, digits))
    assert len(text.split(".")[1]) == digits


def test_nothing_is_asked_of_any_host_and_hostile_tokens_are_text(
    tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    recording = recorded(tiny_model("llama_gqa"))
    tokens = [HOSTILE[place % len(HOSTILE)] for place in range(len(recording.token_ids))]
    recording.names = {token: HOSTILE[token % len(HOSTILE)] for token in recording.names}
    file = written(recording, tmp_path / "hostile.html", tokens)
    assert file.read_text(encoding="utf-8").count("</script>") == len(recording.layers) + 2
    with opened(browser, file) as shown:  # it looks at requests and errors
        assert "owned" not in shown.title()
        for tab in ("arcs", "row", "lens", "what-if", "map"):
            shown.locator(f"#tab-{tab}").click()
            shown.wait_for_selector(f"#tab-{tab}[aria-selected=true]")
        assert shown.locator(".token").count() == len(tokens)
        assert shown.locator("script").count() == len(recording.layers) + 2


def test_keys_and_clicks_choose_and_the_address_remembers(
    tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    file = written(recorded(tiny_model("llama_gqa")), tmp_path / "page.html")
    with opened(browser, file, address="#l=0&h=0&q=5") as shown:
        for key in ("ArrowDown", "ArrowRight", "ArrowRight", "j", "l", "v", "c", "s"):
            shown.keyboard.press(key)
        shown.wait_for_timeout(60)
        for part in ("l=1", "h=2", "q=6", "k=0", "m=scores", "c=linear", "s=drop"):
            assert part in shown.url.split("#")[1].split("&"), shown.url
        assert "Layer 1 head 2" in shown.locator("#head-title").inner_text()
        shown.locator(".cell").first.click()
        shown.locator(".token").nth(3).click()
        shown.wait_for_timeout(60)
        assert "Layer 0 head 0" in shown.locator("#head-title").inner_text()
        assert "Query 3" in shown.locator("#explained h2").inner_text()
        shown.keyboard.press("?")
        assert shown.locator("#help").is_visible()
        shown.keyboard.press("Escape")
        shown.keyboard.press("t")
        shown.wait_for_selector("html[data-theme=light]")


@pytest.mark.parametrize("detail", ["full", "maps"])
def test_coarser_pages_say_so_and_stay_close(
    detail: Detail,
    tiny_model: Loader,
    browser: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvgen.page.content._EXACT_BYTES", 0)
    recording = recorded(tiny_model("gemma2"))
    file = written(recording, tmp_path / "page.html", detail=detail)
    with opened(browser, file, address="#l=1&h=1&q=9&k=3") as shown:
        if detail == "maps":
            assert "written as maps only" in shown.locator("#explained").inner_text()
            assert "≈" in shown.locator("#panel-map .readout").inner_text()
        weights = shown.locator(".token").evaluate_all("all => all.map(one => one.title)")
    row = recording.weights(1, 1)[9]
    for place, title in enumerate(weights[:10]):
        assert float(title.rsplit(" ", 1)[1]) == pytest.approx(float(row[place]), abs=4e-3)


def test_every_measure_of_a_map_is_in_the_page() -> None:
    for name in MEASURES:
        if name != "distance":
            assert f"{name}: {{ title" in script(), name


def test_a_page_of_one_token_and_of_many(tiny_model: Loader, browser: Any, tmp_path: Path) -> None:
    for name, n in (("gpt2", 1), ("llama_gqa", 600)):
        model = tiny_model(name)
        ids = tiny.make_ids(min(n, model.config.max_context), seed=1)
        file = written(model.inspect(ids), tmp_path / f"{n}.html")
        with opened(browser, file) as shown:
            assert shown.locator(".token").count() == len(ids)


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_screen(
    width: int, scheme: str, browser: Any, tmp_path: Path
) -> None:
    recording = kvgen.load().inspect("The cat sat on the mat", max_new_tokens=4)
    recording.lens()
    recording.contributions()
    file = written(recording, tmp_path / "page.html")
    with opened(browser, file, width=width, scheme=scheme) as shown:
        for tab in ("map", "arcs", "row", "lens", "what-if"):
            shown.locator(f"#tab-{tab}").click()
            shown.wait_for_timeout(50)
            widest = shown.evaluate("document.documentElement.scrollWidth")
            assert widest <= width, tab


AXE = Path(__file__).parent / "page" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("tab", ["map", "arcs", "row", "lens", "what-if"])
def test_axe_finds_no_serious_fault(tab: str, scheme: str, browser: Any, tmp_path: Path) -> None:
    require(AXE.exists(), "axe-core (npm ci in tests/page)")
    recording = kvgen.load().inspect("The cat sat on the mat", max_new_tokens=4)
    recording.lens()
    recording.contributions()
    file = written(recording, tmp_path / "page.html")
    with opened(browser, file, address=f"#t={tab}&l=5&h=1&q=9", scheme=scheme) as shown:
        shown.add_script_tag(path=AXE)
        found = shown.evaluate("axe.run()")["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_a_notebook_shows_the_page_in_a_frame_that_reaches_nothing() -> None:
    from kvgen.page.document import Page

    frame = Page("<p title='a'>\"x\"</p>", height=300)._repr_html_()
    assert 'sandbox="allow-scripts"' in frame and "height:300px" in frame
    assert "&lt;p title=&#x27;a&#x27;&gt;&quot;x&quot;&lt;/p&gt;" in frame


def test_the_sources_are_put_into_their_places() -> None:
    from kvgen.page.content import Content

    text = page(Content({"a": "</script>"}, {"layer-0": "AA=="}), title="<T>", summary="a < b")
    assert "<title>&lt;T&gt;</title>" in text and "a &lt; b" in text
    assert '{"a":"\\u003c/script\\u003e"}' in text
    assert "import " not in script() and "export " not in script()
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_a_page_is_opened_in_the_browser_where_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_files: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened_files.append)
    file = tmp_path / "a page.html"
    line = ["inspect-attention", "The cat", "--backend", "numpy", "-o", str(file)]
    assert inside(*line).returncode == 0 and not opened_files
    assert inside(*line, "--open", "--what-if", "kq").returncode == 0
    assert opened_files == [file.as_uri()]
    facts = json.loads(file.read_text("utf-8").split('id="facts">')[1].split("</script>")[0])
    assert facts["whatIfs"][0]["edit"] == "kq" and len(facts["interventions"]) == 3 * 7
    assert facts["lens"]["layers"] == list(range(7)) and facts["contributions"]["query"] == 2


def test_layers_are_written_as_the_size_allows(
    tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = recorded(tiny_model("llama_gqa")).parts

    def tiers(detailed: Sequence[int] | None = None, detail: Detail = "auto") -> list[str]:
        facts = page_text(parts, detailed, detail=detail).split('id="facts">')[1]
        return [layer["tier"] for layer in json.loads(facts.split("</script>")[0])["layers"]]

    assert set(tiers()) == {"exact"} and set(tiers(detail="maps")) == {"maps"}
    monkeypatch.setattr("kvgen.page.content._EXACT_BYTES", 0)
    assert set(tiers()) == {"full"}
    monkeypatch.setattr("kvgen.page.content._FULL_BYTES", 0)
    assert tiers([1]) == ["full" if n == 1 else "maps" for n in range(len(tiers()))]
    assert set(tiers(detail="full")) == {"full"}
    with pytest.raises(UsageError, match="the page would have 0 MiB, more than 0: choose layers"):
        page_text(parts, most_bytes=1000)
