"""The text encoder of an embedded model."""

from __future__ import annotations

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    """A CLIP text model of two layers, with random weights, for a tokenizer's words."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
