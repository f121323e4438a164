"""A denoiser in another number format: the same as a cast one, in its steps alone, and put back."""

import copy
import sys

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FirstBlockCacheConfig

import sdbench
from sdbench.models.number_formats import FORMATS, in_format
from sdbench.models.pipeline import denoiser_of
from sdbench.models.stored_weights import stored_bytes
from sdbench.records.environment import environment, environment_key
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.variants.adapters import applied
from sdbench.variants.grammar import parse
from sdbench.variants.hooks import call_replaced
from sdbench.variants.precision import Precision, in_precision
from sdbench.variants.trace import MissingPackage, Unsupported
from tests import tiny
from tests.families import decoding
from tests.variants.students import SCALE, saved

STEPS = 6
PIPELINES = {
    "sd": tiny.stable_diffusion,
    "sdxl": tiny.stable_diffusion_xl,
    "sd3": tiny.stable_diffusion_3,
    "flux": tiny.flux,
}


def under(pipe, text, **changes):
    with applied(pipe, parse(text), guidance_scale=SCALE) as trace:
        latents = tiny.run(pipe, num_inference_steps=STEPS, **changes)
    return latents, trace


def cast_by_hand(pipe, low_steps):
    """Latents of a loop whose denoiser is cast to bfloat16 and back, without sdbench's variant."""
    low = copy.deepcopy(pipe.unet).to(torch.bfloat16)
    steps = iter(range(STEPS))

    def wrap(original):
        def call(sample, timestep, encoder_hidden_states, **further):
            if next(steps) not in low_steps:
                return original(sample, timestep, encoder_hidden_states, **further)
            given = (sample.bfloat16(), timestep, encoder_hidden_states.bfloat16())
            return (low(*given, **further)[0].float(),)

        return call

    with call_replaced(pipe.unet, wrap):
        return tiny.run(pipe, num_inference_steps=STEPS)


@pytest.mark.parametrize(
    ("text", "low_steps"),
    [
        ("precision:bf16", range(STEPS)),
        ("precision:bf16@last:50%", (3, 4, 5)),
        ("precision:bf16@first:1", (0,)),
        ("precision:bf16@window:2+2", (2, 3)),
        ("precision:bf16@every:2", (1, 3, 5)),
        ("precision:bf16@mask:101111", (1,)),
    ],
)
def test_the_denoiser_is_a_cast_one_in_the_steps_that_are_named(text, low_steps):
    pipe = tiny.stable_diffusion()
    assert torch.equal(under(pipe, text)[0], cast_by_hand(pipe, low_steps))


def test_a_step_of_each_kind_is_none_of_the_other():
    pipe = tiny.stable_diffusion()
    plain = tiny.run(pipe, num_inference_steps=STEPS)
    assert torch.equal(under(pipe, "precision:bf16@mask:111111")[0], plain)
    whole = under(pipe, "precision:bf16")[0]
    assert torch.equal(under(pipe, "precision:bf16@mask:000000")[0], whole)
    assert not torch.equal(whole, plain)


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"fp32"}))
@pytest.mark.parametrize("make", PIPELINES.values(), ids=PIPELINES)
def test_every_format_runs_and_leaves_the_pipeline_as_found(make, form):
    pipe = make()
    before = tiny.run(pipe, num_inference_steps=STEPS)
    weights = {name: own.clone() for name, own in denoiser_of(pipe).state_dict().items()}
    strides = {name: own.stride() for name, own in denoiser_of(pipe).named_parameters()}

    latents, _ = under(pipe, f"precision:{form}")
    assert latents.dtype == before.dtype
    assert torch.isfinite(latents).all()
    assert 0 < float((latents - before).norm() / before.norm()) < 0.5
    after = denoiser_of(pipe).state_dict()
    assert all(torch.equal(after[name], own) for name, own in weights.items())
    assert {name: own.stride() for name, own in denoiser_of(pipe).named_parameters()} == strides
    assert torch.equal(tiny.run(pipe, num_inference_steps=STEPS), before)


def test_a_pipeline_in_half_precision_can_have_steps_in_full():
    pipe = tiny.stable_diffusion()
    with pytest.raises(Unsupported, match="the unet is in float32 already"):
        under(pipe, "precision:fp32")
    pipe.to(torch.bfloat16)
    half = tiny.run(pipe, num_inference_steps=STEPS)
    some, trace = under(pipe, "precision:fp32@last:1")
    assert some.dtype == half.dtype == torch.bfloat16
    assert 0 < float((some - half).float().norm() / half.float().norm()) < 0.05
    assert trace.weights_bytes == 3 * stored_bytes([pipe.unet])


def test_weights_come_back_after_a_call_that_failed():
    pipe = tiny.stable_diffusion()
    before = tiny.run(pipe, num_inference_steps=STEPS)
    for text in ("precision:int8wo", "precision:bf16@last:1"):
        with pytest.raises(ZeroDivisionError), applied(pipe, parse(text), guidance_scale=SCALE):
            raise ZeroDivisionError
        assert torch.equal(tiny.run(pipe, num_inference_steps=STEPS), before)


