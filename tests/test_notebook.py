"""A notebook shows a recording as a page, run by a true Jupyter kernel."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest

from kvgen.page.document import NOTEBOOK_BYTES
from tests.browser import chromium, require

CELLS = (
    "import kvgen\nmodel = kvgen.load()\nmodel",
    'run = model.inspect("The cat sat on the mat", max_new_tokens=4)\nlens = run.lens()\nrun',
    "run.page(height=400)",
)


def executed(tmp_path: Path) -> Any:
    """The notebook of these cells, after its kernel has run them."""
    try:
        import ipykernel  # noqa: F401
        import nbformat
        from nbclient import NotebookClient
    except ImportError:
        require(None, "nbclient or ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


def test_a_recording_in_a_notebook_is_a_page_in_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    outputs = [cell.outputs[0].data for cell in executed(tmp_path).cells]
    assert outputs[0]["text/plain"].startswith("<Model storyteller: llama, ")
    assert outputs[1]["text/plain"].startswith("<Recording of storyteller: 11 tokens ")
    frames = [output["text/html"] for output in outputs[1:]]
    assert "height:760px" in frames[0] and "height:400px" in frames[1]
    assert all(len(frame) < 2**20 < NOTEBOOK_BYTES for frame in frames)
    text = html.unescape(frames[0].split('srcdoc="')[1].rsplit('"></iframe>', 1)[0])
    assert text.startswith("<!doctype html>")
    outside = tmp_path / "notebook.html"
    outside.write_text(f"<!doctype html><body>{frames[1]}</body>", encoding="utf-8")
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"file://{outside}")
        frame = page.frame_locator("iframe")
        frame.locator("html[data-ready=true]").wait_for(timeout=20_000)
        assert "Layer" in frame.locator("#head-title").inner_text()
        frame.locator(".token").nth(2).click()
        assert "Query 2" in frame.locator("#explained h2").inner_text()
        page.close()
