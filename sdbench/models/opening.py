"""How a folder or a hub id becomes a pipeline: which of its weights are read, what is refused.

Which models are known by name is in `registry.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import try_to_load_from_cache

from sdbench.models.causes import require_own
from sdbench.models.modular_folders import (
    INDEX,
    MODULAR_INDEX,
    is_modular_source,
    open_modular,
)
from sdbench.records.files import first_line, read_json

PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth"})
_PICKLED = "is a pickle, which can run code when it is opened; only safetensors are"
# A variant stands before the number of a shard; older versions of diffusers wrote it behind.
_WEIGHTS = re.compile(
    r"(?P<part>[\w-]+)/(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[^./]+?))?"
    r"(?:-\d{5}-of-\d{5})?(?:\.(?P<older>[^./]+))?\.(?P<kind>safetensors|bin)"
)


@dataclass
class _Part:
    """The variants in which the weights of a component are there; None is the one without a name.

    Attributes:
        safe: those in safetensors.
        pickled: a file of each that is a pickle.
    """

    safe: set[str | None] = field(default_factory=set)
    pickled: dict[str | None, str] = field(default_factory=dict)


def open_pipeline(source: str, dtype: torch.dtype, weights_variant: str | None) -> Any:
    """Open a folder or a hub id.

    Args:
        source: a folder with a pipeline, or a hub id.
        dtype: of the weights in memory.
        weights_variant: which of several files with the same weights is read, such as "fp16". None
            is the file without a variant. A folder in which a component has none is opened in the
            only variant that it is there in.

    Raises:
        ValueError: it cannot be opened; weights that are pickles, or not there in the variant.
    """
    folder = Path(source)
    if folder.is_dir():
        weights_variant = _variant_of(folder, weights_variant)
    try:
        if is_modular_source(source):
            return open_modular(source, dtype, weights_variant)
        return DiffusionPipeline.from_pretrained(
            source, dtype=dtype, use_safetensors=True, variant=weights_variant
        )
    except Exception as error:
        require_own(error, f"model '{source}' cannot be opened")
        hint = "" if folder.is_dir() else _hint(source, str(error), weights_variant)
        reason = hint or f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"model '{source}' cannot be opened: {reason}") from error


def refuse_file(file: Path) -> None:
    """Refuse a file where a folder is wanted, and say what to do.

    Raises:
        ValueError: always.
    """
    if not file.is_file():
        raise ValueError(f"there is no file '{file}'")
    if file.name in (INDEX, MODULAR_INDEX):
        raise ValueError(f"model '{file}' is a file of a pipeline's folder: give the folder")
    if file.suffix in PICKLES:
        raise ValueError(
            f"model '{file}' cannot be opened: it {_PICKLED}; if you trust it, open it with "
            "`from_single_file` of its pipeline's class, and give the folder that "
            "`save_pretrained` writes"
        )
    # Their parts are named as elsewhere, and the settings to open them with are not in them.
    raise ValueError(
        f"model '{file}' is a single file, not a folder: open it with `from_single_file` of its "
        "pipeline's class, and give the folder that `save_pretrained` writes"
    )


def _variant_of(folder: Path, asked: str | None) -> str | None:
    """The variant to read from a folder.

    Raises:
        ValueError: it is not there in safetensors, or nothing says which one is meant.
    """
    names = _names(folder)
    parts = _parts(names)
    chosen = _only_variant(folder, parts) if asked is None else asked
    if chosen is None:
        return None
    _require_variant(folder, parts, chosen)

    # diffusers looks for the variant behind the first dot of every name.
    dotless = [name for name in names if "." not in name.partition("/")[2]]
    if dotless:
        raise ValueError(
            f"model '{folder}' cannot be opened in variant '{chosen}': diffusers cannot read "
            f"{dotless[0]}, whose name has no dot; move that file away"
        )
    return chosen


def _require_variant(folder: Path, parts: Mapping[str, _Part], chosen: str) -> None:
    """Refuse a variant that is not there, or not in safetensors."""
    # The loader takes the pickle of a variant before the safetensors without one.
    for part in parts.values():
        if chosen in part.pickled and chosen not in part.safe:
            raise ValueError(
                f"model '{folder}' cannot be opened: {part.pickled[chosen]} {_PICKLED}"
            )

    there = _named_variants(parts)
    if chosen not in there:
        listed = _listed(there) or "only weights without a variant"
        raise ValueError(f"model '{folder}' has no weights of variant '{chosen}'; it has: {listed}")

    lacking = [name for name, part in parts.items() if not part.safe & {chosen, None}]
    if lacking:
        raise ValueError(
            f"model '{folder}' cannot be opened in variant '{chosen}': its {lacking[0]} exists "
            f"only as {_listed(parts[lacking[0]].safe)}"
        )


def _only_variant(folder: Path, parts: Mapping[str, _Part]) -> str | None:
    """The variant in which a folder is there, where it is not there without one.

    Raises:
        ValueError: pickles alone; several variants, or none of all components.
    """
    # The loader would say of pickles that there are no weights.
    for part in parts.values():
        if not part.safe:
            raise ValueError(
                f"model '{folder}' cannot be opened: {next(iter(part.pickled.values()))} "
                f"{_PICKLED}, as `save_pretrained` writes them"
            )

    named = {name: part.safe for name, part in parts.items() if None not in part.safe}
    if not named:
        return None
    common = set.intersection(*named.values())
    if len(common) == 1:
        return common.pop()
    if common:
        raise ValueError(
            f"model '{folder}' has only weights of the variants {_listed(common)}: "
            "choose one with weights_variant"
        )
    each = "; ".join(f"{name} has {_listed(there)}" for name, there in sorted(named.items()))
    raise ValueError(f"model '{folder}' cannot be opened: no variant has all components: {each}")


def _hint(source: str, message: str, asked: str | None) -> str:
    """What to ask of a hub id whose weights are there, in other variants; else nothing."""
    # The loader's message names the files of the hub; what is in the cache may be only some.
    parts = _parts([*re.findall(r"[^\s'\",{}\[\]]+", message), *_cached_names(source)])
    there = _named_variants(parts)
    if not there or asked in there:
        return ""
    if asked is not None:
        return f"it has no weights of variant '{asked}'; it has: {_listed(there)}"
    if all(None in part.safe for part in parts.values()):
        return ""

    if len(there) > 1:
        return (
            "its weights are not there without a variant: give weights_variant, "
            f"one of: {_listed(there)}"
        )
    # In quotes for Python; the commands have an option of the same name.
    only = _listed(there)
    return (
        f"its weights are there in the variant {only} alone: give weights_variant='{only}' "
        f"(--weights-variant {only})"
    )


def _cached_names(source: str) -> list[str]:
    """Component and name of the files of a hub id that are in the cache."""
    try:
        index = try_to_load_from_cache(source, INDEX)
    except ValueError:  # no hub id at all
        return []
    return _names(Path(index).parent) if isinstance(index, str) else []


def _names(folder: Path) -> list[str]:
    """Component and name of the files that a folder's pipeline is made of."""
    file = folder / INDEX
    index = read_json(file if file.is_file() else folder / MODULAR_INDEX)
    return [
        f"{file.parent.name}/{file.name}"
        for file in sorted(folder.glob("*/*"))
        # A component that is left out is named with null for its library.
        if isinstance(index.get(file.parent.name), list) and index[file.parent.name][:1] != [None]
    ]


def _parts(names: Iterable[str]) -> dict[str, _Part]:
    """In which variants the weights of every component are there."""
    parts: dict[str, _Part] = {}
    for name in names:
        found = _WEIGHTS.fullmatch(name)
        if found is None:
            continue
        part = parts.setdefault(found["part"], _Part())
        variant = found["variant"] or found["older"]
        if found["kind"] == "safetensors":
            part.safe.add(variant)
        else:
            part.pickled.setdefault(variant, name)
    return parts


def _named_variants(parts: Mapping[str, _Part]) -> set[str]:
    """All variants with a name that are there in safetensors."""
    return {name for part in parts.values() for name in part.safe if name is not None}


def _listed(variants: Iterable[str | None]) -> str:
    return ", ".join(sorted(str(variant) for variant in variants))
