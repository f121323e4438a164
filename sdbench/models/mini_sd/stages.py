"""The stages of mini-sd's training: what each network sees at a step, and what its loss is.

How a loss is minimised is in `fit.py`, which stage follows which in `train.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

from sdbench.models.mini_sd import networks, reader, scenes
from sdbench.models.mini_sd.settings import Settings
from sdbench.models.training import batches
from sdbench.models.training.fit import Stage, fit
from sdbench.models.training.noise import spread_timesteps

# A number for each stage, by which its random numbers differ from the others'.
READER = 0
AUTOENCODER = 1
CAPTIONS = 3
DENOISER = 4
DECODER = 5


def train_reader(
    settings: Settings,
    attributes: Int[np.ndarray, "n 10"],
    images: UInt8[np.ndarray, "n 64 64 3"],
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the attribute reader on drawn scenes under blur, noise and changes of brightness."""
    targets = torch.from_numpy(reader.canonical(attributes)).to(device)
    network = reader.Reader()

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng, torch_rng = batches.generators(settings.seed, READER, step)
        chosen = rng.integers(len(images), size=settings.reader_batch)
        pixels = batches.pixels(images[chosen], device)

        # Images that a model makes are less clean than those that are drawn.
        blurred = functional.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
        n = len(pixels)
        blur, gain, spread = torch.rand(3, n, 1, 1, 1, generator=torch_rng).to(device)
        pixels = torch.lerp(pixels, blurred, blur * 0.8) * (0.9 + 0.2 * gain)
        pixels = pixels + 0.06 * spread * torch.randn(pixels.shape, generator=torch_rng).to(device)

        logits = network(pixels.clamp(0, 1))
        return _mean_cross_entropy(logits, targets[torch.from_numpy(chosen)])

    stage = Stage("reader", settings.reader_steps, learning_rate=2e-3, ema_decay=0.995)
    return fit(stage, network, loss_at, folder, device=device)


