import pytest

from sdbench.analysis.perception.settings import Settings, drawn, masked, numbers


def test_settings_come_back_from_their_word_and_name_no_variant():
    settings = Settings("abx", ("last:20%", "lora"), 20, 3, 1.5, 2)
    token = settings.token()
    assert "last" not in token
    assert Settings.of_token(token, source="x") == settings


@pytest.mark.parametrize("token", ["", "%", "AAAA", Settings(variants=("a",)).token()[:-8]])
def test_a_broken_word_is_refused(token):
    with pytest.raises(ValueError, match=r"a\.json: 'settings' are not those of a page"):
        Settings.of_token(token, source="a.json")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": "yes"}, "unknown mode 'yes'"),
        ({"variants": ()}, "name one variant"),
        ({"variants": ("a", "a")}, "different ones"),
        ({"trials": 0}, "one for each variant"),
        ({"seed": -1}, "expected 0 to"),
        ({"limit_s": 0.0}, "expected 0.1 to 600"),
        ({"scale": 0}, "expected 1 to 32"),
    ],
)
def test_a_value_that_no_page_can_have_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Settings(**{"variants": ("a",)} | fields)


def test_numbers_are_those_of_mulberry32():
    """As the same lines give them in JavaScript."""
    assert numbers(1, 3).tolist() == [2693262067, 11749833, 2265367787]


def test_a_mask_comes_off():
    assert masked(masked(b"content", 5), 5) == b"content"
    assert masked(b"content", 5) != masked(b"content", 6)


def test_what_is_drawn_depends_on_all_parts():
    assert len({drawn(0, "a", 1), drawn(1, "a", 1), drawn(0, "b", 1), drawn(0, "a", 2)}) == 4
