from types import SimpleNamespace

import pytest

from sdbench.cli import env as command
from sdbench.instruments import energy, weights
from tests.cli.commands import invoke


def test_the_machine_is_named():
    printed = invoke("env").output
    assert all(text in printed for text in ("python", "torch", "cores", "free here"))
    assert all(text in printed for text in ("setting affinity", "setting attention_backend"))


@pytest.mark.parametrize(
    ("counter", "said"),
    [(None, "no counter that can be read"), (SimpleNamespace(source="rapl"), "counter rapl")],
)
def test_the_counter_of_energy_is_named(counter, said, monkeypatch):
    monkeypatch.setattr(energy, "counter_for", lambda device: counter)
    assert command._energy() == said


def test_the_network_of_lpips_is_found_or_it_is_said_how(tmp_path, monkeypatch):
    monkeypatch.delenv("SDBENCH_ALEXNET", raising=False)
    monkeypatch.setattr(weights, "cache_file", lambda: tmp_path / "cached")
    monkeypatch.setattr(weights.torch.hub, "get_dir", lambda: str(tmp_path))
    assert "`sdbench weights` fetches it" in " ".join(invoke("env").output.split())

    hub = tmp_path / "checkpoints"
    hub.mkdir()
    (hub / "alexnet-owt-7be5be79.pth").touch()
    assert weights.local_file() == hub / "alexnet-owt-7be5be79.pth"
    (tmp_path / "cached").touch()
    assert weights.local_file() == tmp_path / "cached"
    monkeypatch.setenv("SDBENCH_ALEXNET", "mine.pth")
    assert str(weights.local_file()) == "mine.pth"


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ((), "complete"),
        (("ray",), 'missing ray: pip install "sdbench[ray]"'),
    ],
)
def test_an_extra_is_complete_or_says_what_is_missing(monkeypatch, absent, said):
    monkeypatch.setattr(command, "_is_installed", lambda package: package not in absent)
    found = dict(command._extras())
    assert found["extra ray"] == said
    assert found["extra accelerators"] == "complete"
