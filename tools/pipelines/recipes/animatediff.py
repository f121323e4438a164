"""AnimateDiff and PIA: the text is repeated for every frame, so rows are of halves and frames."""

from __future__ import annotations

from typing import Any

from diffusers import SparseControlNetModel

from tools.pipelines.parts.flow_image import guided
from tools.pipelines.parts.motion import FRAMES, MOTION, SIZE, clip, clips, motion_unet
from tools.pipelines.parts.unet import (
    POOLED,
    TEXT,
    XL_TEXT,
    build,
    control,
    networks,
    photos,
    pictures,
)
from tools.pipelines.small import Small, small

VIDEO = SIZE | {"num_frames": FRAMES}


def _parts(**changes: Any) -> dict[str, Any]:
    return networks() | {"unet": motion_unet(**changes)}


@small("AnimateDiffPipeline")
def text_to_video(kind: type) -> Small:
    """From text alone."""
    return guided(build(kind, **_parts()), TEXT, lambda images: VIDEO)


@small("AnimateDiffPAGPipeline")
def perturbed(kind: type) -> Small:
    """The same; perturbed attention, a third prediction, is switched off."""
    return guided(build(kind, **_parts()), TEXT, lambda images: VIDEO | {"pag_scale": 0.0})


@small("AnimateDiffSDXLPipeline")
def sdxl(kind: type) -> Small:
    """What goes with the text is repeated for every video only."""
    return guided(build(kind, **_parts(**XL_TEXT)), POOLED, lambda images: VIDEO)


@small("AnimateDiffControlNetPipeline")
def controlnet(kind: type) -> Small:
    """The ControlNet gets frames as rows. The given frames are those of one video."""
    pipe = build(kind, **_parts(), controlnet=control())
    given = {"conditioning_frames": clip()}
    return guided(pipe, TEXT, lambda images: VIDEO | given, batches=(1,))


@small("AnimateDiffSparseControlNetPipeline")
def sparse_controlnet(kind: type) -> Small:
    """The ControlNet gets a video whose first frame is given, and answers with frames."""
    parts = _parts()
    net = SparseControlNetModel(
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        conditioning_channels=4,
        motion_max_seq_length=32,
        **MOTION,
    )
    given = {"conditioning_frames": photos(1), "controlnet_frame_indices": [0]}
    pipe = build(kind, **parts, controlnet=net)
    return guided(pipe, TEXT, lambda images: VIDEO | given, batches=(1,))


@small("AnimateDiffVideoToVideoPipeline")
def video_to_video(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""
    return guided(
        build(kind, **_parts()),
        TEXT,
        lambda images: SIZE | {"video": clips(images), "strength": 0.75},
    )


@small("AnimateDiffVideoToVideoControlNetPipeline")
def video_to_video_controlnet(kind: type) -> Small:
    """The same with a ControlNet, of one video."""
    pipe = build(kind, **_parts(), controlnet=control())
    given = {"video": clip(), "conditioning_frames": clip(seed=8), "strength": 0.75}
    return guided(pipe, TEXT, lambda images: SIZE | given, batches=(1,))


@small("PIAPipeline")
def pia(kind: type) -> Small:
    """The denoiser gets a mask and a picture for every frame with the latents."""
    pipe = build(kind, **_parts(in_channels=9))
    return guided(pipe, TEXT, lambda images: VIDEO | {"image": pictures(images)})
