"""Pipelines of diffusers' own classes with tiny random weights; a call of four steps takes 50 ms.

All make 2 images of 8 x 8 latents from 2 prompts; the seam must treat every one alike.
"""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import BaseOutput
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from sdbench.models.mini_sd import networks
from sdbench.models.pipeline import denoisers_of
from sdbench.variants.guidance import guided_by

PROMPTS = ["a large red circle on a blue background", "a small green star on a white background"]
WIDTH = 8  # of every text embedding
TOKENS = 3  # of every prompt, padding included, where embeddings stand for it
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
ABSENT = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
PIXELS = {"height": 32, "width": 64}
"""4 x 8 latents where nothing says how far an autoencoder compresses."""


@cache
def _tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return networks.write_tokenizer(Path(folder))


def vae(**changes):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        **changes,
    )


BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}


XL_TEXT = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
}
"""What the UNet of Stable Diffusion XL gets with the text."""


def unet(**changes):
    return UNet2DConditionModel(
        sample_size=8, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **BLOCKS, **changes
    )


def _text_encoder():
    tokenizer = _tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=networks.TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.x."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def ready(pipe, **call):
    """A pipeline together with the arguments that it needs."""
    pipe.set_progress_bar_config(disable=True)
    pipe.call = {"num_inference_steps": 4, "output_type": "latent"} | call
    return pipe


def twice(texts):
    """Each row twice, where the pipeline does not repeat it for the images of a prompt."""
    return {name: rows.repeat_interleave(2, dim=0) for name, rows in texts.items()}


def sd_parts():
    return {
        "vae": vae(),
        "text_encoder": _text_encoder(),
        "tokenizer": _tokenizer(),
        "unet": unet(),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion(kind=DDIMScheduler, **settings):
    """Concatenated guidance; `kind` is the scheduler's class, `settings` change its config."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(**sd_parts())
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
    return ready(pipe, prompt=PROMPTS, guidance_scale=7.5)


def with_safety_checker(pipe):
    """A Stable Diffusion pipeline with a checker that flags every image."""
    small = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    vision = small | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-10.0)

    side = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)
    parts = pipe.components | {"safety_checker": checker, "feature_extractor": processor}
    return ready(type(pipe)(**parts))


def sharing(pipe):
    """Another pipeline of the same networks, with its own scheduler.

    A tokenizer keeps the padding of its last call, so it is not for two threads either.
    """
    own = {name: copy.deepcopy(getattr(pipe, name)) for name in ("scheduler", "tokenizer")}
    parts = {**pipe.components, **own}
    if "safety_checker" in parts:
        parts["requires_safety_checker"] = False
    return ready(type(pipe)(**parts), **pipe.call)


def image_to_image():
    """Concatenated guidance in a loop that is shorter than the scheduler's: 3 of 5 steps."""
    torch.manual_seed(0)
    pipe = StableDiffusionImg2ImgPipeline(**sd_parts())
    image = torch.rand(2, 3, 16, 16)
    return ready(
        pipe, prompt=PROMPTS, image=image, guidance_scale=7.5, strength=0.6, num_inference_steps=5
    )


def open_controlnet(control):
    """Fill what is zero in a new one and would leave its residuals and image without effect."""
    for layer in (*control.controlnet_down_blocks, control.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.2)


def controlnet():
    """Concatenated guidance whose denoiser gets lists of tensors with a batch dimension."""
    torch.manual_seed(0)
    control = ControlNetModel(**BLOCKS, conditioning_embedding_out_channels=(4, 4))
    open_controlnet(control)
    pipe = StableDiffusionControlNetPipeline(**sd_parts(), controlnet=control)
    return ready(pipe, prompt=PROMPTS, image=torch.rand(2, 3, 16, 16), guidance_scale=7.5)


def embeddings():
    texts, pooled = torch.randn(2, 2, 3, WIDTH), torch.randn(2, 2, WIDTH)
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    return dict(zip(names, (*texts, *pooled), strict=True))


def stable_diffusion_xl():
    """Concatenated guidance with a nested dict of tensors, on a variance-exploding scheduler."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae(), None, None, None, None, unet(**XL_TEXT), EulerDiscreteScheduler()
    )
    return ready(pipe, **embeddings(), guidance_scale=5.0, height=16, width=16)


def stable_diffusion_3():
    """Concatenated guidance of a transformer, flow matching."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=8,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
    )
    texts = {
        f"{kind}{suffix}": None
        for kind in ("text_encoder", "tokenizer")
        for suffix in ("", "_2", "_3")
    }
    parts = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": vae(shift_factor=0.0),
    }
    return ready(
        StableDiffusion3Pipeline(**parts, **texts),
        **embeddings(),
        guidance_scale=5.0,
        height=16,
        width=16,
    )


def flux(**changes):
    """Guidance by two calls, the conditional one first; flow matching."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        **changes,
    )
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    parts = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": vae(shift_factor=0.0),
    }
    return ready(
        FluxPipeline(**parts, **texts), **embeddings(), true_cfg_scale=4.0, height=32, width=32
    )


FAMILIES = {
    "sd": stable_diffusion,
    "img2img": image_to_image,
    "controlnet": controlnet,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
}
TWO_CALLS = {"flux"}


def taught(pipe):
    """A pipeline of which a call has shown the order of its halves; that costs a first call."""
    with guided_by(pipe, None):
        run(pipe)
    return pipe


def run(pipe, **changes):
    """The latents of one call, from the same noise every time."""
    return pipe(**pipe.call | {"generator": torch.Generator("cpu").manual_seed(1)} | changes)[0]


def assert_same_latents(found, expected, *, tolerance=1e-5):
    """Equal within a share of the largest latent.

    A variance-exploding sample begins with a hundred times the range of a pixel.
    """
    torch.testing.assert_close(
        found, expected, rtol=0, atol=tolerance * float(expected.abs().max())
    )


@contextmanager
def counted_rows(pipe) -> Iterator[list[int]]:
    """The rows of every evaluation, counted at the denoiser's first inner layer, below hooks."""
    rows: list[int] = []
    names = (
        "conv_in",
        "x_embedder",
        "img_in",
        "proj_in",
        "patch_embedding",
        "patch_embed",
        "pos_embed",
    )
    layers = [
        next(getattr(net, name) for name in names if hasattr(net, name))
        for net in denoisers_of(pipe)
    ]
    handles = [
        layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        for layer in layers
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def overwritten(pipe, mask, *, two_calls=False):
    """The oracle: both halves run at every step; on unguided ones one output is overwritten.

    The unconditional output then equals the conditional one.
    """
    steps = iter([guided for guided in mask for _ in range(1 + two_calls)])
    conditional = []

    def hook(module, args, output):
        guided = next(steps)
        conditional.append(output if two_calls else output[0].chunk(2)[1])
        if two_calls:
            return conditional[-2] if len(conditional) % 2 == 0 and not guided else output
        both = torch.cat([conditional[-1]] * 2)
        if guided:
            return output
        return type(output)(sample=both) if isinstance(output, BaseOutput) else (both,)

    handles = [denoiser.register_forward_hook(hook) for denoiser in denoisers_of(pipe)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
