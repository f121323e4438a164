import dataclasses
from importlib.resources import files
from pathlib import Path

import pytest

from sdbench.models.grammars import GRAMMARS, doubts, held_out_captions
from sdbench.models.students import LORA_FILE
from sdbench.study.study import PROTOCOLS, Study
from sdbench.study.units import units
from sdbench.variants.methods import students
from sdbench.variants.student_weights import weights_file

FIELDS = {
    "model": "mini-sd",
    "variants": ["cfg", "last:50%", "unguided"],
    "prompts": ["a", "b", "c"],
    "seeds": [0, 1],
    "num_steps": 4,
    "guidance_scale": 5.0,
}


def study(**changes):
    return Study(**{**FIELDS, **changes})


def names(planned, phase, repeat):
    return [unit.variant.name for unit in planned if (unit.phase, unit.repeat) == (phase, repeat)]


def test_the_order_of_variants_rotates_from_repeat_to_repeat():
    planned = units(study(repeats=4))
    orders = [names(planned, "measured", repeat) for repeat in range(4)]
    assert orders[0] == ["cfg", "last:50%", "unguided"]
    assert orders[1] == ["last:50%", "unguided", "cfg"]
    assert orders[2] == ["unguided", "cfg", "last:50%"]
    assert orders[3] == orders[0]


def test_warm_ups_come_first_and_are_marked():
    planned = units(study(repeats=2, warmups=2))
    phases = [unit.phase for unit in planned]
    assert phases == ["warmup"] * 6 + ["measured"] * 6


def test_warm_ups_run_one_batch_of_every_size():
    planned = units(study(batch=1, repeats=1))
    assert len(names(planned, "warmup", 0)) == 3
    assert len(names(planned, "measured", 0)) == 3 * 6
    planned = units(study(batch=4, repeats=1))  # a batch of 4 and one of 2
    assert [len(unit.pairs) for unit in planned if unit.phase == "warmup"] == [4] * 3 + [2] * 3


def test_batches_hold_every_pair_once():
    planned = units(study(batch=4, repeats=1))
    pairs = [
        pair
        for unit in planned
        if unit.variant.name == "cfg" and unit.phase == "measured"
        for pair in unit.pairs
    ]
    assert pairs == [
        ("000", "a", 0),
        ("000", "a", 1),
        ("001", "b", 0),
        ("001", "b", 1),
        ("002", "c", 0),
        ("002", "c", 1),
    ]


def test_unit_ids_differ_within_a_study_and_repeat_across_objects():
    first, second = (units(study()) for _ in range(2))
    assert len({unit.id for unit in first}) == len(first)
    assert [unit.id for unit in first] == [unit.id for unit in second]


def test_a_unit_id_depends_on_what_the_call_computes_only():
    before = units(study(repeats=2))[0].id
    assert units(study(repeats=9, metrics=["lpips"]))[0].id == before
    assert units(study(num_steps=5))[0].id != before
    assert units(study(negative_prompt="x"))[0].id != before


@pytest.mark.parametrize(
    ("name", "value"), [("_code_version", lambda: "9.9"), ("SCHEMA_VERSION", 99)]
)
def test_a_unit_of_another_version_has_another_name(monkeypatch, name, value):
    before = units(study())[0].id
    monkeypatch.setattr(f"sdbench.study.units.{name}", value)
    assert units(study())[0].id != before


def test_images_are_kept_once_and_the_baselines_twice():
    kept = [
        (unit.variant.name, unit.repeat) for unit in units(study(repeats=3)) if unit.keeps_images
    ]
    assert sorted(kept) == [("cfg", 0), ("cfg", 1), ("last:50%", 0), ("unguided", 0)]


