"""Tiny random pipelines with a transformer that gets both halves of guidance in one call.

All make 4 latents of 2 prompts, so the denoiser gets 8 rows where a step is guided. The latents
have 8 patches: rotary embeddings, which have no batch dimension, are then as long as the batch. No
pipeline here can decode.
"""

from collections.abc import Callable

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)

from tests import tiny

CHANNELS = {"in_channels": 4, "out_channels": 4}


def _texts():
    """Embeddings and masks of 2 prompts and of an empty negative one for each."""
    embeddings = torch.randn(2, 2, tiny.TOKENS, tiny.WIDTH)
    masks = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 0, 0]]])
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_attention_mask",
    )
    return dict(zip(names, (*embeddings, *masks), strict=True))


def pixart_sigma():
    """A learned variance, which doubles the prediction's channels, on a multistep scheduler."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        **tiny.HEADS,
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        caption_channels=tiny.WIDTH,
    )
    scheduler = DPMSolverMultistepScheduler.from_config(tiny.scheduler().config)
    pipe = PixArtSigmaPipeline(**tiny.ABSENT, transformer=transformer, scheduler=scheduler)
    call = {"negative_prompt": None, "num_images_per_prompt": 2, "use_resolution_binning": False}
    return tiny.ready(pipe, **_texts(), **tiny.PIXELS, **call, guidance_scale=4.5)


def hunyuandit():
    """A learned variance, two texts, rotary embeddings as long as the batch; steps draw noise."""
    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        **tiny.HEADS,
        sample_size=8,
        in_channels=4,
        patch_size=2,
        hidden_size=16,
        num_layers=1,
        cross_attention_dim=tiny.WIDTH,
        cross_attention_dim_t5=tiny.WIDTH,
        pooled_projection_dim=tiny.WIDTH,
        text_len=tiny.TOKENS,
        text_len_t5=tiny.TOKENS,
    )
    scheduler = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    safety = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = HunyuanDiTPipeline(**tiny.ABSENT, **safety, transformer=transformer, scheduler=scheduler)
    texts = _texts() | {f"{name}_2": rows for name, rows in _texts().items()}
    texts |= tiny.twice({name: rows for name, rows in texts.items() if "mask" in name})
    call = {"num_images_per_prompt": 2, "use_resolution_binning": False}
    return tiny.ready(pipe, **texts, **tiny.PIXELS, **call, guidance_scale=5.0)


def auraflow():
    """Flow matching on timesteps between 0 and 1; the masks do not reach the denoiser."""
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        **tiny.HEADS,
        **CHANNELS,
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=tiny.WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    for block in (*transformer.joint_transformer_blocks, *transformer.single_transformer_blocks):
        torch.nn.init.normal_(
            block.norm1.linear.weight
        )  # gates nearly shut in a new one, so the text would not tell
    pipe = AuraFlowPipeline(
        **tiny.ABSENT, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler()
    )
    return tiny.ready(pipe, **_texts(), **tiny.PIXELS, num_images_per_prompt=2, guidance_scale=3.5)


def sana():
    """Flow prediction on a multistep scheduler, which keeps its history of clean latents."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        **tiny.HEADS,
        **CHANNELS,
        sample_size=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=tiny.WIDTH,
    )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipe = SanaPipeline(
        **tiny.ABSENT, transformer=transformer, scheduler=DPMSolverMultistepScheduler(**flow)
    )
    call = {"negative_prompt": None, "num_images_per_prompt": 2, "use_resolution_binning": False}
    return tiny.ready(pipe, **_texts(), height=64, width=128, **call, guidance_scale=4.5)


def _cogvideox(kind, **changes):
    """Every argument of the denoiser by keyword, on a scheduler whose first step is all noise."""
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        **CHANNELS,
        **changes,
        num_attention_heads=2,
        attention_head_dim=16,
        time_embed_dim=16,
        text_embed_dim=tiny.WIDTH,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=tiny.TOKENS,
    )
    noise = {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    pipe = CogVideoXPipeline(**tiny.ABSENT, transformer=transformer, scheduler=kind(**noise))
    texts = {name: rows for name, rows in tiny.twice(_texts()).items() if "embeds" in name}
    return tiny.ready(pipe, **texts, height=32, width=32, num_frames=5, guidance_scale=6.0)


def cogvideox():
    """Latents with a dimension of frames before their channels, as CogVideoX-2b has them."""
    return _cogvideox(CogVideoXDDIMScheduler)


def cogvideox_dpm():
    """CogVideoX-5b: its scheduler's own order of arguments, and rotary embeddings."""
    return _cogvideox(CogVideoXDPMScheduler, use_rotary_positional_embeddings=True)


def ltx():
    """Packed latents of video, every argument by keyword, a tuple of numbers among them."""
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        **tiny.HEADS, **CHANNELS, cross_attention_dim=16, num_layers=1, caption_channels=tiny.WIDTH
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    pipe = LTXPipeline(**tiny.ABSENT, transformer=transformer, scheduler=scheduler)
    return tiny.ready(
        pipe, **tiny.twice(_texts()), height=64, width=64, num_frames=9, guidance_scale=3.0
    )


FAMILIES: dict[str, Callable] = {
    "pixart-sigma": pixart_sigma,
    "hunyuandit": hunyuandit,
    "auraflow": auraflow,
    "sana": sana,
    "cogvideox": cogvideox,
    "cogvideox-dpm": cogvideox_dpm,
    "ltx": ltx,
}
