import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sdbench.records import environment as module
from sdbench.records.environment import environment, environment_key


def test_it_names_the_machine_but_neither_host_nor_user_nor_path():
    text = json.dumps(environment())
    assert platform.python_version() in text
    for private in (platform.node(), f'"{getpass.getuser()}"', str(Path.home()), sys.prefix):
        assert private not in text


def test_it_leaves_torch_unloaded():
    program = (
        "import sys; from sdbench.records.environment import environment\n"
        "environment(); print('torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "False"


def test_only_listed_variables_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    assert environment()["variables"]["OMP_NUM_THREADS"] == "3"
    assert "hidden" not in json.dumps(environment())


def test_key_depends_on_content_not_on_order():
    assert environment_key({"cores": 2, "threads": 1}) == environment_key(
        {"threads": 1, "cores": 2}
    )
    assert environment_key({"cores": 2}) != environment_key({"cores": 4})


@pytest.mark.parametrize("dirty", [False, True])
def test_commit_is_that_of_the_checkout(tmp_path, monkeypatch, dirty):
    def git(*arguments):
        command = [
            "git",
            "-C",
            str(tmp_path),
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            *arguments,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    if dirty:
        (tmp_path / "file").write_text("two")
    monkeypatch.setattr(
        module, "__file__", str(tmp_path / "sdbench" / "records" / "environment.py")
    )
    assert environment()["commit"] == git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
