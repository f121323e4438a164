"""Kandinsky 2.1: a prior makes a picture's embedding, and a UNet a picture of it and of the text.

The decoders do not stop at latents. Negative prompts of a prior would be more rows of its latents.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tools.pipelines.parts import text
from tools.pipelines.parts.kandinsky import (
    SIZE,
    begun,
    combined,
    decoded,
    embedded,
    masked,
    movq,
    one_after_the_other,
    prior_parts,
    simple_unet,
)
from tools.pipelines.parts.unet import WIDTH, build, conditioned, spoken
from tools.pipelines.small import Small, small

LENGTH = 77
"""Of every prompt of the decoders, which they pad to it."""


def _tokenizer() -> PreTrainedTokenizerFast:
    """Every text ends with a token, so that the mean over none is not asked for."""
    tokenizer = text.word_tokenizer(LENGTH)
    end = [("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A </s>", None, end)
    return tokenizer


def _text_encoder(tokenizer: PreTrainedTokenizerFast) -> MultilingualCLIP:
    config = MCLIPConfig(
        transformerDimSize=WIDTH,
        imageDimSize=WIDTH,
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH + 3,
        pad_token_id=tokenizer.pad_token_id,
    )
    return MultilingualCLIP(config)


def _decoder(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    kinds = {"addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj"}
    return {
        "unet": simple_unet(encoder_hid_dim=WIDTH, **kinds, **changes),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "movq": movq(),
        "tokenizer": tokenizer,
        "text_encoder": _text_encoder(tokenizer),
    }


def _prompts(images: int, seed: int) -> dict[str, Any]:
    """Of words that both tokenizers know; seed 1 is that of the usual ones."""
    prompts = text.PROMPTS if seed == 1 else (text.ANOTHER,) * images
    return {"prompt": list(prompts[:images])}


def _texts(images: int, seed: int) -> dict[str, Any]:
    return _prompts(images, seed) | embedded(images, seed)


def _tensors(own: dict[str, Any]) -> dict[str, Any]:
    return own | {"output_type": "pt"}


@small("KandinskyPriorPipeline", "KandinskyV22PriorPipeline")
def prior(kind: type) -> Small:
    """Its latents are embeddings of pictures."""
    pipe = build(kind, **prior_parts())
    return conditioned(pipe, spoken, lambda images: {"output_type": "pt"})


@small("KandinskyPipeline")
def text_to_image(kind: type) -> Small:
    """The UNet predicts a variance, too, which the scheduler does not take."""
    return decoded(kind(**_decoder()), _texts, lambda images: _tensors(SIZE))


@small("KandinskyImg2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""
    return decoded(kind(**_decoder()), _texts, lambda images: _tensors(begun(images)))


@small("KandinskyInpaintPipeline")
def inpaint(kind: type) -> Small:
    """The UNet gets the masked picture and the mask as further channels."""
    pipe = kind(**_decoder(in_channels=9))
    return decoded(pipe, _texts, lambda images: _tensors(masked(images)))


@small("KandinskyCombinedPipeline")
def both(kind: type) -> Small:
    """A loop of the prior and one of the decoder."""
    pipe = combined(kind, _decoder())
    return one_after_the_other(pipe, _prompts, lambda images: _tensors(SIZE))


@small("KandinskyImg2ImgCombinedPipeline")
def both_image_to_image(kind: type) -> Small:
    """The decoder's loop is shorter than its scheduler's."""
    pipe = combined(kind, _decoder())
    return one_after_the_other(pipe, _prompts, lambda images: _tensors(begun(images)))


@small("KandinskyInpaintCombinedPipeline")
def both_inpaint(kind: type) -> Small:
    """The decoder gets a masked picture."""
    pipe = combined(kind, _decoder(in_channels=9))
    return one_after_the_other(pipe, _prompts, lambda images: _tensors(masked(images)))
