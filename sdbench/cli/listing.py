"""Commands that say what there is: models, variants, LPIPS's network, this machine."""

from __future__ import annotations

from sdbench.cli.console import app, console, one_line_errors, print_table, quiet


@app.command()
def models() -> None:
    """List the models known by name, and the architectures that can be built without weights."""
    from sdbench.models.architectures import ARCHITECTURES
    from sdbench.models.registry import MODELS

    rows = [(spec.name, f"{spec.guidance_scale:g}", spec.meaning) for spec in MODELS.values()]
    print_table(("model", "scale", "what it is"), rows)
    console.print("Any hub id (owner/name) or folder of a guided diffusers pipeline works too.\n")
    rows = [
        (a.name, f"{a.guidance_scale:g}", f"{a.source}, {a.side} px")
        for a in ARCHITECTURES.values()
    ]
    print_table(("--random-weights", "scale", "architecture"), rows)


@app.command()
def variants() -> None:
    """List the variant grammar."""
    from sdbench.variants.registry import VARIANTS

    rows = [(kind.grammar, kind.meaning, kind.source) for kind in VARIANTS.values()]
    print_table(("variant", "what it does", "source"), rows)


@app.command()
def weights() -> None:
    """Find the network that LPIPS needs, fetch it where it is missing, and say where it came from."""
    quiet()
    with one_line_errors():
        from sdbench.instruments.weights import describe

        print_table(("what", "value"), list(describe().items()))


@app.command()
def env() -> None:
    """Say what a measurement here would run on."""
    import torch  # noqa: F401 - so that the record names its threads and GPUs

    from sdbench.records.environment import environment

    rows = [
        (
            key,
            ", ".join(f"{k} {v}" for k, v in value.items())
            if isinstance(value, dict)
            else str(value),
        )
        for key, value in environment().items()
    ]
    print_table(("what", "value"), rows)
