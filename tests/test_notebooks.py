"""The notebooks of examples/notebooks run from a fresh folder, and are kept without outputs."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.documents import DOCS, ROOT, dead_links, files

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
# For a whole notebook they promise minutes; a cell gets this on a loaded machine.
SECONDS = 600


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_a_title_and_no_outputs_and_is_in_the_list(path: Path) -> None:
    cells = read(path)["cells"]
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert any("%tensorboard" in "".join(cell["source"]) for cell in code)
    assert f"]({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")
    for cell in cells:
        for link in re.findall(r"\]\(([^)]+\.md)\)", "".join(cell["source"])):
            assert (path.parent / link).is_file(), link


def test_the_list_has_no_dead_link() -> None:
    assert dead_links(NOTEBOOKS[0].parent / "README.md") == []


def test_the_recipe_of_the_notebook_is_that_of_the_page() -> None:
    cells = read(NOTEBOOKS[0].parent / "own_recipe.ipynb")["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    written = dict(
        x.removeprefix("%%writefile ").split("\n", 1) for x in sources if x.startswith("%%writefile")
    )
    assert {name: code.strip() for name, code in written.items()} == {
        name: code.strip() for name, code in files(DOCS / "recipes.md").items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # TensorBoard notes its processes below here.
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    with client.setup_kernel():  # TensorBoard ends with it
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        (board,) = (tmp_path / "tmp" / ".tensorboard-info").glob("*.info")
        with urlopen(f"http://localhost:{read(board)['port']}/", timeout=SECONDS) as response:
            assert response.status == 200
    shown = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("tensorboard-frame" in out.get("data", {}).get("text/html", "") for out in shown)
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
