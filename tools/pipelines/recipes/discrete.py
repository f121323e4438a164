"""Amused and VQ-Diffusion: the latents are tokens, which the scheduler draws from predictions.

All images of a call share a generator: the schedulers take no list.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AmusedScheduler,
    Transformer2DModel,
    UVit2DModel,
    VQDiffusionScheduler,
    VQModel,
)
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
    LearnedClassifierFreeSamplingEmbeddings,
)

from sdbench.models.mini_sd.networks import TOKENS as LENGTH
from tools.pipelines.parts.flow_image import Fixed, embeddings, guided
from tools.pipelines.parts.unet import (
    TOKENS,
    WIDTH,
    build,
    conditioned,
    holes,
    pictures,
    readers,
    spoken,
)
from tools.pipelines.small import Small, generators, small

CODES = 16
"""Of a codebook."""
SIDE = 16
"""Of a picture in pixels: 8 x 8 tokens."""
TEXTS = embeddings(prompt_embeds=(WIDTH,), encoder_hidden_states=(TOKENS, WIDTH))


def _codes(channels: int) -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=channels,
        num_vq_embeddings=CODES,
        vq_embed_dim=channels,
        norm_num_groups=2,
    )


def _amused() -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = UVit2DModel(
        hidden_size=8,
        cond_embed_dim=WIDTH,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=WIDTH,
        vocab_size=CODES + 1,
        codebook_size=CODES,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=1,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        sample_size=8,
    )
    return {
        "transformer": transformer,
        "vqvae": _codes(8),
        "scheduler": AmusedScheduler(mask_token_id=CODES),
    }


def _drawn(images: int) -> dict[str, Any]:
    return {"generator": generators(images)[0]}


def _guided(kind: type, own: Fixed) -> Small:
    return guided(build(kind, **_amused()), TEXTS, lambda images: _drawn(images) | own(images))


@small("AmusedPipeline")
def amused(kind: type) -> Small:
    """From tokens that are all masked."""
    return _guided(kind, lambda images: {"height": SIDE, "width": SIDE})


@small("AmusedImg2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """The later steps, from a picture."""
    return _guided(kind, lambda images: {"image": pictures(images, side=SIDE), "strength": 0.75})


@small("AmusedInpaintPipeline")
def inpaint(kind: type) -> Small:
    """The same where a mask is, which says how much is masked at first."""
    own = {"strength": 0.75}
    return _guided(
        kind,
        lambda images: (
            own | {"image": pictures(images, side=SIDE), "mask_image": holes(images, SIDE)}
        ),
    )


@small("VQDiffusionPipeline")
def vq_diffusion(kind: type) -> Small:
    """Logarithms of probabilities, (rows, codes, tokens). It does not stop at tokens."""
    torch.manual_seed(0)
    transformer = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        sample_size=4,
        num_vector_embeds=CODES,
        num_embeds_ada_norm=100,
        norm_type="ada_norm",
        attention_bias=True,
        activation_fn="geglu-approximate",
    )
    _decide(transformer)
    pipe = build(
        kind,
        transformer=transformer,
        vqvae=_codes(4),
        scheduler=VQDiffusionScheduler(num_vec_classes=CODES),
        learned_classifier_free_sampling_embeddings=LearnedClassifierFreeSamplingEmbeddings(
            learnable=True, hidden_size=WIDTH, length=LENGTH
        ),
        **readers(),
    )
    return conditioned(pipe, spoken, lambda images: _drawn(images) | {"output_type": "np"})


def _decide(transformer: Transformer2DModel) -> None:
    """Make the text matter: predictions that hardly differ would draw the same tokens."""
    attention = transformer.transformer_blocks[0].attn2
    for layer in (attention.to_v, attention.to_out[0], transformer.out):
        torch.nn.init.normal_(layer.weight)
