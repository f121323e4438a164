from tests.cli.commands import invoke


def test_the_machine_is_named():
    printed = invoke("env").output
    assert all(text in printed for text in ("python", "torch", "cores"))
