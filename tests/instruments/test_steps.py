import sys
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

from sdbench.instruments.clock import CpuClock
from sdbench.instruments.memory import AllocatorTrace
from sdbench.instruments.steps import MemoryProbe, StepProbe
from sdbench.models.pipeline import denoiser_of
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Step
from tests import tiny
from tests.tiny import run

# diffusers' Euler and Heun schedulers pass tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class FakeClock:
    """Each mark is the next of the given seconds; without any, marks are one second apart."""

    def __init__(self, readings=None):
        self.readings, self.finished = iter(readings if readings is not None else count()), 0

    def mark(self):
        return float(next(self.readings))

    def finish(self):
        self.finished += 1

    def seconds(self, start, end):
        return end - start


def play(probe, guided=(True,), call=0):
    """The events of a loop whose guided steps evaluate the denoiser twice, without a pipeline."""
    probe.loop_begins(call, len(guided), images=3)
    for index, both in enumerate(guided):
        step = Step(call, index, timestep=torch.tensor(9), sigma=torch.tensor(0.5))
        for _ in range(1 + both):
            probe.denoiser_begins(step, 3)
            step.rows, step.forwards = step.rows + 3, step.forwards + 1
            probe.denoiser_ends(step)
        if both:
            step.cond, step.uncond, step.sample = torch.ones(3, 3, 4, 8, 8)
            step.guided = True
        probe.scheduler_begins(step)
        probe.scheduler_ends(step)
        probe.step_ends(step)


def column(record, name):
    return [row[name] for row in record.steps]


def probed(pipe, schedule=None, clock=None):
    """One call under a probe."""
    probe = StepProbe(pipe.scheduler, clock or FakeClock())
    with guided_by(pipe, schedule, listeners=[probe]), probe.call() as record:
        run(pipe)
    return record


def test_every_stage_is_the_difference_of_its_marks():
    first = [104, 110, 111, 118, 120, 121.5]  # two evaluations, the scheduler
    second = [131, 135, 136, 138]  # one evaluation, the scheduler
    clock = FakeClock(
        [100, 103, *first, 130, *second, 150, 157]
    )  # 103, 130 and 150 begin steps and what follows them
    probe = StepProbe(tiny.scheduler(), clock)
    with probe.call() as record:
        play(probe, guided=[True, False])
    assert (record.text_s, record.denoise_s, record.decode_s) == (3, 18.5 + 8, 7)
    assert column(record, "latency_s") == [18.5, 8]
    assert column(record, "denoiser_s") == [6 + 7, 4]
    assert column(record, "scheduler_s") == [1.5, 2]
    assert clock.finished == 1


def test_a_record_counts_rows_forwards_and_images():
    probe = StepProbe(tiny.scheduler(), FakeClock())
    with probe.call() as record:
        play(probe, guided=[True, False, False])
    assert (record.images, record.rows, record.forwards) == (3, 12, 4)
    assert column(record, "rows") == [6, 3, 3]
    assert column(record, "timestep") == [9.0] * 3
    assert column(record, "sigma") == [0.5] * 3


def test_a_row_has_the_columns_of_the_steps_table():
    from sdbench.records.schema import columns

    (row, *_) = probed(tiny.stable_diffusion()).steps
    added_by_the_runner = {"unit", "variant", "repeat", "phase", "peak_bytes", "energy_j"}
    assert set(row) | added_by_the_runner == set(columns("steps"))


def test_three_calls_of_five_steps_give_fifteen_rows_and_no_gaps():
    pipe, clock = tiny.stable_diffusion(), FakeClock()
    probe, records = StepProbe(pipe.scheduler, clock), []
    with guided_by(pipe, GuidanceSchedule.last(5, 2), listeners=[probe]):
        for _ in range(3):
            with probe.call() as record:
                run(pipe, num_inference_steps=5)
            records.append(record)
            for _ in range(1000):
                clock.mark()  # time passes between calls
    assert [column(record, "step") for record in records] == [[0, 1, 2, 3, 4]] * 3
    # Begin, evaluation, its end, scheduler, its end: four ticks; one more for the signal, and one
    # each around the loop.
    assert [column(record, "latency_s") for record in records] == [[4.0] * 5] * 3
    assert [(record.text_s, record.decode_s, record.latency_s) for record in records] == [
        (1, 1, 22)
    ] * 3
    assert records[0].steps == records[1].steps == records[2].steps


