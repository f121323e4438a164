import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from sdbench.distill.loss import distillation_loss, guided_prediction, min_snr_weights

SIGMA = torch.tensor([0.1, 0.5, 2.0, 30.0])


def test_the_target_is_beyond_the_conditional_prediction():
    cond, uncond = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    assert guided_prediction(cond, uncond, 7.5).item() == 16.0
    assert guided_prediction(cond, uncond, 1.0).item() == 3.0


def test_rows_count_the_same_without_weights():
    student, target = (
        torch.zeros(2, 3, 4),
        torch.stack([torch.full((3, 4), 1.0), torch.full((3, 4), 3.0)]),
    )
    assert distillation_loss(student, target).item() == 5.0
    assert distillation_loss(student, target, torch.tensor([1.0, 0.0])).item() == 0.5


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(prediction_type="epsilon"),
        DDIMScheduler(prediction_type="v_prediction"),
        DDIMScheduler(prediction_type="sample"),
        FlowMatchEulerDiscreteScheduler(),
    ],
    ids=["epsilon", "v", "sample", "flow"],
)
def test_an_error_of_the_clean_latent_counts_by_its_limited_signal_to_noise_ratio(scheduler):
    kind = scheduler.config.get("prediction_type", "flow")
    signal, noise = (1 + SIGMA**2).rsqrt(), (1 + SIGMA**-2).rsqrt()
    # How far a prediction must be off for the clean latent to be off by 1.
    slopes = {
        "epsilon": 1 / SIGMA,
        "v_prediction": 1 / noise,
        "sample": torch.ones(4),
        "flow": (1 + SIGMA) / SIGMA,
    }
    assert torch.allclose(signal**2 + noise**2, torch.ones(4))
    weights = min_snr_weights(scheduler, SIGMA, 5.0)
    assert torch.allclose(weights * slopes[kind] ** 2, torch.tensor([5.0, 4.0, 0.25, 1 / 900]))
