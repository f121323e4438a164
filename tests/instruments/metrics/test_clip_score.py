import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from sdbench.instruments import weights
from sdbench.instruments.quality import provenance, score


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "red</w>", "blue</w>", "star</w>"]
    text = {
        **sizes,
        "vocab_size": len(words),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    processor = CLIPProcessor(image_processor=images, tokenizer=tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


def test_clip_score_is_100_times_the_cosine_or_zero(pair, small_clip):
    folder, model, processor = small_clip
    prompts = ["a red star", "a blue star", "star", "a star a"]
    inputs = processor(
        text=prompts, images=[to_pil_image(x) for x in pair[0]], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image.diag() / model.logit_scale.exp()
    scores = score(f"clip_score:{folder}", pair[0], prompts)
    torch.testing.assert_close(scores, (100 * cosines).clamp(min=0), rtol=1e-3, atol=1e-3)

    # One of a model and its opposite has a positive cosine, whatever the random start.
    model.visual_projection.weight.data.neg_()
    model.save_pretrained(folder / "opposite")
    processor.save_pretrained(folder / "opposite")
    opposite = score(f"clip_score:{folder / 'opposite'}", pair[0], prompts)
    torch.testing.assert_close(opposite, (-100 * cosines).clamp(min=0), rtol=1e-3, atol=1e-3)
    model.visual_projection.weight.data.neg_()
    assert (scores + opposite > 0).all()


def test_clip_provenance_changes_with_the_weights(small_clip):
    folder, model, _ = small_clip
    name = f"clip_score:{folder}"
    record = provenance([name])[name]
    assert record["network"] == str(folder)
    assert record["sha256"] == weights.tensors_sha256(
        model.state_dict()[key] for key in sorted(model.state_dict())
    )


def test_missing_clip_model_is_named():
    with pytest.raises(ValueError, match="no CLIP model at 'no/such'"):
        score("clip_score:no/such", torch.full((2, 3, 16, 16), 0.5), ["a", "b"])
