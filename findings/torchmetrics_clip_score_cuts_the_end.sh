#!/usr/bin/env bash
# torchmetrics 1.9.0, functional.multimodal.clip_score, with transformers 5.24.0 (torch 2.14.1).
#
# The guess: a prompt of more than 77 tokens is truncated as CLIP's tokenizer truncates, with the
# end-of-text token kept last. The metric's own warning sounds so: "Will truncate captions".
#
# What happens: the prompt is tokenised in full, then `input_ids[..., :77]` is taken, which cuts the
# end-of-text token off. CLIP reads a text at that token. With none there it reads at position 0,
# the start token, which sees no word (where the config says eos_token_id 2, as in OpenAI's
# checkpoints, it reads at the highest id, then the start token too). So every long prompt gets
# the same score for an image, whatever it says. No error is raised.
#
# Also seen: with transformers 5, clip_score with a plain CLIPModel stops at an AttributeError
# ('BaseModelOutputWithPooling' object has no attribute 'norm'), so features are unwrapped below.
#
# Output seen (a small model with random weights; as is -> truncated by the tokenizer):
#   eos_token_id 16, 75 words of red, fox, sky: [1.5, 0.0, 17.64] -> [1.5, 0.0, 17.64]
#   eos_token_id 16, 76 words of red, fox, sky: [14.03, 14.03, 14.03] -> [1.5, 0.0, 17.64]
#   (the same two lines for eos_token_id 2)
#
# What to do: give a processor that truncates (as `truncating` below) in a callable for
# `model_name_or_path`. Scores of longer prompts made without it say nothing about the prompt.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 torchmetrics==1.9.0 \
  transformers==5.24.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
import torch
import torchmetrics
import transformers as tr
from torchmetrics.functional.multimodal import clip_score

print("torchmetrics", torchmetrics.__version__, "transformers", tr.__version__)
vocab, merges, words = {}, [], ("red", "fox", "sky")
for a, b, c in words:  # each word is one token in the end
    merges += [(a, b), (a + b, c + "</w>")]
    for part in (a, b, c + "</w>", a + b, a + b + c + "</w>"):
        vocab.setdefault(part, len(vocab))
start, end = len(vocab), len(vocab) + 1  # the two highest ids, as in CLIP
vocab |= {"<|startoftext|>": start, "<|endoftext|>": end}
tokenizer = tr.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
processor = tr.CLIPProcessor(tr.CLIPImageProcessor(**size), tokenizer)


class Plain(tr.CLIPModel):
    def get_text_features(self, *args, **kwargs):
        return super().get_text_features(*args, **kwargs).pooler_output

    def get_image_features(self, *args, **kwargs):
        return super().get_image_features(*args, **kwargs).pooler_output


def truncating(text=None, **more):
    return processor(text=text, **more, **({"truncation": True, "max_length": 77} if text else {}))


image = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
for eos in (end, 2):
    torch.manual_seed(0)
    part = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    text = part | dict(vocab_size=len(vocab), bos_token_id=start, eos_token_id=eos)
    vision = part | dict(image_size=32, patch_size=8)
    model = Plain(tr.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    for weight in model.parameters():  # larger weights, so that texts differ
        weight.data.mul_(3 if weight.ndim > 1 else 1)
    for count in (75, 76):
        prompts = [" ".join([word] * count) for word in words]
        as_is, right = (
            [round(clip_score(image, p, lambda: (model, by)).item(), 2) for p in prompts]
            for by in (processor, truncating)
        )
        print(f"eos_token_id {eos}, {count} words of red, fox, sky: {as_is} -> {right}")
        assert len(set(right)) == 3, "no longer as stated"
        assert (as_is == right) if count == 75 else len(set(as_is)) == 1, "no longer as stated"
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/finding.py"
