"""Train mini-sd: `python -m sdbench.models.mini_sd.train --out runs/mini-sd`.

Stages, each resumed from its last checkpoint after a kill: the reader; the autoencoder; the text encoder, which learns
to tell a caption's attributes; the denoiser. `--export` writes the pipeline folder and the reader that ship in the
wheel. What the scenes look like is in `scenes.py`, the
networks in `networks.py`, the measured card in `card.py`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.optimization import get_cosine_schedule_with_warmup
from jaxtyping import Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTokenizer

from sdbench.models.mini_sd import networks, reader, scenes


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a training run.

    `caption_noise` is the chance that an attribute of a caption is replaced at random, as web captions are wrong; it
    applies from `noisy_from` (share of the denoiser's steps) on. `caption_dropout` is the share of empty captions that
    trains the unconditional prediction. The autoencoder sees crops of a quarter of the area, four times as many, until
    `whole_from` of its steps. `bfloat16` runs the denoiser's layers under autocast in training; it is slow on a CPU
    without AVX-512 BF16.
    """

    seed: int = 0
    pool: int = 40_000
    reader_steps: int = 2_500
    reader_batch: int = 96
    autoencoder_steps: int = 5_000
    autoencoder_batch: int = 8
    whole_from: float = 0.8
    latent_noise: float = 0.1
    captions_steps: int = 1_500
    captions_batch: int = 64
    denoiser_steps: int = 12_000
    denoiser_batch: int = 32
    caption_noise: float = 0.3
    noisy_from: float = 0.65
    caption_dropout: float = 0.1
    bfloat16: bool = True


@dataclass(frozen=True)
class Stage:
    """One optimisation: its name, length, peak learning rate and the decay of the weight average."""

    name: str
    steps: int
    learning_rate: float
    ema_decay: float


