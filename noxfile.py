"""The project's routines: `nox -l` lists them, `nox` alone runs those marked with a star."""

import nox

nox.needs_version = ">=2025.11"
nox.options.default_venv_backend = "uv|virtualenv"

EXTRAS = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; `nox -s tests -- -m slow` passes on what stands behind the dashes."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format, and change nothing."""
    session.install(*(need for need in EXTRAS["dev"] if need.startswith("ruff")))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def house(session: nox.Session) -> None:
    """Print the shape of the code; `nox -s house -- ROOT` measures another checkout."""
    session.install(*(need for need in EXTRAS["test"] if need.startswith("radon")))
    session.run("python", "tools/house.py", *session.posargs)


@nox.session(default=False, venv_backend="uv")
def minimums(session: nox.Session) -> None:
    """Run the tests on the lowest versions that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Open the report page and the blind test in the system's Chromium."""
    session.install("-e", ".[test,browser]")
    session.run("pytest", "-m", "browser", "-n", "0", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the site into `site/`; its pages fetch nothing, and a warning is a failure."""
    session.install("-e", ".[docs]")
    session.run("python", "-m", "mkdocs", "build", *session.posargs)


@nox.session(default=False)
def notebooks(session: nox.Session) -> None:
    """Run every notebook on mini-sd, small; fail on an error, a warning or a missing figure."""
    session.install("-e", ".[notebooks,accelerators]")
    session.run("python", "tools/notebooks.py", *session.posargs)


@nox.session(default=False, name="notebooks-refresh")
def notebooks_refresh(session: nox.Session) -> None:
    """Rewrite the committed notebooks from `results/`."""
    session.install("-e", ".[notebooks,accelerators]")
    session.run("python", "tools/notebooks.py", "--refresh", *session.posargs)


@nox.session(default=False)
def results(session: nox.Session) -> None:
    """Make the folders of `results/` again whose model, recipe or code has changed.

    `-- FOLDER ...` makes a few; `--dry-run` says which and how long; a killed run goes on.
    """
    session.install("-e", ".[accelerators]")
    session.run("python", "-m", "tools.results", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Compare this code with its baseline, and fail where it is worse, or times decide nothing.

    `-- --accept "reason"` makes the run the new baseline; `-- --undecided pass` judges only what
    was decided.
    """
    session.install("-e", ".")
    session.run("sdbench", "bench", *session.posargs)


@nox.session(default=False)
def overhead(session: nox.Session) -> None:
    """Print what the hooks cost over the plain pipeline."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.overhead", *session.posargs)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Kill every writer fifty times, and give the readers some 10,000 broken files."""
    session.install("-e", ".[test]")
    harder = ("--hypothesis-profile", "faults", "--hypothesis-show-statistics")
    kills = {"SDBENCH_KILLS": "50"}
    session.run(
        "pytest", "-n", "0", "-m", "not gpu", *harder, "tests/faults", *session.posargs, env=kills
    )


@nox.session(default=False)
def bold(session: nox.Session) -> None:
    """Print how often a frontier has a beaten variant in bold, over tables drawn again."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.bold", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Run 2,000 units on mini-sd; fail where memory grows by over 5 % after the first 200."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.soak", *session.posargs)


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Make all the evidence that a GPU can give, in parts: `-- --out results/gpu-NAME`.

    A part takes eight minutes at most, and the same command goes on where it was ended. Where
    nothing can be installed: `python -m benchmarks.gpu --out FOLDER --wheels DIR`.
    """
    session.install("-e", ".[test]")
    session.run("python", "-m", "benchmarks.gpu", *session.posargs)


@nox.session(default=False)
def branching(session: nox.Session) -> None:
    """Print how much faster a sensitivity sweep is than one call per mask."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.branching", *session.posargs)


@nox.session(default=False)
def lockstep(session: nox.Session) -> None:
    """How wide intervals of savings are, timed by calls and in lockstep (mini-sd, minutes)."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.lockstep", *session.posargs)


@nox.session(default=False)
def power(session: nox.Session) -> None:
    """Print which slowdowns the regression benchmark finds, by the spread of its times."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.power", *session.posargs)


@nox.session(default=False)
def perceive(session: nox.Session) -> None:
    """Print how rightly a blind test judges simulated observers (20 minutes)."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.perceive", *session.posargs)


@nox.session(default=False)
def reading(session: nox.Session) -> None:
    """Print time and memory of a study's summary, at 10^5, 10^6 and 10^7 step rows."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.reading", *session.posargs)


@nox.session(default=False)
def pipelines(session: nox.Session) -> None:
    """Hold the seam against a small pipeline of every class of diffusers; write the support table.

    A run that was killed goes on where it was. `-- CLASS ...` runs a few; `--jobs`, `--again`.
    """
    session.install("-e", ".[test]")
    alone = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    session.run("python", "-m", "tools.pipelines", *session.posargs, env=alone)
