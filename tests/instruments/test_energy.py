"""Energy by counters that wrap, stand still, drift or are reset, and by a made-up powercap."""

import math
from types import SimpleNamespace

import pytest
import torch

from sdbench.instruments import energy
from sdbench.instruments.energy import (
    EnergyMeter,
    Gauge,
    GpuCounter,
    Reading,
    Refused,
    at_rest,
    counter_for,
    gauge_for,
    grown,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Machine:
    """A machine that draws power, and a counter of it that is updated now and then.

    `range_j` is where the counter begins again, `update_s` how long it stands in between.
    """

    source = "rapl"
    most_w = 1000.0
    in_slices = True

    def __init__(self, *, range_j=None, update_s=1e-3, first_j=0.0):
        self.ranges_j, self.update_s = (range_j,), update_s
        self.now_s, self.total_j, self.shown_j, self.is_stuck = 0.0, first_j, first_j, False

    def run(self, seconds, watts):
        updates = math.floor((self.now_s + seconds) / self.update_s + 1e-9)
        since_s = self.now_s + seconds - updates * self.update_s
        if not self.is_stuck and since_s <= seconds:
            self.shown_j = round(self.total_j + watts * (seconds - since_s), 6)
        self.now_s += seconds
        self.total_j += watts * seconds

    def read(self):
        range_j = self.ranges_j[0]
        return Reading(self.now_s, (self.shown_j % range_j if range_j else self.shown_j,))


def gauge(machine, idle_w=50.0):
    return Gauge(machine, idle_w, machine.update_s)


def called(machine, steps=((1.0, 100.0),), *, idle_w=50.0, around=0.0):
    """A meter after a call: seconds and watts of its steps, and time before and after them."""
    meter = EnergyMeter(gauge(machine, idle_w))
    with meter:
        machine.run(around, 100.0)
        meter.loop_begins(0, len(steps), 1)
        for seconds, watts in steps:
            machine.run(seconds, watts)
            meter.step_ends(None)
        machine.run(around, 100.0)
    return meter


def test_a_call_takes_what_the_counter_grew_by():
    meter = called(Machine(first_j=12.0), [(1.0, 100.0), (2.0, 200.0)], around=0.5)
    assert meter.columns == {
        "energy_j": pytest.approx(50 + 100 + 400 + 50),
        "idle_w": 50.0,
        "energy_source": "rapl",
    }
    assert meter.steps == [pytest.approx(100), pytest.approx(400)]
    assert meter.fault == ""


def test_a_counter_that_begins_again_is_followed():
    meter = called(Machine(range_j=5000.0, first_j=4950.0), [(1.0, 100.0)] * 3)
    assert meter.columns["energy_j"] == pytest.approx(300)
    assert meter.steps == [pytest.approx(100)] * 3


def test_a_counter_that_may_have_begun_again_twice_is_refused():
    meter = called(Machine(range_j=5000.0), [(6.0, 100.0)])  # 6 s of 1 kW are more than its range
    assert meter.columns["energy_j"] is None
    assert meter.steps == [None]
    assert meter.fault == "the counter may have begun again twice"


@pytest.mark.parametrize("range_j", [None, 5000.0])
def test_a_counter_that_was_reset_is_refused(range_j):
    machine = Machine(range_j=range_j, first_j=3000.0)
    meter = EnergyMeter(gauge(machine))
    with meter:
        machine.run(1.0, 100.0)
        meter.step_ends(None)
        machine.total_j = machine.shown_j = 0.0
        machine.run(1.0, 100.0)
        meter.step_ends(None)
        machine.run(1.0, 100.0)
        meter.step_ends(None)
    assert meter.columns["energy_j"] is None
    assert meter.steps == [None] * 3
    assert meter.fault == "the counter was reset"


def test_a_counter_that_leaps_is_refused():
    machine = Machine()
    with EnergyMeter(gauge(machine)) as meter:
        machine.run(1.0, 1002.1)
    assert meter.fault == "the counter was reset"


def test_a_counter_that_stands_still_is_refused():
    machine = Machine()
    machine.is_stuck = True
    meter = called(machine)
    assert meter.columns["energy_j"] is None
    assert meter.fault == "the counter stood still"


def test_a_counter_that_stands_still_from_some_time_on_is_refused():
    machine = Machine()
    with EnergyMeter(gauge(machine)) as meter:
        machine.run(1.0, 100.0)
        machine.is_stuck = True
        machine.run(9.0, 100.0)
    assert meter.columns["energy_j"] is None
    assert meter.fault == "the counter grew by less than half the idle power"


def test_idle_power_that_drifts_changes_no_energy():
    machine = Machine(update_s=0.05)
    early = at_rest(machine, lambda seconds: machine.run(seconds, 40.0))
    late = at_rest(machine, lambda seconds: machine.run(seconds, 70.0))
    assert early.idle_w == pytest.approx(40)
    assert late.idle_w == pytest.approx(70)
    told = [called(machine, idle_w=each.idle_w).columns["energy_j"] for each in (early, late)]
    assert told == [pytest.approx(100, abs=5), pytest.approx(100, abs=5)]  # an update is 5 J


def test_a_call_of_few_updates_has_no_energy_and_no_fault():
    meter = called(Machine(update_s=0.1), [(0.9, 100.0)])
    assert meter.columns["energy_j"] is None
    assert meter.columns["energy_source"] == "rapl"
    assert meter.fault == ""
    assert called(Machine(update_s=0.1), [(1.0, 100.0)]).columns["energy_j"] is not None


def test_a_step_of_few_updates_is_not_told_by_itself():
    meter = called(Machine(), [(0.05, 100.0), (0.2, 100.0)])
    assert meter.steps == [None, pytest.approx(20)]
    assert meter.columns["energy_j"] == pytest.approx(25)


def test_an_error_of_an_update_at_either_end_is_no_bias():
    """Over calls that begin anywhere between two updates, the mean energy is the true one."""
    machine, told = Machine(update_s=0.1), []
    for _ in range(500):
        machine.run(0.0317, 100.0)
        told.append(called(machine, [(1.013, 100.0)]).columns["energy_j"])
    assert sum(told) / len(told) == pytest.approx(101.3, rel=0.005)
    assert max(told) <= 111.4
    assert min(told) >= 91.2


def test_what_other_calls_take_in_their_turns_is_left_out():
    machine = Machine()
    meter = EnergyMeter(gauge(machine))
    give_way = meter.leaving_out(lambda progress: machine.run(5.0, 900.0))
    with meter:
        machine.run(0.2, 100.0)
        meter.loop_begins(0, 2, 1)
        give_way(0.0)
        for progress in (0.5, 1.0):
            machine.run(0.3, 200.0)
            meter.step_ends(None)
            give_way(progress)
        machine.run(0.1, 100.0)
    assert meter.columns["energy_j"] == pytest.approx(20 + 60 + 60 + 10)
    assert meter.steps == [pytest.approx(60), pytest.approx(60)]


def test_slices_that_are_short_for_the_counter_make_no_energy():
    machine = Machine()
    meter = EnergyMeter(gauge(machine))
    give_way = meter.leaving_out(lambda progress: machine.run(0.0077, 900.0))
    with meter:
        for _ in range(100):
            machine.run(0.005, 100.0)
            give_way(0.0)
    assert meter.columns["energy_j"] is None
    assert meter.fault == ""


def test_a_counter_that_cannot_be_read_any_more_is_refused(monkeypatch):
    machine = Machine()
    meter = EnergyMeter(gauge(machine))
    with meter:
        machine.run(1.0, 100.0)

        def fail():
            raise Refused("the counter cannot be read")

        monkeypatch.setattr(machine, "read", fail)
    assert meter.columns["energy_j"] is None
    assert meter.fault == "the counter cannot be read"


def test_a_call_that_fails_says_nothing_of_its_energy():
    machine = Machine()
    meter = EnergyMeter(gauge(machine))
    with pytest.raises(KeyError), meter:
        raise KeyError
    assert meter.columns == {}


@pytest.mark.parametrize("update_s", [0.02, 0.1])
def test_the_updates_of_a_counter_are_seen_where_nobody_tells_them(update_s):
    machine = Machine(update_s=update_s)
    counter = SimpleNamespace(
        read=machine.read, ranges_j=(None,), most_w=1000.0, update_s=None, source="nvml"
    )
    found = at_rest(counter, lambda seconds: machine.run(seconds, 60.0))
    assert found.update_s == pytest.approx(update_s, rel=0.1)
    assert found.idle_w == pytest.approx(60, rel=0.05)


def test_a_counter_that_does_not_count_while_at_rest_is_none():
    machine = Machine()
    machine.is_stuck = True
    assert at_rest(machine, lambda seconds: machine.run(seconds, 60.0)) is None


# The kernel's powercap.


def zone(root, name, *, word, joules=1.0, range_j=262_143.3):
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{word}\n")
    (folder / "max_energy_range_uj").write_text(f"{round(range_j * 1e6)}\n")
    (folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    return folder / "energy_uj"


def test_packages_are_summed_and_what_is_in_them_or_around_them_is_not(tmp_path):
    packages = [zone(tmp_path, f"intel-rapl:{n}", word=f"package-{n}") for n in range(2)]
    zone(tmp_path, "intel-rapl:0:0", word="core")
    zone(tmp_path, "intel-rapl:0:1", word="dram")
    zone(tmp_path, "intel-rapl:2", word="psys")
    zone(tmp_path, "intel-rapl-mmio:0", word="package-0")
    counter = counter_for(CPU, tmp_path)
    assert counter.ranges_j == (262_143.3, 262_143.3)
    before = counter.read()
    for file, joules in zip(packages, (3.0, 11.5), strict=True):
        file.write_text(f"{round(joules * 1e6)}\n")
    after = Reading(before.at_s + 1, counter.read().joules)
    assert grown(before, after, counter) == pytest.approx(2 + 10.5)


def test_a_package_that_begins_again_does_not_disturb_the_other(tmp_path):
    wraps = zone(tmp_path, "intel-rapl:0", word="package-0", joules=999.0, range_j=1000.0)
    other = zone(tmp_path, "intel-rapl:1", word="package-1", joules=5.0, range_j=1000.0)
    counter = counter_for(CPU, tmp_path)
    before = counter.read()
    wraps.write_text("4000000\n")
    other.write_text("7000000\n")
    after = Reading(before.at_s + 0.5, counter.read().joules)
    assert grown(before, after, counter) == pytest.approx(5 + 2)


def test_without_all_packages_there_is_no_counter(tmp_path):
    assert counter_for(CPU, tmp_path) is None
    zone(tmp_path, "intel-rapl:0", word="package-0")
    unreadable = zone(tmp_path, "intel-rapl:1", word="package-1")
    assert counter_for(CPU, tmp_path) is not None
    unreadable.write_text("")
    assert counter_for(CPU, tmp_path) is None
    unreadable.unlink()
    assert counter_for(CPU, tmp_path) is None


# NVIDIA's library.


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of which the clock, the device and the library are made up."""
    made = SimpleNamespace(now_s=0.0, joules=100.0, waited=0)

    def waits(device):
        made.waited += 1

    monkeypatch.setattr(torch.cuda, "synchronize", waits)
    monkeypatch.setattr(energy, "gpu_energy_j", lambda device: made.joules)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: made.now_s)
    return made


def test_a_gpu_is_waited_for_before_it_is_read_and_not_within_a_call(gpu):
    counter = GpuCounter(CUDA)
    meter = EnergyMeter(Gauge(counter, 80.0, 0.1))
    with meter:
        meter.loop_begins(0, 1, 1)
        meter.step_ends(None)
        gpu.now_s, gpu.joules = 2.0, 1300.0
    assert gpu.waited == 2
    assert meter.columns["energy_j"] == 1200.0
    assert meter.columns["energy_source"] == "nvml"
    assert meter.steps == []


def test_the_counter_of_a_gpu_never_begins_again(gpu):
    meter = EnergyMeter(Gauge(GpuCounter(CUDA), 80.0, 0.1))
    with meter:
        gpu.now_s, gpu.joules = 2.0, 3.0
    assert meter.fault == "the counter was reset"


def test_a_gpu_that_tells_nothing_has_no_counter_and_costs_no_time(gpu, monkeypatch):
    monkeypatch.setattr(energy.time, "sleep", lambda seconds: pytest.fail("it was waited"))
    gpu.joules = None
    assert counter_for(CUDA) is None
    assert gauge_for(CUDA) is None


@pytest.mark.gpu
def test_a_gpu_counts_more_when_it_computes():
    matrix = torch.rand(8192, 8192, device=CUDA, dtype=torch.bfloat16)
    found = gauge_for(CUDA)
    assert found is not None
    with EnergyMeter(found) as meter:
        begun = energy.time.perf_counter()
        while energy.time.perf_counter() - begun < 3:
            matrix @ matrix
            torch.cuda.synchronize()
    assert meter.columns["energy_j"] > 3 * found.idle_w
