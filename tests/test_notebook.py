"""The notebooks run from top to bottom, and what is shown in them is small."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {"animate": 5, "convert_and_compare": 1, "train_tiny": 3}  # and how many pictures are shown in each
UNSEEN = "full_size"  # shows what a GPU or TPU made, and has not seen one


def read(name):
    return pytest.importorskip("nbformat").read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def test_none_is_forgotten():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {*NOTEBOOKS, UNSEEN}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_small_and_shows_no_error(name):
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 1_000_000
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    pictures = [output for output in outputs if {"image/jpeg", "image/png"} & output.get("data", {}).keys()]
    assert len(pictures) >= NOTEBOOKS[name]


def test_the_unseen_notebook_is_code_without_outputs():
    code = [cell for cell in read(UNSEEN).cells if cell.cell_type == "code"]
    for cell in code:
        compile(cell.source, UNSEEN, "exec")
    assert not any(cell.outputs for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's and its client's own
@pytest.mark.parametrize("name", [*NOTEBOOKS, UNSEEN])  # the latter with the bundled model on a CPU
def test_a_notebook_runs(name, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    resources = {"metadata": {"path": str(tmp_path if name == UNSEEN else ROOT)}}
    nbclient.NotebookClient(read(name), timeout=600, kernel_name="python3", resources=resources).execute()