def test_alignment_is_measured_on_mini_sd_only():
    assert study().metrics == ("lpips", "flip", "ssim", "psnr", "alignment")
    assert study(model="owner/name").metrics == ("lpips", "flip", "ssim", "psnr")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["last:50%"]}, "must include the baseline 'cfg'"),
        (
            {"variants": ["cfg", "nonsense"]},
            "'nonsense'; `sdbench variants` lists all",
        ),
        ({"variants": ["cfg", "last:120%"]}, "'120%' is not between 0% and 100%"),
        ({"variants": "cfg"}, "variants must be a list, not 'cfg'"),
        ({"prompts": []}, "prompts must not be empty"),
        ({"prompts": ["a", " "]}, "prompts must be a list of texts, none of them empty"),
        ({"prompts": ["a", "a"]}, "prompts has 'a' twice"),
        ({"seeds": []}, "seeds must not be empty"),
        ({"seeds": [-1]}, "each of seeds must be a whole number of at least 0, not -1"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, not 0"),
        ({"num_steps": -3}, "num_steps must be a whole number of at least 1, not -3"),
        ({"weights_variant": 16}, "weights_variant must be"),
        ({"batch": 1.5}, "batch must be a whole number of at least 1, not 1.5"),
        ({"guidance_scale": 1.0}, "guidance_scale must be above 1"),
        ({"metrics": ["lpip"]}, "unknown metric 'lpip'; there are: lpips"),
        ({"metrics": "lpips"}, "metrics must be a list, not 'lpips'"),
        ({"metrics": [1]}, "metrics must be a list of texts"),
        ({"variants": ["cfg", 5]}, "variants must be a list of texts"),
        ({"prompts": {"a": "b"}}, "prompts must be a list"),
        ({"seeds": [2**63]}, "each of seeds must be a whole number of at most"),
        ({"num_steps": 10**9}, "num_steps must be a whole number of at most 1000000"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be above 1"),
        ({"model": 5}, "model must be a text and not empty, not 5"),
        ({"negative_prompt": 5}, "negative_prompt must be a text, not 5"),
        ({"controls": "no"}, "controls must be true or false, not 'no'"),
        ({"width": 0}, "width must be a whole number of at least 1, not 0"),
        ({"name": "../mine"}, "name must be fit for the name of a folder"),
        ({"arguments": {"eta": float("nan")}}, "arguments must be an object of JSON values"),
        ({"arguments": [1]}, "arguments must be an object of JSON values"),
        ({"height": 64}, "give both height and width"),
        ({"width": 64}, "give both height and width"),
    ],
)
def test_what_could_not_run_is_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)


TOML = """
model = "mini-sd"
variants = ["cfg", "unguided"]
seeds = [3]
num_steps = 4
guidance_scale = 5.0
"""


