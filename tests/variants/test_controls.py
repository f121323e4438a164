import pytest

from sdbench.study.study import Study
from sdbench.variants.controls import controls_of, matched_schedules
from sdbench.variants.grammar import parse

ALIKE = {"num_steps": 50}


def names_of(names, **settings):
    """The names of the controls of variants that are given by theirs."""
    return [variant.name for variant in controls_of(map(parse, names), **settings)]


def test_a_schedule_gets_every_control_at_its_work():
    assert names_of(["cfg", "last:20%"], **ALIKE) == ["unguided", "steps:45", "random:20%@0..7"]


def test_where_there_are_few_masks_there_are_as_few_draws():
    assert names_of(["cfg", "last:1"], num_steps=3)[-1] == "random:1@0..2"
    assert {parse("random:1@0..2").draws[draw].rule(3).mask for draw in range(3)} == {
        (False, True, True),
        (True, False, True),
        (True, True, False),
    }


def test_odd_work_lies_between_two_numbers_of_steps():
    assert names_of(["cfg", "last:25"], **ALIKE)[1:3] == ["steps:37", "steps:38"]


def test_as_many_steps_as_the_study_has_are_no_control():
    assert "steps:2" not in names_of(["cfg", "last:1"], num_steps=2)


def test_a_student_is_compared_with_as_many_evaluations():
    assert names_of(["cfg", "lora"], **ALIKE) == ["unguided", "steps:25"]


@pytest.mark.parametrize(
    "name", ["adaptive:0.99", "deepcache:3", "steps:30", "scale:3.0", "interval:0-5"]
)
def test_what_decides_its_own_work_has_none_but_no_guidance(name):
    assert names_of(["cfg", name], **ALIKE) == ["unguided"]


def test_controls_are_there_once():
    names = ["cfg", "unguided", "last:10", "first:10", "random:10@0..7"]
    assert names_of(names, **ALIKE) == ["steps:45"]


def test_a_study_with_controls_has_them_among_its_variants():
    fields = {"model": "mini-sd", "prompts": ["a"], "seeds": [0], "guidance_scale": 5.0} | ALIKE
    study = Study(variants=["cfg", "last:20%"], controls=True, **fields)
    assert study.variant_names == ("cfg", "last:20%", "unguided", "steps:45", "random:20%@0..7")
    assert Study.from_fields(study.as_json(), source="itself") == study


def test_a_constant_scale_is_a_control_for_what_guides_some_steps_alone():
    names = [
        "cfg",
        "last:25+scale:9",
        "first:10",
        "lora",
        "cached:5",
        "deepcache:3",
        "random:5@0",
        "scale:3",
    ]
    assert [each.name for each in matched_schedules(map(parse, names), **ALIKE)] == [
        "last:25+scale:9",
        "first:10",
    ]


def test_a_cached_offset_is_compared_with_as_many_evaluations():
    assert names_of(["cfg", "cached:5,from=12", "compressed:20^2"], **ALIKE) == [
        "unguided",
        "steps:35",
    ]


def test_a_share_stays_a_share_where_the_loop_is_longer():
    (name,) = (
        name for name in names_of(["cfg", "step-ag:40%"], **ALIKE) if name.startswith("random")
    )
    assert (
        parse(name).rule(99).mask.count(False)
        == parse("step-ag:40%").rule(99).mask.count(False)
        == 59
    )


def test_a_loop_of_its_own_length_has_controls_of_that_length():
    names = [control.name for control in controls_of([parse("last:50%@10")], num_steps=20)]
    assert names == ["unguided", "steps:7", "steps:8", "random:50%@0..7@10"]


def test_a_variant_under_another_scheduler_has_controls_under_it():
    variants = [parse("last:50%+scheduler:dpmpp-2m@10")]
    assert [control.name for control in controls_of(variants, num_steps=20)] == [
        "unguided",
        "steps:7+scheduler:dpmpp-2m",
        "steps:8+scheduler:dpmpp-2m",
        "random:50%@0..7+scheduler:dpmpp-2m@10",
    ]