@pytest.mark.parametrize(
    "make", [tiny.stable_diffusion, tiny.flux, lambda: tiny.stable_diffusion(HeunDiscreteScheduler)]
)
def test_stages_add_up(make):
    # Mark k reads 2^k seconds, so no two differences are alike.
    record = probed(
        tiny.taught(make()), GuidanceSchedule.none, FakeClock(2.0**power for power in range(60))
    )
    assert sum(column(record, "latency_s")) == record.denoise_s
    assert record.text_s + record.denoise_s + record.decode_s == record.latency_s
    assert all(row["denoiser_s"] + row["scheduler_s"] < row["latency_s"] for row in record.steps)
    # A step is five marks: it begins, and evaluation and scheduler begin and end.
    ends = [5 + 5 * step for step in range(len(record.steps))]
    own_work = sum(2.0 ** (end + 1) - 2.0**end for end in ends)  # the signal, between two steps
    assert record.latency_s == 2.0 ** (ends[-1] + 2) - 2.0**0 - own_work


def test_a_failed_call_leaves_an_empty_record_and_the_next_is_right():
    pipe = tiny.stable_diffusion()
    probe = StepProbe(pipe.scheduler, FakeClock())

    def fail(pipe, step, timestep, tensors):
        if step == 1:
            raise ArithmeticError
        return tensors

    with guided_by(pipe, GuidanceSchedule.full, listeners=[probe]):
        with pytest.raises(ArithmeticError), probe.call() as failed:
            run(pipe, callback_on_step_end=fail)
        with probe.call() as good:
            run(pipe)
    assert failed.steps == []
    assert (failed.latency_s, failed.rows) == (0, 0)
    expected = probed(pipe)
    assert good == expected


def test_a_schedule_with_two_evaluations_a_step_has_a_row_for_each():
    pipe = tiny.stable_diffusion(HeunDiscreteScheduler)
    record = probed(pipe, GuidanceSchedule.full)
    assert column(record, "step") == list(range(7))
    assert (record.rows, record.forwards) == (28, 7)
    assert column(record, "sigma") == pipe.scheduler.sigmas[:-1].tolist()


def test_two_calls_of_the_denoiser_in_a_step_are_both_its_time():
    record = probed(tiny.flux(), GuidanceSchedule.last(4, 2))
    assert column(record, "denoiser_s") == [2, 2, 1, 1]
    assert column(record, "latency_s") == [6, 6, 4, 4]
    assert (record.rows, record.forwards) == (12, 6)


@pytest.mark.parametrize("calls", [0, 2])
def test_a_record_is_of_exactly_one_call(calls):
    pipe = tiny.stable_diffusion()
    probe = StepProbe(pipe.scheduler, FakeClock())
    wrong = pytest.raises(RuntimeError, match=f"but {calls} denoising loops ran")
    with guided_by(pipe, None, listeners=[probe]), wrong, probe.call():
        _ = [run(pipe) for _ in range(calls)]


@contextmanager
def captured(pipe):
    """What the denoiser got and gave at every step, without sdbench: (sample, uncond, cond)."""
    seen = []

    def hook(module, args, kwargs, output):
        sample = args[0] if args else kwargs["hidden_states"]
        seen.append((sample, output[0]))

    handle = denoiser_of(pipe).register_forward_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def halves(seen):
    return [(sample.chunk(2)[0], *output.chunk(2)) for sample, output in seen]


def cosine_and_norm(one, other, uncond, cond):
    """Means over images, in float64 and numpy."""
    flat = [np.asarray(x.double()).reshape(len(x), -1) for x in (one, other, cond - uncond)]
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(*flat[:2], strict=True)]
    return np.mean(cosines), np.mean(np.sqrt((flat[2] ** 2).sum(axis=1)))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_signal_is_the_cosine_of_clean_latents_and_the_norm_of_the_difference(kind):
    pipe = tiny.stable_diffusion(prediction_type=kind)
    with captured(pipe) as seen:
        record = probed(pipe, GuidanceSchedule.full)
    for row, (sample, uncond, cond) in zip(record.steps, halves(seen), strict=True):
        kept = pipe.scheduler.alphas_cumprod[int(row["timestep"])].double()
        if kind == "epsilon":
            clean = [(sample - (1 - kept).sqrt() * said) / kept.sqrt() for said in (uncond, cond)]
        else:
            clean = [kept.sqrt() * sample - (1 - kept).sqrt() * said for said in (uncond, cond)]
        cosine, norm = cosine_and_norm(*clean, uncond, cond)
        assert row["guidance_cosine"] == pytest.approx(cosine, abs=1e-5)
        assert row["guidance_norm"] == pytest.approx(norm, rel=1e-5)
    _, uncond, cond = halves(seen)[0]
    raw, _ = cosine_and_norm(uncond, cond, uncond, cond)
    assert (
        abs(raw - record.steps[0]["guidance_cosine"]) > 1e-4
    )  # so the space that it is taken in shows


