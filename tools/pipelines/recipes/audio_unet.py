"""AudioLDM, its second version and MusicLDM: spectrograms are pictures for a UNet."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AudioLDM2UNet2DConditionModel, AutoencoderKL
from transformers import (
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

from tools.pipelines.parts import text
from tools.pipelines.parts.flow_image import TOKENS, embeddings, guided
from tools.pipelines.parts.unet import BLOCKS, WIDTH, build, scheduler, unet
from tools.pipelines.small import Small, small

BINS = 16
"""Of a spectrogram; its latents are 8 x 8."""
POOLED = embeddings(prompt_embeds=(WIDTH,))
TEXTS = embeddings(
    "attention_mask", prompt_embeds=(TOKENS, WIDTH), generated_prompt_embeds=(4, WIDTH)
)


def _vae() -> AutoencoderKL:
    """A spectrogram has one channel."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
    )


def _vocoder() -> SpeechT5HifiGan:
    config = SpeechT5HifiGanConfig(
        model_in_dim=BINS,
        sampling_rate=16000,
        upsample_initial_channel=8,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
    )
    return SpeechT5HifiGan(config)


def _clap() -> ClapTextModelWithProjection:
    """Embeddings stand for what it says, but the pipelines ask it for the type of numbers."""
    config = ClapTextConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=WIDTH,
    )
    return ClapTextModelWithProjection(config)


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "vae": _vae(),
        "scheduler": scheduler(),
        "vocoder": _vocoder(),
        "text_encoder": _clap(),
    }


def _labelled(kind: type) -> Any:
    """The text goes in as a class, and the layers for a text look at the picture itself."""
    parts = _parts()
    net = unet(
        cross_attention_dim=BLOCKS["block_out_channels"],
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=WIDTH,
        class_embeddings_concat=True,
    )
    return build(kind, unet=net, **parts)


@small("AudioLDMPipeline")
def audio_ldm(kind: type) -> Small:
    """It does not stop at latents."""
    return guided(_labelled(kind), POOLED, lambda images: {"output_type": "np"})


@small("MusicLDMPipeline")
def music_ldm(kind: type) -> Small:
    """The same, up to latents."""
    return guided(_labelled(kind), POOLED, lambda images: {})


@small("AudioLDM2Pipeline")
def audio_ldm_2(kind: type) -> Small:
    """Two texts, one of them masked; the other one is a language model's."""
    parts = _parts()
    tokenizer = text.word_tokenizer()
    language = GPT2Config(
        vocab_size=8,
        n_positions=8,
        n_embd=WIDTH,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    texts = (None, WIDTH, WIDTH)
    net = AudioLDM2UNet2DConditionModel(
        sample_size=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **BLOCKS | {"cross_attention_dim": (texts, texts)},
    )
    pipe = build(
        kind,
        unet=net,
        text_encoder_2=text.t5(WIDTH, tokenizer),
        language_model=GPT2LMHeadModel(language),
        **parts,
    )
    return guided(pipe, TEXTS, lambda images: {})
