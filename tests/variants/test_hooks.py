import itertools
import threading

import pytest
import torch

from sdbench.variants.hooks import call_replaced, replaced, wrapped


class Counter:
    """Something with a method and an attribute."""

    def count(self, number, *, by=1):
        return [number]


def adding(name):
    """Wraps a method so that its answer tells who was asked on the way down."""
    return lambda original: lambda *args, **kwargs: [*original(*args, **kwargs), name]


ORDERS = list(itertools.permutations("abc"))
every_order = pytest.mark.parametrize("order", ORDERS, ids="".join)


@every_order
def test_wrappers_of_a_method_are_taken_off_in_any_order(order):
    owner = Counter()
    blocks = {name: wrapped(owner, "count", adding(name)) for name in "abc"}
    for block in blocks.values():
        block.__enter__()
    left = list("abc")
    for name in order:
        assert owner.count(1) == [1, *left]
        blocks[name].__exit__(None, None, None)
        left.remove(name)
    assert owner.count(1) == [1]
    assert vars(owner) == {}


@every_order
def test_wrappers_of_a_modules_call_are_taken_off_in_any_order(order):
    module = torch.nn.Identity()
    before = dict(vars(module))
    blocks = {name: call_replaced(module, adding(name)) for name in "abc"}
    for block in blocks.values():
        block.__enter__()
    left = list("abc")
    for name in order:
        assert module([1]) == [1, *left]
        blocks[name].__exit__(None, None, None)
        left.remove(name)
    assert vars(module) == before


@every_order
def test_values_are_taken_off_in_any_order(order):
    owner = Counter()
    owner.place = "own"
    blocks = {name: replaced(owner, "place", name) for name in "abc"}
    for block in blocks.values():
        block.__enter__()
    left = ["own", *"abc"]
    for name in order:
        assert owner.place == left[-1]
        blocks[name].__exit__(None, None, None)
        left.remove(name)
    assert vars(owner) == {"place": "own"}


def test_a_method_of_the_instances_own_comes_back():
    owner = Counter()
    owner.count = own = lambda number: [-number]
    first, second = wrapped(owner, "count", adding("a")), wrapped(owner, "count", adding("b"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert owner.count(1) == [-1, "b"]
    second.__exit__(None, None, None)
    assert owner.count is own


def test_what_others_put_on_top_stays_and_reaches_what_was_there():
    module = torch.nn.Identity()
    with call_replaced(module, adding("ours")):
        ours = module._compiled_call_impl
        module._compiled_call_impl = theirs = lambda *args: [*ours(*args), "theirs"]
        assert module([1]) == [1, "ours", "theirs"]
    assert module._compiled_call_impl is theirs
    assert module([1]) == [1, "theirs"]


def test_ours_above_and_below_others_are_taken_off_from_below():
    module = torch.nn.Identity()
    first, second = call_replaced(module, adding("a")), call_replaced(module, adding("b"))
    first.__enter__()
    ours = module._compiled_call_impl
    module._compiled_call_impl = theirs = lambda *args: [*ours(*args), "theirs"]
    second.__enter__()
    first.__exit__(None, None, None)
    assert module([1]) == [1, "theirs", "b"]
    second.__exit__(None, None, None)
    assert module._compiled_call_impl is theirs


def test_a_wrapper_is_made_once_so_its_state_stays():
    module, made = torch.nn.Identity(), []

    def wrap(original):
        made.append(original)
        return original

    first, second = call_replaced(module, adding("a")), call_replaced(module, wrap)
    for block in (first, second):
        block.__enter__()
    first.__exit__(None, None, None)
    module([1])
    second.__exit__(None, None, None)
    assert len(made) == 1


def test_threads_come_and_go_at_once():
    module = torch.nn.Identity()
    before, wrong = dict(vars(module)), []
    together = threading.Barrier(4)

    def work(name):
        together.wait()
        for _ in range(200):
            with call_replaced(module, adding(name)):
                if module([1]).count(name) != 1:
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert vars(module) == before