def test_a_study_file_holds_the_fields_of_a_study(tmp_path):
    (tmp_path / "prompts.txt").write_text("first prompt\n\nsecond prompt\n")
    (tmp_path / "mine.toml").write_text(TOML + 'prompts_file = "prompts.txt"\n')
    read = Study.from_toml(tmp_path / "mine.toml", num_steps=7)
    assert read == dataclasses.replace(
        study(
            variants=["cfg", "unguided"],
            prompts=["first prompt", "second prompt"],
            seeds=[3],
            num_steps=7,
        ),
        name="mine",
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_study_file_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    text = TOML + 'prompts = ["a"]\n'
    (tmp_path / "mine.toml").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert Study.from_toml(tmp_path / "mine.toml").prompts == ("a",)


def test_a_study_file_that_is_not_utf_8_says_where(tmp_path):
    (tmp_path / "mine.toml").write_bytes('name = "a"\nprompts = ["café"]'.encode("cp1252"))
    with pytest.raises(ValueError, match=r"mine.toml' is not TOML: line 2: byte 0xe9 at offset 26"):
        Study.from_toml(tmp_path / "mine.toml")


def test_a_prompt_that_is_there_twice_is_named():
    with pytest.raises(ValueError, match=r"prompts has 'a' twice, as entries 1 and 3"):
        study(prompts=["a", "b", "a"])


@pytest.mark.parametrize(
    ("size", "reads"),
    [({}, True), ({"height": 64, "width": 64}, True), ({"height": 128, "width": 64}, False)],
)
def test_alignment_is_measured_by_default_where_its_reader_reads_the_size(size, reads):
    assert ("alignment" in study(model="mini-sd", metrics=None, **size).metrics) is reads


def test_prompts_given_beside_a_file_replace_its_own(tmp_path):
    (tmp_path / "mine.toml").write_text(TOML + 'prompts_file = "missing.txt"\n')
    assert Study.from_toml(tmp_path / "mine.toml", prompts=["other"]).prompts == ("other",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TOML + 'prompts = ["a"]\nstepz = 3', "unknown key 'stepz'; there are: arguments, batch"),
        (TOML, "missing key 'prompts'"),
        (TOML + 'prompts_file = "missing.txt"', "cannot be read"),
        (TOML + 'prompts = ["a"]\nprompts_file = "p.txt"', "not both"),
        ("model = ", "is not TOML"),
        ("model = " + "[" * 100_000, "is not TOML: it is nested too deeply"),
        (TOML + "prompts_file = 5", "prompts_file must be a text"),
        (TOML + 'prompts = ["a"]\nheight = "tall"', r"wrong\.toml': height must be a whole number"),
        (
            TOML + 'prompts = ["a"]\narguments = { when = 2026-01-01 }',
            "must be an object of JSON values",
        ),
    ],
)
def test_a_wrong_study_file_is_refused_with_its_name(tmp_path, content, message):
    (tmp_path / "wrong.toml").write_text(content)
    with pytest.raises(ValueError, match=message):
        Study.from_toml(tmp_path / "wrong.toml")


def test_a_missing_study_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml' cannot be read"):
        Study.from_toml(tmp_path / "none.toml")


def test_controls_of_a_file_are_for_its_own_variants():
    assert Study.protocol("mini-sd", variants=("cfg", "last:50%")).variant_names == (
        "cfg",
        "last:50%",
    )
    assert (
        "steps:15"
        in Study.protocol("mini-sd", variants=("cfg", "last:50%"), controls=True).variant_names
    )


def test_the_default_study_runs_with_other_numbers_of_steps():
    assert "random:20%@0..7" in Study.protocol("mini-sd", num_steps=50).variant_names


