import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbench.records.answers import checksum, read_answers

CONTENT = {
    "sdbench_answers": 1,
    "page": "0123456789abcdef",
    "settings": "c2V0dGluZ3M=",
    "seed": 3,
    "person": "tea-cup_7",
    "simulated": False,
    "scale": 4,
    "answers": [
        {"trial": 1, "shown": [1, 0], "chosen": "A", "milliseconds": 812},
        {"trial": 0, "shown": [0, 1], "chosen": "B", "milliseconds": 1200},
    ],
}
CHECKSUM = "23ef8507"


def put(folder, content, *, signed=True):
    file = folder / "a.json"
    own = {"checksum": checksum(content)} if signed else {}
    file.write_text(json.dumps(content | own))
    return file


def test_answers_are_read(tmp_path):
    found = read_answers(put(tmp_path, CONTENT))
    assert (found.person, found.scale, found.simulated) == ("tea-cup_7", 4.0, False)
    first, second = found.answers
    assert (first.trial, first.image, first.milliseconds) == (1, 1, 812)
    assert second.image == 1


def test_the_checksum_is_that_of_the_page():
    """As the page's own program writes it for this content."""
    assert checksum(CONTENT) == CHECKSUM


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": []}, "its checksum does not fit"),
        ({"checksum": "00000000"}, "its checksum does not fit"),
        ({"checksum": 5}, "'checksum' is 5; expected str"),
        ({"sdbench_answers": 2}, "'sdbench_answers' is 2; expected 1"),
        ({"person": None}, "'person' is None; expected str"),
    ],
)
def test_a_changed_file_is_named(tmp_path, change, said):
    content = json.loads(put(tmp_path, CONTENT).read_text())
    file = put(tmp_path, content | change, signed=False)
    with pytest.raises(ValueError, match=rf"a\.json.*{said}"):
        read_answers(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"person": "Jane Doe"}, "the code 'Jane Doe' is not"),
        ({"scale": 0}, "'scale' is 0; expected 0 to 1000"),
        ({"answers": [5]}, "an answer is 5; expected an object"),
        ({"answers": [CONTENT["answers"][0]] * 2}, "a trial is answered twice"),
        ({"answers": [CONTENT["answers"][0] | {"chosen": "C"}]}, "'chosen' is 'C'"),
        ({"answers": [CONTENT["answers"][0] | {"shown": [1, 1]}]}, r"'shown' is \[1, 1\]"),
        ({"answers": [CONTENT["answers"][0] | {"milliseconds": -1}]}, "below 0"),
    ],
)
def test_answers_of_another_form_are_named(tmp_path, change, said):
    with pytest.raises(ValueError, match=rf"a\.json.*{said}"):
        read_answers(put(tmp_path, CONTENT | change))


@pytest.mark.parametrize("cut", [1, 40, -20, -1])
def test_a_truncated_file_is_named(tmp_path, cut):
    file = put(tmp_path, CONTENT)
    file.write_text(file.read_text()[:cut])
    with pytest.raises(ValueError, match=r"a\.json is not readable JSON"):
        read_answers(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"b\.json is missing"):
        read_answers(tmp_path / "b.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(name=st.sampled_from(sorted(CONTENT)), value=json_values)
def test_whatever_stands_in_a_file_is_read_or_refused(tmp_path_factory, name, value):
    file = put(tmp_path_factory.mktemp("answers"), CONTENT | {name: value})
    assert "a.json" in refusal(file)


def refusal(file):
    try:
        read_answers(file)
    except ValueError as error:
        return str(error)
    return "a.json was read"