def test_own_weights_take_no_memory_where_no_step_needs_them():
    pipe = tiny.stable_diffusion()
    whole = stored_bytes([pipe.unet])
    with in_precision(pipe, Precision("bf16")) as (switch, _):
        assert sum(own.untyped_storage().nbytes() for own in pipe.unet.parameters()) == 0
        assert switch.weights_bytes == whole / 2
    with in_precision(pipe, Precision("bf16"), leaves_own=True):
        assert stored_bytes([pipe.unet]) == whole
    with in_precision(pipe, parse("precision:bf16@last:1").precision) as (switch, _):
        assert switch.weights_bytes == whole * 1.5
        assert stored_bytes([pipe.unet]) == whole


def test_times_keep_their_precision_and_the_rest_is_cast():
    pipe = tiny.stable_diffusion(EulerDiscreteScheduler)
    seen = []
    with in_precision(pipe, Precision("bf16")) as (switch, _):
        switch.copies[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        tiny.run(pipe, num_inference_steps=STEPS)
    args, kwargs = seen[0]
    assert args[0].dtype == kwargs["encoder_hidden_states"].dtype == torch.bfloat16
    assert args[1].dtype == torch.float32


def test_what_diffusers_keeps_in_float32_stays_there():
    unet = tiny.unet()
    type(unet)._keep_in_fp32_modules, before = ["time_embedding"], type(unet)._keep_in_fp32_modules
    try:
        low = in_format(unet, FORMATS["bf16"], torch.float32)
    finally:
        type(unet)._keep_in_fp32_modules = before
    assert low.time_embedding.linear_1.weight.dtype == torch.float32
    assert low.conv_in.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["int8wo", "int8dq", "float8wo"])
def test_a_quantised_network_leaves_the_options_of_others_alone(name):
    """torchao 0.18 sets options of torch.compile for the whole process unless it is told not to."""
    options = ("coordinate_descent_tuning", "coordinate_descent_check_all_directions")
    with torch._inductor.config.patch(dict.fromkeys(options, False)):
        before = environment_key(environment())
        in_format(torch.nn.Sequential(torch.nn.Linear(64, 32)), FORMATS[name], torch.float32)
        assert environment_key(environment()) == before


def test_bytes_of_quantised_weights_are_those_that_they_take():
    layers = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False))
    low = in_format(layers, FORMATS["int8wo"], torch.float32)
    # A byte a weight, and a scale for each of the 32 outputs; torch's own count is the old one.
    assert stored_bytes([layers]) == low[0].weight.nbytes == 64 * 32 * 4
    assert 64 * 32 + 32 * 4 <= stored_bytes([low]) <= 64 * 32 + 2 * 32 * 4


def test_a_student_and_a_schedule_go_with_it(tmp_path):
    saved(tmp_path / "student")
    pipe = tiny.stable_diffusion()
    student, _ = under(pipe, f"lora:{tmp_path / 'student'}")
    low, trace = under(pipe, f"lora:{tmp_path / 'student'}+precision:bf16")
    assert 0 < float((low - student).norm() / student.norm()) < 0.05
    assert trace.steps["rows"].tolist() == [2] * STEPS

    mixed, _ = under(pipe, f"last:50%+lora:{tmp_path / 'student'}")
    low, trace = under(pipe, f"last:50%+lora:{tmp_path / 'student'}+precision:bf16")
    assert 0 < float((low - mixed).norm() / mixed.norm()) < 0.05
    assert trace.steps["rows"].tolist() == [4] * 3 + [2] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("precision", "expected precision:FORMAT; there are: bf16"),
        ("precision:int7", "expected precision:FORMAT; there are: bf16"),
        ("precision:bf16@lora", "such as last:50% or first:2, not 'lora'"),
        ("precision:bf16@random:50%@0..3", "as a mask names its unguided ones"),
        ("precision:bf16@cfg", "as a mask names its unguided ones"),
        ("precision:bf16@last:x", "last:x"),
        ("precision:bf16+precision:fp16", "has another number format already"),
        ("deepcache:3+precision:bf16", "deepcache changes the denoiser itself"),
        ("precision:bf16+deepcache:3", "deepcache changes the denoiser itself"),
    ],
)
def test_a_text_that_is_none_says_why(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def compiled(pipe):
    pipe.unet.compile(backend="eager")


def cast(pipe):
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def quantised(pipe):
    pipe.unet = in_format(pipe.unet, FORMATS["int8wo"], torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [(compiled, "is compiled"), (cast, "has casting"), (quantised, "has quantisation")],
)
def test_a_denoiser_of_which_no_copy_can_be_cast_is_refused(change, message):
    pipe = tiny.stable_diffusion()
    change(pipe)
    with pytest.raises(Unsupported, match=f"takes a plain unet, but this one {message}"):
        under(pipe, "precision:bf16")


def test_a_cache_that_is_on_is_refused():
    pipe = tiny.flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(Unsupported, match="has caches"):
        under(pipe, "precision:bf16")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)

    with pytest.raises(MissingPackage, match=r"pip install 'sdbench\[quantised\]'"):
        under(tiny.stable_diffusion(), "precision:int8wo")


