"""The notebook runs from its first report to TensorBoard's tab inside of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from tensorboard import manager

from tests.tensorboard_plugin.serving import ROUTE, get, wait_until

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """Execute the notebook in a folder of its own; its TensorBoard runs until the end."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "digits.py").symlink_to(ROOT / "examples" / "digits.py")
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    environment = pytest.MonkeyPatch()
    environment.setenv("PYTHONPATH", str(ROOT))
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    with client.setup_kernel():  # which ends its TensorBoard, too
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        yield notebook, folder
    environment.undo()


def started_in(folder: Path) -> list[Any]:
    """Return the TensorBoards that run in a folder."""
    return [it for it in manager.get_all() if Path(f"/proc/{it.pid}/cwd").resolve() == folder]


def outputs(notebook: Any, start: str) -> list[Any]:
    return next(it.outputs for it in notebook.cells if it.source.startswith(start))


def test_the_first_report_is_a_table_and_a_picture(tour: tuple[Any, Path]) -> None:
    notebook, _ = tour
    shown = outputs(notebook, "import warnings")
    tables = [it.data["text/html"] for it in shown if "text/html" in it.get("data", {})]
    assert len(tables) == 1
    assert "2 (12.5%)" in tables[0]
    assert "tensor([3, 7])" in outputs(notebook, 'report["1"]')[0].data["text/plain"]
    for cell in ("%matplotlib", "left_alone.history.plot", "revived ="):
        assert any("image/png" in it.get("data", {}) for it in outputs(notebook, cell)), cell


def test_the_training_says_what_it_found(tour: tuple[Any, Path]) -> None:
    notebook, _ = tour
    said = "".join(it.get("text", "") for it in outputs(notebook, "from digits"))
    assert "hidden.1" in said
    assert "total" in said


def test_the_tab_is_inside_of_the_notebook(tour: tuple[Any, Path]) -> None:
    notebook, folder = tour
    shown = outputs(notebook, "%load_ext")
    assert any("tensorboard-frame" in it.get("data", {}).get("text/html", "") for it in shown)
    (board,) = started_in(folder)
    url = f"http://localhost:{board.port}{ROUTE}/runs"

    def runs() -> dict[str, int]:
        return {it["run"]: it["num_layers"] for it in json.loads(get(url))["runs"]}

    known = wait_until(lambda: runs() if all(runs().values()) and len(runs()) == 2 else None)
    assert known == {"tour/left alone": 3, "tour/revived": 3}
