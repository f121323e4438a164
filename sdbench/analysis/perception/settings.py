"""What decides a blind test, and the stream of numbers that page and analysis share.

Page and analysis draw from hashes and from one small generator, so that the same settings give the
same test in every version of Python, numpy and browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdbench.records.files import NONE, NUMBER, parsed, require
from sdbench.records.names import TRIAL_MODES

TRIALS = 48
"""Trials of variants in a page, when nothing else is asked for."""
PRACTICE = 3
_FIELDS: dict[str, tuple[type, ...]] = {
    "mode": (str,),
    "variants": (list,),
    "trials": (int,),
    "seed": (int,),
    "limit_s": (*NUMBER, NONE),
    "scale": (int, NONE),
}
_MASK = 0x5DBE_9C4A  # of the settings in a page, which may be read and should not be by mistake


@dataclass(frozen=True)
class Settings:
    """What decides a blind test.

    Attributes:
        mode: one of `TRIAL_MODES`.
        variants: that are tested.
        trials: of variants; catch trials come on top.
        seed: of trials, order and sides.
        limit_s: how long the images of a trial are shown, in seconds; None for no limit.
        scale: pixels of the screen for a pixel of the image; None for as many as fit.
    """

    mode: str = TRIAL_MODES[0]
    variants: tuple[str, ...] = ()
    trials: int = TRIALS
    seed: int = 0
    limit_s: float | None = None
    scale: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value that no page can have.
        """
        if self.mode not in TRIAL_MODES:
            raise ValueError(f"unknown mode {self.mode!r}; there are {', '.join(TRIAL_MODES)}")
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise ValueError("name one variant or several different ones")
        if not len(self.variants) <= self.trials <= 1000:
            raise ValueError(
                f"trials is {self.trials}; expected one for each variant, and at most 1000"
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; expected 0 to 2147483647")
        if self.limit_s is not None and not 0.1 <= self.limit_s <= 600:
            raise ValueError(f"the limit is {self.limit_s} s; expected 0.1 to 600")
        if self.scale is not None and not 1 <= self.scale <= 32:
            raise ValueError(f"scale is {self.scale}; expected 1 to 32")

    @property
    def catch_trials(self) -> int:
        """Of each of the two kinds."""
        return max(8, self.trials // 6)

    def token(self) -> str:
        """The settings as one word, from which nobody reads a variant's name by chance."""
        text = json.dumps(asdict(self), separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(masked(text, _MASK)).decode()

    @classmethod
    def of_token(cls, token: str, *, source: str) -> Settings:
        """The settings that a page wrote into the answers.

        Raises:
            ValueError: the word is no such settings; names the source.
        """
        try:
            text = masked(base64.b64decode(token, altchars=b"-_", validate=True), _MASK).decode()
            content = parsed(json.loads, text)
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.keys() != _FIELDS.keys():
            raise ValueError(f"{source}: 'settings' are not those of a page of this version")
        require(content, _FIELDS, source=source)
        if not all(isinstance(name, str) for name in content["variants"]):
            raise ValueError(f"{source}: a variant is no text")
        try:
            return cls(**content | {"variants": tuple(content["variants"])})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None


def masked(content: bytes, seed: int) -> bytes:
    """Bytes with a stream of numbers over them; the same call takes it off again.

    It is no encryption: the page's own program holds the seed.
    """
    stream = numbers(seed, len(content)) & 0xFF
    found: NDArray[np.uint8] = np.frombuffer(content, np.uint8) ^ stream.astype(np.uint8)
    return found.tobytes()


def numbers(seed: int, count: int) -> NDArray[np.uint32]:
    """The first numbers of the generator mulberry32, as the page's program draws them."""
    places = np.arange(1, count + 1, dtype=np.uint64)
    state = (seed + places * 0x6D2B79F5 & 0xFFFFFFFF).astype(np.uint32)
    mixed = (state ^ state >> 15) * (state | np.uint32(1))
    mixed ^= mixed + (mixed ^ mixed >> 7) * (mixed | np.uint32(61))
    found: NDArray[np.uint32] = mixed ^ mixed >> 14
    return found


def drawn(seed: int, *parts: Any) -> bytes:
    """32 random bytes for a thing: a key to shuffle things by, or bits to draw."""
    return hashlib.sha256("\n".join(map(str, (seed, *parts))).encode()).digest()
