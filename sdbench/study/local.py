"""The local engine: a pipeline that is ready for a study's calls, in turn or one after another."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import psutil

from sdbench.instruments.energy import gauge_for
from sdbench.instruments.finite import NotFinite, not_numbers
from sdbench.instruments.steps import GiveWay
from sdbench.models.identity import identity
from sdbench.models.pipeline import Pipeline, denoiser_of, networks_of
from sdbench.models.safety import safety_checker
from sdbench.models.settings import settings_of
from sdbench.models.stored_weights import stored_bytes
from sdbench.records.environment import environment
from sdbench.records.settings import process_settings
from sdbench.study.check import loaded, loop_length, prepare
from sdbench.study.execution import executed
from sdbench.study.images import digest, stored_pixels
from sdbench.study.lockstep import Alone, in_lockstep
from sdbench.study.made import Made
from sdbench.study.observation import Outcome, first_call, observe
from sdbench.study.study import Study
from sdbench.study.tuning import tunable, with_tuned_scales
from sdbench.study.units import Told, Unit, companion, of_baseline, rounds
from sdbench.variants.trace import Unsupported
from sdbench.variants.variant import Variant

ROOM = 0.5
"""Share of the free memory that copies of weights may take."""


class Worker:
    """The local engine: a pipeline that is ready for a study's calls.

    It is a context manager, which puts the pipeline back.
    """

    def __init__(
        self,
        study: Study,
        pipe: Pipeline | None = None,
        *,
        exclusive: bool = True,
        tune: bool = False,
    ) -> None:
        """Open the model, and check that it can run the study.

        Args:
            study: whose calls will run.
            pipe: used instead of the study's model.
            exclusive: whether this worker has its device to itself, for the record.
            tune: find the scales that the study still lacks as controls; `study` then has them, and
                the output that the pipeline makes.

        Raises:
            ValueError: anything that cannot run.
        """
        self._pipe = loaded(study) if pipe is None else pipe
        self._takes_turns = takes_turns(study, self._pipe)
        self._work = prepare(self._pipe, study)
        with safety_checker(self._pipe, on=study.safety_checker):
            self.pipeline = identity(self._pipe, full=study.full_hash)
        study = study.making(self._work.output)
        self.study = study
        if tune and tunable(study):
            self.study = with_tuned_scales(study, self._pipe)

        self._executed = executed(self._pipe, study.execution)
        self._timed = study.is_repeated or study.execution != "eager"
        self._warm: set[tuple[str, int]] = set()
        self.environment = environment() | settings_of(self._pipe)
        if self._work.uncounted:
            self.environment["uncounted"] = self._work.uncounted
        self.columns = {
            "dtype": str(denoiser_of(self._pipe).dtype).removeprefix("torch."),
            "scheduler": type(self._pipe.scheduler).__name__,
            "exclusive": exclusive,
        }
        if study.lists_steps:  # a list of sigmas may hold the end, which is no step
            self.columns["num_steps"] = loop_length(self._pipe, study)

    def __enter__(self) -> Self:
        """Execute the denoiser as the study says."""
        self._executed.__enter__()
        # Where the denoiser is compiled, the compiler is set for it.
        self.environment["settings"] = process_settings()
        # Where calls share the device no energy is one's own.
        if self.columns["exclusive"]:
            self._work = replace(self._work, gauge=gauge_for(self._pipe.device))
        return self

    def __exit__(self, *error: Any) -> None:
        """Put the pipeline back."""
        self._executed.__exit__(*error)

    def outcomes(self, calls: Sequence[Unit], told: Told) -> Iterator[tuple[Unit, Outcome]]:
        """Run the calls of every round in turn, step by step, or else one after another."""
        for together in rounds(calls):
            if together[0].phase == "measured" and self._takes_turns:
                yield from self._round(together, told)
                continue
            for unit in together:
                told(unit, 0.0)
                yield unit, self.outcome(unit)

    def _round(self, together: Sequence[Unit], told: Told) -> Iterator[tuple[Unit, Outcome]]:
        """The calls of a round, each beside one of the baseline."""
        in_turn: list[Unit] = []
        alone: list[tuple[Unit, str]] = []
        for unit in together:
            failed = self._attempted(unit, lambda: None)
            if failed is not None:
                yield unit, failed
            elif reason := self._why_alone(unit):
                alone.append((unit, reason))
            else:
                in_turn.append(unit)

        for unit, outcome in self._in_turn(in_turn, told):
            if not isinstance(outcome, Alone):
                yield unit, outcome
            elif unit.phase != "companion":  # each that runs by itself gets one of its own
                alone.append((unit, outcome.reason))

        for unit, reason in alone:
            told(unit, 0.0)
            yield from self._alone(unit, reason)

    def _in_turn(
        self, together: Sequence[Unit], told: Told
    ) -> Iterator[tuple[Unit, Outcome | Alone]]:
        """Calls in lockstep, with a companion where the baseline's is not among them."""
        if not together:
            return
        # So it is where a round goes on that was interrupted.
        has_baseline = any(unit.variant.is_baseline for unit in together)
        calls = [*together] if has_baseline else [*together, companion(together)]
        baseline = next(unit for unit in calls if unit.variant.is_baseline)

        def outcome_in_turn(unit: Unit, pipe: Pipeline, give_way: GiveWay) -> Outcome:
            def telling(progress: float) -> None:
                told(unit, progress)
                give_way(progress)

            return self.outcome(unit, pipe, telling)

        for unit in calls:
            told(unit, 0.0)
        for unit, outcome in in_lockstep(self._pipe, calls, outcome_in_turn):
            if not isinstance(outcome, Alone):
                outcome = _timed(outcome, "lockstep", beside=baseline)
            yield unit, outcome

    def _alone(self, unit: Unit, reason: str) -> Iterator[tuple[Unit, Outcome]]:
        """A call that takes no turns, and one of the baseline before or after it."""
        other = unit if unit.variant.is_baseline else companion([unit])
        pair = [unit] if other is unit else [unit, other]
        # Which comes first is another one from repeat to repeat, so a drift favours neither.
        for call in pair if unit.repeat % 2 else reversed(pair):
            outcome = _timed(self.outcome(call), "calls", beside=other)
            if call is unit and outcome.run["status"] == "ok":
                said = filter(None, (f"timed by itself: {reason}", outcome.run["message"]))
                outcome = replace(outcome, run=outcome.run | {"message": "; ".join(said)})
            yield call, outcome

    def _why_alone(self, unit: Unit) -> str:
        """Why a call cannot take turns, as far as that is known before; empty where it can."""
        method = unit.variant.accelerator
        if method is not None and not method.takes_turns:
            return f"{method.name} keeps its state elsewhere than on the pipeline"
        if _copies_weights(unit.variant) and not self._has_room:
            return "there is too little memory for copies of the weights"
        return ""

    @property
    def _has_room(self) -> bool:
        """Whether all variants that need copies of the weights can have them at once."""
        copying = [variant for variant in self.study.variants if _copies_weights(variant)]
        weights = stored_bytes([denoiser_of(self._pipe)])
        return len(copying) * weights <= ROOM * psutil.virtual_memory().available

    def outcome(
        self, unit: Unit, pipe: Pipeline | None = None, give_way: GiveWay | None = None
    ) -> Outcome:
        """Run one call; that it fails is an outcome, too.

        Args:
            unit: what runs.
            pipe: a copy of the pipeline to run it on.
            give_way: as `observe` takes it.
        """

        def observed() -> Outcome:
            run, steps, made = observe(pipe or self._pipe, unit, self._work, give_way=give_way)
            run |= {"status": "ok", "sha256": digest(made.images, unit.study.output)}
            run["message"] = _remark(made, steps, run.get("message"))
            kept = unit.keeps_images and unit.study.makes_pictures
            images = stored_pixels(made.images) if kept else None
            flagged = made.flagged if kept else ()
            outcome = Outcome(self.environment, self.columns | run, steps, images, flagged)
            if unit.phase != "measured":
                return outcome
            return _timed(outcome, "calls", beside=of_baseline(unit))

        outcome = self._attempted(unit, observed)
        assert outcome is not None
        return outcome

    def _attempted(self, unit: Unit, call: Callable[[], Outcome | None]) -> Outcome | None:
        """What a call gives, once it is warm; that it cannot run or fails is an outcome, too."""
        try:
            if unit.variant.name in self._work.unsupported:
                raise Unsupported(self._work.unsupported[unit.variant.name])
            self._warm_up(unit)
            return call()
        except Unsupported as error:
            ended = {"status": "unsupported", "message": str(error)}
        except NotFinite as error:
            ended = {"status": "failed", "message": str(error)}
        except OSError:
            raise  # no space or no permission: the machine's trouble, not the unit's
        except Exception as error:  # noqa: BLE001 - what a pipeline raises is the outcome
            at = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
            ended = {"status": "failed", "message": message}
        return Outcome(self.environment, self.columns | ended)

    def _warm_up(self, unit: Unit) -> None:
        """Run a call once before it counts, where this process saw no warm-up of its kind.

        So it is in a resumed study, and with several workers. A call of which only images count
        needs none, unless it would meet the compiler.
        """
        kind = (unit.variant.name, len(unit.pairs))
        is_cold = unit.phase == "untimed" and unit.study.execution == "eager"
        if unit.phase != "warmup" and not is_cold and self._timed and kind not in self._warm:
            first_call(self._pipe, unit)
        self._warm.add(kind)