def test_the_default_study_is_the_one_the_readme_promises():
    default = Study.protocol("mini-sd")
    assert default.variant_names[:5] == ("cfg", "last:20%", "last:50%", "lora", "unguided")
    assert set(default.variant_names[5:]) == {
        "random:20%@0..7",
        "random:50%@0..7",
        *("steps:10", "steps:15", "steps:18"),
    }
    assert (default.model, default.num_steps, default.guidance_scale) == ("mini-sd", 20, 5.0)
    assert (len(default.pairs), default.batch, default.repeats) == (8, 4, 6)  # twelve rounds


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_a_study_with_its_baseline(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = tmp_path / "sd21-student" / "student"
    student.mkdir(parents=True)
    (student / LORA_FILE).touch()
    study = Study.protocol(name)
    assert study.variant_names[0] == "cfg"
    assert study.model in GRAMMARS or study.dtype == "float16"


def test_a_paper_is_run_as_it_says():
    study = Study.protocol("selective-guidance")
    assert (study.num_steps, study.guidance_scale, study.batch, len(study.prompts)) == (
        50,
        7.5,
        1,
        10,
    )
    assert {"last:20%", "last:50%", "steps:45", "random:20%@0..7"} <= set(study.variant_names)


def test_protocols_are_all_there_is():
    folder = Path(str(files("sdbench.study") / "protocols"))
    assert {path.stem for path in folder.glob("*.toml")} == set(PROTOCOLS)
    with pytest.raises(ValueError, match="unknown protocol 'mine'; there are: mini-sd, "):
        Study.protocol("mine")


def test_the_held_out_captions_are_those_that_distillation_is_judged_on():
    assert list(Study.protocol("mini-sd-methods").prompts) == held_out_captions(256)


@pytest.mark.parametrize("name", ["mini-sd-quick", "mini-sd-bench", "selective-guidance"])
def test_a_protocol_on_another_embedded_model_has_captions_of_its_own(name):
    study = Study.protocol(name, model="emoji-sd")
    assert doubts("emoji-sd", study.prompts) == []
    assert len(study.prompts) == len(Study.protocol(name).prompts)
    given = Study.protocol(name, model="emoji-sd", prompts=["a cat"])
    assert given.prompts == ("a cat",)


def test_the_files_of_a_variant_are_read_once(tmp_path, monkeypatch):
    (tmp_path / LORA_FILE).touch()
    reads = []

    def counted(*arguments, **settings):
        reads.append(arguments)
        return weights_file(*arguments, **settings)

    monkeypatch.setattr(students, "weights_file", counted)
    made = study(variants=["cfg", f"lora:{tmp_path}"], repeats=2, controls=True)
    changed = dataclasses.replace(made, repeats=3)
    assert {unit.variant.content for unit in units(changed)} != {""}
    assert made.shared == changed.shared
    assert len(reads) == 1


def test_repeats_until_a_precision_are_stored_in_one_way():
    made = study(repeats="until  2.50 points")
    assert made.repeats == made.as_json()["repeats"] == "until 2.5 points"
    assert study(repeats="until 2.5 point") == made
    assert made.is_repeated


@pytest.mark.parametrize("repeats", [0, 2.0, True, None, "6", "until -1 points"])
def test_repeats_that_are_none_are_refused(repeats):
    with pytest.raises(ValueError, match="repeats must be a whole number of at least 1"):
        study(repeats=repeats)


def test_controls_that_need_no_time_are_not_timed():
    names = ["cfg", "last:50%", "last:50%+scale:4", "random:50%@0+scale:4", "scale:3"]
    made = study(variants=names, controls=True)
    untimed = [each.name for each in made.variants if each not in made.timed_variants]
    assert [name for name in untimed if name in names] == ["random:50%@0+scale:4", "scale:3"]
    assert any(name.startswith("random") and name not in names for name in untimed)
    without = study(variants=names)
    assert without.timed_variants == without.variants


def test_of_several_numbers_of_steps_the_first_is_the_studys():
    own = study(variants=["cfg", "last:50%"], num_steps=[8, 4])
    assert own.num_steps == 8
    assert own.variant_names == ("cfg", "last:50%", "steps:4", "last:50%@4")
    assert Study.from_fields(own.as_json(), source="itself") == own


@pytest.mark.parametrize("num_steps", [[], [8, 0], [8, "4"], [8, 8]])
def test_numbers_of_steps_that_are_none_are_refused(num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        study(num_steps=num_steps)


def test_another_reference_runs_for_its_images_alone():
    own = study(variants=["cfg", "last:50%"], reference="cfg@16", repeats=2)
    assert own.reference == "steps:16"
    assert own.variant_names == ("cfg", "last:50%", "steps:16")
    of_reference = [unit for unit in units(own) if unit.variant.name == "steps:16"]
    assert {unit.phase for unit in of_reference} == {"untimed"}
    assert Study.from_fields(own.as_json(), source="itself") == own


def test_a_reference_changes_the_name_of_no_call():
    plain = study(variants=["cfg", "last:50%", "steps:16"])
    assert dataclasses.replace(plain, reference="steps:16").shared == plain.shared
    assert "reference" not in plain.as_json()


def test_a_reference_of_several_images_is_refused():
    with pytest.raises(ValueError, match="stands for several images of a pair"):
        study(reference="random:50%@0..3")
