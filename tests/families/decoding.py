"""Tiny random pipelines that read prompts and decode what they make: videos and sound.

All take as many prompts as they are given; a call of four steps takes a tenth of a second.
"""

import warnings

import torch
from diffusers import (
    AutoencoderKLWan,
    AutoencoderOobleck,
    EDMDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from tests import tiny

FRAMES = 5
SIDE = 32
ARGUMENTS = {"num_frames": FRAMES, "max_sequence_length": 16}
"""Of a call of `wan`, beside its size."""
RATE = 64
"""Samples of sound a second, of which a clip has two."""


def _texts(kind, config):
    tokenizer = tiny.sd_parts()["tokenizer"]
    sizes = {"d_model": tiny.WIDTH, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    encoder = kind(config(vocab_size=len(tokenizer), **sizes)).eval()
    return {"tokenizer": tokenizer, "text_encoder": encoder}


def wan():
    """Guidance by two calls; of the frames the first stays, and every fourth one after it."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        **tiny.HEADS,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        text_dim=tiny.WIDTH,
        freq_dim=8,
        ffn_dim=16,
        rope_max_seq_len=16,
    )
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    torch.nn.init.normal_(vae.decoder.conv_out.weight, std=0.5)  # else all frames are grey
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipe = WanPipeline(
        **_texts(UMT5EncoderModel, UMT5Config),
        transformer=transformer,
        vae=vae,
        scheduler=UniPCMultistepScheduler(**flow),
    )
    return tiny.ready(pipe)


def stable_audio():
    """Sound of two channels; both predictions in one call."""
    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=tiny.WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * tiny.WIDTH,
        cross_attention_input_dim=tiny.WIDTH,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses a deprecated weight norm
        vae = AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 4],
            decoder_channels=4,
            decoder_input_channels=4,
            channel_multiples=[1, 2],
            sampling_rate=RATE,
        )
    pipe = StableAudioPipeline(
        **_texts(T5EncoderModel, T5Config),
        projection_model=StableAudioProjectionModel(tiny.WIDTH, tiny.WIDTH, 0, 16),
        transformer=transformer,
        vae=vae.eval(),
        scheduler=EDMDPMSolverMultistepScheduler(sigma_data=1.0, prediction_type="v_prediction"),
    )
    return tiny.ready(pipe)
