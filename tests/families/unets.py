"""Tiny random pipelines with a UNet: what else conditions or changes it, and shortened loops.

All make 4 latents of 2 prompts, in 4 iterations.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from peft import LoraConfig

from tests import tiny


def _image():
    return torch.rand(1, 3, 16, 16)


def _hole():
    """An image and the half of it that is to be painted."""
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    return {"image": _image(), "mask_image": mask}


def _scheduler():
    """The one of Stable Diffusion XL."""
    return EulerDiscreteScheduler.from_config(tiny.scheduler().config, timestep_spacing="leading")


def _sdxl_parts():
    texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return texts | {"vae": tiny.vae(), "unet": tiny.unet(**tiny.XL_TEXT), "scheduler": _scheduler()}


def stable_diffusion_2():
    """The prediction is a velocity, as only the scheduler's configuration says."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        **tiny.sd_parts() | {"unet": tiny.unet(use_linear_projection=True)}
    )
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )
    return tiny.ready(pipe, prompt=tiny.PROMPTS, num_images_per_prompt=2, guidance_scale=7.5)


def inpaint():
    """After every step the pipeline puts what is known of the image back into the latents."""
    torch.manual_seed(0)
    pipe = StableDiffusionInpaintPipeline(**tiny.sd_parts())
    return tiny.ready(
        pipe, prompt=tiny.PROMPTS, **_hole(), num_images_per_prompt=2, guidance_scale=7.5
    )


def inpaint_9():
    """The denoiser gets 9 channels: latents, mask and masked image; its output has 4."""
    torch.manual_seed(0)
    pipe = StableDiffusionInpaintPipeline(**tiny.sd_parts() | {"unet": tiny.unet(in_channels=9)})
    return tiny.ready(
        pipe, prompt=tiny.PROMPTS, **_hole(), num_images_per_prompt=2, guidance_scale=7.5
    )


def xl_image_to_image():
    """The loop is the second half of the scheduler's 8 steps."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLImg2ImgPipeline(**_sdxl_parts())
    call = {
        "num_images_per_prompt": 2,
        "guidance_scale": 5.0,
        "strength": 0.5,
        "num_inference_steps": 8,
    }
    return tiny.ready(pipe, **tiny.embeddings(), image=_image(), **call)


def xl_inpaint():
    """Latents put back after every step, in a loop without the first of the scheduler's 5 steps."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLInpaintPipeline(**_sdxl_parts())
    call = {
        "num_images_per_prompt": 2,
        "guidance_scale": 5.0,
        "strength": 0.8,
        "num_inference_steps": 5,
    }
    return tiny.ready(pipe, **tiny.embeddings(), **_hole(), **call)


def xl_denoising_end():
    """The loop is the first half of the scheduler's 8 steps, and ends in noisy latents."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(**_sdxl_parts())
    call = {
        "num_images_per_prompt": 2,
        "guidance_scale": 5.0,
        "denoising_end": 0.5,
        "num_inference_steps": 8,
    }
    return tiny.ready(pipe, **tiny.embeddings(), **call)


def ip_adapter_weights(unet):
    """An IP-Adapter with random weights: 4 tokens of an image, keys and values for every layer."""
    layers = [
        unet.get_submodule(name.removesuffix(".processor")).to_k
        for name in unet.attn_processors
        if name.endswith("attn2.processor") and "motion_modules" not in name
    ]
    weights = {
        f"{2 * index + 1}.to_{part}_ip.weight": torch.randn(layer.out_features, tiny.WIDTH)
        for index, layer in enumerate(layers)
        for part in "kv"
    }
    projection = {
        "proj.weight": torch.randn(4 * tiny.WIDTH, tiny.WIDTH),
        "proj.bias": torch.zeros(4 * tiny.WIDTH),
    }
    norm = {"norm.weight": torch.ones(tiny.WIDTH), "norm.bias": torch.zeros(tiny.WIDTH)}
    return {
        "image_proj": projection | norm,
        "ip_adapter": weights,
    }


def ip_adapter():
    """A list of image embeddings in a dict, and attention with processors of its own."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(**tiny.sd_parts())
    pipe.unet._load_ip_adapter_weights([ip_adapter_weights(pipe.unet)])
    image = torch.randn(
        2, 1, tiny.WIDTH
    )  # the negative embedding and the positive one, for every prompt
    call = {"num_images_per_prompt": 2, "guidance_scale": 7.5, "ip_adapter_image_embeds": [image]}
    return tiny.ready(pipe, prompt=tiny.PROMPTS, **call)


def lora():
    """Layers of the denoiser wrapped in adapters."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(**tiny.sd_parts())
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=False)
    )  # B not zero
    return tiny.ready(pipe, prompt=tiny.PROMPTS, num_images_per_prompt=2, guidance_scale=7.5)


def xl_controlnet():
    """Nested dicts for the ControlNet too, and lists of tensors from it."""
    torch.manual_seed(0)
    control = ControlNetModel(
        **tiny.BLOCKS, **tiny.XL_TEXT, conditioning_embedding_out_channels=(4, 4)
    )
    tiny.open_controlnet(control)
    pipe = StableDiffusionXLControlNetPipeline(**_sdxl_parts(), controlnet=control)
    call = {"num_images_per_prompt": 2, "guidance_scale": 5.0}
    return tiny.ready(pipe, **tiny.embeddings(), image=torch.rand(2, 3, 16, 16), **call)


def kolors():
    """The denoiser itself projects the text; the pipeline repeats the pooled embedding only."""
    # Its name in diffusers is a stand-in without sentencepiece, which only its tokenizer needs.
    module = pytest.importorskip("diffusers.pipelines.kolors.pipeline_kolors")
    torch.manual_seed(0)
    parts = {"vae": tiny.vae(), "text_encoder": None, "tokenizer": None, "scheduler": _scheduler()}
    unet = tiny.unet(**tiny.XL_TEXT, encoder_hid_dim=tiny.WIDTH, encoder_hid_dim_type="text_proj")
    return tiny.ready(
        module.KolorsPipeline(**parts, unet=unet),
        **tiny.twice(tiny.embeddings()),
        guidance_scale=5.0,
    )


FAMILIES: dict[str, Callable] = {
    "sd2-v": stable_diffusion_2,
    "sd-inpaint": inpaint,
    "sd-inpaint-9": inpaint_9,
    "sdxl-img2img": xl_image_to_image,
    "sdxl-inpaint": xl_inpaint,
    "sdxl-denoising-end": xl_denoising_end,
    "ip-adapter": ip_adapter,
    "lora": lora,
    "sdxl-controlnet": xl_controlnet,
    "kolors": kolors,
}
