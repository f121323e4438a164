import pytest

from sdbench.records.files import read_table
from sdbench.records.store import read
from tests.cli.commands import invoke, words


def test_costs_are_counted_without_running():
    printed = invoke("cost", "--model", "sd15", "--height", "512", "--count-only")
    assert printed.exit_code == 0, printed.output
    rows = [line.split() for line in printed.output.splitlines()[1:]]
    assert [row[3:7] for row in rows] == [
        ["1", "guided", "2", "1.61"],
        ["1", "unguided", "1", "0.803"],
    ]


def test_work_is_counted_by_kind_of_layer_and_by_block():
    printed = invoke(
        *("cost", "--model", "sd15", "--height", "64", "--by", "module", "--count-only")
    )
    assert printed.exit_code == 0, printed.output
    lines = [line.split() for line in printed.output.splitlines()]
    kinds = next(place for place, line in enumerate(lines) if line[:1] == ["kind"])
    assert lines[kinds + 1][0] == "convolution"
    assert "down_blocks.0" in [line[0] for line in lines if line]


@pytest.mark.slow  # a profile of mini-sd
def test_times_are_measured_by_kind_of_layer(tmp_path):
    options = ["--num-steps", "4", "--guidance-scale", "5", "--out", tmp_path]
    printed = invoke("cost", "--model", "mini-sd", "--height", "64", "--by", "module", *options)
    assert printed.exit_code == 0, printed.output
    assert "R = " in words(printed)
    assert "Watching the layers lengthens" in words(printed)
    folder = tmp_path / "64x64-batch1"
    assert (folder / "modules.png").is_file()
    assert len(read_table(folder, "modules")) > 50


@pytest.mark.slow  # traces the allocator in four warm-ups
def test_costs_are_measured(tmp_path):
    options = ["--num-steps", "10", "--repeats", "1", "--out", tmp_path]
    printed = invoke("cost", "--model", "mini-sd", "--height", "64", *options)
    assert printed.exit_code == 0, printed.output
    assert "64 x 64, batch 1: guided step" in words(printed)
    assert "last:20% 10.0%" in words(printed)
    assert "why not ideal:" in words(printed)
    assert len(read(tmp_path / "64x64-batch1").runs) == 4 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sd15", "--height", "500", "--count-only"], "height and width must be multiples of 8"),
        (["sd15", "--height", "tall"], "--height takes positive whole numbers"),
        (["sd15", "--height", "512", "--batch", "0"], "--batch takes positive whole numbers"),
        (
            ["mini-sd", "--height", "64", "--count-only"],
            "there are: sd15",
        ),
        (["sd99", "--height", "64"], "unknown model 'sd99'"),
        (["sd15", "--height", "512", "--by", "layer"], "--by takes module, not 'layer'"),
        (
            ["mini-sd", "--height", "64", "--execution", "lazy"],
            "unknown execution 'lazy'; there are: eager, compile",
        ),
    ],
)
def test_a_cost_that_cannot_be_told_is_one_line_and_exit_code_2(arguments, message):
    refused = invoke("cost", "--model", *arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
