"""Traces of calls: valid for a viewer, with a range for every step that says what it was."""

import gzip
import json

import pytest

from sdbench.study.study import Study
from sdbench.study.traces import write_traces
from tests import tiny

STEPS = 4


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    study = Study(
        model="tiny",
        variants=["cfg", "last:50%", "mask:1010", "guider:apg", "scale:3"],
        prompts=tiny.PROMPTS[:2],
        seeds=[0],
        num_steps=STEPS,
        guidance_scale=5.0,
        metrics=[],
    )
    files = write_traces(study, tmp_path_factory.mktemp("traces"), tiny.stable_diffusion())
    return {
        name: json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        for name, file in files.items()
    }


def ranges(events, start):
    """Begin and end of the ranges whose name starts so, in order."""
    found = {
        event["name"]: (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("ph") == "X" and event["name"].startswith(start)
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def test_every_variant_has_its_trace(traces):
    assert list(traces)[:3] == ["cfg", "last:50%", "mask:1010"]


def test_a_trace_is_valid_for_a_viewer(traces):
    for events in traces.values():
        whole = [event for event in events if event.get("ph") == "X"]
        assert len(whole) > 100
        for event in whole:
            assert isinstance(event["name"], str)
            assert event["dur"] >= 0
            assert {"ts", "pid", "tid"} <= event.keys()


@pytest.mark.parametrize(
    ("variant", "guided"),
    [("cfg", [1, 1, 1, 1]), ("last:50%", [1, 1, 0, 0]), ("mask:1010", [1, 0, 1, 0])],
)
def test_steps_are_named_by_what_they_were(traces, variant, guided):
    steps = ranges(traces[variant], "step ")
    words = ("unguided", "guided")
    assert list(steps) == [f"step {place}, {words[kind]}" for place, kind in enumerate(guided)]
    text = ranges(traces[variant], "text")["text"]
    decode = ranges(traces[variant], "decode")["decode"]
    assert text[1] <= min(steps.values())[0]
    assert max(steps.values())[1] <= decode[0]
    assert not ranges(traces[variant], "sdbench loop")


def test_every_step_holds_its_denoiser_and_its_scheduler(traces):
    events = [event for event in traces["last:50%"] if event.get("ph") == "X"]
    steps = ranges(traces["last:50%"], "step ")
    for name, (begun, ended) in steps.items():
        inside = {event["name"] for event in events if begun <= event["ts"] and event["ts"] < ended}
        rows = 2 if name.endswith(" unguided") else 4
        assert {f"denoiser, {rows} rows", "scheduler"} <= inside


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    study = Study(
        model="tiny", variants=["cfg"], prompts=["a"], seeds=[0], num_steps=2, guidance_scale=5.0
    )
    with pytest.raises(OSError, match="file"):
        write_traces(study, tmp_path / "file" / "traces", tiny.stable_diffusion())