def fit(
    stage: Stage,
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    folder: Path,
    *,
    device: torch.device,
    save_every: int = 250,
) -> nn.Module:
    """Minimise `loss_at(step)` with AdamW under a cosine schedule and return the averaged module.

    The loss must depend on nothing but the weights and the step, so that a run resumed from its checkpoint takes the
    same path as one that was never interrupted.
    """
    path = folder / f"{stage.name}.pt"
    module.to(device).to(memory_format=torch.channels_last)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(stage.ema_decay))
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=stage.learning_rate, weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(
        optimiser, num_warmup_steps=100, num_training_steps=stage.steps
    )
    parts = {"module": module, "average": average, "optimiser": optimiser, "schedule": schedule}
    done, seconds, curve = 0, 0.0, []
    if path.exists():
        saved = torch.load(path, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        done, seconds, curve = saved["done"], saved["seconds"], saved["curve"]

    started = time.perf_counter()
    running: list[Tensor] = []
    with _progress() as progress:
        task = progress.add_task(stage.name, total=stage.steps, completed=done, loss="")
        for step in range(done, stage.steps):
            loss = loss_at(step)
            loss.backward()
            nn.utils.clip_grad_norm_(learnt, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            average.update_parameters(module)
            running.append(loss.detach())
            progress.advance(task)
            if (step + 1) % 50 == 0:
                curve.append([step + 1, float(torch.stack(running).mean())])
                running.clear()
                progress.update(task, loss=f"loss {curve[-1][1]:.4f}")
            if (step + 1) % save_every == 0 or step + 1 == stage.steps:
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {
                    "done": step + 1,
                    "seconds": seconds + time.perf_counter() - started,
                    "curve": curve,
                }
                torch.save(state, path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)
    return average.module.eval().requires_grad_(False)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, TextColumn("{task.fields[loss]}"))


def _generators(
    settings: Settings, stage: int, step: int
) -> tuple[np.random.Generator, torch.Generator]:
    """The random numbers of one step, the same whether or not the run was resumed before it."""
    rng = np.random.default_rng([settings.seed, stage, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def _pixels(images: np.ndarray, device: torch.device) -> Float[Tensor, "n 3 height width"]:
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
    return pixels.contiguous(memory_format=torch.channels_last)


def train_reader(
    settings: Settings,
    attributes: np.ndarray,
    images: np.ndarray,
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the attribute reader on drawn scenes under blur, noise and small changes of brightness."""
    targets = torch.from_numpy(reader.canonical(attributes)).to(device)
    network = reader.Reader()

    def loss_at(step: int) -> Tensor:
        rng, torch_rng = _generators(settings, 0, step)
        chosen = rng.integers(len(images), size=settings.reader_batch)
        pixels = _pixels(images[chosen], device)
        blurred = functional.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
        n = len(pixels)
        blur, gain, spread = torch.rand(3, n, 1, 1, 1, generator=torch_rng).to(device)
        pixels = torch.lerp(pixels, blurred, blur * 0.8) * (0.9 + 0.2 * gain)
        pixels = pixels + 0.06 * spread * torch.randn(pixels.shape, generator=torch_rng).to(device)
        logits = network(pixels.clamp(0, 1))
        wanted = targets[torch.from_numpy(chosen)]
        losses = [
            functional.cross_entropy(field, wanted[:, i], ignore_index=scenes.ABSENT)
            for i, field in enumerate(logits)
        ]
        return torch.stack(losses).mean()

    stage = Stage("reader", settings.reader_steps, learning_rate=2e-3, ema_decay=0.995)
    return fit(stage, network, loss_at, folder, device=device)


def train_autoencoder(
    settings: Settings, images: np.ndarray, folder: Path, device: torch.device
) -> nn.Module:
    """Train the autoencoder on crops, then on whole images.

    The loss is the absolute and the squared error; a little fixed noise on the latents keeps the decoder smooth. A
    sampled posterior starts with more noise than signal and learned an object's colour ten times more slowly.
    """
    network = networks.autoencoder()
    whole_from = round(settings.whole_from * settings.autoencoder_steps)
    side, batch = scenes.SIDE // 2, settings.autoencoder_batch

    def loss_at(step: int) -> Tensor:
        rng, torch_rng = _generators(settings, 1, step)
        if step < whole_from:
            top, left = rng.integers(scenes.SIDE - side + 1, size=2)
            chosen = images[
                rng.integers(len(images), size=4 * batch), top : top + side, left : left + side
            ]
        else:
            chosen = images[rng.integers(len(images), size=batch)]
        pixels = _pixels(chosen, device) * 2 - 1
        latents = network.encode(pixels).latent_dist.mean
        noise = torch.randn(latents.shape, generator=torch_rng).to(device)
        error = network.decode(latents + settings.latent_noise * noise).sample - pixels
        return error.abs().mean() + 4 * error.square().mean()

    stage = Stage("autoencoder", settings.autoencoder_steps, learning_rate=1.5e-3, ema_decay=0.998)
    return fit(stage, network, loss_at, folder, device=device)


@torch.no_grad()
def encode(
    vae: Any, images: np.ndarray, device: torch.device
) -> tuple[Float[Tensor, "n 4 16 16"], float]:
    """Latents of all images, scaled to unit variance, and the scaling factor."""
    parts = [
        vae.encode(_pixels(images[i : i + 100], device) * 2 - 1).latent_dist.mean
        for i in range(0, len(images), 100)
    ]
    latents = torch.cat(parts)
    scaling = float(1 / latents.std())
    return latents * scaling, scaling


def train_captions(
    settings: Settings, tokenizer: CLIPTokenizer, folder: Path, device: torch.device
) -> nn.Module:
    """Train the text encoder to tell every attribute of a scene from its caption, at the end of the text and after.

    The denoiser's loss alone did not teach it whose a colour is: a wrong colour of an object in the caption hardly
    changed the loss. Stable Diffusion's text encoder, too, is trained before the denoiser and frozen.
    """
    encoder = networks.text_encoder(tokenizer)
    module = nn.ModuleDict(
        {"text_encoder": encoder, "probe": nn.Linear(networks.WIDTH, sum(reader.CLASSES))}
    )

    def loss_at(step: int) -> Tensor:
        rng, _ = _generators(settings, 3, step)
        told = scenes.sample(settings.captions_batch, rng, split="train")
        tokens = _tokens(tokenizer, scenes.captions(told), device)
        at_end = tokens == tokenizer.eos_token_id  # the padding, too
        logits = module["probe"](encoder(tokens).last_hidden_state[at_end]).split(
            reader.CLASSES, dim=-1
        )
        wanted = torch.from_numpy(told).to(device).repeat_interleave(at_end.sum(dim=1), dim=0)
        losses = [
            functional.cross_entropy(field, wanted[:, i], ignore_index=scenes.ABSENT)
            for i, field in enumerate(logits)
        ]
        return torch.stack(losses).mean()

    stage = Stage("captions", settings.captions_steps, learning_rate=1e-3, ema_decay=0.99)
    return fit(stage, module, loss_at, folder, device=device).get_submodule("text_encoder")


def train_denoiser(
    settings: Settings,
    tokenizer: CLIPTokenizer,
    text_encoder: nn.Module,
    attributes: np.ndarray,
    latents: Float[Tensor, "n 4 16 16"],
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Train the UNet; captions are sometimes empty, and later partly wrong.

    The target is the velocity (Salimans and Ho 2022, arXiv 2202.00512): the error of a predicted noise weighs the clean
    latent by the signal-to-noise ratio, so that at high noise, where the background is decided, nothing was learned.
    """
    unet = networks.denoiser()
    unet.set_attn_processor(
        AttnProcessor()
    )  # the fused attention's backward pass is slow in bfloat16 on a CPU
    noise_scheduler = networks.scheduler()
    noisy_step = round(settings.noisy_from * settings.denoiser_steps)

    def loss_at(step: int) -> Tensor:
        rng, torch_rng = _generators(settings, 4, step)
        chosen = rng.integers(len(latents), size=settings.denoiser_batch)
        told = scenes.corrupt(
            attributes[chosen], settings.caption_noise if step >= noisy_step else 0.0, rng
        )
        dropped = rng.random(len(chosen)) < settings.caption_dropout
        texts = [
            "" if drop else text for drop, text in zip(dropped, scenes.captions(told), strict=True)
        ]
        clean = latents[torch.from_numpy(chosen)]
        noise = torch.randn(clean.shape, generator=torch_rng).to(device)
        steps = len(noise_scheduler.alphas_cumprod)
        timesteps = torch.randint(steps, (len(chosen),), generator=torch_rng).to(device)
        noised = noise_scheduler.add_noise(clean, noise, timesteps).contiguous(
            memory_format=torch.channels_last
        )
        with torch.no_grad():
            context = text_encoder(_tokens(tokenizer, texts, device)).last_hidden_state
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
            velocity = unet(noised, timesteps, context).sample
        return functional.mse_loss(
            velocity.float(), noise_scheduler.get_velocity(clean, noise, timesteps)
        )

    stage = Stage("denoiser", settings.denoiser_steps, learning_rate=1e-3, ema_decay=0.998)
    return fit(stage, unet, loss_at, folder, device=device)


def _tokens(
    tokenizer: CLIPTokenizer, texts: list[str], device: torch.device
) -> Int[Tensor, "n 32"]:
    return tokenizer(
        texts, padding="max_length", max_length=networks.TOKENS, return_tensors="pt"
    ).input_ids.to(device)


def export(folder: Path, out: Path) -> None:
    """Write the averaged weights of a finished run as a pipeline folder in half precision, with the reader beside it.

    Args:
        folder: a training folder in which every stage is finished.
        out: gets `pipeline/`, `reader.safetensors` and `training.json` (settings, curves, versions, hardware, time).
    """
    saved = {
        name: torch.load(folder / f"{name}.pt", weights_only=True)
        for name in ("reader", "autoencoder", "captions", "denoiser")
    }
    averages = {name: _averaged(state["average"]) for name, state in saved.items()}
    tokenizer = networks.write_tokenizer(folder / "tokenizer")
    vae, unet, text_encoder = (
        networks.autoencoder(),
        networks.denoiser(),
        networks.text_encoder(tokenizer),
    )
    vae.load_state_dict(averages["autoencoder"])
    vae.register_to_config(scaling_factor=json.loads((folder / "scaling.json").read_text()))
    unet.load_state_dict(averages["denoiser"])
    prefix = "text_encoder."  # beside it in that stage was the probe
    told = averages["captions"].items()
    text_encoder.load_state_dict(
        {name.removeprefix(prefix): w for name, w in told if name.startswith(prefix)}
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=networks.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(out / "pipeline")
    _make_loadable(out / "pipeline" / "text_encoder")
    save_file(
        {name: weight.half().contiguous() for name, weight in averages["reader"].items()},
        out / "reader.safetensors",
    )
    record = json.loads((folder / "settings.json").read_text())
    record["stages"] = {
        name: {
            "steps": state["done"],
            "seconds": round(state["seconds"], 1),
            "loss": state["curve"],
        }
        for name, state in saved.items()
    }
    (out / "training.json").write_text(json.dumps(record, indent=1))


def _make_loadable(folder: Path) -> None:
    """Let every version of transformers open a text encoder as float32 and with its weights.

    It opens a model in the type that its config names, diffusers in float32 whatever the file has. Versions before 5.6
    look for weights under `text_model.`, as published checkpoints have them, and silently start at random without.
    """
    config, weights = folder / "config.json", folder / "model.safetensors"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n"
    )
    named = {
        f"text_model.{name.removeprefix('text_model.')}": weight
        for name, weight in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})


def _averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("module."): weight
        for name, weight in state.items()
        if name != "n_averaged"
    }


def _record(settings: Settings, device: torch.device) -> dict[str, Any]:
    packages = ("torch", "diffusers", "transformers", "numpy")
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    )
    return {
        "settings": asdict(settings),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "hardware": f"{hardware}, {torch.get_num_threads()} threads",
    }


def _scenes(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([settings.seed, 99])
    attributes = scenes.sample(settings.pool, rng, split="train")
    return attributes, scenes.draw(attributes, rng)


def run(
    settings: Settings, folder: Path, device: torch.device, stages: tuple[str, ...]
) -> Iterator[str]:
    """Train the named stages in `folder`, yielding each name as it is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "settings.json"
    if record.exists() and json.loads(record.read_text())["settings"] != asdict(settings):
        raise ValueError(f"{folder} holds a run with other settings")
    record.write_text(json.dumps(_record(settings, device), indent=1))
    attributes, images = _scenes(settings)
    if "reader" in stages:
        torch.manual_seed(settings.seed)
        train_reader(settings, attributes, images, folder, device)
        yield "reader"
    if "denoiser" in stages or "autoencoder" in stages:
        torch.manual_seed(settings.seed + 1)
        vae = train_autoencoder(settings, images, folder, device)
        latents, scaling = encode(vae, images, device)
        (folder / "scaling.json").write_text(json.dumps(scaling))
        yield "autoencoder"
    if "denoiser" in stages:
        torch.manual_seed(settings.seed + 2)
        tokenizer = networks.write_tokenizer(folder / "tokenizer")
        text_encoder = train_captions(settings, tokenizer, folder, device)
        yield "captions"
        torch.manual_seed(settings.seed + 3)
        train_denoiser(settings, tokenizer, text_encoder, attributes, latents, folder, device)
        yield "denoiser"


def main(
    out: Annotated[
        Path, typer.Option(help="folder for checkpoints; an interrupted run resumes from it")
    ],
    export_to: Annotated[
        Path | None, typer.Option("--export", help="write the finished model here")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="reader, autoencoder or denoiser; all by default")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda"
    if torch.cuda.is_available()
    else "cpu",
) -> None:
    """Train the embedded model from nothing but the scenes that the project draws."""
    for name in run(
        Settings(), out, torch.device(device), tuple(stage or ("reader", "autoencoder", "denoiser"))
    ):
        typer.echo(f"{name} finished")
    if export_to is not None:
        export(out, export_to)


if __name__ == "__main__":
    typer.run(main)
