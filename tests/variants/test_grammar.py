import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sdbench.models.students import DENOISER_FILE, LORA_FILE
from sdbench.variants import grammar
from sdbench.variants.grammar import VARIANTS, parse, register_variant
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Method, Variant


def unguided(text, steps=50):
    return [step for step, guided in enumerate(parse(text).rule(steps).mask) if not guided]


@pytest.mark.parametrize("kind", VARIANTS.values(), ids=lambda kind: kind.name)
def test_every_entry_reads_its_own_examples(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = {"mask": "110" * 2, "scheduler": "DDIMScheduler"}
    recipe = {"variant": "last:2@6", "pipeline": {}, "guidance_scale": 5.0}
    Path("FILE").write_text(json.dumps(plan | recipe))
    Path("PATH").mkdir()
    for weights in (LORA_FILE, DENOISER_FILE):
        (Path("PATH") / weights).touch()
    for example in kind.grammar.split("|"):
        variant = parse(example.replace("...", "11"))
        assert variant.name == example.replace("...", "11")
        assert len(variant.rule(6 if kind.name in ("mask", "plan") else 50).mask) in (6, 50)
    assert kind.meaning
    assert kind.name == re.match("[a-z-]+", kind.grammar).group()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cfg", []),
        ("unguided", list(range(50))),
        ("last:20%", list(range(40, 50))),
        ("last:10", list(range(40, 50))),
        ("first:4%", [0, 1]),
        ("first:3", [0, 1, 2]),
        ("window:10+3", [10, 11, 12]),
        ("every:20", [19, 39]),
        ("last:0", []),
        ("steps:35", []),
        ("steps:35,stock", []),
        ("scale:3.5", []),
    ],
)
def test_a_text_says_which_steps_are_unguided(text, expected):
    assert unguided(text) == expected


def test_the_digits_of_a_mask_are_its_steps():
    assert parse("mask:110010").rule(6).mask == (True, True, False, False, True, False)


def test_a_mask_keeps_its_length_so_that_another_loop_refuses_it():
    assert len(parse("mask:110010").rule(50).mask) == 6


def test_random_takes_a_count_or_a_share_and_a_seed():
    assert parse("random:10@7").rule(50) == GuidanceSchedule.random(50, 10, seed=7)
    assert parse("random:20%@7").rule(50) == parse("random:10@7").rule(50)
    assert unguided("random:10@8") != unguided("random:10@7")


def test_several_draws_are_those_that_stand_alone():
    several = parse("random:20%@3..5")
    assert list(several.draws) == [3, 4, 5]
    for draw, variant in several.draws.items():
        assert variant.rule(50) == GuidanceSchedule.random(50, 10, seed=draw)
        assert variant == replace(
            parse(f"random:20%@{draw}"), kind="", argument=None, is_control=False
        )
    assert several.rule(50) == several.draws[3].rule(50)
    assert (several.name, several.of_share, several.is_control) == ("random:20%@3..5", True, True)
    assert parse("last:20%").draws == parse("random:20%@3").draws == {}


def test_what_is_added_is_added_to_every_draw():
    several = parse("random:10@0..1+lora+deepcache:3")
    assert [draw.name for draw in several.draws.values()] == [
        "random:10@0+lora+deepcache:3",
        "random:10@1+lora+deepcache:3",
    ]
    for draw in several.draws.values():
        assert (draw.student, draw.accelerator.name, draw.draws) == ("", "deepcache", {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("random:10@3..1", "draws 3..1 run backwards: the lower number comes first"),
        ("random:50%@0..0", "draws 0..0 are one draw, which is written random:50%@0"),
        ("random:10@0..100", "draws 0..100 are 101, each a call; at most 100"),
        ("random:10@0..99999999999999999999", "each a call; at most 100"),
        ("random:10@0..", "random:COUNT@FIRST..LAST for several draws"),
        ("random:10@..7", "random:COUNT@FIRST..LAST for several draws"),
        ("random:10@0..7..9", "random:COUNT@FIRST..LAST for several draws"),
        ("random:10@0,7", "random:COUNT@FIRST..LAST for several draws"),
    ],
)
def test_draws_that_do_not_fit_are_refused(text, reason):
    with pytest.raises(ValueError, match=re.escape(f"variant '{text}': ")) as error:
        parse(text)
    assert str(error.value).endswith(reason)
    assert "\n" not in str(error.value)


def test_a_share_is_of_the_iterations_that_run():
    assert [len(unguided("last:20%", steps)) for steps in (50, 51, 99)] == [10, 10, 20]


def test_controls_change_the_settings_of_the_study_and_nothing_else():
    assert (parse("steps:35").num_steps, parse("steps:35").guidance_scale) == (35, None)
    assert (parse("scale:3.5").num_steps, parse("scale:3.5").guidance_scale) == (None, 3.5)
    assert (parse("last:10").num_steps, parse("last:10").guidance_scale) == (None, None)


