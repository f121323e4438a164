"""The oracle finds the halves of every form of guidance, and makes what a mask should."""

import pytest
import torch

from tests.pipelines import toys
from tools.pipelines.compare import distance
from tools.pipelines.halves import Apart, Together, UnclearError, halves_of
from tools.pipelines.oracle import reference
from tools.pipelines.record import run

MASK = [True, False, False, True]


def of(small, call, images):
    other = call | small.another(images)
    return halves_of(run(small.pipe, call), lambda change: run(small.pipe, other, change))


def halves(small, images=1):
    return of(small, small.call(images), images)


def masked(small, images, found):
    unguided = [step for step, guided in enumerate(MASK) if not guided]
    return reference(small.pipe, lambda: small.call(images), found, unguided)


@pytest.mark.parametrize("cond_first", [True, False])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("form", toys.FORMS)
def test_a_call_on_a_mask_is_what_the_formula_says(form, images, cond_first):
    small = toys.small(form, cond_first=cond_first)
    found = masked(small, images, halves(small, images))
    expected = run(small.pipe, small.call(images) | {"mask": MASK})
    assert distance(found, expected) < 1e-6


@pytest.mark.parametrize("cond_first", [True, False])
@pytest.mark.parametrize("form", toys.FORMS)
def test_the_order_is_found_for_any_number_of_images(form, cond_first):
    small = toys.small(form, cond_first=cond_first)
    orders = {one.order for images in (1, 2) for one in halves(small, images)}
    assert orders == {"conditional first" if cond_first else "unconditional first"}


def test_one_call_is_told_from_two():
    kinds = {form: type(halves(toys.small(form))[0]) for form in toys.FORMS}
    assert kinds == dict(zip(toys.FORMS, [Together] * 2 + [Apart] * 3, strict=True))


def test_a_call_without_guidance_has_no_halves():
    small = toys.small("one call")
    call = small.call(1) | small.off(1)
    with pytest.raises(UnclearError, match="no network answers with two"):
        of(small, call, 1)


def test_overwriting_is_seen_in_the_latents():
    small = toys.small("one call")
    assert distance(masked(small, 1, halves(small)), run(small.pipe, small.call(1))) > 1e-2


def test_a_step_is_what_runs_until_the_scheduler_has_stepped():
    small = toys.small("two calls")
    record = run(small.pipe, small.call(2))
    assert [len(step.calls) for step in record.taken] == [2, 2, 2, 2]
    assert record.loops == [4]
    # One layer of `WIDTH` values for each of two images, in two calls.
    assert [sum(call.work for call in step.calls) for step in record.taken] == [
        2 * 2 * toys.WIDTH
    ] * 4


def test_a_second_loop_begins_with_its_timesteps():
    small = toys.small("one call")

    class Twice(toys.Toy):
        def __call__(self, **call):
            super().__call__(**call)
            return super().__call__(**call, steps=3)

    record = run(Twice("one call"), small.call(1))
    assert record.loops == [4, 3]


def test_nothing_is_left_on_what_was_watched():
    small = toys.small("two networks")
    before = toys.Scheduler.step
    run(small.pipe, small.call(1))
    assert toys.Scheduler.step is before
    assert "forward" not in vars(small.pipe.net)
    assert not small.pipe.net.layer._forward_hooks


def test_a_copy_of_the_scheduler_is_watched():
    class Copying(toys.Toy):
        def __call__(self, **call):
            self.scheduler = type(self.scheduler)()
            return super().__call__(**call)

    record = run(Copying("one call"), toys.small("one call").call(1))
    assert torch.equal(record.output.latents, record.taken[-1].results[-1])
