import pytest
import torch

from sdbench.models.architectures import ARCHITECTURES

PUBLISHED = [
    ("sd15", "unet", 859_520_964),
    ("sd15", "vae", 83_653_863),
    ("sd15", "text_encoder", 123_060_480),
    ("sd21", "unet", 865_910_724),
    ("sd21", "text_encoder", 340_387_840),
    ("sdxl", "unet", 2_567_463_684),
    ("sdxl", "text_encoder", 123_060_480),
    ("sdxl", "text_encoder_2", 694_659_840),
    ("sd35-medium", "transformer", 2_243_171_520),
    ("sd35-medium", "text_encoder_3", 4_762_310_656),
    ("flux", "transformer", 11_901_408_320),
    ("flux", "text_encoder_2", 4_762_310_656),
    ("pixart-sigma", "transformer", 610_856_096),
]


@pytest.mark.parametrize(("name", "part", "parameters"), PUBLISHED)
def test_parameters_are_as_many_as_published(name, part, parameters):
    with torch.device("meta"):
        network = ARCHITECTURES[name].networks[part].make()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_the_position_embedding_counts_in_the_published_size_of_sd35():
    with torch.device("meta"):
        network = ARCHITECTURES["sd35-medium"].networks["transformer"].make()
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 2_469_663_936


def test_names_are_those_of_the_registry():
    assert [architecture.name for architecture in ARCHITECTURES.values()] == list(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_side_is_that_of_the_autoencoder(architecture):
    assert architecture.side == architecture.networks["vae"].config["sample_size"]


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_text_encoders_have_positions_for_their_tokens(architecture):
    encoders = [name.replace("tokenizer", "text_encoder") for name in architecture.tokenizers]
    assert [name for name in architecture.networks if name.startswith("text_encoder")] == encoders
    with torch.device("meta"):
        configs = [architecture.networks[name].make().config for name in encoders]
    lengths = [
        getattr(config, "max_position_embeddings", 512) for config in configs
    ]  # T5's positions are relative
    assert lengths == list(architecture.tokenizers.values())
