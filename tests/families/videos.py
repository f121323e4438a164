"""Tiny random pipelines of videos, whose denoisers get what belongs to a frame row after row.

All make latents of 4 frames in 4 iterations, of 2 prompts or, where a pipeline takes no more, of
one.
"""

from collections.abc import Callable

import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    ControlNetModel,
    PIAPipeline,
    SparseControlNetModel,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UNetMotionModel,
    VideoToVideoSDPipeline,
)
from PIL import Image

from tests import tiny
from tests.families.unets import ip_adapter_weights

FRAMES = 4
SIZE = {"height": 16, "width": 16}


def _motion_unet(**changes):
    unet = UNetMotionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=tiny.WIDTH,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
        **changes,
    )
    for name, layer in unet.named_modules():
        if "motion_modules" in name and name.endswith("proj_out"):  # zero in a new one
            torch.nn.init.normal_(layer.weight, std=0.2)
    return unet


def _parts(**changes):
    parts = tiny.sd_parts() | {"unet": _motion_unet(), "motion_adapter": None}
    for name in ("safety_checker", "requires_safety_checker", "feature_extractor"):
        del parts[name]
    return parts | changes


def _call(**changes):
    return {"prompt": tiny.PROMPTS, "guidance_scale": 7.5, "num_frames": FRAMES} | SIZE | changes


def animatediff():
    """The text is repeated for every frame."""
    torch.manual_seed(0)
    return tiny.ready(AnimateDiffPipeline(**_parts()), **_call())


def animatediff_sdxl():
    """The text is repeated for every frame, what goes with it for every video."""
    torch.manual_seed(0)
    texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    unet = _motion_unet(**tiny.XL_TEXT, transformer_layers_per_block=1)
    pipe = AnimateDiffSDXLPipeline(**_parts(unet=unet) | texts)
    return tiny.ready(pipe, **tiny.embeddings(), **_call(prompt=None))


def animatediff_ip_adapter():
    """A list of image embeddings in a dict, one for every video."""
    torch.manual_seed(0)
    pipe = AnimateDiffPipeline(**_parts())
    pipe.unet._load_ip_adapter_weights([ip_adapter_weights(pipe.unet)])
    image = torch.randn(2, 1, tiny.WIDTH)  # the negative embedding and the positive one
    return tiny.ready(pipe, **_call(ip_adapter_image_embeds=[image]))


def animatediff_controlnet():
    """The ControlNet gets frames as rows, and so are its residuals."""
    torch.manual_seed(0)
    control = ControlNetModel(**tiny.BLOCKS, conditioning_embedding_out_channels=(4, 4))
    tiny.open_controlnet(control)
    pipe = AnimateDiffControlNetPipeline(**_parts(), controlnet=control)
    # It gives every video the same frames only if it makes one.
    frames = torch.rand(FRAMES, 3, 16, 16).unbind()
    call = {"prompt": tiny.PROMPTS[0], "conditioning_frames": list(frames)}
    return tiny.ready(pipe, **_call(**call))


def animatediff_sparsectrl():
    """The ControlNet gets videos, and its residuals are of frames."""
    torch.manual_seed(0)
    control = SparseControlNetModel(
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=tiny.WIDTH,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=32,
        use_simplified_condition_embedding=True,
        conditioning_channels=4,
    )
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.2)
    pipe = AnimateDiffSparseControlNetPipeline(**_parts(), controlnet=control)
    image = Image.effect_noise((16, 16), 90).convert("RGB")
    call = {"prompt": tiny.PROMPTS[0], "conditioning_frames": [image]}
    return tiny.ready(pipe, **_call(**call, controlnet_frame_indices=[0]))


def animatediff_video_to_video():
    """A loop without the first of the scheduler's 5 steps."""
    torch.manual_seed(0)
    pipe = AnimateDiffVideoToVideoPipeline(**_parts())
    video = [list(torch.rand(FRAMES, 3, 16, 16).unbind())] * 2
    call = _call(video=video, strength=0.8, num_inference_steps=5)
    del call["num_frames"]
    return tiny.ready(pipe, **call)


def animatediff_free_noise():
    """Windows of frames within the denoiser, and noise that they share."""
    pipe = animatediff()
    pipe.motion_adapter = pipe.unet  # all that is asked of it is the longest sequence
    pipe.enable_free_noise(context_length=2, context_stride=1)
    pipe.call["prompt"] = dict(zip((0, 2), tiny.PROMPTS, strict=True))  # by frame
    return pipe


def pia():
    """The denoiser gets the latents, a mask and an image."""
    torch.manual_seed(0)
    pipe = PIAPipeline(**_parts(unet=_motion_unet(in_channels=9)))
    image = torch.rand(1, 3, 16, 16)
    return tiny.ready(pipe, **_call(prompt=tiny.PROMPTS[0], image=image))


def _text_to_video(kind):
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=tiny.WIDTH,
        attention_head_dim=4,
    )
    parts = _parts(unet=unet.eval())  # it has dropout
    del parts["motion_adapter"]
    return kind(**parts)


def text_to_video():
    """The scheduler gets frames as rows."""
    return tiny.ready(_text_to_video(TextToVideoSDPipeline), **_call())


def video_to_video():
    """The same in a loop without the first of the scheduler's 5 steps."""
    pipe = _text_to_video(VideoToVideoSDPipeline)
    video = list(torch.rand(FRAMES, 3, 16, 16).unbind())
    call = _call(prompt=tiny.PROMPTS[0], video=video, strength=0.8, num_inference_steps=5)
    for name in ("num_frames", *SIZE):
        del call[name]
    return tiny.ready(pipe, **call)


FAMILIES: dict[str, Callable] = {
    "animatediff": animatediff,
    "animatediff-sdxl": animatediff_sdxl,
    "animatediff-ip-adapter": animatediff_ip_adapter,
    "animatediff-controlnet": animatediff_controlnet,
    "animatediff-sparsectrl": animatediff_sparsectrl,
    "animatediff-video-to-video": animatediff_video_to_video,
    "animatediff-free-noise": animatediff_free_noise,
    "pia": pia,
    "text-to-video": text_to_video,
    "video-to-video": video_to_video,
}
