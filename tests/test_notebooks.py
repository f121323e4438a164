import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def outputs(path):
    cells = json.loads(path.read_text())["cells"]
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def test_there_are_five():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran_from_the_stored_results(path):
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    (parameters,) = (cell for cell in code if "parameters" in cell["metadata"].get("tags", []))
    assert "".join(parameters["source"]).startswith("recompute = False")
    assert not [
        output
        for output in outputs(path)
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert sum("image/png" in output.get("data", {}) for output in outputs(path)) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_its_question_and_answers_it(path):
    assert "**Question.**" in "".join(json.loads(path.read_text())["cells"][0]["source"])
    answers = [
        "".join(output["data"].get("text/markdown", ""))
        for output in outputs(path)
        if "data" in output
    ]
    assert any(answer.startswith("**Answer.**") for answer in answers)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_no_place_of_the_machine_it_ran_on(path):
    text = "\n".join(
        json.dumps(
            {key: value for key, value in output.get("data", {}).items() if "image" not in key}
        )
        for output in outputs(path)
    )
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work)/", text)
