"""The published sizes for real, random weights in the research code's files: converted, pushed, pulled and loaded.

Slow: minutes, gigabytes of disk, and about as much memory as the weights.
`pytest -m slow -s tests/hub_cards/test_full_size.py` prints the seconds and the peak memory of every step;
docs/conversion.md has those of one machine.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from modeling_lcm.configuration_lcm import SIZES
from tests.conftest import REPOSITORY
from tests.hub_cards.conftest import TOKEN, client_environment
from tests.hub_cards.hub_server import running_hub
from tests.hub_cards.official_files import make_official_run


LAYERS = {size: SIZES[size]["num_hidden_layers"] for size in ("147m", "735m", "1.2b")}
PARAMETERS = {"147m": 147e6, "735m": 735e6, "1.2b": 1175e6}
GIGABYTE = 10**9

# The peak of resident memory, pages of mapped files included. Not `ru_maxrss`, which starts at the parent's size.
MEASURED = """
import json, re, time
started = time.monotonic()
{code}
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({{"seconds": round(time.monotonic() - started, 1), "peak_gb": round(peak / 1e9, 2)}}))
"""


@pytest.fixture
def measured(tmp_path: Path) -> Callable[[str, str, dict[str, str]], dict[str, float]]:
    """Function that runs Python in a process of its own, prints and returns its seconds and peak memory."""

    def run(title: str, code: str, environment: dict[str, str]) -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED.format(code=code)],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"\n{title}: {figures['seconds']} s, peak {figures['peak_gb']} GB")
        return figures

    return run


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux reports it")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", LAYERS)
def test_convert_push_pull_load(tmp_path: Path, measured: Callable, size: str) -> None:
    config = SIZES[size]
    run = make_official_run(tmp_path / "official", LAYERS[size], config["hidden_size"], config["intermediate_size"])
    output, vocabulary = tmp_path / "checkpoint", REPOSITORY / "conversion" / "vocabularies" / "seven_datasets.json"
    with running_hub(tmp_path / "hub", {TOKEN: "me"}, part_size=512_000_000) as server:
        environment = client_environment(server, tmp_path / "home", HF_TOKEN=TOKEN)
        arguments = [str(run), "--output", str(output), "--vocabulary", str(vocabulary)]
        figures = measured(
            f"{size}: convert",
            f"from conversion import convert_official\nconvert_official.main({arguments})",
            environment,
        )
        assert figures["peak_gb"] < 6
        shards = sorted(output.glob("model*.safetensors"))
        assert all(path.stat().st_size <= 2 * GIGABYTE + 100_000 for path in shards)
        report = json.loads((output / "conversion_report.json").read_text())
        assert report["parameters"] == pytest.approx(PARAMETERS[size], rel=0.005)
        print(f"{size}: {report['parameters']:,} parameters, {len(shards)} file(s)")
        given = ["--repo-id", "me/full", "--entry", f"lcm-{size}", "--license", "other", "--license-name", "test"]
        arguments = [str(output), *given, "--tag", "v1", "--no-dry-run"]
        figures = measured(
            f"{size}: publish (validate, push, pull, compare)",
            f"from hub_cards import publish\npublish.main({arguments})",
            environment,
        )
        assert figures["peak_gb"] < 24
        load = """
import torch
from modeling_lcm import LCMForMultitaskPretraining
model = LCMForMultitaskPretraining.from_pretrained("me/full", revision="v1").eval()
with torch.no_grad():
    logits = model(connectivity=torch.eye(116)[None]).logits
assert logits.shape == (1, 27) and logits.isfinite().all()
"""
        figures = measured(f"{size}: pull, load, one forward pass", load, environment)
        assert figures["peak_gb"] < 24
    _check_last_layer(run, shards, LAYERS[size] - 1)


def _check_last_layer(run: Path, shards: list[Path], index: int) -> None:
    """The last layer's projections are the source's, cut in three."""
    head = torch.load(next(run.glob("head_*")), mmap=True, weights_only=True)
    fused = head[f"decoder.layers.{index}.self_attn.in_proj_weight"]
    for part, expected in zip("qkv", fused.chunk(3), strict=True):
        name = f"model.layers.{index}.self_attn.{part}_proj.weight"
        for shard in shards:
            with safe_open(shard, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 (not a dictionary)
                    assert torch.equal(file.get_tensor(name), expected)
                    break
        else:
            pytest.fail(f"{name} is in no shard")
