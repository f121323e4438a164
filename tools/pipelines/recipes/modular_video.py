"""Modular pipelines of videos and sounds: a guider makes two calls a step, conditional first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    Cosmos3OmniTransformer,
    FlowMatchEulerDiscreteScheduler,
    HeliosScheduler,
    HeliosTransformer3DModel,
    HunyuanVideo15Transformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MiniMaxMusic3ConditionEncoder,
    MiniMaxMusic3Transformer1DModel,
    UniPCMultistepScheduler,
    WanAnimate2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.guiders import LTX2Guidance

from tools.pipelines.parts import video
from tools.pipelines.parts.modular import by_guider, core
from tools.pipelines.recipes.wan import BLOCKS, CHANNELS
from tools.pipelines.small import SCALE, WITHOUT_HALVES, Small, generators, rows, small

WITHOUT_HALVES["Cosmos3DistilledModularPipeline"] = "a distilled model without guidance"
WITHOUT_HALVES["EchoModularPipeline"] = "no guidance: its denoiser is distilled"
WITHOUT_HALVES["HeliosPyramidDistilledModularPipeline"] = "a distilled model without guidance"
WITHOUT_HALVES["MiniMaxH3ModularPipeline"] = "guidance is distilled into the weights"
WITHOUT_HALVES["WanAnimate2DistilledModularPipeline"] = "a distilled model without guidance"

WITH_PICTURE = BLOCKS | {"in_channels": 2 * CHANNELS + 4}
LATENT_FRAMES = 2
LATENT_SIDE = video.SIDE // 8
Sizes = dict[str, Any]


def _guided(pipe: Any, output: str = "latents", **fixed: Any) -> Small:
    return by_guider(video.by_embeddings(pipe, **fixed), output)


def _unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )


def _experts(kind: type, sizes: Sizes) -> dict[str, torch.nn.Module]:
    """For the noisy steps and for the others."""
    return {name: kind(**sizes).eval() for name in ("transformer", "transformer_2")}


def _first_frame(images: int) -> torch.Tensor:
    """A picture as latents with the mask that says which frames it is."""
    return rows(images, CHANNELS + 4, LATENT_FRAMES, LATENT_SIDE, LATENT_SIDE, seed=6)


@small("WanModularPipeline")
def wan(kind: type) -> Small:
    """The plain one."""
    torch.manual_seed(0)
    denoiser = WanTransformer3DModel(**BLOCKS)
    pipe = core(kind, transformer=denoiser.eval(), scheduler=_unipc())
    return _guided(pipe, **video.VIDEO)


@small("Wan22ModularPipeline")
def wan_2_2(kind: type) -> Small:
    """Two experts, each with a guider."""
    torch.manual_seed(0)
    pipe = core(kind, **_experts(WanTransformer3DModel, BLOCKS), scheduler=_unipc())
    return _guided(pipe, **video.VIDEO)


@small("WanImage2VideoModularPipeline")
def wan_image_to_video(kind: type) -> Small:
    """The picture stands in channels of its own and is encoded besides."""
    torch.manual_seed(0)
    denoiser = WanTransformer3DModel(**WITH_PICTURE, image_dim=4)
    pipe = core(kind, transformer=denoiser.eval(), scheduler=_unipc())
    return video.each(
        _guided(pipe, **video.VIDEO),
        image_condition_latents=_first_frame,
        image_embeds=lambda images: rows(images, 5, 4, seed=7),
    )


@small("Wan22Image2VideoModularPipeline")
def wan_2_2_image_to_video(kind: type) -> Small:
    """The same with two experts, and without the encoder of pictures."""
    torch.manual_seed(0)
    pipe = core(kind, **_experts(WanTransformer3DModel, WITH_PICTURE), scheduler=_unipc())
    return video.each(_guided(pipe, **video.VIDEO), image_condition_latents=_first_frame)


@small("Wan22VaceModularPipeline")
def wan_2_2_control(kind: type) -> Small:
    """Layers of control within both experts; one video a call."""
    torch.manual_seed(0)
    channels = 2 * CHANNELS + 64
    sizes = BLOCKS | {"vace_layers": [0], "vace_in_channels": channels}
    pipe = core(kind, **_experts(WanVACETransformer3DModel, sizes), scheduler=_unipc())
    control = rows(1, channels, LATENT_FRAMES, LATENT_SIDE, LATENT_SIDE, seed=6)
    inputs = {"control_hidden_states": control, "control_hidden_states_scale": torch.ones(1)}
    return _guided(pipe, batches=(1,), **video.VIDEO, denoiser_input_fields=inputs)


@small("WanAnimate2ModularPipeline")
def wan_animate_2(kind: type) -> Small:
    """Latents without a batch; a call before the loop fills the denoiser's cache."""
    torch.manual_seed(0)
    denoiser = WanAnimate2Transformer3DModel(
        text_len=video.TOKENS,
        dim=24,
        ffn_dim=16,
        freq_dim=16,
        text_dim=video.WIDTH,
        num_heads=2,
        num_layers=1,
        use_img_emb=False,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = {"vae": video.wan_autoencoder(), "scheduler": scheduler}
    pipe = core(kind, transformer=denoiser.eval(), **parts)
    side = video.SIDE // 2
    fixed: dict[str, Any] = {
        "height": side,
        "width": side,
        "segment_frame_length": video.FRAMES,
        "effective_segment": video.FRAMES - 1,
        "num_segments": 1,
        "driving_video_pixels": rows(1, 3, video.FRAMES, side, side, seed=5),
        "reference_image_latents": rows(1, CHANNELS + 4, 1, side // 8, side // 8, seed=6)[0],
        "condition_clip_context": rows(1, 2, 4, seed=7),
        "prompt_ref_embeds": video.texts(1, seed=8),
    }
    return _guided(pipe, "segment_frames", batches=(1,), **fixed)


@small("LTXModularPipeline")
def ltx(kind: type) -> Small:
    """Without an autoencoder, whose place takes its usual compression."""
    torch.manual_seed(0)
    denoiser = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=video.WIDTH,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = core(kind, transformer=denoiser.eval(), scheduler=scheduler)
    size: dict[str, Any] = {"height": 128, "width": 128, "num_frames": 9}
    return video.plus(_guided(pipe, **size), video.masks)


def _connected(images: int, seed: int) -> dict[str, torch.Tensor]:
    """What the connectors of LTX 2 make of a text."""
    return {
        "connector_prompt_embeds": rows(images, video.TOKENS, 16, seed=seed),
        "connector_audio_prompt_embeds": rows(images, video.TOKENS, 8, seed=seed + 10),
        "connector_attention_mask": torch.ones(images, video.TOKENS, dtype=torch.long),
    }


@small("LTX2ModularPipeline", "LTX25ModularPipeline")
def ltx_2(kind: type) -> Small:
    """A guider for the video, another one for its sound."""
    torch.manual_seed(0)
    channels = 4
    denoiser = LTX2VideoTransformer3DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=channels,
        audio_out_channels=channels,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        use_prompt_embeddings=False,
        rope_double_precision=False,
        rope_type="split",
    )
    pipe = core(
        kind,
        transformer=denoiser.eval(),
        audio_vae=video.sound_autoencoder(channels // 2),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        guider=LTX2Guidance(SCALE),
        audio_guider=LTX2Guidance(SCALE),
    )

    def texts(images: int) -> dict[str, Any]:
        negative = {f"negative_{name}": text for name, text in _connected(images, 2).items()}
        return _connected(images, 1) | negative | {"batch_size": images, "dtype": torch.float32}

    size: dict[str, Any] = {"height": 128, "width": 128, "num_frames": 9}
    made = Small(
        pipe=video.quiet(pipe),
        call=lambda images: video.arguments(images, **texts(images), **size),
        off=video.unguided,
        another=lambda images: _connected(images, 3),
    )
    return by_guider(made)


@small("HunyuanVideo15ModularPipeline")
def hunyuan_1_5(kind: type) -> Small:
    """Tokens stand for the picture that is not there."""
    torch.manual_seed(0)
    channels = 32
    denoiser = HunyuanVideo15Transformer3DModel(
        in_channels=2 * channels + 1,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=video.WIDTH,
        text_embed_2_dim=video.WIDTH,
        image_embed_dim=8,
        rope_axes_dim=(2, 4, 4),
        task_type="t2v",
    )
    pipe = core(
        kind, transformer=denoiser.eval(), scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0)
    )
    made = _guided(pipe, **video.VIDEO)
    return video.plus(made, video.second_texts)


def _helios(kind: type, stages: int) -> Any:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1}
    denoiser = HeliosTransformer3DModel(
        **heads, text_dim=video.WIDTH, freq_dim=16, ffn_dim=16, rope_dim=(4, 4, 4)
    )
    scheduler = HeliosScheduler(stages=stages, use_dynamic_shifting=True)
    return core(kind, transformer=denoiser.eval(), scheduler=scheduler)


