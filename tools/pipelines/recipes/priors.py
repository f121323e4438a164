"""Shap-E, whose latents are embeddings of things, and unCLIP, whose prior and decoder guide."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer, UnCLIPScheduler, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from transformers import CLIPVisionModel

from tools.pipelines.parts.flow_image import ready
from tools.pipelines.parts.kandinsky import (
    SIMPLE,
    prior_network,
    prior_scheduler,
    simple_unet,
)
from tools.pipelines.parts.unet import (
    WIDTH,
    build,
    conditioned,
    looked_at,
    readers,
    spoken,
    vision,
    vision_config,
)
from tools.pipelines.small import SCALE, STEPS, Small, generators, small

PIXELS = 16
"""Side of the pictures that unCLIP makes, after it has made them larger."""


def _shap_e(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        embedding_dim=8,
        num_embeddings=4,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
        embedding_proj_dim=WIDTH,
        clip_embed_dim=16,
        **changes,
    )
    scheduler = HeunDiscreteScheduler(
        num_train_timesteps=1024,
        beta_schedule="exp",
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
    )
    return {"prior": prior, "scheduler": scheduler}


@small("ShapEPipeline")
def shap_e(kind: type) -> Small:
    """Two evaluations a step: the scheduler is Heun's. The unconditional text is zero."""
    pipe = build(kind, **_shap_e(), **readers(projection=True))
    return conditioned(pipe, spoken, lambda images: {})


@small("ShapEImg2ImgPipeline")
def shap_e_of_picture(kind: type) -> Small:
    """The tokens of a picture instead of a text."""
    parts = _shap_e(embedding_proj_norm_type="layer")
    pipe = build(kind, **parts, image_encoder=CLIPVisionModel(vision_config()))
    return conditioned(
        pipe, lambda images, seed: {"image": looked_at(images, seed)}, lambda images: {}
    )


def _unclip() -> dict[str, Any]:
    """The decoder and what makes its pictures larger."""
    return {
        "decoder": simple_unet(in_channels=3, out_channels=6, class_embed_type="identity"),
        "text_proj": UnCLIPTextProjModel(
            clip_embeddings_dim=WIDTH,
            time_embed_dim=4 * SIMPLE["block_out_channels"][0],
            cross_attention_dim=WIDTH,
        ),
        "super_res_first": _super_resolution(),
        "super_res_last": _super_resolution(),
        "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range"),
        "super_res_scheduler": UnCLIPScheduler(variance_type="fixed_small_log"),
        **readers(projection=True),
    }


def _super_resolution() -> UNet2DModel:
    return UNet2DModel(
        sample_size=PIXELS,
        in_channels=6,
        out_channels=3,
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )


def _made_larger(images: int) -> dict[str, Any]:
    """The arguments of both classes, which do not stop before the large picture."""
    return {
        "decoder_num_inference_steps": STEPS,
        "super_res_num_inference_steps": 2,
        "output_type": "np",
        "generator": generators(images),
    }


@small("UnCLIPPipeline")
def unclip(kind: type) -> Small:
    """Three loops: the prior's and the decoder's are guided, the last one, of two UNets, is not."""
    torch.manual_seed(0)
    pipe = build(kind, prior=prior_network(), prior_scheduler=prior_scheduler(), **_unclip())
    scales = {"prior_guidance_scale": SCALE, "decoder_guidance_scale": SCALE}

    def call(images: int) -> dict[str, Any]:
        own = {"prior_num_inference_steps": STEPS} | scales | spoken(images, 1)
        return _made_larger(images) | own

    return Small(
        ready(pipe),
        call,
        off=lambda images: dict.fromkeys(scales, 1.0),
        another=lambda images: spoken(images, 3),
    )


@small("UnCLIPImageVariationPipeline")
def unclip_of_picture(kind: type) -> Small:
    """A picture's embedding instead of a prior's; the text is empty in both halves."""
    torch.manual_seed(0)
    pipe = build(kind, image_encoder=vision(), **_unclip())

    def call(images: int) -> dict[str, Any]:
        own = {"decoder_guidance_scale": SCALE, "image": looked_at(images)}
        return _made_larger(images) | own

    return Small(
        ready(pipe),
        call,
        off=lambda images: {"decoder_guidance_scale": 1.0},
        another=lambda images: {"image": looked_at(images, seed=6)},
    )
