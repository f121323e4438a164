"""What to measure about what is generated: `Study`. Nothing opens a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdbench.instruments.quality import find_metric
from sdbench.models.grammars import ALIGNMENT, GRAMMARS, held_out_captions
from sdbench.records.files import read_prompts, read_toml
from sdbench.records.names import BASELINE
from sdbench.records.stored import TIMINGS
from sdbench.study.fields import (
    digest,
    entries,
    known_repeats,
    listed,
    require_choice,
    require_optional_text,
    require_text,
    require_texts,
    require_truth,
    require_whole,
)
from sdbench.study.generation import Generation
from sdbench.variants.controls import controls_of
from sdbench.variants.grammar import crossed, parse
from sdbench.variants.variant import Variant

PROTOCOLS = {
    "mini-sd": "what `sdbench run` runs by default: eight pairs, three variants and their controls",
    "mini-sd-quick": "a try-out in less than a minute (`sdbench run --quick`)",
    "mini-sd-selective": "every tenth of the steps without guidance",
    "mini-sd-methods": "every method and control, 256 pairs",
    "emoji-sd": "the default study on the model of drawn emoji",
    "mini-sd-bench": "the regression benchmark of `sdbench bench`, on one thread",
    "selective-guidance": "arXiv 2305.09847 on Stable Diffusion 1.5",
    "lora-distillation": "arXiv 2312.06899 on Stable Diffusion 2.1 base",
}
OUTPUTS = ("image", "video", "audio", "latent")
PICTURES = ("image", "video")
"""Outputs that are stored and judged."""
METRICS = ("lpips", "flip", "ssim", "psnr")
"""Of a study that names none, where there is something to judge."""
EXECUTIONS = ("eager", "compile", "cudagraph")
GUIDANCE_EXECUTIONS = (None, "batched", "sequential")


@dataclass(frozen=True, kw_only=True)
class Study(Generation):
    """What to measure: every variant on every (prompt, seed) pair, several times.

    Args:
        num_steps: of every call whose variant has no number of its own. Of several numbers the
            first is the study's, and every variant also runs in as many steps as each of the
            others: `[50, 25]` adds `steps:25`, `last:20%@25` and so on.
        variants: texts of the variant grammar, or variants; the baseline `cfg` must be among them.
        reference: the variant with whose images those of all others are compared, such as "cfg" or
            "cfg@200", a long loop. Another than the baseline runs for its images alone.
        repeats: measured calls per variant and batch. Times have an interval from 6 repeats on, in
            lockstep from 6 rounds, which are the batches of all repeats. Or such as "until 2
            points": from 6 to 24, until the 95 % interval of every saving reaches at most so far to
            each side. Disturbed repeats are measured again (`sdbench.study.repeating`).
        warmups: untimed calls before them; on the CPU they alone measure memory.
        metrics: names in `METRICS`; by default lpips, flip, ssim and psnr, and alignment on
            mini-sd; none on random weights, of latents and of audio.
        output: "image", which stands for whatever a pipeline decodes and becomes "video" or "audio"
            where it makes these; or "latent" to stop before decoding. Of latents and audio only
            time, memory and work are measured.
        execution: of the denoiser: "eager", "compile" or "cudagraph".
        timing: of measured calls: "lockstep" (the calls of all variants advance one step at a time
            in turn, so that a drift of the machine hits all alike) or "calls" (one after another);
            by default in lockstep on the CPU, where there are repeats and execution is "eager".
        guidance_execution: of a guided step: "batched" (both predictions in one call) or
            "sequential" (in two); by default as the pipeline does it.
        controls: add what every comparison needs to the variants (`sdbench.variants.controls`).
            Where images are judged, a run also adds the constant scales that come nearest to the
            schedules (`sdbench.study.tuning`).
        name: of the study in the tables.

    The other fields are those of `Generation`.

    Raises:
        ValueError: on construction, for anything that could not run.
    """

    variants: tuple[Variant, ...]
    reference: str = BASELINE
    repeats: int | str = 8
    warmups: int = 1
    metrics: tuple[str, ...] | None = None
    output: str = "image"
    execution: str = "eager"
    timing: str | None = None
    guidance_execution: str | None = None
    controls: bool = False
    name: str = "study"

    def __post_init__(self) -> None:
        """Read the variants and check every field."""
        further = self._further_steps()
        super().__post_init__()
        object.__setattr__(self, "repeats", known_repeats(self.repeats))
        require_whole("warmups", self.warmups, minimum=0)
        for name in ("output", "execution", "name"):
            require_text(name, getattr(self, name))
        require_optional_text("guidance_execution", self.guidance_execution)
        require_truth("controls", self.controls)
        if {"/", "\\", "\0"} & set(self.name):
            raise ValueError(f"name must be fit for the name of a folder, not {self.name!r}")

        variants = crossed(_read(self.variants), further)
        object.__setattr__(self, "variants", self._with_controls(variants))
        self._add_reference()
        require_choice("output", self.output, OUTPUTS)
        require_choice("execution", self.execution, EXECUTIONS)
        require_choice("timing", self.timing, (None, *TIMINGS))
        require_choice("guidance_execution", self.guidance_execution, GUIDANCE_EXECUTIONS)
        if self.output == "latent" and (self.height is None or self.width is None):
            raise ValueError("a study that stops at latents must be given height and width")
        object.__setattr__(self, "metrics", self._known_metrics())

    def _with_controls(self, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        if not any(variant.is_baseline for variant in variants):
            raise ValueError(f"variants must include the baseline '{BASELINE}'")
        if not self.controls:
            return variants
        if self.lists_steps:
            raise ValueError(
                "controls count steps, which the arguments list: give them as variants, by name"
            )
        return (*variants, *controls_of(variants, num_steps=self.num_steps))

    def _further_steps(self) -> list[int]:
        """The numbers of steps behind the first, which becomes the study's own."""
        if isinstance(self.num_steps, int | str):
            return []
        first, *further = entries("num_steps", self.num_steps)
        for number in further:
            require_whole("each of num_steps", number, minimum=1)
        object.__setattr__(self, "num_steps", first)
        return further

    def _add_reference(self) -> None:
        """Name the reference as its variant, which is among the others."""
        require_text("reference", self.reference)
        reference = parse(self.reference)
        if reference.draws:
            raise ValueError(f"reference '{reference.name}' stands for several images of a pair")
        if reference.name not in self.variant_names:
            object.__setattr__(self, "variants", (*self.variants, reference))
        object.__setattr__(self, "reference", reference.name)

    def _known_metrics(self) -> tuple[str, ...]:
        """The metrics asked for, or the default ones; none where there is nothing to judge."""
        reason = None
        if self.random_weights:
            reason = "images of random weights have no content"
        elif self.output == "latent":
            reason = "the study stops at latents"
        elif self.output == "audio":
            reason = "metrics judge images and videos, and the pipeline makes audio"

        if self.metrics is None:
            default: tuple[str, ...] = METRICS
            if self.model in GRAMMARS and self._is_readable():
                default = (*default, ALIGNMENT)
            return default if reason is None else ()
        if reason is not None and self.metrics:
            raise ValueError(f"{', '.join(self.metrics)} cannot be measured: {reason}")
        require_texts("metrics", listed("metrics", self.metrics))
        for metric in self.metrics:
            find_metric(metric)
        return tuple(self.metrics)

    def _is_readable(self) -> bool:
        """Whether the models' readers read images of the size that is asked for."""
        height, width = self.height, self.width
        if height is None or width is None:
            return True  # the pipeline's own size
        return not find_metric(ALIGNMENT)[0].misfit(height, width)

    @property
    def generation(self) -> Generation:
        """What is generated, without what is measured about it."""
        return Generation(**self.settings)

    @property
    def variant_names(self) -> tuple[str, ...]:
        """The texts of the variants."""
        return tuple(variant.name for variant in self.variants)

    @property
    def is_repeated(self) -> bool:
        """Whether calls run more than once, for their times."""
        return self.repeats != 1

    @property
    def timed_variants(self) -> tuple[Variant, ...]:
        """Those whose calls are timed: with controls, all that have a cost of their own."""
        return tuple(
            variant
            for variant in self.variants
            if variant.is_baseline
            or not (variant.name == self.reference or (self.controls and variant.needs_no_time))
        )

    @property
    def judges_images(self) -> bool:
        """Whether images or videos are made, of weights that make some."""
        return self.makes_pictures and not self.random_weights

    @property
    def makes_pictures(self) -> bool:
        """Whether what is made is stored: images or videos, as far as is known."""
        return self.output in PICTURES

    def making(self, kind: str) -> Study:
        """The study on a pipeline that makes "image", "video" or "audio".

        Of audio the default metrics are left out.

        Raises:
            ValueError: the study asks for another output, or for metrics of audio.
        """
        if self.output in (kind, "latent"):
            return self
        if self.output != "image":
            raise ValueError(f"output '{self.output}' cannot be: the pipeline's is '{kind}'")
        asked = None if self.metrics == METRICS else self.metrics
        return replace(self, output=kind, metrics=asked)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values, variants as their texts; the reference where it is another."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if self.reference == BASELINE:  # as in studies from before there was another
            del values["reference"]
        return json.loads(json.dumps(values | {"variants": self.variant_names}))

    @cached_property
    def shared(self) -> str:
        """Hash of everything that decides what any of its calls computes."""
        bare = replace(
            self,
            repeats=1,
            variants=(parse(BASELINE),),
            metrics=(),
            controls=False,
            reference=BASELINE,
        )
        return digest(bare.as_json())

    @classmethod
    def from_toml(cls, path: str | Path, **changes: Any) -> Study:
        """Read a study file: its keys are the fields of `Study`, and `prompts_file`.

        A prompts file holds one prompt per line.

        Args:
            path: a TOML file.
            **changes: fields that replace the file's. Controls that the file asks for are for its
                own variants.

        Raises:
            ValueError: a file that is missing or not TOML, an unknown or a missing key.
        """
        path = Path(path)
        source = f"study file '{path}'"
        values = read_toml(path, source=source)
        values.setdefault("name", path.stem)
        if isinstance(values.get("prompts_file"), str):
            values["prompts_file"] = str(path.parent / values["prompts_file"])
        if "prompts" in changes or "prompts_file" in changes:
            values.pop("prompts", None)
            values.pop("prompts_file", None)
        if "variants" in changes:
            values.pop("controls", None)

        try:
            return cls.from_fields({**values, **changes}, source=source)
        except ValueError as error:
            if changes or str(error).startswith(source):
                raise  # what is wrong may be the change
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def from_fields(cls, given: Mapping[str, Any], *, source: str) -> Study:
        """A study from its fields by name, `prompts_file` allowed; errors name the source.

        Raises:
            ValueError: an unknown or a missing key, or a value that does not fit.
        """
        known = {item.name for item in fields(cls)} | {"prompts_file"}
        unknown = sorted(set(given) - known)
        if unknown:
            existing = ", ".join(sorted(known))
            raise ValueError(f"{source}: unknown key '{unknown[0]}'; there are: {existing}")

        values = dict(given)
        if "prompts_file" in values:
            if "prompts" in values:
                raise ValueError(f"{source}: give prompts or prompts_file, not both")
            require_text("prompts_file", values["prompts_file"])
            values["prompts"] = read_prompts(Path(values.pop("prompts_file")))

        required = ("model", "variants", "prompts", "seeds", "num_steps", "guidance_scale")
        missing = [name for name in required if name not in values]
        if missing:
            raise ValueError(f"{source}: missing key '{missing[0]}'")
        return cls(**values)

    @classmethod
    def protocol(cls, name: str, /, **changes: Any) -> Study:
        """A study whose file ships with the package.

        Args:
            name: of `PROTOCOLS`; "mini-sd" is what `sdbench run` runs by default.
            **changes: fields that replace the file's. Another embedded model than the file's brings
                as many captions of its own, of what it never saw in training, unless prompts are
                given.

        Raises:
            ValueError: an unknown name; as `from_toml` says.
        """
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol '{name}'; there are: {', '.join(PROTOCOLS)}")
        file = files("sdbench.study") / "protocols" / f"{name}.toml"
        if changes.get("model") in GRAMMARS and not changes.keys() & {"prompts", "prompts_file"}:
            stored = cls.from_toml(str(file))
            if stored.model != changes["model"]:
                changes["prompts"] = held_out_captions(len(stored.prompts), changes["model"])
        return cls.from_toml(str(file), **changes)


def _read(variants: Any) -> tuple[Variant, ...]:
    """Variants from their texts; each is read once, and one that was read already stays."""
    values = listed("variants", variants)
    require_texts("variants", [value for value in values if not isinstance(value, Variant)])
    read = [value if isinstance(value, Variant) else parse(value) for value in values]
    entries("variants", [variant.name for variant in read])
    return tuple(read)
