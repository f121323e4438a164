from tests.cli.commands import invoke


def test_a_distance_between_distributions_takes_many_images(small):
    done = invoke("distances", small[0])
    assert done.exit_code == 2
    assert "takes 512 images" in done.output