def test_a_schedule_can_have_a_scale_tuned_anew():
    variant = parse("last:20%+scale:6.5")
    assert variant.rule(50) == GuidanceSchedule.last(50, 10)
    assert variant.guidance_scale == 6.5
    assert parse("last:20%+scale:6.5+deepcache:3").accelerator.name == "deepcache"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("scale:3+scale:4", "'scale:3' has its own scale"),
        ("unguided+scale:4", "'unguided' guides no step"),
        ("lora+scale:4", "'lora' guides no step"),
    ],
)
def test_a_scale_goes_with_guided_steps_that_have_none(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_space_around_a_text_is_no_part_of_its_name():
    assert parse(" last:20%\n").name == "last:20%"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("lats:20%", "last:20%"),
        ("last 20%", "last:20%"),
        ("CFG", "cfg"),
        ("deepcach:3", "deepcache:3"),
        ("", None),
        (":", None),
        ("nonsense", None),
    ],
)
def test_an_unknown_name_says_what_is_like_it_and_where_all_are_listed(text, meant):
    with pytest.raises(ValueError, match="unknown variant") as error:
        parse(text)
    assert str(error.value).startswith(f"unknown variant '{text}'; ")
    assert str(error.value).endswith("`sdbench variants` lists all")
    assert ("did you mean" in str(error.value)) == (meant is not None)
    assert meant is None or f"; did you mean {meant}? " in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "cfg:1", "cfg:", "unguided:50%", "last", "last:", "last:120%", "last:-1", "last:2.5",
        "last:x", "first:-5%", "window:10", "window:10-3", "window:-1+3", "window:+3", "every",
        "every:0", "every:-2", "every:1.5", "random:10", "random:@7", "random:10@", "random:10@x",
        "random:120%@1", "random:2.5@1", "mask", "mask:", "steps:35%", "steps:", "mask:102",
        "scale", "scale:1", "scale:0.5", "scale:-3", "scale:nan", "steps:0", "steps:-5",
    ],
)  # fmt: skip
def test_an_argument_that_does_not_fit_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"variant '{text}': ")):
        parse(text)


@pytest.mark.parametrize("text", ["last:60", "first:60", "random:60@1", "window:45+6"])
def test_more_steps_than_the_loop_has_are_refused_when_its_length_is_known(text):
    with pytest.raises(ValueError, match="50 steps"):
        parse(text).rule(50)


def test_a_taken_name_is_refused():
    before = dict(VARIANTS)
    with pytest.raises(ValueError, match="variant 'last' is already registered"):
        register_variant(VARIANTS["last"])
    assert before == VARIANTS


def test_a_registered_kind_is_read_and_proposed(monkeypatch):
    monkeypatch.setattr(grammar, "VARIANTS", dict(VARIANTS))
    kind = Method(
        "middle",
        "middle:N",
        "N steps",
        lambda name, count: Variant(name, GuidanceSchedule.none),
    )
    register_variant(kind)
    assert parse("middle:5").name == "middle:5"
    with pytest.raises(ValueError, match="did you mean middle:N"):
        parse("midle:5")


def test_a_planned_schedule_brings_its_scheduler_and_its_scale(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"mask": "1101", "scheduler": "DDIMScheduler", "guided_scale": 6.5}))
    variant = parse(f"plan:{path}")
    assert variant.rule(50) == GuidanceSchedule((True, True, False, True), "DDIMScheduler")
    assert variant.guidance_scale == 6.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("not json", "is not JSON"),
        ("[1]", "does not hold a mask"),
        ('{"mask": "1021", "scheduler": "DDIMScheduler"}', "does not hold a mask"),
        ('{"mask": "101"}', "does not hold a mask"),
        (
            '{"mask": "101", "scheduler": "DDIMScheduler", "guided_scale": "6"}',
            "'guided_scale' is '6'; expected int or",
        ),
        (
            '{"mask": "101", "scheduler": "DDIMScheduler", "guided_scale": 0.5}',
            "a guided_scale of 0.5 is no guidance",
        ),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_is_no_schedule_is_named(tmp_path, content, message):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse(f"plan:{path}")


@pytest.mark.parametrize(
    ("text", "name", "num_steps"),
    [
        ("last:50%@25", "last:50%@25", 25),
        ("lora@12", "lora@12", 12),
        ("cached:5,from=20@30", "cached:5,from=20@30", 30),
        ("last:50%+lora@12", "last:50%+lora@12", 12),
        ("last:50%@high@12", "last:50%@high@12", 12),
        ("random:10@7", "random:10@7", None),
        ("random:10@7@25", "random:10@7@25", 25),
        ("schedule:clamp-linear@2", "schedule:clamp-linear@2", None),
        ("schedule:clamp-linear@2@9", "schedule:clamp-linear@2@9", 9),
        ("cfg@25", "steps:25", 25),
    ],
)
def test_what_stands_behind_the_last_at_sign_is_a_number_of_steps(text, name, num_steps):
    variant = parse(text)
    assert (variant.name, variant.num_steps) == (name, num_steps)


def test_shares_follow_the_loop_that_runs():
    assert parse("last:50%@10").rule(10).mask == parse("last:5").rule(10).mask


def test_every_draw_has_the_steps_of_its_variant():
    variant = parse("random:50%@0..2@8")
    assert {draw.num_steps for draw in variant.draws.values()} == {8}
    assert [draw.name for draw in variant.draws.values()][:2] == [
        "random:50%@0@8",
        "random:50%@1@8",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora@0", "variant 'lora@0': a number of steps behind @ is at least 1"),
        ("steps:10@5", "variant 'steps:10@5': it has 10 steps already"),
        ("lora@12@3", "variant 'lora@12@3': it has 12 steps already"),
        ("last:x@25", "'x@25' is neither a number of steps nor a percentage"),
    ],
)
def test_a_number_of_steps_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)


def test_variants_are_crossed_with_numbers_of_steps():
    crossed = grammar.crossed(map(parse, ["cfg", "last:50%", "steps:9", "steps:5"]), [5, 3])
    names = [variant.name for variant in crossed]
    assert names[:4] == ["cfg", "last:50%", "steps:9", "steps:5"]
    assert names[4:] == ["last:50%@5", "steps:3", "last:50%@3"]
