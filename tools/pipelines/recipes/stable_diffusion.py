"""Stable Diffusion 1 and 2 with a UNet: both halves in one call, the unconditional one first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusers import DDPMScheduler, EulerDiscreteScheduler, PriorTransformer
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

from sdbench.models.mini_sd.networks import TOKENS
from tools.pipelines.parts.flow_image import guided
from tools.pipelines.parts.unet import (
    POOLED,
    TEXT,
    WIDTH,
    build,
    conditioned,
    fixed,
    looked_at,
    networks,
    pictures,
    readers,
    spoken,
    vision,
)
from tools.pipelines.small import SCALE, STEPS, WITHOUT_HALVES, Small, rows, small

WITHOUT_HALVES |= {
    "StableDiffusionInstructPix2PixPipeline": "three predictions: of text and picture, of the "
    "picture, of neither",
    "LatentConsistencyModelPipeline": "one prediction: the network gets the scale",
    "LatentConsistencyModelImg2ImgPipeline": "one prediction: the network gets the scale",
    "LEditsPPPipelineStableDiffusion": "one prediction for each edit: it adds masked directions of "
    "edits to an inverted picture",
}


@small(
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionPAGImg2ImgPipeline",
    "StableDiffusionPAGInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
    "StableDiffusionModelEditingPipeline",
    "AltDiffusionPipeline",
    "AltDiffusionImg2ImgPipeline",
)
def usual(kind: type) -> Small:
    """From text, and a picture where the class takes one."""
    return guided(build(kind, **networks()), TEXT, fixed(kind))


@small("StableDiffusionInpaintPipeline")
def inpaint(kind: type) -> Small:
    """The UNet gets the mask and the masked picture as further channels."""
    return guided(build(kind, **networks(in_channels=9)), TEXT, fixed(kind))


@small("StableDiffusionDepth2ImgPipeline")
def depth(kind: type) -> Small:
    """The UNet gets a map of depths as one more channel."""
    maps = fixed(kind, depth_map=lambda images: rows(images, 16, 16))
    return guided(build(kind, **networks(in_channels=5)), TEXT, maps)


@small("StableDiffusionImageVariationPipeline")
def variation(kind: type) -> Small:
    """An embedding of a picture stands for the text, zeros for the negative one."""
    return conditioned(
        build(kind, **networks(), image_encoder=vision()),
        lambda images, seed: {"image": looked_at(images, seed)},
        lambda images: {},
    )


@small("StableDiffusionUpscalePipeline")
def upscale(kind: type) -> Small:
    """The UNet gets the noisy small picture as further channels, and its noise as a class."""
    parts = networks(in_channels=7, num_class_embeds=1000)
    pipe = build(kind, **parts, low_res_scheduler=DDPMScheduler())
    return guided(pipe, TEXT, lambda images: {"image": pictures(images, side=8)})


@small("StableDiffusionLatentUpscalePipeline")
def latent_upscale(kind: type) -> Small:
    """It scales the UNet's output itself, and hands the pooled text over with the noise's level."""
    parts = networks(in_channels=8, out_channels=5, time_cond_proj_dim=128 + WIDTH)
    parts["scheduler"] = EulerDiscreteScheduler()
    return guided(build(kind, **parts), POOLED, lambda images: {"image": rows(images, 4, 4, 4)})


def _unclip() -> dict[str, Any]:
    parts = networks(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH)
    return parts | {
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


@small("StableUnCLIPPipeline")
def unclip(kind: type) -> Small:
    """A prior that guides by itself comes before the UNet."""
    parts = _unclip() | readers()
    prior = readers(projection=True)
    parts |= {f"prior_{name}": part for name, part in prior.items()}
    parts["prior"] = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        num_embeddings=TOKENS,
        embedding_dim=WIDTH,
    )
    parts["prior_scheduler"] = DDPMScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
    )
    own = {"prior_num_inference_steps": STEPS, "prior_guidance_scale": SCALE}
    both = guided(build(kind, **parts), spoken, lambda images: own)
    return replace(both, off=lambda images: {"guidance_scale": 1.0, "prior_guidance_scale": 1.0})


@small("StableUnCLIPImg2ImgPipeline")
def unclip_from_image(kind: type) -> Small:
    """A noisy embedding of a picture is the UNet's class; it is zero in the unconditional half."""
    pipe = build(kind, **_unclip(), image_encoder=vision())
    return guided(pipe, TEXT, fixed(kind, image=looked_at))
