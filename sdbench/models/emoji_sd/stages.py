"""The stages of emoji-sd's training: what each network sees at a step, and what its loss is.

How a loss is minimised is in `training/fit.py`, which stage follows which in `train.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

from sdbench.models.emoji_sd import catalogue, networks, reader
from sdbench.models.emoji_sd.settings import Settings
from sdbench.models.training import batches
from sdbench.models.training.fit import Stage, fit
from sdbench.models.training.noise import spread_timesteps

# A number for each stage, by which its random numbers differ from the others'.
READER = 0
AUTOENCODER = 1
CAPTIONS = 2
DENOISER = 3


def train_reader(
    settings: Settings,
    rows: Int[np.ndarray, "n 4"],
    images: UInt8[np.ndarray, "n 64 64 3"],
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the reader on pictures that are moved, resized, blurred, noisy, darker or brighter."""
    targets = torch.from_numpy(rows).to(device)
    network = reader.Reader()
    weights = catalogue.weights(rows)

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng, torch_rng = batches.generators(settings.seed, READER, step)
        chosen = rng.choice(len(rows), size=settings.reader_batch, p=weights)
        pixels = _spoilt(batches.pixels(images[chosen], device), torch_rng)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
            logits = network(pixels)
        wanted = targets[torch.from_numpy(chosen)]
        losses = [
            functional.cross_entropy(part.float(), wanted[:, i]) for i, part in enumerate(logits)
        ]
        return torch.stack(losses).sum()

    stage = Stage("reader", settings.reader_steps, learning_rate=1e-3, ema_decay=0.998)
    return fit(stage, network, loss_at, folder, device=device)


def _spoilt(
    pixels: Float[Tensor, "n 3 64 64"], generator: torch.Generator
) -> Float[Tensor, "n 3 64 64"]:
    """Pictures as a model makes them: less clean than those that are drawn."""
    n = len(pixels)
    draws = torch.rand(7, n, 1, 1, 1, generator=generator).to(pixels.device)
    blur, gain, spread, *geometry = draws
    width, height, right, down = (part[:, 0, 0, 0] for part in geometry)

    # Up to a tenth larger or smaller, and moved by up to 3 pixels; white comes in from outside.
    grid = torch.zeros(n, 2, 3, device=pixels.device)
    grid[:, 0, 0] = 0.9 + 0.2 * width
    grid[:, 1, 1] = 0.9 + 0.2 * height
    grid[:, :, 2] = (torch.stack([right, down], dim=1) - 0.5) * 2 * 3 / 32
    places = functional.affine_grid(grid, list(pixels.shape), align_corners=False)
    pixels = 1 - functional.grid_sample(1 - pixels, places, align_corners=False)

    blurred = functional.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    pixels = torch.lerp(pixels, blurred, blur * 0.9) * (0.95 + 0.1 * gain)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (pixels + 0.06 * spread * noise).clamp(0, 1)


