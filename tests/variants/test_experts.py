import pytest

from sdbench.variants.grammar import parse
from sdbench.variants.guidance import guided_by
from sdbench.variants.trace import Unsupported
from tests import families
from tests.tiny import run


def guided_under(pipe, text):
    variant = parse(text)
    decides = variant.policy(4.0) if variant.policy else variant.rule
    with guided_by(pipe, decides) as trace:
        run(pipe)
    return trace.steps.guided.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("last:50%@high", [True, False, True, True]),
        ("last:50%@low", [True, True, True, False]),
        ("first:1@low", [True, True, False, True]),
        ("last:100%@high", [False, False, True, True]),
        ("last:50%", [True, True, False, False]),
    ],
)
def test_a_mask_is_of_the_denoiser_that_is_named_or_else_of_the_loop(text, expected):
    pipe = families.make("wan-2.2")  # the first denoiser takes two of its four steps
    assert guided_under(pipe, text) == expected


def test_where_one_denoiser_takes_all_steps_there_is_none_to_name():
    with pytest.raises(Unsupported, match="one denoiser takes all steps"):
        guided_under(families.make("wan"), "last:50%@high")


def test_another_name_is_no_denoiser():
    with pytest.raises(ValueError, match="'50%@middle' is neither a number of steps"):
        parse("last:50%@middle")
