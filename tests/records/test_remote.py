import shutil
import socket
import subprocess
import sys
import time
from itertools import count

import fsspec
import pandas as pd
import pytest

from sdbench.models.registry import load
from sdbench.records import remote, schema
from sdbench.records.remote import Remote
from sdbench.records.store import StudyFolder, read
from sdbench.study import runner
from sdbench.study.study import Study
from tests.study.tables import assert_same

STUDY = {"model": "mini-sd", "seeds": [0, 1]}
NUMBERS = count()


@pytest.fixture(scope="module")
def server():
    """A server of S3 on this machine, in a process of its own, and the settings that lead to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            wait_for(port, process)
            yield
        finally:
            process.terminate()


def wait_for(port, process):
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"the server ended with {process.returncode}")


@pytest.fixture(params=["memory", "s3"])
def url(request):
    if request.param == "s3":
        request.getfixturevalue("server")
    return f"{request.param}://bucket-{next(NUMBERS)}/studies/mine"


@pytest.fixture
def memory():
    return f"memory://bucket-{next(NUMBERS)}/mine"


def create(url, study=STUDY, mode="new"):
    return StudyFolder.create(url, study, environment={"cores": 2}, mode=mode)


def there(url):
    return set(Remote(url).files())


def with_image(folder, frames, name):
    """A unit's frames with an image, which lies in the folder."""
    (folder.path / "images").mkdir(exist_ok=True)
    (folder.path / "images" / name).write_bytes(b"pixels")
    return frames | {
        "images": frames["images"].assign(path=pd.array([f"images/{name}"], dtype="string"))
    }


TABLES = {f"{table}.parquet" for table in schema.STUDY} | {"study.json", "environment.json"}


def test_units_read_the_same_before_and_after_compaction(url, parts):
    with create(url) as folder:
        folder.add("a", **with_image(folder, parts("a"), "a.png"))
        folder.add("b", **parts("b"))
        before = read(url)
        assert {f"parts/000001/{table}.parquet" for table in schema.STUDY} | {
            "images/a.png"
        } <= there(url)
        folder.compact()
    assert there(url) == TABLES | {"images/a.png"}
    for table in schema.STUDY:
        pd.testing.assert_frame_equal(getattr(before, table), getattr(read(url), table))
    assert list(before.runs["unit"]) == ["a", "b"]


def test_a_study_is_resumed_from_what_is_there_with_its_images(url, parts):
    with create(url) as folder:
        folder.add("a", **with_image(folder, parts("a"), "a.png"))
    shutil.rmtree(folder.path)  # another machine goes on
    with create(url, mode="resume") as resumed:
        assert resumed.finished() == {"a"}
        assert (resumed.path / "images" / "a.png").read_bytes() == b"pixels"
        resumed.add("b", **parts("b"))
        resumed.rewrite("images", read(resumed.path).images.assign(lpips=0.25))
    assert sorted(read(url).runs["unit"]) == ["a", "b"]
    assert set(read(url).images["lpips"]) == {0.25}


def test_a_reader_counts_a_unit_only_when_all_of_it_is_there(memory, parts, monkeypatch):
    put, names = Remote.put, []

    def interrupted(self, folder, given):
        names.extend(given)
        if names[-1] == "parts/000002/runs.parquet":
            raise ConnectionError
        put(self, folder, given)

    with create(memory) as folder:
        folder.add("a", **parts("a"))
        monkeypatch.setattr(Remote, "put", interrupted)
        with pytest.raises(ConnectionError):
            folder.add("b", **parts("b"))
    assert "parts/000002/steps.parquet" in there(memory)
    assert list(read(memory).runs["unit"]) == ["a"]


@pytest.mark.parametrize("survivors", range(3))
def test_a_break_during_compaction_loses_and_doubles_nothing(memory, parts, survivors, monkeypatch):
    with create(memory) as folder:
        folder.add("a", **parts("a", status="failed", num_steps=1))
        folder.compact()
        folder.add("a", **parts("a"))
        folder.add("b", **parts("b"))
        before, steps = read(memory), count()
        for verb in ("put", "remove"):
            monkeypatch.setattr(Remote, verb, breaking(getattr(Remote, verb), steps, survivors))
        with pytest.raises(ConnectionError):
            folder.compact()
    for table in schema.STUDY:
        pd.testing.assert_frame_equal(getattr(before, table), getattr(read(memory), table))


def breaking(verb, steps, survivors):
    def until_then(*arguments):
        if next(steps) >= survivors:
            raise ConnectionError
        verb(*arguments)

    return until_then


def test_overwrite_removes_the_study_and_nothing_else(url, parts):
    with create(url) as folder:
        folder.add("a", **with_image(folder, parts("a"), "a.png"))
        (folder.path / "thesis.txt").touch()
        Remote(url).put(folder.path, ["thesis.txt"])
    create(url, {"model": "other"}, mode="overwrite").close()
    assert there(url) == TABLES | {"thesis.txt"}
    assert read(url).study == {"model": "other"}
    assert len(read(url).runs) == 0


def test_new_refuses_a_place_that_holds_a_study_or_something_else(memory, tmp_path):
    create(memory).close()
    with pytest.raises(ValueError, match=f"^{memory} already holds a study; --resume"):
        create(memory)
    (tmp_path / "thesis.txt").touch()
    Remote(f"{memory}-other").put(tmp_path, ["thesis.txt"])
    with pytest.raises(ValueError, match=f"^{memory}-other holds no study"):
        create(f"{memory}-other")


def test_a_place_without_a_study_is_named(url):
    with pytest.raises(ValueError, match=f"^{url} holds no study"):
        read(url)


def test_what_cannot_be_reached_is_one_error_with_the_url(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(OSError, match=r"^s3://bucket/mine: "):
        read("s3://bucket/mine")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_missing_package_names_the_extra(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "url_to_fs", missing)
    with pytest.raises(
        ValueError, match=r"^s3://x: Install s3fs to access S3; for S3: pip install 'sdbench\[s3\]'"
    ):
        read("s3://x")


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="Protocol not known: nowhere"):
        read("nowhere://x")


@pytest.mark.slow
def test_a_run_leaves_the_same_study_at_a_url_as_in_a_folder(url, tmp_path):
    pipe = load("mini-sd")
    settings = {"num_steps": 2, "repeats": 1, "variants": ["cfg", "unguided"], "metrics": ["ssim"]}
    study = Study.protocol("mini-sd", **settings)
    local = runner.run(study, tmp_path / "study", pipe=pipe)
    found = runner.run(study, url, pipe=pipe)
    assert_same(read(url), local)
    assert there(url) == TABLES | {"known.parquet"} | set(local.images["path"])
    for path in local.images["path"]:
        assert (found.folder / path).read_bytes() == (local.folder / path).read_bytes()