def _copies_weights(variant: Variant) -> bool:
    """Whether a variant needs copies of the weights where calls take turns."""
    return variant.student is not None or variant.precision is not None


def _remark(made: Made, steps: list[dict[str, Any]], noted: str | None) -> str | None:
    """What must be known of a call that ended well."""
    placeholders = sum(made.flagged)
    said = [not_numbers(steps), noted]
    if placeholders:
        said.append(f"the safety checker replaced {placeholders} of {len(made.flagged)} images")
    return "; ".join(filter(None, said)) or None


def _timed(outcome: Outcome, timing: str, *, beside: Unit) -> Outcome:
    """What a call gave, with how it was timed."""
    return replace(outcome, run=outcome.run | {"timing": timing, "beside": beside.id})


def takes_turns(study: Study, pipe: Pipeline) -> bool:
    """Whether the measured calls of a study run in lockstep.

    Where the study does not say, they do if they are to be compared, on a CPU.

    Raises:
        ValueError: the study asks for it where it cannot be.
    """
    obstacle = _obstacle(study, pipe)
    if study.timing is None:
        return not obstacle and study.is_repeated and pipe.device.type == "cpu"
    if study.timing == "lockstep" and obstacle:
        raise ValueError(f"timing 'lockstep' is not possible: {obstacle}")
    return study.timing == "lockstep"


def _obstacle(study: Study, pipe: Pipeline) -> str:
    """Why calls of a pipeline cannot take turns; empty where they can."""
    if study.execution != "eager":
        return f"execution is '{study.execution}', whose graphs belong to one call at a time"
    networks = networks_of(pipe).values()
    if any(hasattr(part, "_hf_hook") for network in networks for part in network.modules()):
        return "CPU offload moves the weights during a call, which turns would do at every step"
    return ""
