from functools import cache

import pytest
import torch

from sdbench.distill.ledger import INFERENCE, TRAINING, ledger
from sdbench.instruments.denoiser_arguments import arguments
from sdbench.instruments.memory import AllocatorTrace, parts_held
from tests import tiny

MIB = 1 << 20


def call(denoiser):
    return arguments(
        denoiser, rows=4, height=32, width=32, dtype=torch.float32, vae_factor=2, tokens=3
    )


@cache
def measured(method, **changes):
    """The parts of one method by name; the same parts for every test that asks for them."""
    settings = {"rank": 2, "targets": ("attention",)} | changes
    (rows,) = ledger(tiny.unet, call, methods=(method,), **settings)
    return {row["part"]: row for row in rows}


def found(*methods, **changes):
    return [measured(method, **changes) for method in methods]


def peak(parts):
    return sum(row["at_peak_bytes"] for row in parts.values())


def test_parts_are_told_by_when_memory_was_taken_and_given_back():
    with AllocatorTrace() as trace:
        kept = torch.empty(3 * MIB, dtype=torch.uint8)
        trace.mark("first")
        passing = torch.empty(2 * MIB, dtype=torch.uint8)
        del passing
        trace.mark("second")
        late = torch.empty(MIB, dtype=torch.uint8)
        trace.mark("third")
        del late
        trace.mark("fourth")
    at_peak, most = parts_held(trace.events, trace.labels, lambda taken, back: f"{taken} to {back}")
    assert {name: size for name, size in at_peak.items() if size} == {
        "first to None": 3 * MIB,
        "second to second": 2 * MIB,
    }
    assert most == {"first to None": 3 * MIB, "second to second": 2 * MIB, "third to fourth": MIB}
    assert kept.nbytes == 3 * MIB


@pytest.mark.parametrize("method", TRAINING)
def test_persistent_parts_are_what_arithmetic_says(method):
    (parts,) = found(method)
    for name in ("weights", "teacher copy", "adapter", "gradients", "optimiser state"):
        if name in parts:
            assert parts[name]["most_bytes"] == pytest.approx(
                parts[name]["predicted_bytes"], rel=0.05
            ), name
    assert ("teacher copy" in parts) == (method == "distillation, full")
    assert ("adapter" in parts) == method.endswith("LoRA")


def test_the_parts_sum_to_the_peak_of_the_trace(monkeypatch):
    traces = []
    real = AllocatorTrace.__exit__
    monkeypatch.setattr(
        AllocatorTrace, "__exit__", lambda self, *exc: (real(self, *exc), traces.append(self))[0]
    )
    parts = measured.__wrapped__("distillation, full")
    assert peak(parts) == traces[0].peak_bytes


def test_lora_holds_less_than_full_training_and_no_second_copy():
    full, lora = found("distillation, full", "distillation, LoRA")
    assert peak(lora) < peak(full)
    assert full["teacher copy"]["most_bytes"] == full["weights"]["most_bytes"]
    assert "teacher copy" not in lora


def test_activations_are_those_that_were_counted():
    (parts,) = found("fine-tuning, full")
    assert parts["activations"]["most_bytes"] == pytest.approx(
        parts["activations"]["predicted_bytes"], rel=0.1
    )


def test_gradient_checkpointing_holds_fewer_activations():
    (plain,), (less,) = (
        found("distillation, LoRA"),
        found("distillation, LoRA", checkpoint_gradients=True),
    )
    assert less["activations"]["most_bytes"] < plain["activations"]["most_bytes"]


def test_a_fused_student_holds_half_the_activations_of_a_guided_step():
    guided, fused, loose = found(*INFERENCE)
    assert fused["activations"]["most_bytes"] < 0.6 * guided["activations"]["most_bytes"]
    assert "adapter" not in fused
    assert loose["adapter"]["most_bytes"] == pytest.approx(
        loose["adapter"]["predicted_bytes"], rel=0.05
    )


def test_a_teacher_of_few_steps_takes_no_more_than_its_low_rank_layers():
    """And its pass less than the guided teacher's, which has twice the rows."""
    first, second = found("distillation, LoRA", "few steps, LoRA")
    assert second["adapter"]["at_peak_bytes"] == 2 * first["adapter"]["at_peak_bytes"]
    for name in ("weights", "gradients", "optimiser state"):
        assert second[name]["at_peak_bytes"] == first[name]["at_peak_bytes"]
    assert second["teacher's pass"]["most_bytes"] < first["teacher's pass"]["most_bytes"]
