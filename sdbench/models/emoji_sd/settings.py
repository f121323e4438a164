"""Everything that decides the outcome of a training run of emoji-sd."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What a training run is given.

    Args:
        seed: of the networks and of every step.
        reader_steps: of the reader's training.
        reader_batch: pictures in each.
        autoencoder_steps: of the autoencoder's training.
        autoencoder_batch: pictures in each.
        latent_noise: standard deviation of the noise that its decoder must stand, as a share of
            that of the latents.
        captions_steps: of the text encoder's training.
        captions_batch: captions in each.
        denoiser_steps: of the denoiser's training.
        denoiser_batch: pictures in each.
        caption_noise: chance that a part of a caption is replaced at random, as captions from the
            web are wrong.
        style_noise: the same chance of the style. A name that is drawn in one style alone comes
            with the other only by such a mistake: often, and the model learns to draw it in the
            wrong style.
        noisy_from: share of the denoiser's steps from which on captions are noisy.
        caption_dropout: share of empty captions, which train the unconditional prediction.
        bfloat16: run the layers under autocast; slow on a CPU without AMX.
    """

    seed: int = 0
    reader_steps: int = 4_000
    reader_batch: int = 64
    autoencoder_steps: int = 3_000
    autoencoder_batch: int = 8
    latent_noise: float = 0.1
    captions_steps: int = 1_600
    captions_batch: int = 64
    denoiser_steps: int = 6_000
    denoiser_batch: int = 64
    caption_noise: float = 0.4
    style_noise: float = 0.2
    noisy_from: float = 0.65
    caption_dropout: float = 0.1
    bfloat16: bool = True