@small("HeliosModularPipeline")
def helios(kind: type) -> Small:
    """Two chunks, each with a loop of its own; the frames made so far are an input."""
    chunks: dict[str, Any] = {"num_latent_frames_per_chunk": 2, "num_frames": 10}
    return _guided(_helios(kind, stages=1), "latent_chunks", **video.SIZE, **chunks)


@small("HeliosPyramidModularPipeline")
def helios_pyramid(kind: type) -> Small:
    """Loops at three sizes; its guider takes a multiple of the unconditional prediction."""
    stages: dict[str, Any] = {
        "num_latent_frames_per_chunk": 2,
        "pyramid_num_inference_steps_list": [2, 1, 1],
    }
    made = _guided(_helios(kind, stages=3), "latent_chunks", **video.VIDEO, **stages)
    return video.without(made, "num_inference_steps")


@small("Cosmos3OmniModularPipeline")
def cosmos_3(kind: type) -> Small:
    """The denoiser reads the text itself and gets lists of samples; one prompt a call."""
    torch.manual_seed(0)
    denoiser = Cosmos3OmniTransformer(
        head_dim=6,
        hidden_size=12,
        intermediate_size=12,
        latent_channel=CHANNELS,
        latent_patch_size=2,
        patch_latent_dim=4 * CHANNELS,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
        rope_axes_dim=[1, 1, 1],
        vocab_size=16,
    )
    pipe = core(kind, transformer=denoiser.eval(), scheduler=_unipc())
    fixed: dict[str, Any] = {
        "cond_input_ids": [1, 2, 3],
        "uncond_input_ids": [4, 5],
        "output": "latents",
    }
    size: dict[str, Any] = {"height": 128, "width": 128, "num_frames": video.FRAMES}
    made = Small(
        pipe=video.quiet(pipe),
        call=lambda images: video.arguments(images, **fixed, **size),
        off=video.unguided,
        another=lambda images: {"cond_input_ids": [6, 7, 8]},
        batches=(1,),
    )
    return video.without(made, "output_type")


@small("MiniMaxMusic3ModularPipeline")
def music_3(kind: type) -> Small:
    """The unconditional call gets zeros; two windows, the second going on from the first."""
    torch.manual_seed(0)
    width = 8
    denoiser = MiniMaxMusic3Transformer1DModel(
        in_channels=8,
        condition_dim=width,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        ff_inner_dim=16,
        rotary_dim=4,
        fourier_embedding_dim=8,
    )
    encoder = MiniMaxMusic3ConditionEncoder(
        condition_hidden_dim=width, num_condition_layers=1, out_dim=width, output_hop_length=1764
    )
    pipe = core(
        kind,
        transformer=denoiser.eval(),
        condition_encoder=encoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )

    def call(images: int) -> dict[str, Any]:
        own = {"frame_hiddens": rows(1, 300, width, seed=1), "generator": generators(1)[0]}
        return video.arguments(images, **own)

    made = Small(
        pipe=video.quiet(pipe),
        call=call,
        off=video.unguided,
        another=lambda images: {"frame_hiddens": rows(1, 300, width, seed=3)},
        batches=(1,),
    )
    return by_guider(made, "latent_chunks")
