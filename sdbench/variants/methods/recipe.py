"""A recipe that `sdbench budget` wrote: a variant with its number of steps, from its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdbench.records.files import NUMBER, read_json, require
from sdbench.variants.variant import Method, Variant

FIELDS = {"variant": (str,), "pipeline": (dict,), "guidance_scale": NUMBER}


def _recipe(name: str, argument: str | None) -> Variant:
    from sdbench.variants.grammar import parse  # it knows this method

    if not argument:
        raise ValueError("expected recipe:FILE, which `sdbench budget` wrote")
    recipe = read_json(Path(argument))
    require(recipe, FIELDS, source=f"recipe file '{argument}'")
    if recipe["variant"].startswith("recipe:"):
        raise ValueError(f"recipe file '{argument}' names another recipe")
    variant = parse(recipe["variant"])
    scale = variant.guidance_scale or float(recipe["guidance_scale"])
    content = f"{variant.name} {variant.content} {scale:g}"
    made_for = recipe["pipeline"]
    return replace(variant, name=name, content=content, guidance_scale=scale, made_for=made_for)


METHODS = (
    Method(
        "recipe",
        "recipe:FILE",
        "a way to spend a budget that `sdbench budget` found, with its scheduler and its steps",
        _recipe,
        examples=("recipe:FILE",),
    ),
)
