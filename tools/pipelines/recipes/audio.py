"""Pipelines of sounds: ACE-Step, Stable Audio, LongCat."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    AutoencoderSAME,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
    StableAudio3DiTModel,
    StableAudioDiTModel,
    StableAudioProjectionModel,
)
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from transformers import Qwen3Config, Qwen3Model, UMT5Config, UMT5EncoderModel

from tools.pipelines.parts import text, video
from tools.pipelines.small import WITHOUT_HALVES, Small, small

for _name in ("StableAudio3AudioToAudioPipeline", "StableAudio3InpaintPipeline"):
    WITHOUT_HALVES[_name] = "no guidance: no scale and no negative prompt among its arguments"
WITHOUT_HALVES["RFD4ProteinaPipeline"] = "makes proteins, without a prompt or guidance"

CHANNELS = 8
"""Of the latents."""


def _oobleck(channels: int) -> AutoencoderOobleck:
    """Two latents a second."""
    return AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=channels,
        channel_multiples=[2, 4],
        sampling_rate=4,
    ).eval()


def _by_prompts(pipe: Any, negative: bool, **fixed: Any) -> Small:
    """A pipeline that reads the prompts itself."""

    def call(images: int) -> dict[str, Any]:
        own: dict[str, Any] = {"prompt": list(text.PROMPTS[:images])}
        if negative:
            own["negative_prompt"] = [text.NEGATIVE] * images
        return video.arguments(images, **own, **fixed)

    return Small(
        pipe=video.quiet(pipe),
        call=call,
        off=video.unguided,
        another=lambda images: {"prompt": [text.ANOTHER] * images},
    )


@small("AceStepPipeline")
def ace_step(kind: type) -> Small:
    """One call of both halves, the conditional one first; the other reads a learned text."""
    torch.manual_seed(0)
    width = 16
    tokenizer = text.word_tokenizer()
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    sizes = heads | {"hidden_size": width, "intermediate_size": width}
    encoder = Qwen3Model(Qwen3Config(**sizes, num_hidden_layers=1, vocab_size=len(tokenizer)))
    condition = AceStepConditionEncoder(
        **sizes,
        text_hidden_dim=width,
        timbre_hidden_dim=CHANNELS,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        sliding_window=16,
    )
    denoiser = AceStepTransformer1DModel(
        **sizes,
        num_hidden_layers=1,
        in_channels=3 * CHANNELS,
        audio_acoustic_hidden_dim=CHANNELS,
        sliding_window=16,
    )
    pipe = kind(
        vae=_oobleck(CHANNELS),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=denoiser.eval(),
        condition_encoder=condition.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    made = _by_prompts(pipe, negative=False, audio_duration=8.0)
    return video.each(made, lyrics=lambda images: [text.NEGATIVE] * images)


@small("StableAudioPipeline")
def stable_audio(kind: type) -> Small:
    """The time of a step comes in one row, whatever the number of sounds."""
    torch.manual_seed(0)
    channels = 3
    denoiser = StableAudioDiTModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=8,
        time_proj_dim=8,
        global_states_input_dim=2 * video.WIDTH,
        cross_attention_input_dim=video.WIDTH,
    )
    projection = StableAudioProjectionModel(
        text_encoder_dim=video.WIDTH, conditioning_dim=video.WIDTH, min_value=0, max_value=32
    )
    pipe = kind(
        vae=_oobleck(channels),
        text_encoder=None,
        tokenizer=None,
        projection_model=projection.eval(),
        transformer=denoiser.eval(),
        scheduler=EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0),
    )
    return video.by_embeddings(pipe)


@small("StableAudio3Pipeline")
def stable_audio_3(kind: type) -> Small:
    """The length of the sound is a token more of the text."""
    torch.manual_seed(0)
    denoiser = StableAudio3DiTModel(
        io_channels=CHANNELS,
        embed_dim=16,
        depth=1,
        num_heads=2,
        cond_token_dim=video.WIDTH,
        global_cond_dim=video.WIDTH,
        local_add_cond_dim=CHANNELS + 1,
        timestep_features_dim=16,
        ff_mult=2,
        num_memory_tokens=2,
        use_differential_attention=False,
    )
    autoencoder = AutoencoderSAME(
        patch_size=2,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=CHANNELS,
        use_differential_attention=False,
        dim_heads=4,
        ff_mult=2,
        sampling_rate=16,
    )
    pipe = kind(
        vae=autoencoder.eval(),
        text_encoder=None,
        tokenizer=None,
        duration_embedder=StableAudio3DurationEmbedder(output_dim=video.WIDTH, fourier_dim=16),
        transformer=video.awake(denoiser),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    return video.by_embeddings(pipe, duration=2.0)


@small("LongCatAudioDiTPipeline")
def long_cat(kind: type) -> Small:
    """Two calls a step; the scheduler's times rise, and so do its sigmas."""
    torch.manual_seed(0)
    tokenizer = text.word_tokenizer()
    config = UMT5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=len(tokenizer)
    )
    denoiser = LongCatAudioDiTTransformer(
        dit_dim=16, dit_depth=1, dit_heads=2, dit_text_dim=16, latent_dim=CHANNELS, text_conv=False
    )
    autoencoder = LongCatAudioDiTVae(
        channels=4,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=CHANNELS,
        encoder_latent_dim=2 * CHANNELS,
        downsampling_ratio=2,
        sample_rate=16,
    )
    pipe = kind(
        vae=autoencoder.eval(),
        text_encoder=UMT5EncoderModel(config).eval(),
        tokenizer=tokenizer,
        transformer=video.awake(denoiser),
    )
    return _by_prompts(pipe, negative=True, audio_duration_s=2.0)