def train_autoencoder(
    settings: Settings,
    rows: Int[np.ndarray, "n 4"],
    images: UInt8[np.ndarray, "n 64 64 3"],
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the autoencoder on pictures that are moved by up to 4 pixels.

    The loss is the absolute and the squared error. A little noise on the latents keeps the decoder
    smooth; it is a share of their spread, or the encoder would only make them larger.
    """
    network = networks.autoencoder()
    weights = catalogue.weights(rows)

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng, torch_rng = batches.generators(settings.seed, AUTOENCODER, step)
        chosen = rng.choice(len(rows), size=settings.autoencoder_batch, p=weights)
        pixels = batches.pixels(_moved(images[chosen], rng), device) * 2 - 1

        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
            latents = network.encode(pixels).latent_dist.mean.float()
            noise = torch.randn(latents.shape, generator=torch_rng).to(device)
            noised = latents + settings.latent_noise * latents.detach().std() * noise
            decoded = network.decode(noised).sample
        error = decoded.float() - pixels
        return error.abs().mean() + 4 * error.square().mean()

    stage = Stage("autoencoder", settings.autoencoder_steps, learning_rate=2e-3, ema_decay=0.998)
    return fit(stage, network, loss_at, folder, device=device)


def _moved(
    images: UInt8[np.ndarray, "n 64 64 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "n 64 64 3"]:
    """Each picture moved by up to 4 pixels in both directions, on white; half are mirrored."""
    reach, side = 4, catalogue.SIDE
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), constant_values=255)
    corners = rng.integers(2 * reach + 1, size=(len(images), 2))
    mirrored = rng.random(len(images)) < 0.5
    moved = [
        picture[top : top + side, left : left + side][:, :: -1 if mirror else 1]
        for picture, (top, left), mirror in zip(padded, corners, mirrored, strict=True)
    ]
    return np.stack(moved)


@torch.no_grad()
def encode(
    vae: Any, images: UInt8[np.ndarray, "n 64 64 3"], device: torch.device
) -> Float[Tensor, "n 6 16 16"]:
    """The latents of all pictures."""
    # A few at a time, so that the encoder's activations fit in memory.
    chunks = [
        vae.encode(batches.pixels(images[i : i + 100], device) * 2 - 1).latent_dist.mean
        for i in range(0, len(images), 100)
    ]
    return torch.cat(chunks)


@torch.no_grad()
def centre(vae: Any, means: Float[Tensor, 16]) -> None:
    """Move the origin of the autoencoder's latents to the given means of its channels.

    Most of a picture is white, so the channels' means are far from 0, and a pipeline's scaling
    factor cannot move them. The decoder adds what the encoder takes away.
    """
    vae.quant_conv.bias[: len(means)] -= means
    shift = vae.post_quant_conv.weight[:, :, 0, 0] @ means
    vae.post_quant_conv.bias += shift


@torch.no_grad()
def features(
    network: Any, images: UInt8[np.ndarray, "n 64 64 3"], device: torch.device
) -> Float[Tensor, "n 192"]:
    """The reader's features of all pictures, of mean 0 and variance 1 in every place."""
    chunks = [
        network.features(batches.pixels(images[i : i + 500], device))
        for i in range(0, len(images), 500)
    ]
    seen = torch.cat(chunks)
    return (seen - seen.mean(dim=0)) / seen.std(dim=0)


def train_captions(
    settings: Settings,
    tokenizer: CLIPTokenizer,
    rows: Int[np.ndarray, "n 4"],
    features: Float[Tensor, "n 192"],
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the text encoder to name a caption's parts, and to tell what the reader sees.

    Half of the captions belong to a picture, and their code has to tell the reader's features of
    it: what looks alike gets similar codes. The other half are mixed, so that a part is told
    whatever stands beside it.

    Args:
        settings: of the run.
        tokenizer: of the captions.
        rows: the pictures of the training split.
        features: the reader's for each of them, of mean 0 and variance 1 in every place.
        folder: for the checkpoint.
        device: where it is trained.
    """
    encoder = networks.text_encoder(tokenizer)
    # The probe reads the parts off the encoder's output; it is left behind afterwards.
    probe = networks.probe(sum(reader.classes()), reader.FEATURES)
    module = nn.ModuleDict({"text_encoder": encoder, "probe": probe})
    weights = catalogue.weights(rows)
    half = settings.captions_batch // 2

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng, _ = batches.generators(settings.seed, CAPTIONS, step)
        chosen = rng.choice(len(rows), size=2 * half, p=weights)
        mixed = catalogue.corrupt(rows[chosen[half:]], 0.5, rng)
        written = np.concatenate([rows[chosen[:half]], mixed])
        tokens = batches.tokens(tokenizer, catalogue.captions(written), device)

        # The padding repeats the end token, and the denoiser attends to all of it.
        at_end = tokens == tokenizer.eos_token_id
        of_caption = at_end.nonzero()[:, 0]
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
            hidden = encoder(tokens).last_hidden_state[at_end]
            told = probe(hidden).float()
        *logits, seen = told.split([*reader.classes(), reader.FEATURES], dim=-1)

        wanted = torch.from_numpy(written).to(device)[of_caption]
        pictured = of_caption < half
        looks = features[torch.from_numpy(chosen)[of_caption[pictured]]]
        named = _cross_entropies(logits, wanted).mean()
        return named + functional.mse_loss(seen[pictured], looks)

    stage = Stage("captions", settings.captions_steps, learning_rate=1e-3, ema_decay=0.99)
    return fit(stage, module, loss_at, folder, device=device).get_submodule("text_encoder")


def train_denoiser(
    settings: Settings,
    tokenizer: CLIPTokenizer,
    text_encoder: nn.Module,
    rows: Int[np.ndarray, "n 4"],
    latents: Float[Tensor, "n 6 16 16"],
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the UNet to predict the velocity; captions are sometimes empty, later partly wrong.

    Why the velocity, and why the noise ends in pure noise, is told in mini-sd's `stages.py`.
    """
    unet = networks.denoiser()
    # The fused attention's backward pass is slow in bfloat16 on a CPU.
    unet.set_attn_processor(AttnProcessor())
    noise_scheduler = networks.scheduler()
    noisy_step = round(settings.noisy_from * settings.denoiser_steps)
    mistakes = [settings.caption_noise] * len(catalogue.FIELDS)
    mistakes[catalogue.STYLE] = settings.style_noise
    weights = catalogue.weights(rows)

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng, torch_rng = batches.generators(settings.seed, DENOISER, step)
        chosen = rng.choice(len(rows), size=settings.denoiser_batch, p=weights)
        noise_by_field = mistakes if step >= noisy_step else 0.0
        texts = catalogue.captions(catalogue.corrupt(rows[chosen], noise_by_field, rng))
        dropped = rng.random(len(texts)) < settings.caption_dropout
        texts = ["" if drop else text for drop, text in zip(dropped, texts, strict=True)]

        clean = latents[torch.from_numpy(chosen)]
        noise = torch.randn(clean.shape, generator=torch_rng).to(device)
        timesteps = spread_timesteps(noise_scheduler, len(chosen), torch_rng).to(device)
        noised = noise_scheduler.add_noise(clean, noise, timesteps)
        noised = noised.contiguous(memory_format=torch.channels_last)

        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
            with torch.no_grad():
                context = text_encoder(batches.tokens(tokenizer, texts, device)).last_hidden_state
            velocity = unet(noised, timesteps, context).sample
        target = noise_scheduler.get_velocity(clean, noise, timesteps)
        return functional.mse_loss(velocity.float(), target)

    stage = Stage("denoiser", settings.denoiser_steps, learning_rate=1e-3, ema_decay=0.998)
    return fit(stage, unet, loss_at, folder, device=device)


def _cross_entropies(
    logits: Sequence[Float[Tensor, "n classes"]], wanted: Int[Tensor, "n 4"]
) -> Float[Tensor, 4]:
    """One for each field of a picture."""
    return torch.stack(
        [functional.cross_entropy(part, wanted[:, field]) for field, part in enumerate(logits)]
    )
