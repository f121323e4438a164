"""Stable Cascade and Wuerstchen: a prior, and a decoder that it conditions; conditional first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMWuerstchenScheduler, StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import (
    WuerstchenDiffNeXt,
)
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior

from tools.pipelines.parts.flow_image import Fixed, Texts, embeddings, guided, ready, steps
from tools.pipelines.parts.unet import TOKENS, WIDTH, build, readers, spoken
from tools.pipelines.small import SCALE, STEPS, Small, rows, small

CHANNELS = 4
"""Of the prior's latents and the decoder's."""
SIZE = {"height": 128, "width": 128}
"""The prior makes 3 x 3 latents of it, the decoder 32 x 32, which it looks at in 8 x 8 patches."""
PATCH = 4
EMBEDDED = (CHANNELS, 3, 3)
"""What the prior makes."""
SCALES = {"prior_guidance_scale": SCALE, "decoder_guidance_scale": SCALE}


def _cascade(**changes: Any) -> StableCascadeUNet:
    usual: dict[str, Any] = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "timestep_ratio_embedding_dim": 8,
        "conditioning_dim": WIDTH,
        "block_out_channels": (8,),
        "num_attention_heads": (2,),
        "down_num_layers_per_block": (1,),
        "up_num_layers_per_block": (1,),
        "down_blocks_repeat_mappers": (1,),
        "up_blocks_repeat_mappers": (1,),
        "block_types_per_layer": (
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        "clip_text_pooled_in_channels": WIDTH,
        "dropout": (0.0,),
    }
    return StableCascadeUNet(**usual | changes)


def _cascade_prior() -> dict[str, Any]:
    torch.manual_seed(0)
    prior = _cascade(clip_text_in_channels=WIDTH, clip_image_in_channels=WIDTH)
    return {"prior": prior, "scheduler": DDPMWuerstchenScheduler(), **readers(projection=True)}


def _cascade_decoder() -> dict[str, Any]:
    torch.manual_seed(0)
    decoder = _cascade(effnet_in_channels=CHANNELS, patch_size=PATCH)
    return {"decoder": decoder, "scheduler": DDPMWuerstchenScheduler()}


def _wuerstchen_prior() -> dict[str, Any]:
    torch.manual_seed(0)
    prior = WuerstchenPrior(c_in=CHANNELS, c=8, c_cond=WIDTH, c_r=8, depth=1, nhead=2, dropout=0.0)
    prior.out[1].weight.data *= 0.2  # what it divides by is then not near zero
    return {"prior": prior, "scheduler": DDPMWuerstchenScheduler(), **readers()}


def _wuerstchen_decoder() -> dict[str, Any]:
    torch.manual_seed(0)
    decoder = WuerstchenDiffNeXt(
        c_in=CHANNELS,
        c_out=CHANNELS,
        c_r=8,
        patch_size=PATCH,
        c_cond=WIDTH,
        c_hidden=[8],
        nhead=[2],
        blocks=[1],
        level_config=["CTA"],
        inject_effnet=[True],
        effnet_embd=CHANNELS,
        clip_embd=WIDTH,
        dropout=[0.0],
    )
    return {"decoder": decoder, "scheduler": DDPMWuerstchenScheduler(), **readers()}


def _one_prompt(images: int, seed: int) -> dict[str, Any]:
    """For a decoder that repeats each prompt for all images."""
    return {"prompt": spoken(1, seed)["prompt"][0]}


def _given(images: int) -> dict[str, Any]:
    return {"image_embeddings": rows(images, *EMBEDDED, seed=5)}


def _combined(pipe: Any, texts: Texts, own: Fixed) -> Small:
    """Both parts are guided, one after the other."""

    def call(images: int) -> dict[str, Any]:
        both = steps(images) | SIZE | SCALES | {"prior_num_inference_steps": STEPS}
        negative = {"negative_prompt": texts(images, 2)["prompt"]}
        return both | negative | texts(images, 1) | own(images)

    return Small(
        ready(pipe),
        call,
        off=lambda images: dict.fromkeys(SCALES, 1.0),
        another=lambda images: texts(images, 3),
    )


def _joined(kind: type, prior: dict[str, Any], decoder: dict[str, Any]) -> Any:
    return build(kind, **decoder, **{f"prior_{name}": part for name, part in prior.items()})


@small("StableCascadePriorPipeline")
def cascade_prior(kind: type) -> Small:
    """Text to the embedding of a picture, which has the form of one."""
    pipe = build(kind, **_cascade_prior())
    return guided(pipe, spoken, lambda images: SIZE | {"output_type": "pt"})


@small("StableCascadeDecoderPipeline")
def cascade_decoder(kind: type) -> Small:
    """The embedding is zero in the unconditional half, and only the pooled text is read."""
    texts = embeddings(prompt_embeds=(TOKENS, WIDTH), prompt_embeds_pooled=(1, WIDTH))
    return guided(build(kind, **_cascade_decoder()), texts, _given)


@small("StableCascadeCombinedPipeline")
def cascade(kind: type) -> Small:
    """A loop of the prior and one of the decoder."""
    decoder = _cascade_decoder() | readers(projection=True)
    return _combined(_joined(kind, _cascade_prior(), decoder), spoken, lambda images: {})


@small("WuerstchenPriorPipeline")
def wuerstchen_prior(kind: type) -> Small:
    """Text to the embedding of a picture."""
    pipe = build(kind, **_wuerstchen_prior())
    return guided(pipe, spoken, lambda images: SIZE | {"output_type": "pt"})


@small("WuerstchenDecoderPipeline")
def wuerstchen_decoder(kind: type) -> Small:
    """It takes one prompt: it repeats each as often as there are embeddings."""
    return guided(build(kind, **_wuerstchen_decoder()), _one_prompt, _given)


@small("WuerstchenCombinedPipeline")
def wuerstchen(kind: type) -> Small:
    """A loop of the prior and one of the decoder."""
    pipe = _joined(kind, _wuerstchen_prior(), _wuerstchen_decoder())
    return _combined(pipe, _one_prompt, lambda images: {"num_images_per_prompt": images})
