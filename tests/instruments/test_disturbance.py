import pytest
import torch

from sdbench.instruments.disturbance import Disturbance, Reading, reading, throttle_count
from sdbench.instruments.gpu import GpuReading

CPU = torch.device("cpu")


def watched(before, after):
    readings = iter([before, after])
    with Disturbance(CPU, lambda device: next(readings)) as disturbance:
        pass
    return disturbance.columns


def test_what_others_took_is_counted_in_cores():
    found = watched(Reading(10.0, 100.0, 50.0, 3), Reading(14.0, 110.0, 54.0, 3))
    assert found == {
        "foreign_load": pytest.approx(1.5),
        "foreign_processes": None,
        "throttled": False,
    }


def test_a_tick_too_many_of_ones_own_is_no_negative_load():
    found = watched(Reading(0, 1.0, 1.0, None), Reading(1, 1.9, 2.0, None))
    assert found == {"foreign_load": 0.0, "foreign_processes": None, "throttled": None}


def test_a_clock_held_back_is_seen():
    assert watched(Reading(0, 0, 0, 3), Reading(1, 0, 0, 4))["throttled"] is True


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (GpuReading(False, 0), GpuReading(True, 2), (True, 2)),
        (GpuReading(True, 1), GpuReading(False, 0), (True, 1)),
        (GpuReading(False, 0), GpuReading(False, 0), (False, 0)),
        (GpuReading(None, None), GpuReading(None, None), (None, None)),
    ],
)
def test_a_gpu_is_watched_at_both_ends(before, after, expected):
    found = watched(Reading(0, 0, 0, None, before), Reading(1, 0, 0, None, after))
    assert (found["throttled"], found["foreign_processes"]) == expected


def test_heat_and_quotas_are_read_where_a_machine_tells_them(tmp_path):
    assert throttle_count(tmp_path) is None
    quota = tmp_path / "sys/fs/cgroup/cpu.stat"
    heat = tmp_path / "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count"
    for path, text in (
        (quota, "usage_usec 17\nnr_periods 9\nnr_throttled 2\nthrottled_usec 8\n"),
        (heat, "5\n"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert throttle_count(tmp_path) == 7


def test_this_process_counts_as_its_own():
    before = reading(CPU)
    sum(range(3_000_000))
    after = reading(CPU)
    assert after.own_s > before.own_s
    assert after.busy_s >= before.busy_s
