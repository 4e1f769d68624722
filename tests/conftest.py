"""Shared test set-up: no network, one thread, fixed seeds, and tiny models and connectomes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


# Before torch and Transformers are imported: they read these once.
for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_OFFLINE"):
    os.environ[name] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from transformers.utils import logging  # noqa: E402

from modeling_lcm import LCMConfig  # noqa: E402


torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
logging.disable_progress_bar()
# The same examples on every machine, however slow it is; `pytest --hypothesis-profile=default` draws others.
settings.register_profile("gate", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gate")

REPOSITORY = Path(__file__).resolve().parent.parent
# 2.6 cannot trace Transformers' decorators, nor shapes that depend on the batch; the releases between were not tried.
NEEDS_RECENT_TORCH = pytest.mark.skipif(torch.__version__ < "2.11", reason="one graph needs PyTorch 2.11")
NUM_REGIONS = 12
VARIABLES = [
    {"name": "state", "kind": "categorical", "labels": ["rest", "movie", "motor"], "loss_weight": 1.0},
    {"name": "sex", "kind": "categorical", "labels": ["M", "F"], "loss_weight": 1.0},
    {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 0.5},
]
# Two subjects have everything recorded, two lack something.
LABELS = [[0.0, 1.0, 0.3], [2.0, 0.0, -1.2], [-100.0, 1.0, 0.8], [1.0, -100.0, -100.0]]


def randomise(model: torch.nn.Module) -> None:
    """Give biases, norms and batch-norm statistics values that matter."""
    for name, tensor in model.state_dict().items():
        if name.endswith("bias"):
            tensor.normal_(std=0.3)
        elif name.endswith("running_var") or "norm.weight" in name:
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same state of torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """NumPy generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def make_config() -> Callable[..., LCMConfig]:
    """Factory of tiny configurations: 12 regions, width 16, 3 layers, BEI variables state, sex and age (6 tokens)."""

    def make(**overrides: Any) -> LCMConfig:
        tiny: dict[str, Any] = {
            "num_regions": NUM_REGIONS,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "bei_variables": [dict(variable) for variable in VARIABLES],
        }
        return LCMConfig(**{**tiny, **overrides})

    return make


@pytest.fixture
def tiny_config(make_config: Callable[..., LCMConfig]) -> LCMConfig:
    """One tiny configuration (see `make_config`)."""
    return make_config()


@pytest.fixture
def make_connectivity(rng: np.random.Generator) -> Callable[..., torch.Tensor]:
    """Factory of connectomes `(subjects, regions, regions)`: Pearson correlations of random time series."""

    def make(people: int = 4, regions: int = NUM_REGIONS, volumes: int = 40) -> torch.Tensor:
        series = rng.standard_normal((people, volumes, regions))
        return torch.tensor(np.stack([np.corrcoef(scan.T) for scan in series]), dtype=torch.float32)

    return make


@pytest.fixture
def connectivity(make_connectivity: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Connectomes of four subjects, `(4, 12, 12)`."""
    return make_connectivity()


@pytest.fixture
def labels() -> torch.Tensor:
    """Labels of the same four subjects, `(4, 3)`, for the tiny configuration's variables; some are missing."""
    return torch.tensor(LABELS)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of larger reference data next to the repository; the test is skipped where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs reference data in a folder named {folder.name!r} next to the repository")
    return folder
