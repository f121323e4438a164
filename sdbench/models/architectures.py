"""Full-size architectures by name: configurations of published pipelines, as the hub has them.

A configuration names only what differs from its class's defaults. How a pipeline is built is in
`random_weights.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import transformers


@dataclass(frozen=True)
class Part:
    """A network or a scheduler: its class, and what differs from the defaults of the class.

    The class is from diffusers or transformers. It is imported when it is needed, since that takes
    a second for each family.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        """A new one; where its tensors go is up to the contexts that are active."""
        if hasattr(transformers, self.kind):
            kind = getattr(transformers, self.kind)
            return kind(kind.config_class(**self.config))
        return getattr(diffusers, self.kind)(**self.config)


@dataclass(frozen=True)
class Architecture:
    """A published pipeline without its weights.

    Args:
        name: what `sdbench.load` calls it.
        source: the hub id whose configuration it is.
        pipeline: its class in diffusers.
        networks: by the pipeline's names for them; the denoiser is `unet` or `transformer`.
        scheduler: as published.
        tokenizers: most tokens of a prompt (`model_max_length`), by the pipeline's names for the
            tokenizers.
        guidance_scale: the pipeline's default, or the model card's. Flux feeds it to the network as
            an input; what guides Flux by two predictions is `true_cfg_scale`.
        side: default height and width of its images in pixels.
        settings: further arguments of the pipeline's class.
    """

    name: str
    source: str
    pipeline: str
    networks: Mapping[str, Part]
    scheduler: Part
    tokenizers: Mapping[str, int]
    guidance_scale: float
    side: int
    settings: Mapping[str, Any] = field(default_factory=dict)


# What follows stands in the configurations of several pipelines.
_NO_SAFETY_CHECKER = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# The end-of-text id 2 is wrong, but published: the pooled embedding is then that of the highest id,
# whatever that is.
_CLIP = {"bos_token_id": 0, "eos_token_id": 2}
_CLIP_L = {
    **_CLIP,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_OPENCLIP_H = {  # without its last layer
    **_CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "hidden_act": "gelu",
}
_OPENCLIP_G = {
    **_CLIP,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_T5_TOKENS = 512

VAE_FACTOR = 8
"""Pixels per latent along one side, as all of these architectures have it."""
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
_VAE_SDXL = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025}
_VAE_16 = {
    **_VAE,
    "sample_size": 1024,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

_SD15 = Architecture(
    name="sd15",
    source="stable-diffusion-v1-5/stable-diffusion-v1-5",
    pipeline="StableDiffusionPipeline",
    networks={
        "unet": Part("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
        "vae": Part("AutoencoderKL", {**_VAE, "sample_size": 512}),
        "text_encoder": Part("CLIPTextModel", _CLIP_L),
    },
    scheduler=Part("PNDMScheduler", {**_BETAS, "skip_prk_steps": True, "steps_offset": 1}),
    tokenizers={"tokenizer": 77},
    guidance_scale=7.5,
    side=512,
    settings=_NO_SAFETY_CHECKER,
)

_SD21 = Architecture(
    name="sd21",
    source="stabilityai/stable-diffusion-2-1",
    pipeline="StableDiffusionPipeline",
    networks={
        "unet": Part(
            "UNet2DConditionModel",
            {
                "sample_size": 96,
                "cross_attention_dim": 1024,
                "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True,
                "upcast_attention": True,
            },
        ),
        "vae": Part("AutoencoderKL", {**_VAE, "sample_size": 768}),
        "text_encoder": Part("CLIPTextModel", _OPENCLIP_H),
    },
    scheduler=Part(
        "DDIMScheduler",
        {
            **_BETAS,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "prediction_type": "v_prediction",
        },
    ),
    tokenizers={"tokenizer": 77},
    guidance_scale=7.5,
    side=768,
    settings=_NO_SAFETY_CHECKER,
)

_SDXL = Architecture(
    name="sdxl",
    source="stabilityai/stable-diffusion-xl-base-1.0",
    pipeline="StableDiffusionXLPipeline",
    networks={
        "unet": Part(
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "block_out_channels": (320, 640, 1280),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        "vae": Part("AutoencoderKL", _VAE_SDXL),
        "text_encoder": Part("CLIPTextModel", _CLIP_L),
        "text_encoder_2": Part("CLIPTextModelWithProjection", _OPENCLIP_G),
    },
    scheduler=Part(
        "EulerDiscreteScheduler", {**_BETAS, "timestep_spacing": "leading", "steps_offset": 1}
    ),
    tokenizers={"tokenizer": 77, "tokenizer_2": 77},
    guidance_scale=5.0,
    side=1024,
)

_SD35_MEDIUM = Architecture(
    name="sd35-medium",
    source="stabilityai/stable-diffusion-3.5-medium",
    pipeline="StableDiffusion3Pipeline",
    networks={
        "transformer": Part(
            "SD3Transformer2DModel",
            {
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
                "qk_norm": "rms_norm",
            },
        ),
        "vae": Part("AutoencoderKL", {**_VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        "text_encoder": Part("CLIPTextModelWithProjection", _CLIP_L),
        "text_encoder_2": Part("CLIPTextModelWithProjection", _OPENCLIP_G),
        "text_encoder_3": Part("T5EncoderModel", _T5_XXL),
    },
    scheduler=Part("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    tokenizers={"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": _T5_TOKENS},
    guidance_scale=4.5,
    side=1024,
)

_FLUX = Architecture(
    name="flux",
    source="black-forest-labs/FLUX.1-dev",
    pipeline="FluxPipeline",
    networks={
        "transformer": Part("FluxTransformer2DModel", {"guidance_embeds": True}),
        "vae": Part("AutoencoderKL", {**_VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
        "text_encoder": Part("CLIPTextModel", _CLIP_L),
        "text_encoder_2": Part("T5EncoderModel", _T5_XXL),
    },
    scheduler=Part("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
    tokenizers={"tokenizer": 77, "tokenizer_2": _T5_TOKENS},
    guidance_scale=3.5,
    side=1024,
)

_PIXART_SIGMA = Architecture(
    name="pixart-sigma",
    source="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    pipeline="PixArtSigmaPipeline",
    networks={
        "transformer": Part(
            "PixArtTransformer2DModel",
            {
                "caption_channels": 4096,
                "interpolation_scale": 2,
                "use_additional_conditions": False,
            },
        ),
        "vae": Part("AutoencoderKL", _VAE_SDXL),
        "text_encoder": Part("T5EncoderModel", _T5_XXL),
    },
    scheduler=Part("DPMSolverMultistepScheduler"),
    tokenizers={"tokenizer": _T5_TOKENS},
    guidance_scale=4.5,
    side=1024,
)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (_SD15, _SD21, _SDXL, _SD35_MEDIUM, _FLUX, _PIXART_SIGMA)
}
