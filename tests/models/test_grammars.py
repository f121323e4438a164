import pytest

from sdbench.models.grammars import GRAMMARS, doubts, held_out_captions, readable

SCENE = "a small dotted green cross on a black background"
EMOJI = "penguin, animals and nature, fluent style"


def test_a_model_reads_its_own_captions_alone():
    assert readable("mini-sd", [SCENE, EMOJI]) == [SCENE, ""]
    assert readable("emoji-sd", [SCENE, EMOJI]) == ["", EMOJI]


def test_a_model_without_a_reader_keeps_all_prompts():
    assert readable("owner/name", [SCENE, "x"]) == [SCENE, "x"]
    assert doubts("owner/name", ["x"]) == []


def test_own_captions_leave_no_doubt():
    assert doubts("mini-sd", [SCENE]) == []
    assert doubts("emoji-sd", [EMOJI]) == []


def test_captions_of_the_other_model_are_told():
    unread, unknown = doubts("emoji-sd", [SCENE, EMOJI])
    assert unread == (
        "alignment cannot be read for 1 of 2 prompts: they are no captions of emoji-sd"
    )
    assert unknown.endswith("pieces: background")


def test_unknown_words_are_told():
    *_, unknown = doubts("mini-sd", ["a purple xylophone on a white background"])
    assert unknown == ("mini-sd does not know these words, and splits them into pieces: xylophone")


@pytest.mark.parametrize("model", GRAMMARS)
def test_a_model_brings_captions_each_once(model):
    captions = held_out_captions(100, model)
    assert len(set(captions)) == 100
    assert doubts(model, captions) == []
    assert captions == held_out_captions(100, model)


def test_more_captions_than_there_are_are_refused():
    with pytest.raises(ValueError, match="emoji-sd has 272 held-out captions; 500 were asked for"):
        held_out_captions(500, "emoji-sd")
