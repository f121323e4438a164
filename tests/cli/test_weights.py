import pytest

from tests.cli.commands import invoke


@pytest.mark.network
def test_weights_says_where_lpips_finds_its_network():
    assert "sha256" in invoke("weights").output