def test_a_study_says_what_the_weights_take(tmp_path):
    pipe = tiny.stable_diffusion()
    whole = stored_bytes([pipe.unet])
    variants = ["cfg", "precision:bf16", "precision:int8dq", "precision:bf16@last:50%"]
    study = Study(
        model="tiny",
        variants=variants,
        prompts=tiny.PROMPTS,
        seeds=[0],
        num_steps=4,
        guidance_scale=SCALE,
        metrics=["psnr"],
        repeats=2,
    )
    runs = run(study, tmp_path / "run", pipe=pipe).runs
    assert set(runs["status"]) == {"ok"}
    taken = runs.groupby("variant")["weights_bytes"].first()
    assert taken["precision:bf16"] == whole / 2
    assert taken["precision:bf16@last:50%"] == whole * 1.5
    assert taken["precision:bf16"] < taken["precision:int8dq"] < whole
    assert runs.loc[runs["variant"] == "cfg", "weights_bytes"].isna().all()

    # Work is that of the same shapes, and the weights' bytes are in the peak.
    first = runs[runs["phase"] == "warmup"].set_index("variant")
    assert set(first["flop"]) == {first.loc["cfg", "flop"]}
    saved_bytes = first.loc["cfg", "peak_bytes"] - first.loc["precision:bf16", "peak_bytes"]
    assert saved_bytes > whole / 4
    timed = runs[runs["phase"] == "measured"]
    assert set(timed["timing"]) == {"lockstep"}
    beside = timed[timed["variant"] == "precision:bf16"]
    assert set(beside["copied_bytes"]) == {whole // 2}


def test_it_does_not_go_with_a_compiled_study(tmp_path):
    fields = {"prompts": ["a"], "seeds": [0], "num_steps": 4, "guidance_scale": SCALE}
    variants = ["cfg", "precision:bf16"]
    study = Study(model="t", variants=variants, execution="compile", metrics=[], **fields)
    with pytest.raises(ValueError, match="set execution to eager"):
        run(study, tmp_path / "run", pipe=tiny.stable_diffusion())


VIDEO = {"height": decoding.SIDE, "width": decoding.SIDE, "arguments": decoding.ARGUMENTS}


@pytest.mark.parametrize(
    ("make", "further"),
    [(tiny.stable_diffusion, {}), (decoding.wan, VIDEO)],
    ids=["one call", "two calls"],
)
@pytest.mark.parametrize("max_rows", [3, 64])
def test_a_sweep_of_formats_is_what_each_mask_gives_alone(make, further, max_rows):
    pipe = make()
    fields = {"num_steps": 4, "guidance_scale": SCALE, "metrics": ["psnr"], **further}
    found = sdbench.sensitivity(
        pipe,
        tiny.PROMPTS,
        [0],
        masks=["0111", "1011", "1010", "0000"],
        max_rows=max_rows,
        switch="precision:float8cast",
        **fields,
    )
    assert set(found["switch"]) == {"precision:float8cast"}
    assert set(found["nfe"]) == {8}

    study = Study(
        model="tiny",
        variants=[
            "cfg",
            *(f"precision:float8cast@mask:{own}" for own in found["mask"][2:].unique()),
        ],
        prompts=tiny.PROMPTS,
        seeds=[0],
        repeats=1,
        **fields,
    )
    alone = run(study, pipe=pipe).images.set_index(["variant", "prompt_id"])["psnr"]
    for _, row in found[found["kind"] != "baseline"].iterrows():
        name = f"precision:float8cast@mask:{row['mask']}"
        assert row["psnr"] == pytest.approx(alone[name, row["prompt_id"]], abs=0.05)


def test_a_sweep_of_formats_shares_what_it_can():
    """A branch has the trunk's predictions up to its first step in the format."""
    pipe = tiny.stable_diffusion()
    fields = {"num_steps": 4, "guidance_scale": SCALE, "metrics": ["psnr"]}
    found = sdbench.sensitivity(pipe, tiny.PROMPTS[:1], [0], switch="precision:bf16", **fields)
    taken = found.set_index("mask")["rows"].to_dict()
    assert taken == {"1111": 8, "0111": 8, "1011": 6, "1101": 4, "1110": 2}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"switch": "precision:int7"}, "unknown switch 'precision:int7'; there are: guidance, "),
        ({"switch": "bf16"}, "unknown switch 'bf16'"),
        ({"switch": "precision:bf16", "kind": "estimate"}, "is of guidance"),
        ({"switch": "precision:fp32"}, "is in float32 already"),
    ],
)
def test_a_switch_that_is_none_says_why(how, message):
    fields = {"num_steps": 4, "guidance_scale": SCALE, "metrics": ["psnr"]}
    with pytest.raises(ValueError, match=message):
        sdbench.sensitivity(tiny.stable_diffusion(), tiny.PROMPTS, [0], **fields | how)