def test_the_signal_of_a_variance_exploding_scheduler():
    pipe = tiny.stable_diffusion(EulerDiscreteScheduler)
    with captured(pipe) as seen:
        record = probed(pipe, GuidanceSchedule.full)
    for row, (scaled, uncond, cond) in zip(record.steps, halves(seen), strict=True):
        sigma = row["sigma"]
        sample = scaled.double() * (1 + sigma**2) ** 0.5  # what `scale_model_input` divided by
        cosine, norm = cosine_and_norm(sample - sigma * uncond, sample - sigma * cond, uncond, cond)
        assert row["guidance_cosine"] == pytest.approx(cosine, abs=1e-5)
        assert row["guidance_norm"] == pytest.approx(norm, rel=1e-5)


def test_the_signal_of_two_calls_and_flow_matching_is_finite_from_the_first_step():
    pipe = tiny.flux()
    with captured(pipe) as seen:
        record = probed(pipe, GuidanceSchedule.full)
    pairs = zip(seen[::2], seen[1::2], strict=True)
    for row, ((sample, cond), (_, uncond)) in zip(record.steps, pairs, strict=True):
        share = row["timestep"] / 1000
        cosine, norm = cosine_and_norm(sample - share * uncond, sample - share * cond, uncond, cond)
        assert row["guidance_cosine"] == pytest.approx(cosine, abs=1e-5)
        assert row["guidance_norm"] == pytest.approx(norm, rel=1e-5)


def test_learned_variances_are_no_part_of_the_signal():
    from sdbench.instruments.steps import guidance_signal

    scheduler, generator = tiny.scheduler(), torch.Generator().manual_seed(0)
    sample, cond, uncond = torch.randn(3, 2, 4, 8, 8, generator=generator)
    variances = torch.randn(2, 2, 4, 8, 8, generator=generator)
    step = Step(0, 0, cond=cond, uncond=uncond, sample=sample, sigma=torch.tensor(2.0))
    expected = guidance_signal(scheduler, step)
    step.cond, step.uncond = (
        torch.cat([cond, variances[0]], dim=1),
        torch.cat([uncond, variances[1]], dim=1),
    )
    torch.testing.assert_close(guidance_signal(scheduler, step), expected)


def test_unguided_steps_have_no_signal():
    record = probed(tiny.stable_diffusion(), GuidanceSchedule.from_mask([True, False, False, True]))
    for name in ("guidance_cosine", "guidance_norm"):
        assert [value is None for value in column(record, name)] == [False, True, True, False]
        assert all(type(value) is float for value in column(record, name) if value is not None)


def test_the_probe_changes_nothing():
    pipe = tiny.stable_diffusion()
    plain = run(pipe)
    probe = StepProbe(pipe.scheduler, CpuClock())
    with guided_by(pipe, None, listeners=[probe]), probe.call():
        assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("make", [tiny.stable_diffusion, tiny.flux])
def test_no_value_is_read_from_the_device_inside_the_loop(make, monkeypatch):
    pipe, readers = tiny.taught(make()), []

    def watch(name):
        original = getattr(torch.Tensor, name)

        def watched(self, *args, **kwargs):
            caller = sys._getframe(1).f_globals["__name__"]
            if caller.startswith("sdbench"):
                readers.append((name, caller))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, watched)

    probe = StepProbe(pipe.scheduler, CpuClock())
    with guided_by(pipe, GuidanceSchedule.last(4, 2), listeners=[probe]) as trace:
        with probe.call():
            for name in (
                "item",
                "tolist",
                "numpy",
                "cpu",
                "__float__",
                "__int__",
                "__bool__",
                "__index__",
                "__array__",
            ):
                watch(name)
            run(pipe)
            assert readers == []
        assert {name for name, _ in readers} == {
            "__float__"
        }  # read after the call, so the watch works
        assert len(trace.steps) == 4


def test_the_memory_probe_closes_an_interval_per_step():
    with AllocatorTrace() as trace:
        probe = MemoryProbe(trace)
        before = torch.empty(1 << 20, dtype=torch.uint8)
        probe.loop_begins(0, 2, 1)
        for index in range(2):
            held = torch.empty((index + 2) << 20, dtype=torch.uint8)
            del held
            probe.step_ends(Step(0, index))
    assert [(peak.label, peak.peak_bytes >> 20) for peak in trace.peaks] == [
        ("text", 1),
        ("0", 3),
        ("1", 4),
    ]
    assert before.nbytes == trace.live_bytes


@pytest.mark.parametrize("last", [0, 2])
def test_a_loop_that_ended_early_gives_no_record(last):
    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = step >= last
        return tensors

    pipe = tiny.stable_diffusion()
    probe = StepProbe(pipe.scheduler, FakeClock())
    ended = pytest.raises(RuntimeError, match=f"the loop ended after {last + 1} of 4 steps")
    with guided_by(pipe, None, listeners=[probe]):
        with ended, probe.call() as record:
            run(pipe, callback_on_step_end=interrupt)
        assert record.steps == []
        with probe.call() as record:
            run(pipe)
    assert column(record, "step") == [0, 1, 2, 3]
