from sdbench.variants.grammar import VARIANTS
from tests.cli.commands import invoke


def test_the_grammar_is_listed():
    printed = invoke("variants").output
    assert all(text in printed for text in ("last:20%", "random:50%@0..7", "2305.09847"))


def test_no_way_of_writing_a_variant_is_cut():
    written = {text for kind in VARIANTS.values() for text in kind.grammar.split("|")}
    assert written <= set(invoke("variants").output.split())
