from types import SimpleNamespace

import pynvml
import pytest
import torch

from sdbench.instruments import gpu
from sdbench.instruments.gpu import GpuReading, gpu_energy_j, gpu_reading

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def nvml(monkeypatch):
    """The library of a machine with one GPU, as far as it is asked."""
    told = {"reasons": 0, "processes": [object()], "energy": 12_345}

    def of(name):
        def ask(handle):
            assert handle == "GPU-1-2"
            if isinstance(told[name], Exception):
                raise told[name]
            return told[name]

        return ask

    gpu._handle.cache_clear()
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2")
    )
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", of("reasons"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", of("processes"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", of("energy"))
    yield told
    gpu._handle.cache_clear()


def test_heat_holds_a_clock_back_and_a_power_limit_does_not(nvml):
    nvml["reasons"] = pynvml.nvmlClocksEventReasonSwPowerCap
    assert gpu_reading(DEVICE) == GpuReading(held_back=False, others=0)
    nvml["reasons"] |= pynvml.nvmlClocksEventReasonHwThermalSlowdown
    assert gpu_reading(DEVICE).held_back is True


def test_others_are_counted_without_this_process(nvml):
    nvml["processes"] = [object()] * 3
    assert gpu_reading(DEVICE).others == 2
    nvml["processes"] = []  # a container that hides them, as this process is not there
    assert gpu_reading(DEVICE).others is None


def test_what_a_gpu_does_not_tell_is_missing(nvml):
    nvml["reasons"] = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert gpu_reading(DEVICE) == GpuReading(held_back=None, others=0)


def test_energy_is_told_in_joules_and_missing_before_volta(nvml):
    assert gpu_energy_j(DEVICE) == 12.345
    nvml["energy"] = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert gpu_energy_j(DEVICE) is None


def test_without_the_driver_nothing_is_told(nvml, monkeypatch):
    def absent():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert gpu_reading(DEVICE) == GpuReading(None, None)


@pytest.mark.gpu
def test_a_gpu_tells_of_itself():
    torch.zeros(1, device=DEVICE)
    told = gpu_reading(DEVICE)
    assert told.held_back in (True, False)
    assert told.others is not None
