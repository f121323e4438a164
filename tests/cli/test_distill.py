import pytest

from sdbench.distill import trainer
from sdbench.distill.settings import Settings
from sdbench.models import registry
from tests.cli.commands import invoke, words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--w", "1"], "a guidance scale of 1 is no guidance to learn"),
        (["--w-range", "8", "2"], "goes up from 1 or more, not from 8 to 2"),
        (["--rank", "0"], "rank must be at least 1, not 0"),
        (["--model", "some/one"], "the guidance scale of 'some/one' is not known here"),
        (["--model", "some/one", "--w", "7.5"], "a student needs --held-out-file"),
        (["--images", "folder"], "--images is for --data images"),
        (["--resume", "--overwrite"], "not both"),
        (["--stage", "third"], "unknown stage 'third'; there are: guidance, steps"),
        (["--stage", "steps"], "stage 'steps' needs a student to start from"),
        (["--from", "lora"], "only the stage 'steps' starts from a student"),
        (["--stage", "steps", "--from", "nowhere"], "there is no file or folder 'nowhere'"),
        (["--stage", "steps", "--from", "lora", "--w", "3"], "a guidance scale of 5, not 3"),
        (["--stage", "steps", "--from", "lora", "--rank", "4"], "--rank is for new layers"),
    ],
)
def test_what_cannot_be_distilled_is_one_line_and_nothing_is_written(tmp_path, arguments, message):
    done = invoke("distill", "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in words(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float16", "--precision", "bf16"], "its precisions are: no, fp16"),
        (["--dtype", "bfloat16", "--precision", "fp16"], "its precisions are: no, bf16"),
        (["--precision", "fp16", "--device", "cpu"], "'fp16' does not train on a CPU; 'bf16' does"),
        (["--dtype", "bfloat16", "--method", "full"], "trains in float32 only"),
        (["--dtype", "float16", "--w-range", "2", "8"], "trains in float32 only"),
    ],
)
def test_what_does_not_train_is_refused_before_the_model_is_opened(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(registry, "load", lambda *given, **options: pytest.fail("opened"))
    done = invoke("distill", "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in words(done)
    assert not (tmp_path / "out").exists()


def test_the_teacher_is_opened_in_the_variant_that_is_asked_for(tmp_path):
    done = invoke("distill", "--out", tmp_path / "out", "--weights-variant", "fp16")
    assert done.exit_code == 2
    assert "has no weights of variant 'fp16'" in words(done)


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "distill", interrupted)
    done = invoke("distill", "--out", tmp_path / "out")
    assert done.exit_code == 130
    assert f"continue with --resume --out {tmp_path / 'out'}" in words(done)


def test_options_become_settings_and_sources(tmp_path, monkeypatch):
    def taught(pipe, settings, out, **sources):
        seen.append((settings, sources))
        return out / "student"

    seen = []
    monkeypatch.setattr(trainer, "distill", taught)
    options = ["--w-range", "1", "10", "--rank", "4", "--targets", "attention, timestep"]
    done = invoke("distill", "--out", tmp_path, *options, "--overwrite")
    assert done.exit_code == 0, done.output
    assert f"cfg,lora:{tmp_path / 'student'}" in done.output.replace("\n", "")

    settings, sources = seen[0]
    assert settings == Settings(
        guidance_scale=5.0,
        w_range=(1.0, 10.0),
        rank=4,
        alpha=4,
        targets=("attention", "timestep"),
    )
    assert (sources["mode"], len(sources["held_out"])) == ("overwrite", 16)