def train_autoencoder(
    settings: Settings,
    images: UInt8[np.ndarray, "n 64 64 3"],
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the autoencoder on crops, then on whole images.

    The loss is the absolute and the squared error; a little fixed noise on the latents keeps the
    decoder smooth. A sampled posterior starts with more noise than signal, and learned an object's
    colour ten times more slowly.
    """
    network = networks.autoencoder()
    whole_from = round(settings.whole_from * settings.autoencoder_steps)
    side = scenes.SIDE // 2
    batch = settings.autoencoder_batch

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng, torch_rng = batches.generators(settings.seed, AUTOENCODER, step)
        if step < whole_from:
            # The place is drawn before the images: the order decides the random numbers.
            top, left = rng.integers(scenes.SIDE - side + 1, size=2)
            chosen = rng.integers(len(images), size=4 * batch)
            batch_images = images[chosen, top : top + side, left : left + side]
        else:
            batch_images = images[rng.integers(len(images), size=batch)]

        pixels = batches.pixels(batch_images, device) * 2 - 1
        latents = network.encode(pixels).latent_dist.mean
        noise = torch.randn(latents.shape, generator=torch_rng).to(device)
        error = network.decode(latents + settings.latent_noise * noise).sample - pixels
        return error.abs().mean() + 4 * error.square().mean()

    stage = Stage("autoencoder", settings.autoencoder_steps, learning_rate=1.5e-3, ema_decay=0.998)
    return fit(stage, network, loss_at, folder, device=device)


def train_decoder(
    settings: Settings,
    vae: nn.Module,
    images: UInt8[np.ndarray, "n 64 64 3"],
    latents: Float[Tensor, "n 4 16 16"],
    scaling: float,
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the autoencoder's decoder further on whole images.

    The encoder keeps its weights, so that the denoiser's latents stay what they are.
    """
    vae.requires_grad_(False)
    for name in ("decoder", "post_quant_conv"):
        vae.get_submodule(name).requires_grad_(True)
    decode = _compiled(vae.decode, settings)

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng, torch_rng = batches.generators(settings.seed, DECODER, step)
        chosen = rng.integers(len(images), size=settings.decoder_batch)
        pixels = batches.pixels(images[chosen], device) * 2 - 1

        clean = latents[torch.from_numpy(chosen)] / scaling
        noise = torch.randn(clean.shape, generator=torch_rng).to(device)
        noised = clean + settings.latent_noise * noise
        error = decode(noised.contiguous(memory_format=torch.channels_last)).sample - pixels
        return error.abs().mean() + 4 * error.square().mean()

    stage = Stage("decoder", settings.decoder_steps, learning_rate=1e-3, ema_decay=0.998)
    return fit(stage, vae, loss_at, folder, device=device)


@torch.no_grad()
def encode(
    vae: Any, images: UInt8[np.ndarray, "n 64 64 3"], device: torch.device
) -> tuple[Float[Tensor, "n 4 16 16"], float]:
    """Latents of all images, scaled to unit variance, and the scaling factor."""
    # A few at a time, so that the encoder's activations fit in memory.
    chunks = [
        vae.encode(batches.pixels(images[i : i + 100], device) * 2 - 1).latent_dist.mean
        for i in range(0, len(images), 100)
    ]
    latents = torch.cat(chunks)
    scaling = float(1 / latents.std())
    return latents * scaling, scaling


def train_captions(
    settings: Settings, tokenizer: CLIPTokenizer, folder: Path, device: torch.device
) -> nn.Module:
    """Train the text encoder to name every attribute of a scene, at its caption's end and after.

    The denoiser's loss alone did not teach it whose a colour is: a wrong colour of an object in the
    caption hardly changed the loss. Stable Diffusion's text encoder, too, is trained before the
    denoiser and frozen.
    """
    encoder = networks.text_encoder(tokenizer)
    # The probe reads the attributes off the encoder's output; it is left behind afterwards.
    module = nn.ModuleDict({"text_encoder": encoder, "probe": networks.probe()})

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng, _ = batches.generators(settings.seed, CAPTIONS, step)
        attributes = scenes.sample(settings.captions_batch, rng, split="train")
        tokens = batches.tokens(tokenizer, scenes.captions(attributes), device)

        # The padding repeats the end token, and the denoiser attends to all of it.
        at_end = tokens == tokenizer.eos_token_id
        hidden = encoder(tokens).last_hidden_state[at_end]
        logits = module["probe"](hidden).split(reader.CLASSES, dim=-1)
        targets = torch.from_numpy(attributes).to(device)
        return _mean_cross_entropy(logits, targets.repeat_interleave(at_end.sum(dim=1), dim=0))

    stage = Stage("captions", settings.captions_steps, learning_rate=1e-3, ema_decay=0.99)
    return fit(stage, module, loss_at, folder, device=device).get_submodule("text_encoder")


def train_denoiser(
    settings: Settings,
    tokenizer: CLIPTokenizer,
    text_encoder: nn.Module,
    attributes: Int[np.ndarray, "n 10"],
    latents: Float[Tensor, "n 4 16 16"],
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the UNet; captions are sometimes empty, and later partly wrong.

    The target is the velocity (Salimans and Ho 2022, arXiv 2202.00512): the error of a predicted
    noise weighs the clean latent by the signal-to-noise ratio, so that at high noise, where the
    background is decided, nothing was learned.
    """
    unet = networks.denoiser()
    loss_at = denoiser_loss(settings, unet, tokenizer, text_encoder, attributes, latents, device)
    stage = Stage("denoiser", settings.denoiser_steps, learning_rate=1e-3, ema_decay=0.998)
    return fit(stage, unet, loss_at, folder, device=device)


def denoiser_loss(
    settings: Settings,
    unet: Any,
    tokenizer: CLIPTokenizer,
    text_encoder: nn.Module,
    attributes: Int[np.ndarray, "n 10"],
    latents: Float[Tensor, "n 4 16 16"],
    device: torch.device,
) -> Callable[[int], Float[Tensor, ""]]:
    """The loss of a UNet at every step of its training, as `train_denoiser` describes it."""
    # The fused attention's backward pass is slow in bfloat16 on a CPU.
    unet.set_attn_processor(AttnProcessor())
    predict = _compiled(unet, settings)
    noise_scheduler = networks.scheduler()
    noisy_step = round(settings.noisy_from * settings.denoiser_steps)

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng, torch_rng = batches.generators(settings.seed, DENOISER, step)
        chosen = rng.integers(len(latents), size=settings.denoiser_batch)
        caption_noise = settings.caption_noise if step >= noisy_step else 0.0
        texts = _training_captions(settings, attributes[chosen], caption_noise, rng)

        clean = latents[torch.from_numpy(chosen)]
        noise = torch.randn(clean.shape, generator=torch_rng).to(device)
        timesteps = spread_timesteps(noise_scheduler, len(chosen), torch_rng).to(device)
        noised = noise_scheduler.add_noise(clean, noise, timesteps)
        noised = noised.contiguous(memory_format=torch.channels_last)

        with torch.no_grad():
            context = text_encoder(batches.tokens(tokenizer, texts, device)).last_hidden_state
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
            velocity = predict(noised, timesteps, context).sample
        target = noise_scheduler.get_velocity(clean, noise, timesteps)
        return functional.mse_loss(velocity.float(), target)

    return loss_at


def _compiled(function: Any, settings: Settings) -> Any:
    """The same function, compiled where the settings say so."""
    return torch.compile(function) if settings.compiled else function


def _training_captions(
    settings: Settings,
    attributes: Int[np.ndarray, "n 10"],
    caption_noise: float,
    rng: np.random.Generator,
) -> list[str]:
    """Captions of scenes, some partly wrong, some empty."""
    captions = scenes.captions(scenes.corrupt(attributes, caption_noise, rng))
    dropped = rng.random(len(captions)) < settings.caption_dropout
    return ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]


def _mean_cross_entropy(
    logits: Sequence[Float[Tensor, "n classes"]], targets: Int[Tensor, "n 10"]
) -> Float[Tensor, ""]:
    """Mean over the fields of a scene; what a scene does not have counts in none."""
    losses = [
        functional.cross_entropy(of_field, targets[:, field], ignore_index=scenes.ABSENT)
        for field, of_field in enumerate(logits)
    ]
    return torch.stack(losses).mean()
