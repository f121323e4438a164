"""`python -m sdbench.cli`: the command `sdbench` where scripts are not on the path."""

from sdbench.cli import app

if __name__ == "__main__":
    app()
