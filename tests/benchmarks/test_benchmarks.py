"""The benchmark runs, and compares two models that compute the same thing."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import busy, load, precision, speed, startup
from benchmarks.reference import ReferenceLCM
from training.command_line.cli import parse_arguments


SMALL = ["--layers", "2", "--batch-size", "2", "--regions", "20", "--repeats", "2", "--threads", "1"]


@pytest.fixture
def options() -> speed.SpeedArguments:
    """Options of a small run."""
    return parse_arguments(speed.SpeedArguments, SMALL)


def test_both_models_compute_the_same(options: speed.SpeedArguments) -> None:
    ours, batch = speed.build(options), speed.make_batch(options)
    # Statistics, dropout and biases that matter.
    for _ in range(2):
        speed.make_step(ours, batch)()
    reference = ReferenceLCM(ours)
    assert speed.largest_difference(ours, reference, batch) < 1e-5
    ours.zero_grad()
    ours(batch[0], labels=batch[1]).loss.backward()
    reference.loss(*batch).backward()
    for name, theirs in (("stem.proj", reference.proj), ("layers.1.fc1", reference.layers[1].fc1)):
        gradient = ours.model.get_submodule(name).weight.grad
        assert torch.allclose(gradient, theirs.weight.grad, atol=1e-4 * gradient.abs().max().item()), name


def test_different_models_are_not_compared(options: speed.SpeedArguments) -> None:
    ours = speed.build(options)
    reference = ReferenceLCM(ours)
    with torch.no_grad():
        reference.layers[0].fc1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="The models differ by"):
        speed.largest_difference(ours, reference, speed.make_batch(options))


def test_result(capsys: pytest.CaptureFixture[str]) -> None:
    speed.main([*SMALL, "--no-memory", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for part in ("forward", "training step"):
        for low, middle, high in result[part].values():
            assert 0 < low <= middle <= high


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    speed.main([*SMALL, "--no-memory"])
    text = capsys.readouterr().out
    assert "batch 2, 20 regions, 6 tokens, cpu, 1 thread(s)" in text
    assert [line.split("  ")[0] for line in text.splitlines()[3:5]] == ["forward", "training step"]


def test_parts(capsys: pytest.CaptureFixture[str]) -> None:
    speed.main([*SMALL, "--no-memory", "--parts", "activations", "--grid", "2:6:20"])
    header, line = capsys.readouterr().out.splitlines()
    assert header.startswith("batch:tokens:regions")
    share, kept = line.removeprefix("2:6:20").split(" of ")
    assert 0 < float(share) < 1
    assert float(kept.split(" MiB ")[1].strip("()")) < float(share)  # checkpointing keeps less


def test_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "GROWTH", {"regions": (12, 20), "tokens": (6,), "layers": (1,), "batch_size": (2,)})
    speed.main([*SMALL, "--no-memory", "--growth", str(tmp_path / "growth.png")])
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load.main(["--size", "nano", "--folder", str(tmp_path), "--repeats", "2"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["safetensors", "pickle", "ratio"]
    assert not list(tmp_path.iterdir())


def test_precision_of_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    precision.main(["--size", "nano"])
    errors = {line[:16].strip(): float(line.split("error ")[1]) for line in capsys.readouterr().out.splitlines()}
    assert list(errors) == list(precision.MODES)
    assert errors["float32"] == 0
    assert errors["float32, packed"] < 1e-5 < errors["float16"] < errors["bfloat16"] < 0.1
    assert errors["float16"] < errors["int8"] < 0.1


@pytest.mark.parametrize("model", speed.MODELS)
def test_peak_memory(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    speed.main([*SMALL, "--memory-of", model])
    assert float(capsys.readouterr().out) > 50  # MiB: Python and torch alone take more


def test_too_few_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        speed.main(["--tokens", "4"])
    assert "error: tokens must be at least 5" in capsys.readouterr().err


@pytest.mark.slow
def test_start_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--runs", "1", "--commands", "splits"])
    names = [line[:28].strip() for line in capsys.readouterr().out.splitlines()]
    assert names[0] == "import torch" and names[3:] == ["splits --help", "splits, mistyped", "splits, refused"]


def test_training_of_the_busy_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    busy.main(["--alone", "--epochs", "1"])
    assert float(capsys.readouterr().out.splitlines()[-1]) > 0
