"""Modular pipelines of images: a guider makes two calls a step, the conditional one first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnimaTextConditioner,
    CosmosTransformer3DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux3Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)

from tools.pipelines.parts import image_networks
from tools.pipelines.parts.flow_image import (
    AXES,
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    Fixed,
    Texts,
    embeddings,
    guided,
    lists,
    ready,
    shifted,
    steps,
    with_bools,
)
from tools.pipelines.parts.modular import by_guider, core
from tools.pipelines.small import SCALE, STEPS, WITHOUT_HALVES, Small, rows, small

WITHOUT_HALVES["FluxModularPipeline"] = "guidance is distilled into the weights"
WITHOUT_HALVES["FluxKontextModularPipeline"] = "guidance is distilled into the weights"
WITHOUT_HALVES["Flux2ModularPipeline"] = "guidance is distilled into the weights"
WITHOUT_HALVES["Flux2KleinModularPipeline"] = "a distilled model without guidance"
WITHOUT_HALVES["Flux3DistilledModularPipeline"] = "a distilled model without guidance"
WITHOUT_HALVES["Krea2TurboModularPipeline"] = "a distilled model without guidance"
WITHOUT_HALVES["QwenImage21TurboModularPipeline"] = "a distilled model without guidance"

SIDE = {"height": 64, "width": 64}
PLAIN = embeddings(prompt_embeds=(TOKENS, WIDTH))
POOLED = embeddings(prompt_embeds=(TOKENS, WIDTH), pooled_prompt_embeds=(WIDTH,))
MASKED = embeddings("prompt_embeds_mask", prompt_embeds=(TOKENS, WIDTH))


def _guided(pipe: Any, texts: Texts, fixed: Fixed = lambda images: PIXELS) -> Small:
    return by_guider(guided(pipe, texts, fixed))


@small("StableDiffusionXLModularPipeline")
def stable_diffusion_xl(kind: type) -> Small:
    """A UNet; what goes with the text is in a dict."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )
    pipe = core(kind, unet=unet, scheduler=EulerDiscreteScheduler())
    return _guided(pipe, POOLED, lambda images: SIDE)


@small("StableDiffusion3ModularPipeline")
def stable_diffusion_3(kind: type) -> Small:
    """Without a negative prompt it would make the conditional call twice."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        **HEADS,
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _guided(core(kind, transformer=transformer, scheduler=scheduler), POOLED)


def _qwen(kind: type, **changes: Any) -> Any:
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        **image_networks.PACKED,
        out_channels=CHANNELS,
        joint_attention_dim=WIDTH,
        axes_dims_rope=AXES,
        **changes,
    )
    return core(kind, transformer=transformer, scheduler=shifted())


def _latents(images: int) -> torch.Tensor:
    """Of pictures of the usual size."""
    return rows(images, CHANNELS, 1, 4, 4, seed=6)


@small("QwenImageModularPipeline")
def qwen_image(kind: type) -> Small:
    """Each token of the guided prediction gets the conditional one's norm."""
    return _guided(_qwen(kind), MASKED)


@small("QwenImageEditModularPipeline", "QwenImageEditPlusModularPipeline")
def qwen_image_edit(kind: type) -> Small:
    """The tokens of a picture come after those of the latents, and are cut off the prediction."""
    return _guided(_qwen(kind), MASKED, lambda images: PIXELS | {"image_latents": _latents(images)})


@small("QwenImageLayeredModularPipeline")
def qwen_image_layered(kind: type) -> Small:
    """Several layers of an image are one row."""
    pipe = _qwen(kind, use_additional_t_cond=True, use_layer3d_rope=True)
    return _guided(
        pipe,
        MASKED,
        lambda images: {"image_latents": _latents(images).transpose(1, 2), "layers": 1},
    )


@small("QwenImage21ModularPipeline")
def qwen_image_21(kind: type) -> Small:
    """Keys and values of the text are kept from the first step on, apart for each half."""
    torch.manual_seed(0)

    def texts(images: int, seed: int) -> dict[str, Any]:
        no_picture = torch.zeros(images, TOKENS, dtype=torch.bool)
        return MASKED(images, seed) | {"image_pad_mask": no_picture}

    pipe = core(kind, transformer=image_networks.qwen_image_21(), scheduler=shifted())
    return _guided(pipe, texts, lambda images: SIDE)


