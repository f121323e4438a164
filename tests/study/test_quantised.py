"""A study of quantised layers, whose operations have no FLOP formula: it runs without a count."""

import dataclasses

import pytest
import torch
from torch import nn

import sdbench
from sdbench.analysis.calls import uncounted
from sdbench.analysis.frontier import frontier
from sdbench.analysis.predicted import guidance_ratio
from sdbench.analysis.regression import compare
from sdbench.records.schema import columns
from sdbench.report.page import page
from sdbench.study import runner
from sdbench.study.estimate import estimate
from sdbench.study.study import Study
from tests import tiny

# torch's own quantisation is about to move to torchao, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

STUDY = Study(
    model="tiny",
    variants=["cfg", "last:50%"],
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    repeats=2,
    metrics=("psnr",),
)


class IntegerLinear(nn.Module):
    """A layer of one's own around torch's product of integers."""

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (layer.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.T)

    def forward(self, x, *_):
        rows = x.flatten(0, -2)
        step = rows.abs().amax() / 127
        product = torch._int_mm((rows / step).round().to(torch.int8), self.weight.T.contiguous())
        return (product * step * self.scale).unflatten(0, x.shape[:-1])


@torch.library.custom_op("sdbench_test::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x.double() @ weight.double().T).float()


class OwnOperation(nn.Module):
    """A layer around an operation that nobody gave a formula."""

    def __init__(self, layer):
        super().__init__()
        self.weight = layer.weight

    def forward(self, x, *_):
        return product(x, self.weight)


def replaced_by(kind):
    """A pipeline with layers of another kind in its attention."""

    def make():
        pipe = tiny.stable_diffusion()
        for module in list(pipe.unet.modules()):
            for name in ("to_q", "to_k", "to_v"):
                if hasattr(module, name):
                    setattr(module, name, kind(getattr(module, name)))
        return pipe

    return make


def dynamically_quantised():
    pipe = tiny.stable_diffusion()
    torch.ao.quantization.quantize_dynamic(pipe.unet, {nn.Linear}, inplace=True)
    return pipe


PIPELINES = {
    "quantized.linear_dynamic": dynamically_quantised,
    "sdbench_test.product": replaced_by(OwnOperation),
}


@pytest.fixture(scope="module", params=PIPELINES)
def ran(request, tmp_path_factory):
    """The operation without a formula, and the results."""
    pipe = PIPELINES[request.param]()
    return request.param, runner.run(STUDY, tmp_path_factory.mktemp("study"), pipe=pipe)


def test_no_call_has_a_count(ran):
    _, results = ran
    assert (results.runs["status"] == "ok").all()
    assert results.runs["flop"].isna().all()
    assert results.runs["rows"].notna().all()


def test_the_results_say_which_operation_has_no_formula(ran):
    operation, results = ran
    (reason,) = uncounted(results)
    assert f"no FLOP formula for {operation}" in reason
    assert reason in page(results).replace("&#39;", "'")


def test_the_tables_do_without(ran):
    _, results = ran
    summary = sdbench.summarise(results)
    assert summary["ideal_saving"].notna().all()
    assert guidance_ratio(results).estimate > 0
    assert len(frontier(results, "psnr", higher_is_better=True)) > 0
    table = compare(results, results)
    assert not (table["verdict"] == "missing").any()
    assert "flop" not in set(table["figure"])


def test_a_stored_study_is_resumed(ran):
    operation, results = ran
    pipe = PIPELINES[operation]()
    again = runner.run(STUDY, results.folder, pipe=pipe, mode="resume")
    assert len(again.runs) == len(results.runs)


def test_products_of_whole_numbers_count_as_products(tmp_path):
    """The work is that of the same shapes in float32."""
    counted = [
        runner.run(dataclasses.replace(STUDY, repeats=1), tmp_path / name, pipe=pipe).runs["flop"]
        for name, pipe in (
            ("plain", tiny.stable_diffusion()),
            ("int8", replaced_by(IntegerLinear)()),
        )
    ]
    assert counted[0].tolist() == counted[1].tolist()


def test_the_estimate_says_so():
    expected = estimate(STUDY, pipe=dynamically_quantised())
    assert "no FLOP formula for quantized.linear_dynamic" in expected.uncounted
    assert estimate(STUDY, pipe=tiny.stable_diffusion()).uncounted == ""


def test_the_columns_meaning_says_when_there_is_no_count():
    assert "missing where an operation has no formula" in columns("runs")["flop"].meaning


def test_what_is_counted_says_nothing(tmp_path):
    study = dataclasses.replace(STUDY, repeats=1)
    results = runner.run(study, tmp_path / "study", pipe=tiny.stable_diffusion())
    assert uncounted(results) == []
    assert results.runs["flop"].notna().all()


def test_an_accelerator_is_named_where_nothing_is_counted(tmp_path):
    study = dataclasses.replace(STUDY, variants=["cfg", "deepcache:2"], repeats=1)
    pipe = PIPELINES["sdbench_test.product"]()
    runs = runner.run(study, tmp_path / "study", pipe=pipe).runs
    assert (runs["status"] == "ok").all()
    assert runs["flop"].isna().all()
    named = runs.drop_duplicates("variant").set_index("variant")["accelerated"]
    assert named.to_dict() == {"cfg": False, "deepcache:2": True}
