"""How the folder of a modular pipeline, or such a hub id, is opened.

Its index names a source for every component. Those whose files are in the folder come from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ModularPipeline
from huggingface_hub import try_to_load_from_cache
from torch import nn

from sdbench.models.causes import require_own
from sdbench.records.files import first_line

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"


def is_modular_source(source: str) -> bool:
    """Whether a folder or a hub id holds a modular pipeline, and no other.

    Of a hub id only what is in the cache is looked at.
    """
    folder = Path(source)
    if folder.is_dir():
        return (folder / MODULAR_INDEX).is_file() and not (folder / INDEX).is_file()
    try:
        there = [try_to_load_from_cache(source, name) for name in (MODULAR_INDEX, INDEX)]
    except ValueError:  # no hub id at all
        return False
    return isinstance(there[0], str) and not isinstance(there[1], str)


def open_modular(source: str, dtype: torch.dtype, weights_variant: str | None) -> Any:
    """Open a modular pipeline with all components that its index has a source for.

    Args:
        source: a folder or a hub id.
        dtype: of the weights in memory.
        weights_variant: which of several files with the same weights is read.

    Raises:
        ValueError: code that comes with it, or a component that cannot be loaded.
    """
    pipe = ModularPipeline.from_pretrained(source, trust_remote_code=False)
    for name in pipe.pretrained_component_names:
        spec = pipe.get_component_spec(name)
        if spec.pretrained_model_name_or_path is None:
            continue

        # Only weights have a number format and variants; a tokenizer would keep the words for it.
        settings: dict[str, Any] = {}
        if spec.type_hint is None or issubclass(spec.type_hint, nn.Module):
            settings = {"dtype": dtype, "use_safetensors": True}
            if weights_variant is not None and _has_variant(source, name, weights_variant):
                settings["variant"] = weights_variant

        # `load_components` would log an error and leave the component out.
        try:
            component = spec.load(**settings)
        except Exception as error:
            require_own(error, f"its {name} cannot be loaded")
            raise ValueError(f"its {name} cannot be loaded: {first_line(error)}") from error
        pipe.register_components(**{name: component})
    return pipe


def _has_variant(source: str, component: str, variant: str) -> bool:
    """Whether a component is there in a variant; of what is not in a folder, nobody knows."""
    files = Path(source) / component
    return not files.is_dir() or any(f".{variant}." in file.name for file in files.iterdir())
