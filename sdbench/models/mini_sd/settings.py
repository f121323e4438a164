"""Everything that decides the outcome of a training run of mini-sd."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What a training run is given.

    Args:
        seed: of the scenes, of the networks and of every step.
        pool: scenes that are drawn, once.
        reader_steps: of the reader's training.
        reader_batch: images in each.
        autoencoder_steps: of the autoencoder's training.
        autoencoder_batch: whole images in each; of crops, which have a quarter of the area, it is
            four times that.
        whole_from: share of the autoencoder's steps from which on it sees whole images.
        decoder_steps: of its decoder's further training, its encoder frozen.
        decoder_batch: whole images in each.
        latent_noise: standard deviation of the noise that its decoder must stand.
        captions_steps: of the text encoder's training.
        captions_batch: captions in each.
        denoiser_steps: of the denoiser's training.
        denoiser_batch: images in each.
        caption_noise: chance that an attribute of a caption is replaced at random, as captions from
            the web are wrong.
        noisy_from: share of the denoiser's steps from which on captions are noisy.
        caption_dropout: share of empty captions, which train the unconditional prediction.
        bfloat16: run the denoiser's layers under autocast; slow on a CPU without AVX-512 BF16.
        compiled: compile the denoiser and the decoder, which needs a C++ compiler.
    """

    seed: int = 0
    pool: int = 40_000
    reader_steps: int = 2_500
    reader_batch: int = 96
    autoencoder_steps: int = 5_000
    autoencoder_batch: int = 8
    whole_from: float = 0.8
    latent_noise: float = 0.1
    decoder_steps: int = 6_000
    decoder_batch: int = 8
    captions_steps: int = 1_500
    captions_batch: int = 64
    denoiser_steps: int = 18_000
    denoiser_batch: int = 32
    caption_noise: float = 0.3
    noisy_from: float = 0.65
    caption_dropout: float = 0.1
    bfloat16: bool = True
    compiled: bool = True
