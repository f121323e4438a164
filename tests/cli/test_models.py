from tests.cli.commands import invoke


def test_the_models_are_listed():
    assert "mini-sd" in invoke("models").output
