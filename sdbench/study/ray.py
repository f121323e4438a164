"""The Ray engine: a study's calls on the GPUs or CPU shares of a Ray cluster.

Where there is no cluster, it is this machine.

Each worker is an actor that opens the model once and runs one call after another. What comes back
is written by the driver alone (`runner.py`), so workers share no files with it but those that the
study names: a model's folder, a student, a plan.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from sdbench.models.causes import missing_module
from sdbench.study.check import loaded, prepare
from sdbench.study.fields import digest
from sdbench.study.known import known_units
from sdbench.study.local import Worker
from sdbench.study.observation import Outcome
from sdbench.study.study import Study
from sdbench.study.tuning import constant_scales, tunable, with_scales, with_tuned_scales
from sdbench.study.units import Told, Unit, possible_units, rounds
from sdbench.variants.trace import MissingPackage

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ModuleNotFoundError as error:
    if error.name == "ray":
        raise MissingPackage("ray is not installed: pip install 'sdbench[ray]'") from None
    raise MissingPackage(f"ray does not import: {missing_module(error) or error}") from None

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # otherwise Ray reports to its makers
    "RAY_worker_niceness": "0",  # otherwise a worker yields to whatever else runs
}
"""Of a Ray that is started here, where the environment does not say otherwise."""
TRIES = 3
DRIVER = "the driver's study"  # where a worker's settings come from, for messages
_START = "start"  # counted with the units: a worker that dies while it opens the model


@contextmanager
def cluster(study: Study, workers: int | None = None, *, tune: bool = False) -> Iterator[Cluster]:
    """Workers for a study, on the cluster that this process or Ray's settings name.

    Args:
        study: its calls run side by side where there is one repeat; with more, which are for
            timing, each has its device to itself.
        workers: at most; by default one per GPU, or two per node without. More than GPUs or cores
            are never started, and no more than one on the CPU for timing.
        tune: find the scales that the study still lacks as controls, in a process that ends before
            the workers start.

    Raises:
        ValueError: anything that cannot run.
    """
    if study.timing == "lockstep":
        raise ValueError(
            "timing 'lockstep' is not possible: engine 'ray' hands calls to its workers one by one"
        )
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    starts_ray = not ray.is_initialized()
    if starts_ray:
        os.environ.update(SETTINGS | os.environ)
        ray.init(logging_level=logging.WARNING, log_to_driver=False)

    opened = None
    try:
        shares = _shares(study, workers)
        if tune and tunable(study):
            study = _tuned(study, shares)
        opened = Cluster(study, shares)
        opened.open()
        yield opened
    finally:
        if opened is not None:
            opened.close()
        if starts_ray:
            ray.shutdown()


@dataclass(frozen=True)
class _Shares:
    """How a cluster is divided: workers, and the CPU threads and GPUs of each."""

    workers: int
    threads: int
    gpus: int


def _shares(study: Study, asked: int | None) -> _Shares:
    """Workers, at most the number that is asked for, and what each gets of its node."""
    nodes = _working_nodes()
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    on_gpu = study.device != "cpu" and bool(with_gpu)
    if on_gpu:
        nodes = with_gpu
        most = default = sum(int(node["GPU"]) for node in nodes)
    else:
        # What is timed on a CPU has the machine to itself.
        most = 1 if study.is_repeated else sum(int(node["CPU"]) for node in nodes)
        default = 2 * len(nodes)

    workers = min(asked or default, most)
    on_a_node = -(-workers // len(nodes))  # rounded up
    threads = max(1, min(int(node["CPU"]) for node in nodes) // on_a_node)
    return _Shares(workers, threads, int(on_gpu))


def _working_nodes() -> list[dict[str, float]]:
    """The resources of the cluster's nodes that have a CPU."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [resources for resources in alive if resources.get("CPU", 0) >= 1]
    if not nodes:
        raise ValueError("the Ray cluster has no node with a CPU to work on")
    return nodes


def _tuned(study: Study, shares: _Shares) -> Study:
    """The study with its last controls, found where its calls will run."""
    settings = study.as_json()

    def tune() -> tuple[str, ...]:
        torch.set_num_threads(shares.threads)
        there = Study.from_fields(settings, source=DRIVER)
        pipe = loaded(there)
        there = there.making(prepare(pipe, there).output)
        return with_tuned_scales(there, pipe).variant_names

    task = ray.remote(num_cpus=shares.threads, num_gpus=shares.gpus, max_calls=1)(tune)
    try:
        names: tuple[str, ...] = ray.get(task.remote())
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise ValueError(
            f"the scale of the controls was not found: {str(error).splitlines()[0]}"
        ) from None
    return with_scales(study, constant_scales(names))


@dataclass(frozen=True)
class _Place:
    """Where a worker is ready.

    Attributes:
        environment: of its calls.
        columns: of every run there.
        pipeline: what `identity` says of the one that it opened.
        output: what that pipeline makes, or "latent".
    """

    environment: dict[str, Any]
    columns: dict[str, Any]
    pipeline: dict[str, str]
    output: str


