"""A study and its units: what runs, with which noise, in which order. Nothing here opens a model."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdbench.instruments.quality import find_metric
from sdbench.records.files import parsed, read_prompts
from sdbench.records.names import BASELINE
from sdbench.variants.controls import controls_of
from sdbench.variants.registry import parse

PROTOCOLS = {
    "mini-sd": "what `sdbench run` runs when told nothing: eight pairs, three variants and their controls",
    "mini-sd-selective": "every tenth of the steps without guidance",
    "mini-sd-methods": "every method and control, 256 pairs",
    "mini-sd-bench": "the regression benchmark of `sdbench bench`, on one thread",
    "selective-guidance": "arXiv 2305.09847 on Stable Diffusion 1.5",
    "lora-distillation": "arXiv 2312.06899 on Stable Diffusion 2.1 base",
}
CHOICES = {
    "output": ("image", "latent"),
    "execution": ("eager", "compile", "cudagraph"),
    "guidance_execution": (None, "batched", "sequential"),
    "memory_format": (None, "contiguous", "channels_last"),
}
LARGEST = (
    1_000_000  # of any count: what is larger is a slip, and would only be found when memory is full
)


@dataclass(frozen=True)
class Study:
    """What to measure: every variant on every (prompt, seed) pair, several times.

    Args:
        model: a name, hub id or folder, as `sdbench.load` takes it.
        variants: texts of the variant grammar; the baseline `cfg` must be among them.
        prompts: at least one; each is run with every seed.
        seeds: the noise of a pair is `torch.Generator("cpu").manual_seed(seed)`.
        num_steps: denoising steps asked of the pipeline.
        guidance_scale: w, above 1.
        batch: (prompt, seed) pairs per pipeline call.
        repeats: measured calls per variant and batch; fewer than 6 give no interval on times.
        warmups: unmeasured calls before them.
        metrics: names in `METRICS`; by default lpips, flip, ssim and psnr, and alignment on mini-sd; none on random
            weights.
        height: image height in pixels; the model's own by default.
        width: image width in pixels.
        dtype: number format of the weights.
        device: where to run; CUDA where there is one, else the CPU.
        output: "image", or "latent" to stop before decoding: nothing but time, memory and work is measured.
        execution: of the denoiser: "eager", "compile" or "cudagraph".
        guidance_execution: of a guided step: "batched" (both predictions in one call) or "sequential" (in two); by
            default as the pipeline does it.
        random_weights: `model` is an architecture, built without its weights: time, memory and work are measured.
        negative_prompt: of every image.
        arguments: further arguments of the pipeline's call, such as `guidance_rescale`.
        memory_format: of the denoiser's kernels: "contiguous" or "channels_last"; on the CPU by default the faster.
        threads: of torch on the CPU; by default as many as are fastest.
        controls: add what every comparison needs to the variants (`sdbench.variants.controls`); where images are judged
            a run adds the constant scales that come nearest to the schedules (`sdbench.study.tuning`), too.
        name: of the study in the tables.

    Raises:
        ValueError: on construction, for anything that could not run.
    """

    model: str
    variants: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    num_steps: int
    guidance_scale: float
    batch: int = 8
    repeats: int = 8
    warmups: int = 1
    metrics: tuple[str, ...] | None = None
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    device: str | None = None
    output: str = "image"
    execution: str = "eager"
    guidance_execution: str | None = None
    random_weights: bool = False
    negative_prompt: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    memory_format: str | None = None
    threads: int | None = None
    controls: bool = False
    name: str = "study"

    def __post_init__(self) -> None:
        """Make sequences immutable and check every field."""
        for name in ("variants", "prompts", "seeds"):
            object.__setattr__(self, name, _entries(name, getattr(self, name)))
        _require_kinds(self)
        for name in ("num_steps", "batch", "repeats", "warmups"):
            _require_whole(name, getattr(self, name), minimum=1)
        if self.threads is not None:
            _require_whole("threads", self.threads, minimum=1)
        for seed in self.seeds:
            _require_whole("each of seeds", seed, minimum=0, maximum=2**63 - 1)
        if (
            not isinstance(self.guidance_scale, int | float)
            or not 1 < self.guidance_scale <= LARGEST
        ):
            raise ValueError(
                f"guidance_scale must be above 1, not {self.guidance_scale!r}: at 1 there is no guidance"
            )
        names = [parse(variant).name for variant in self.variants]
        if BASELINE not in names:
            raise ValueError(f"variants must include the baseline '{BASELINE}'")
        if self.controls:
            added = controls_of(self.variants, num_steps=self.num_steps)
            object.__setattr__(self, "variants", (*self.variants, *added))
        _require_choices(self)
        if self.output == "latent" and (self.height is None or self.width is None):
            raise ValueError("a study that stops at latents must be given height and width")
        object.__setattr__(self, "metrics", self._known_metrics())

    def _known_metrics(self) -> tuple[str, ...]:
        """The metrics that were asked for, or the default ones; none where there is nothing to judge."""
        if self.random_weights:
            _refuse(self.metrics or (), "images of random weights have no content")
        if self.output == "latent":
            _refuse(self.metrics or (), "the study stops at latents")
        if self.metrics is not None:
            _require_texts("metrics", _listed("metrics", self.metrics))
            for metric in self.metrics:
                find_metric(metric)
            return tuple(self.metrics)
        if self.random_weights or self.output == "latent":
            return ()
        return ("lpips", "flip", "ssim", "psnr") + (
            ("alignment",) if self.model == "mini-sd" else ()
        )

    @classmethod
    def from_toml(cls, path: str | Path, **changes: Any) -> Study:
        """Read a study file: its keys are the fields of `Study`, and `prompts_file` (one prompt per line).

        Args:
            path: a TOML file.
            **changes: fields that replace the file's. Controls that the file asks for are for its own variants.

        Raises:
            ValueError: a file that is missing or not TOML, an unknown or a missing key.
        """
        path = Path(path)
        try:
            given = parsed(tomllib.loads, path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"study file '{path}' cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"study file '{path}' is not TOML: {error}") from None
        given.setdefault("name", path.stem)
        if isinstance(given.get("prompts_file"), str):
            given["prompts_file"] = str(path.parent / given["prompts_file"])
        if "prompts" in changes or "prompts_file" in changes:
            given.pop("prompts", None)
            given.pop("prompts_file", None)
        if "variants" in changes:
            given.pop("controls", None)
        source = f"study file '{path}'"
        try:
            return cls.from_fields({**given, **changes}, source=source)
        except ValueError as error:
            if changes or str(error).startswith(source):
                raise  # what is wrong may be the change
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def from_fields(cls, given: Mapping[str, Any], *, source: str) -> Study:
        """A study from its fields by name, `prompts_file` allowed; errors name the source."""
        known = {item.name for item in fields(cls)} | {"prompts_file"}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(
                f"{source}: unknown key '{unknown[0]}'; there are: {', '.join(sorted(known))}"
            )
        values = dict(given)
        if "prompts_file" in values:
            if "prompts" in values:
                raise ValueError(f"{source}: give prompts or prompts_file, not both")
            _require_text("prompts_file", values["prompts_file"])
            values["prompts"] = read_prompts(Path(values.pop("prompts_file")))
        missing = [
            name
            for name in ("model", "variants", "prompts", "seeds", "num_steps", "guidance_scale")
            if name not in values
        ]
        if missing:
            raise ValueError(f"{source}: missing key '{missing[0]}'")
        return cls(**values)

    @classmethod
    def protocol(cls, name: str, /, **changes: Any) -> Study:
        """A study whose file ships with the package.

        Args:
            name: of `PROTOCOLS`; "mini-sd" is what `sdbench run` runs when told nothing.
            **changes: fields that replace the file's.

        Raises:
            ValueError: an unknown name; as `from_toml` says.
        """
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol '{name}'; there are: {', '.join(PROTOCOLS)}")
        return cls.from_toml(str(files("sdbench.study") / "protocols" / f"{name}.toml"), **changes)

    @property
    def pairs(self) -> list[tuple[str, str, int]]:
        """(prompt_id, prompt, seed) of every image, in order."""
        return [
            (f"{i:03d}", prompt, seed)
            for i, prompt in enumerate(self.prompts)
            for seed in self.seeds
        ]

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @cached_property
    def shared(self) -> str:
        """Hash of everything that decides what any of its calls computes."""
        return digest(
            replace(self, repeats=1, variants=(BASELINE,), metrics=(), controls=False).as_json()
        )


def _refuse(metrics: tuple[str, ...], reason: str) -> None:
    if metrics:
        raise ValueError(f"{', '.join(metrics)} cannot be measured: {reason}")


def _entries(name: str, value: Any) -> tuple[Any, ...]:
    entries = _listed(name, value)
    if not entries:
        raise ValueError(f"{name} must not be empty")
    if len(set(map(repr, entries))) < len(entries):
        raise ValueError(f"{name} holds an entry twice")
    return entries


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list, not {value!r}")
    return tuple(value)


def _require_kinds(study: Study) -> None:
    """Refuse what a study file can hold and a field cannot."""
    for name in ("variants", "prompts"):
        _require_texts(name, getattr(study, name))
    for name in ("model", "dtype", "output", "execution", "name"):
        _require_text(name, getattr(study, name))
    for name in ("device", "guidance_execution", "negative_prompt"):
        if not isinstance(getattr(study, name), str | None):
            raise ValueError(f"{name} must be a text, not {getattr(study, name)!r}")
    for name in ("random_weights", "controls"):
        if not isinstance(getattr(study, name), bool):
            raise ValueError(f"{name} must be true or false, not {getattr(study, name)!r}")
    for name in ("height", "width"):
        if getattr(study, name) is not None:
            _require_whole(name, getattr(study, name), minimum=1)
    if {"/", "\\", "\0"} & set(study.name):
        raise ValueError(f"name must be fit for the name of a folder, not {study.name!r}")
    _require_json("arguments", study.arguments)


def _require_texts(name: str, values: Iterable[Any]) -> None:
    if any(not isinstance(value, str) or not value.strip() for value in values):
        raise ValueError(f"{name} must be texts that are not empty")


def _require_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not empty, not {value!r}")


def _require_json(name: str, value: Any) -> None:
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be an object of JSON values: {error}") from None


def _require_choices(study: Study) -> None:
    for name, values in CHOICES.items():
        if getattr(study, name) not in values:
            raise ValueError(
                f"unknown {name} '{getattr(study, name)}'; there are: {', '.join(filter(None, values))}"
            )


def _require_whole(name: str, value: Any, *, minimum: int, maximum: int = LARGEST) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, not {value!r}")
    if value > maximum:
        raise ValueError(f"{name} must be a whole number of at most {maximum}, not {value!r}")


def digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
