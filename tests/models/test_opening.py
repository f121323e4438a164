import json
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from diffusers import DiffusionPipeline

from sdbench.models import opening, registry
from sdbench.models.opening import INDEX
from sdbench.study.check import loaded
from sdbench.study.generation import Generation
from tests import tiny

UNET, VAE, TEXT = "unet", "vae", "text_encoder"


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion()


@pytest.fixture
def saved(pipe, tmp_path):
    """Makes a folder: by component, the variants that it is there in."""

    def save(name="model", *, shards="5GB", **variants):
        folder = tmp_path / name
        pipe.save_pretrained(folder)
        for component in (UNET, VAE, TEXT):
            place = folder / component
            for file in place.glob("*.safetensors"):
                file.unlink()
            for variant in variants.get(component, variants.get("every", [None])):
                part = getattr(pipe, component)
                part.save_pretrained(place, variant=variant, max_shard_size=shards)
        return folder

    return save


def opened(folder, **options):
    return registry.load(str(folder), device="cpu", **options)


def assert_same(found, pipe):
    for component in (UNET, VAE, TEXT):
        expected = getattr(pipe, component).state_dict()
        state = getattr(found, component).state_dict()
        assert all(torch.equal(state[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_a_folder_in_one_variant_is_opened(pipe, saved, variant, shards):
    folder = saved(every=[variant], shards=shards)
    assert (len(list((folder / UNET).glob("*.safetensors"))) > 1) == (shards == "20KB")
    assert_same(opened(folder), pipe)
    assert_same(opened(folder, weights_variant=variant), pipe)


def test_a_folder_in_which_one_component_has_a_variant_is_opened(pipe, saved):
    assert_same(opened(saved(text_encoder=["fp16"])), pipe)


def test_a_component_that_is_there_without_a_variant_too_is_no_doubt(pipe, saved):
    assert_same(opened(saved(text_encoder=["fp16"], unet=[None, "fp16", "ema"])), pipe)


def test_without_a_variant_is_what_is_opened_by_default(pipe, saved):
    folder = saved(every=[None, "fp16", "ema"])
    other = tiny.sd_parts()["unet"]
    torch.nn.init.constant_(other.conv_in.bias, 0.25)
    other.save_pretrained(folder / UNET, variant="fp16")
    assert_same(opened(folder), pipe)
    chosen = opened(folder, weights_variant="fp16").unet
    assert torch.equal(chosen.conv_in.bias, other.conv_in.bias)


def test_a_study_is_run_in_its_variant(pipe, saved):
    study = Generation(
        model=str(saved(every=["ema", "fp16"])),
        prompts=["a"],
        seeds=[0],
        num_steps=2,
        guidance_scale=7.5,
        weights_variant="fp16",
        device="cpu",
    )
    assert_same(loaded(study), pipe)
    with pytest.raises(ValueError, match="of the variants ema, fp16"):
        loaded(replace(study, weights_variant=None))


@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        ({"every": ["ema", "fp16"]}, {}, "has only weights of the variants ema, fp16"),
        (
            {"unet": ["fp16"], "vae": ["ema"]},
            {},
            "no variant has all components: unet has fp16; vae has ema",
        ),
        ({}, {"weights_variant": "fp16"}, "'fp16'; it has: only weights without a variant"),
        ({"every": ["ema"]}, {"weights_variant": "fp16"}, "of variant 'fp16'; it has: ema"),
        ({"every": ["fp16"]}, {"weights_variant": "fp"}, "of variant 'fp'; it has: fp16"),
        (
            {"every": ["fp16"], "vae": ["ema"]},
            {"weights_variant": "fp16"},
            "in variant 'fp16': its vae exists only as ema",
        ),
    ],
)
def test_a_variant_that_is_not_there_is_refused_by_name(saved, variants, options, message):
    with pytest.raises(ValueError, match=message) as refused:
        opened(saved(**variants), **options)
    assert "\n" not in str(refused.value)


def pickled(folder, component, variant):
    """The safetensors of a component become pickles in name."""
    for file in (folder / component).glob(f"*{variant}*.safetensors"):
        file.rename(file.with_name(f"pytorch_model{variant}.bin"))


@pytest.mark.parametrize("options", [{}, {"weights_variant": "fp16"}])
@pytest.mark.parametrize(
    "variants", [{"every": ["fp16"]}, {"every": ["fp16"], "text_encoder": [None, "fp16"]}]
)
def test_a_pickle_of_a_variant_is_refused_as_a_pickle(saved, variants, options):
    folder = saved(**variants)
    pickled(folder, TEXT, ".fp16")
    with pytest.raises(ValueError, match=r"text_encoder/pytorch_model\.fp16\.bin is a pickle"):
        opened(folder, **options)


def test_a_pickle_next_to_a_variant_in_safetensors_is_passed_over(pipe, saved):
    folder = saved(every=["fp16"])
    (folder / TEXT / "pytorch_model.bin").write_bytes(b"never read")
    assert_same(opened(folder), pipe)


def test_a_name_without_a_dot_is_named(saved):
    folder = saved(every=["fp16"])
    (folder / UNET / "LICENSE").touch()
    with pytest.raises(ValueError, match="cannot read unet/LICENSE, whose name has no dot"):
        opened(folder)


def test_what_a_pipeline_leaves_out_counts_for_nothing(pipe, saved):
    folder = saved()
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.fp16.safetensors").touch()
    assert json.loads((folder / INDEX).read_text())["safety_checker"] == [None, None]
    assert_same(opened(folder), pipe)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "is a single file, not a folder: open it with `from_single_file`"),
        ("model.ckpt", "it is a pickle, .* `from_single_file` of its pipeline's class"),
        ("model_index.json", "is a file of a pipeline's folder: give the folder"),
        ("model.pt", "it is a pickle"),
        ("model.bin", "it is a pickle"),
        ("model.gguf", "is a single file, not a folder"),
    ],
)
def test_a_single_file_is_refused_with_what_to_do(tmp_path, name, message):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        registry.load(tmp_path / name)


