"""Cosmos, whose pipelines compute c + w (c - u), and the third generation's mixture of experts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    Cosmos3OmniTransformer,
    CosmosControlNetModel,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from tools.pipelines.parts import text, video
from tools.pipelines.small import SCALE, STEPS, Small, generators, small

CHANNELS = 16
"""Of the latents."""
BLOCKS = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "mlp_ratio": 2,
    "text_embed_dim": video.WIDTH,
    "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
    "extra_pos_embed_type": "learnable",
}
WITH_MASK = {"in_channels": CHANNELS + 1}
"""A channel says which frames are given."""


class Unchecked(torch.nn.Module):
    """Stands where the pipelines demand a checker of what is shown; it is never asked."""

    dtype = torch.float32
    device = torch.device("cpu")


def _parts(denoiser: torch.nn.Module, vae: Any, scheduler: Any) -> dict[str, Any]:
    return {
        "text_encoder": None,
        "tokenizer": None,
        "transformer": denoiser,
        "vae": vae,
        "scheduler": scheduler,
        "safety_checker": Unchecked(),
    }


def _guided(pipe: Any, given: dict[str, Any] | None = None, **fixed: Any) -> Small:
    """At their number for the scale; `given` are functions of the number of images."""
    made = video.by_embeddings(pipe, guidance_scale=SCALE - 1, **fixed)
    return video.each(made, **given or {})


def _edm() -> EDMEulerScheduler:
    return EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        sigma_schedule="karras",
        prediction_type="epsilon",
        final_sigmas_type="sigma_min",
    )


def _flow_unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction"
    )


def _autoencoder() -> AutoencoderKLCosmos:
    """8 times smaller; like all of its kind it keeps the first frame and every eighth after it."""
    return AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
    ).eval()


@small("CosmosTextToWorldPipeline")
def text_to_world(kind: type) -> Small:
    """A guided step calls the scheduler twice, first with both halves."""
    torch.manual_seed(0)
    pipe = kind(**_parts(CosmosTransformer3DModel(**BLOCKS), None, _edm()))
    return _guided(pipe, **video.SIZE, num_frames=9)


@small("CosmosVideoToWorldPipeline")
def video_to_world(kind: type) -> Small:
    """The same, and both calls see the given frame under noise of their own."""
    torch.manual_seed(0)
    pipe = kind(**_parts(CosmosTransformer3DModel(**BLOCKS | WITH_MASK), _autoencoder(), _edm()))
    return _guided(pipe, {"image": video.pictures}, **video.SIZE, num_frames=9)


@small("Cosmos2TextToImagePipeline")
def text_to_image_2(kind: type) -> Small:
    """A video of one frame."""
    torch.manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    pipe = kind(**_parts(CosmosTransformer3DModel(**BLOCKS), video.wan_autoencoder(), scheduler))
    return _guided(pipe, **video.SIZE)


@small("Cosmos2VideoToWorldPipeline")
def video_to_world_2(kind: type) -> Small:
    """The given frame is put in the place of what the denoiser makes of it."""
    torch.manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    denoiser = CosmosTransformer3DModel(**BLOCKS | WITH_MASK)
    pipe = kind(**_parts(denoiser, video.wan_autoencoder(), scheduler))
    return _guided(pipe, {"image": video.pictures}, **video.VIDEO)


@small("Cosmos2_5_PredictBasePipeline")
def predict_2_5(kind: type) -> Small:
    """Projected embeddings, a time for each frame."""
    torch.manual_seed(0)
    projected = {
        "use_crossattn_projection": True,
        "crossattn_proj_in_channels": video.WIDTH,
        "encoder_hidden_states_channels": video.WIDTH,
    }
    denoiser = CosmosTransformer3DModel(**BLOCKS | WITH_MASK | projected)
    pipe = kind(**_parts(denoiser, video.wan_autoencoder(), _flow_unipc()))
    return _guided(pipe, **video.VIDEO)


@small("Cosmos2_5_TransferPipeline")
def transfer_2_5(kind: type) -> Small:
    """Each half has a call of the ControlNet; text and picture come as a pair."""
    torch.manual_seed(0)
    pictures = {"img_context_dim_in": 8, "img_context_dim_out": 32}
    denoiser = CosmosTransformer3DModel(
        **BLOCKS | WITH_MASK | pictures, img_context_num_tokens=2, controlnet_block_every_n=1
    )
    sizes = {name: size for name, size in BLOCKS.items() if name != "num_layers"}
    control = CosmosControlNetModel(
        n_controlnet_blocks=1,
        in_channels=CHANNELS + 2,
        latent_channels=CHANNELS + 2,
        model_channels=32,
        **sizes | pictures,
    )
    parts = _parts(denoiser, video.wan_autoencoder(), _flow_unipc())
    pipe = kind(**parts, controlnet=control)
    chunk: dict[str, Any] = {"num_frames_per_chunk": video.FRAMES}
    return _guided(pipe, {"controls": video.clips}, **video.VIDEO, **chunk)


@small("Cosmos3OmniPipeline")
def omni_3(kind: type) -> Small:
    """The denoiser reads the text itself and gets lists of samples; one prompt a call."""
    torch.manual_seed(0)
    tokenizer = text.chat_tokenizer()
    denoiser = Cosmos3OmniTransformer(
        head_dim=6,
        hidden_size=12,
        intermediate_size=12,
        latent_channel=CHANNELS,
        latent_patch_size=2,
        patch_latent_dim=4 * CHANNELS,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
        rope_axes_dim=[1, 1, 1],
        vocab_size=len(tokenizer),
    )
    pipe = kind(
        transformer=denoiser,
        text_tokenizer=tokenizer,
        vae=video.wan_autoencoder(),
        scheduler=_flow_unipc(),
        enable_safety_checker=False,
    )
    fixed: dict[str, Any] = video.VIDEO | {
        "prompt": text.PROMPTS[0],
        "negative_prompt": text.NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
        "output_type": "latent",
        "use_system_prompt": False,
    }
    return Small(
        pipe=video.quiet(pipe),
        call=lambda images: fixed | {"generator": generators(images)[0]},
        off=video.unguided,
        another=lambda images: {"prompt": text.ANOTHER},
        batches=(1,),
    )
