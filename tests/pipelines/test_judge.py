"""A pipeline that works is told from one that is refused, fails, or is wrong in silence."""

from contextlib import contextmanager
from types import SimpleNamespace

import pandas as pd
import pytest

from sdbench import GuidanceSchedule
from tests import tiny
from tests.pipelines import toys
from tools.pipelines import judge
from tools.pipelines.outcomes import FAILS, REFUSED, SILENT, UNCLEAR, WORKS
from tools.pipelines.small import Small, generators


@pytest.fixture(scope="module")
def small():
    pipe = tiny.stable_diffusion()

    def call(images):
        own = {"generator": generators(images), "num_inference_steps": 4, "output_type": "latent"}
        return pipe.call | own | {"prompt": tiny.PROMPTS[:images]}

    another = {"prompt": "a blue square on a red background"}
    return Small(
        pipe=pipe,
        call=call,
        off=lambda images: {"guidance_scale": 1.0},
        another=lambda images: {"prompt": [another["prompt"]] * images},
    )


def test_a_pipeline_that_the_seam_takes_works(small):
    row = judge.judged(small, 2)
    assert row["outcome"] == WORKS, row
    assert (row["calls"], row["order"]) == (1, "unconditional first")
    assert set(row["checks"]) == {*judge.CHECKS, "restored"}
    assert row["off"] < judge.TOLERANCE


def seam(steps_of):
    """One that leaves the pipeline alone, and says what a function says of the steps."""

    @contextmanager
    def guided_by(pipe, rule):
        guided = [True] * 4 if rule is None else list(rule(4).mask)
        yield SimpleNamespace(steps=pd.DataFrame(steps_of(guided)))

    return guided_by


def of(guided):
    return {"guided": guided, "rows": [1 + flag for flag in guided]}


def test_a_step_that_costs_too_much_is_wrong(monkeypatch):
    monkeypatch.setattr(judge, "guided_by", seam(of))
    row = judge.judged(toys.small("one call"), 1)
    assert row["outcome"] == SILENT
    assert row["reason"].startswith("ends, none, last:50%: step 1 costs 1.00 of a guided one")
    assert row["checks"]["observed"] == row["checks"]["full"] == WORKS


def test_a_trace_of_other_steps_is_wrong(monkeypatch):
    monkeypatch.setattr(judge, "guided_by", seam(lambda guided: of([True] * 4)))
    row = judge.judged(toys.small("one call"), 1)
    assert "ends, none, last:50%: guides 1111, expected 1001" in row["reason"]


@pytest.mark.parametrize("keeps_cond", [True, False])
def test_the_wrong_half_is_seen(monkeypatch, keeps_cond):
    # A seam for the toy alone, which evaluates one call of two.
    @contextmanager
    def guided_by(pipe, rule):
        mask = iter([True] * 4 if rule is None else rule(4).mask)
        whole = pipe._apart

        def apart(latents, text, negative):
            if next(mask):
                return whole(latents, text, negative)
            one = pipe._first(pipe.net(latents, text if keeps_cond else negative))
            return one, one

        pipe._apart = apart
        yield SimpleNamespace(steps=pd.DataFrame(of([True] * 4 if rule is None else rule(4).mask)))
        del pipe._apart

    monkeypatch.setattr(judge, "guided_by", guided_by)
    row = judge.judged(toys.small("two calls"), 1)
    assert row["outcome"] == (WORKS if keeps_cond else SILENT), row
    assert keeps_cond or "differs from the oracle" in row["reason"]


def test_what_is_left_behind_is_seen(monkeypatch):
    @contextmanager
    def guided_by(pipe, rule):
        pipe.scheduler.left = True
        yield SimpleNamespace(steps=pd.DataFrame(of([True] * 4)))

    monkeypatch.setattr(judge, "guided_by", guided_by)
    row = judge.judged(toys.small("one call"), 1)
    assert row["checks"]["restored"] == SILENT


def test_a_refusal_before_the_first_evaluation_is_told_from_a_failure(small, monkeypatch):
    def elsewhere(steps):
        return GuidanceSchedule((True,) * steps, scheduler="Other")

    def broken(steps):
        raise RuntimeError("no rule")

    monkeypatch.setattr(judge, "MASKS", {"refused": elsewhere, "fails": broken})
    monkeypatch.setattr(judge, "CHECKS", judge.MASKS)
    row = judge.judged(small, 1)
    assert row["checks"] == {"refused": REFUSED, "fails": FAILS, "restored": WORKS}
    assert row["reason"] == "fails: RuntimeError: no rule"


def test_guidance_without_effect_is_not_judged(monkeypatch):
    monkeypatch.setattr(judge, "guided_by", seam(of))
    own = toys.small("one call")
    same = Small(
        own.pipe,
        lambda images: own.call(images) | {"negative": own.call(images)["text"]},
        own.off,
        own.another,
    )
    row = judge.judged(same, 1)
    assert row["outcome"] == UNCLEAR
    assert "guidance changes nothing" in row["reason"]