@pytest.mark.parametrize("name", ["nowhere/model.safetensors", "nowhere/model.ckpt"])
def test_a_missing_file_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ValueError, match=f"there is no file '{name}'"):
        registry.load(name)


def test_random_weights_have_no_variant():
    with pytest.raises(ValueError, match="random weights have no variant 'fp16'"):
        registry.load("sd15", random_weights=True, weights_variant="fp16")


def test_the_shipped_model_has_no_variant():
    with pytest.raises(ValueError, match="it has: only weights without a variant"):
        registry.load("mini-sd", weights_variant="fp16")


@pytest.fixture
def cached(saved, tmp_path, monkeypatch):
    """A hub id of which the cache holds a folder."""

    def cache(**variants):
        repository = tmp_path / "hub" / "models--some--one"
        snapshot = repository / "snapshots" / ("0" * 40)
        shutil.copytree(saved(**variants), snapshot)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)

        path = str(tmp_path / "hub")
        load, find = DiffusionPipeline.from_pretrained, huggingface_hub.try_to_load_from_cache
        monkeypatch.setattr(
            DiffusionPipeline,
            "from_pretrained",
            lambda source, **options: load(
                source, cache_dir=path, local_files_only=True, **options
            ),
        )
        monkeypatch.setattr(
            opening, "try_to_load_from_cache", lambda *given: find(*given, cache_dir=path)
        )

    return cache


def test_a_hub_id_in_the_only_variant_is_opened_by_its_name(pipe, cached):
    cached(every=["fp16"])
    assert_same(opened("some/one", weights_variant="fp16"), pipe)


@pytest.mark.parametrize(
    ("variants", "options", "hint"),
    [
        ({"every": ["fp16"]}, {}, "variant fp16 alone: give weights_variant='fp16'"),
        ({"text_encoder": ["fp16"]}, {}, "variant fp16 alone: give weights_variant='fp16'"),
        (
            {"every": ["ema", "fp16"]},
            {},
            "without a variant: give weights_variant, one of: ema, fp16",
        ),
        (
            {"every": ["ema", None]},
            {"weights_variant": "fp16"},
            "it has no weights of variant 'fp16'; it has: ema",
        ),
    ],
)
def test_a_hub_id_whose_weights_are_in_other_variants_says_so(cached, variants, options, hint):
    cached(**variants)
    with pytest.raises(ValueError, match=f"model 'some/one' cannot be opened: .*{hint}") as refused:
        opened("some/one", **options)
    assert "\n" not in str(refused.value)


def test_the_files_that_the_loader_lists_give_the_hint(monkeypatch):
    names = {"unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"}

    def unfound(source, **options):
        raise OSError(f"Could not find the necessary `safetensors` weights in {names}")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", unfound)
    with pytest.raises(ValueError, match=r"give weights_variant='fp16' \(--weights-variant fp16\)"):
        opened("some/one")


def test_an_error_of_another_kind_stays_as_it_is(monkeypatch):
    def unfound(source, **options):
        raise OSError("the hub is not there")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", unfound)
    with pytest.raises(ValueError, match="cannot be opened: OSError: the hub is not there"):
        opened("some/one")
