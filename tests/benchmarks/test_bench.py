"""What got slower, and how many scans a second are predicted: what is said, and that it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench, throughput
from benchmarks.bench import GOALS, MEASURES, RECORDED, Ratio, verdict
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("now", "before", "words"),
    [
        ((2.0, 2.1, 2.2), (2.0, 2.1, 2.2), "as recorded"),
        ((1.5, 1.6, 1.7), (2.0, 2.1, 2.2), "slower, by 24%"),
        ((1.5, 1.6, 2.1), (2.0, 2.1, 2.2), "as recorded"),  # the spreads overlap
        ((1.9, 1.95, 1.99), (2.0, 2.1, 2.2), "as recorded"),  # within a tenth
        ((3.0, 3.1, 3.2), (2.0, 2.1, 2.2), "faster"),
        ((2.0, 2.1, 2.2), None, "new"),
    ],
)
def test_what_is_said_of_a_ratio(
    now: tuple[float, float, float], before: tuple[float, float, float] | None, words: str
) -> None:
    assert verdict("anything", Ratio(*now), before and Ratio(*before)) == words


def test_goals_hold_whatever_was_recorded() -> None:
    low = Ratio(6.0, 6.5, 6.9)
    assert verdict("int8, one scan, 6 tokens", low, low) == "below its goal of 7.00"
    assert set(GOALS) <= set(MEASURES)


def test_recorded_ratios_are_those_that_are_measured() -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))["ratios"]
    assert set(recorded) <= set(MEASURES)
    assert all(low <= middle <= high for low, middle, high in recorded.values())


def test_it_ends_with_a_mistake_where_something_got_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "RECORDED", tmp_path / "recorded.json")
    monkeypatch.setattr(bench, "MEASURES", {"one": lambda repeats: Ratio(1.9, 2.0, 2.1)})
    bench.main(["--record", "true"])
    bench.main([])
    assert "as recorded" in capsys.readouterr().out
    monkeypatch.setattr(bench, "MEASURES", {"one": lambda repeats: Ratio(0.9, 1.0, 1.1)})
    with pytest.raises(SystemExit):
        bench.main([])
    assert "Slower: one." in capsys.readouterr().out


def test_scans_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = throughput.measure(throughput.Case(scans=12, regions=10), tmp_path, 2)
    assert list(rates) == ["float32", "int8", "peer"]
    assert all(len(of) == 2 and min(of) > 0 for of in rates.values())
    monkeypatch.chdir(REPOSITORY)
    options = throughput.ThroughputArguments(folder=str(tmp_path), scans=12, regions=10)
    assert throughput.memory_of(options, "float32") > 10  # MiB


def test_growth_of_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    growth = {"scans": (12, 6), "regions": (10,), "tokens": (6,), "model": ("nano", "linear")}
    monkeypatch.setattr(throughput, "GROWTH", growth)
    throughput.main(["--folder", str(tmp_path), "--repeats", "1", "--growth", str(tmp_path / "growth.png")])
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name", ["bench", "throughput", "busy", "startup", "connectivity", "load", "nifti", "prepare"]
)
def test_help_does_without_torch(name: str) -> None:
    code = f"import runpy, sys; sys.argv = ['x', '--help']; runpy.run_module('benchmarks.{name}', run_name='__main__')"
    watched = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", watched], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
