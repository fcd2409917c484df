"""The lecture's notebook: what it keeps is for everybody's eyes, and its cells run."""

import base64
import dataclasses
import io
import json
import os
import re
import socket

import pytest
from deadlines import deadline
from PIL import Image
from places import ROOT

from alexnet_dist.config import OptimConfig

NOTEBOOK = ROOT / "notebooks/lecture33.ipynb"
LARGEST = 600_000  # bytes
OF_A_MACHINE = re.compile(
    r"/(?:home|root|tmp|work|usr|opt|var|Users)\b|[Ww]arn|Traceback|0x[0-9a-f]{6}|Xeon|EPYC|NVIDIA"
)
SAME_EVERYWHERE = ("config", "data", "network", "parameters")
"""Cells whose text depends on nothing but the package and the settings."""


@pytest.fixture(scope="module")
def kept():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(cell):
    """Return what a cell printed or displayed as text; a picture's text is that it is one."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
    return "".join("".join(text) for text in texts)


def pictures_of(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    encoded = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode("".join(content)))) for content in encoded]


def check_contents(notebook):
    """Check what every execution on digits must show."""
    text = {cell["id"]: text_of(cell) for cell in code_cells(notebook)}
    assert "training: images (1442, 3, 8, 8) uint8" in text["data"]
    assert re.search(r"total +57,044,810\nwith a thousand classes: 61,100,840", text["parameters"])
    assert float(re.search(r"accuracy ([\d.]+)%", text["training"])[1]) > 90
    assert re.search(r"true class: (\d)\n +\d+\.\d+%  \1\n", text["predict"]), "the likeliest class is the true one"
    losses = re.findall(r"loss ([\d.]+) with two processes, ([\d.]+) with one", text["launcher"])
    assert len(losses) == 5
    assert [float(two) for two, _ in losses] == pytest.approx([float(one) for _, one in losses], rel=1e-3)
    shown = pictures_of(notebook)
    assert len(shown) == 4, "digits, curves, kernels, the picture that is classified"
    assert all(len(set(picture.convert("L").get_flattened_data())) > 8 for picture in shown)


def test_the_kept_outputs_are_those_of_one_execution_without_faults(kept):
    cells = code_cells(kept)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}, "nothing was written to stderr"
    check_contents(kept)


def test_the_kept_configuration_has_todays_options(kept):
    (text,) = [text_of(cell) for cell in code_cells(kept) if cell["id"] == "config"]
    assert re.findall(r"(\w+)=", text) == [field.name for field in dataclasses.fields(OptimConfig)]


def test_nothing_tells_of_the_machine(kept):
    assert NOTEBOOK.stat().st_size < LARGEST
    texts = [text_of(cell) for cell in code_cells(kept)] + ["".join(cell["source"]) for cell in kept["cells"]]
    assert not [match for text in texts[: len(code_cells(kept))] for match in OF_A_MACHINE.findall(text)]
    assert not [text for text in texts if re.search(rf"\b{re.escape(socket.gethostname())}\b", text)]
    assert kept["metadata"].keys() == {"kernelspec", "language_info"}
    assert all(cell["metadata"] == {} for cell in kept["cells"])


@pytest.mark.slow
def test_the_cells_run(kept, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell["outputs"], cell["execution_count"] = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=int(deadline(600)), record_timing=False, resources=resources).execute()
    check_contents(notebook)
    before, now = ({cell["id"]: text_of(cell) for cell in code_cells(each)} for each in (kept, notebook))
    assert {name: now[name] for name in SAME_EVERYWHERE} == {name: before[name] for name in SAME_EVERYWHERE}
