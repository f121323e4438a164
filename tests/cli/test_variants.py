from tests.cli.commands import invoke


def test_the_grammar_is_listed():
    printed = invoke("variants").output
    assert all(text in printed for text in ("last:20%", "random:50%@0..7", "2305.09847"))
