"""Commands as a user types them."""

from typer.testing import CliRunner

from sdbench.cli import app

STEPS = ["--num-steps", "2", "--repeats", "1"]
QUICK = ["run", *STEPS, "--variants", "cfg,last:50%", "--metrics", "ssim"]


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def words(done):
    """What a command printed, without the line breaks of its console."""
    return " ".join(done.output.split())


def bench(place, out, *options):
    """The benchmark of a folder's study file, against the baselines next to it."""
    files = ["--baselines", place / "base", "--out", place / out]
    return invoke("bench", place / "quick.toml", *files, *options)