class _Actor:
    """What runs in a worker's process."""

    def __init__(self, settings: dict[str, Any], threads: int, exclusive: bool) -> None:
        self._settings = settings
        self._threads = threads
        self._exclusive = exclusive

    def start(self) -> _Place:
        """Open the model; what every call's outcome will say of this place."""
        torch.set_num_threads(self._threads)
        # Read here, so that files which variants name are this worker's own.
        study = Study.from_fields(self._settings, source=DRIVER)
        self._worker = Worker(study, exclusive=self._exclusive).__enter__()
        study = self._worker.study
        pipeline = self._worker.pipeline
        further = known_units(study, pipeline=digest(pipeline)).values()
        calls = chain(possible_units(study, pipeline=digest(pipeline)), *further)
        self._units = {unit.id: unit for unit in calls}
        return _Place(self._worker.environment, self._worker.columns, pipeline, study.output)

    def run(self, unit: str) -> Outcome:
        """Run a call, named by its identifier: its code and files are then the driver's."""
        if unit not in self._units:
            raise ValueError(
                "a worker differs from the driver or the first worker: expected the same version "
                "of sdbench, the same weights and the same files"
            )
        return self._worker.outcome(self._units[unit])


@dataclass(eq=False)
class _Seat:
    """A worker as the driver sees it."""

    actor: Any
    place: _Place | None = None
    rest: list[Unit] = field(default_factory=list)
    """Calls that it runs before it takes others."""


class Cluster:
    """Workers, the calls that wait for one, and those under way."""

    def __init__(self, study: Study, shares: _Shares) -> None:
        """Start nothing yet."""
        self.study = study
        self._shares = shares
        self._timing = study.is_repeated
        alone = self._timing or shares.gpus > 0 or shares.workers == 1
        actor = ray.remote(_Actor).options(num_cpus=shares.threads, num_gpus=shares.gpus)
        self._start = lambda: actor.remote(study.as_json(), shares.threads, alone)
        self._idle: list[_Seat] = []
        self._busy: dict[Any, tuple[_Seat, Unit | None]] = {}
        self._queue: deque[list[Unit]] = deque()
        self._tries: Counter[str] = Counter()
        self._told: Told = lambda unit, share: None

    def open(self) -> None:
        """Start the workers and wait for the first."""
        for _ in range(self._shares.workers):
            self._seat()
        while not self._idle:
            list(self._next())
        first = self._idle[0].place
        assert first is not None
        self.environment = first.environment
        self.pipeline = first.pipeline
        self.study = self.study.making(first.output)

    def close(self) -> None:
        """End the workers, whatever they do."""
        for seat in [*self._idle, *(seat for seat, _ in self._busy.values())]:
            ray.kill(seat.actor)

    def outcomes(self, planned: Sequence[Unit], told: Told) -> Iterator[tuple[Unit, Outcome]]:
        """Give every worker the next call when it is free, until all have an outcome.

        A call whose worker dies is tried again, by another worker; after three tries it is a failed
        one.
        """
        self._told = told
        self._queue.extend(rounds(planned) if self._timing else ([unit] for unit in planned))
        while self._hand_out():
            yield from self._next()

    def _seat(self) -> None:
        seat = _Seat(self._start())
        self._busy[seat.actor.start.remote()] = (seat, None)

    def _hand_out(self) -> bool:
        """Give calls to idle workers; whether there are any left, waiting or under way."""
        for seat in list(self._idle):
            if not seat.rest and self._queue:
                seat.rest = self._queue.popleft()
            if seat.rest:
                self._idle.remove(seat)
                unit = seat.rest.pop(0)
                self._told(unit, 0.0)
                self._busy[seat.actor.run.remote(unit.id)] = (seat, unit)
        return bool(self._queue) or any(unit for _, unit in self._busy.values())

    def _next(self) -> Iterator[tuple[Unit, Outcome]]:
        """Wait until a worker has started, has finished a call, or is lost."""
        reference = ray.wait(list(self._busy))[0][0]
        seat, unit = self._busy.pop(reference)
        try:
            outcome: Any = ray.get(reference)
        except RayTaskError as error:
            ray.kill(seat.actor)
            raise error.cause from None
        except RayError as error:
            yield from self._lost(seat, unit, error)
            return
        self._idle.append(seat)
        if unit is None:
            seat.place = outcome
            del self._tries[_START]
            return
        if not self._timing:
            self._hand_out()  # while the caller writes; what is timed runs when it has written
        yield unit, outcome

    def _lost(
        self, seat: _Seat, unit: Unit | None, error: RayError
    ) -> Iterator[tuple[Unit, Outcome]]:
        """Replace a worker that died; its calls wait for the next that is free."""
        ray.kill(seat.actor)  # it may be out of reach, and go on
        tried = _START if unit is None else unit.id
        self._tries[tried] += 1
        given_up = self._tries[tried] == TRIES
        reason = f"the worker died in each of {TRIES} tries: {str(error).splitlines()[0]}"
        if unit is None:
            if given_up:
                raise ValueError(f"no worker opens the model; {reason}")
            self._seat()
            return
        self._seat()
        rest = seat.rest if given_up else [unit, *seat.rest]
        if rest:
            self._queue.appendleft(rest)
        if given_up:
            assert seat.place is not None
            failed = {"status": "failed", "message": reason}
            yield unit, Outcome(seat.place.environment, seat.place.columns | failed)
