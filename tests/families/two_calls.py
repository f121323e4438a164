"""Tiny random pipelines that guide by two calls in each step, the conditional one first.

All make 4 latents of 2 prompts in 4 steps. No pipeline here can decode.
"""

import warnings
from collections.abc import Callable

import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from tests import tiny


def _texts(mask):
    """Embeddings of 2 prompts and their negatives; `mask` is the pipeline's name for padding's."""
    embeddings = torch.randn(2, 2, tiny.TOKENS, tiny.WIDTH)
    masks = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 1, 0]]])
    names = ("prompt_embeds", "negative_prompt_embeds", f"prompt_{mask}", f"negative_prompt_{mask}")
    return dict(zip(names, (*embeddings, *masks), strict=True))


def qwen_image():
    """Packed latents; each token of a guided prediction gets the length of the conditional one."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        **tiny.HEADS,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        joint_attention_dim=tiny.WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    pipe = QwenImagePipeline(**tiny.ABSENT, transformer=transformer, scheduler=scheduler)
    return tiny.ready(
        pipe, **_texts("embeds_mask"), **tiny.PIXELS, num_images_per_prompt=2, true_cfg_scale=4.0
    )


def _wan_transformer():
    return WanTransformer3DModel(
        **tiny.HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        text_dim=tiny.WIDTH,
        freq_dim=8,
        ffn_dim=16,
        rope_max_seq_len=8,
    )


def _wan(transformers, **call):
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    boundary = (
        0.875 if "transformer_2" in transformers else None
    )  # sigma falls below it after 2 of 4 steps
    pipe = WanPipeline(
        **tiny.ABSENT,
        **transformers,
        scheduler=UniPCMultistepScheduler(**flow),
        boundary_ratio=boundary,
    )
    texts = {name: rows for name, rows in tiny.twice(_texts("mask")).items() if "embeds" in name}
    return tiny.ready(pipe, **texts, **tiny.PIXELS, num_frames=5, **call)


def wan():
    """Latents of video, on a multistep scheduler of flow prediction, which keeps its history."""
    torch.manual_seed(0)
    return _wan({"transformer": _wan_transformer()}, guidance_scale=5.0)


def wan_22():
    """Two denoisers with a scale each, of which the second takes over halfway."""
    torch.manual_seed(0)
    transformers = {"transformer": _wan_transformer(), "transformer_2": _wan_transformer()}
    return _wan(transformers, guidance_scale=4.0, guidance_scale_2=3.0)


def lumina2():
    """A prediction whose sign the pipeline turns; each row gets the conditional one's length."""
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(8, 8, 8),
        cap_feat_dim=tiny.WIDTH,
    )
    pipe = Lumina2Pipeline(
        **tiny.ABSENT, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0)
    )
    return tiny.ready(
        pipe, **tiny.twice(_texts("attention_mask")), **tiny.PIXELS, guidance_scale=4.0
    )


def chroma():
    """Each call has a mask of its own, and ids without a batch dimension."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # diffusers takes its rotary embedding from a deprecated place
        transformer = ChromaTransformer2DModel(
            **tiny.HEADS,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=tiny.WIDTH,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=16,
            approximator_hidden_dim=8,
            approximator_layers=1,
        )
    pipe = ChromaPipeline(
        **tiny.ABSENT, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler()
    )
    texts = {
        name: rows.float() for name, rows in tiny.twice(_texts("attention_mask")).items()
    }  # its own masks are floats
    return tiny.ready(pipe, **texts, **tiny.PIXELS, guidance_scale=5.0)


FAMILIES: dict[str, Callable] = {
    "qwen-image": qwen_image,
    "wan": wan,
    "wan-2.2": wan_22,
    "lumina2": lumina2,
    "chroma": chroma,
}