@small("ZImageModularPipeline")
def z_image(kind: type) -> Small:
    """Lists of images and of texts; its guider is off until a scale is asked for."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[256, 32, 32],
    )
    return _guided(core(kind, transformer=transformer, scheduler=shifted()), lists)


@small("Krea2ModularPipeline")
def krea_2(kind: type) -> Small:
    """The guider's own scale is less by one: it computes c + s (c - u)."""
    torch.manual_seed(0)
    texts = embeddings("prompt_embeds_mask", prompt_embeds=(TOKENS, image_networks.LAYERS, WIDTH))
    return _guided(
        core(kind, transformer=image_networks.krea_2(), scheduler=shifted()), with_bools(texts)
    )


@small("Flux2KleinBaseModularPipeline")
def flux_2(kind: type) -> Small:
    """The ids of both halves' texts have no batch dimension of their own."""
    torch.manual_seed(0)
    return _guided(core(kind, transformer=image_networks.flux_2(), scheduler=shifted()), PLAIN)


@small("Flux3ModularPipeline")
def flux_3(kind: type) -> Small:
    """Tokens of text and image in one stream."""
    torch.manual_seed(0)
    transformer = Flux3Transformer2DModel(
        **image_networks.PACKED,
        cond_in_channels=4 * CHANNELS,
        num_single_layers=1,
        joint_attention_dim=WIDTH,
        timestep_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return _guided(core(kind, transformer=transformer, scheduler=scheduler), PLAIN)


@small("ErnieImageModularPipeline")
def ernie(kind: type) -> Small:
    """Texts as lists, padded for each half by itself."""
    torch.manual_seed(0)
    pipe = core(
        kind, transformer=image_networks.ernie(), scheduler=FlowMatchEulerDiscreteScheduler()
    )
    return _guided(pipe, lists, lambda images: SIDE)


@small("AnimaModularPipeline")
def anima(kind: type) -> Small:
    """A small network makes the text's embeddings of those of two encoders."""
    torch.manual_seed(0)
    vocabulary = 16
    conditioner = AnimaTextConditioner(
        source_dim=WIDTH,
        target_dim=WIDTH,
        model_dim=16,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=vocabulary,
        min_sequence_length=TOKENS,
    )
    transformer = CosmosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        extra_pos_embed_type=None,
    )

    def texts(images: int, seed: int) -> dict[str, Any]:
        valid = torch.ones(images, TOKENS, dtype=torch.long)
        words = rows(images, TOKENS, seed=10 * seed + 1).argsort(dim=1) + seed
        return {
            "qwen_prompt_embeds": rows(images, TOKENS, WIDTH, seed=10 * seed),
            "qwen_attention_mask": valid,
            "t5_input_ids": words,
            "t5_attention_mask": valid,
        }

    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = core(kind, transformer=transformer, text_conditioner=conditioner, scheduler=scheduler)
    return _guided(pipe, texts)


@small("Ideogram4ModularPipeline")
def ideogram(kind: type) -> Small:
    """A denoiser for each half, a scale for each step, and no guider."""
    torch.manual_seed(0)
    pipe = core(
        kind,
        transformer=image_networks.ideogram(WIDTH),
        unconditional_transformer=image_networks.ideogram(WIDTH),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )

    def texts(images: int, seed: int) -> dict[str, Any]:
        lengths = [TOKENS - image % 2 for image in range(images)]
        features = rows(images, TOKENS, WIDTH, seed=10 * seed)
        return {"text_features": features, "text_lengths": lengths}

    def call(images: int) -> dict[str, Any]:
        own = {"output": "latents", "guidance_schedule": [SCALE] * STEPS}
        return own | PIXELS | texts(images, 1) | _by_steps(images)

    return Small(
        ready(pipe),
        call,
        off=lambda images: {"guidance_schedule": [1.0] * STEPS},
        another=lambda images: texts(images, 3),
    )


def _by_steps(images: int) -> dict[str, Any]:
    """The arguments that every call has but the kind of its output."""
    return {name: value for name, value in steps(images).items() if name != "output_type"}
