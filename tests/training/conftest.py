"""Fixtures of the training tests: a small generated cohort with a planted effect, prepared once, and a tiny model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import training.evaluation.design
from training.data.cohort import Cohort, load_cohort
from training.evaluation.arguments import EvaluateArguments
from training.preparation.arguments import PrepareArguments
from training.preparation.build import prepare
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.checkpoints import save_checkpoint
from training.trainer.pretraining import pretrain
from training.trainer.runs import record_of


PEOPLE = 24
REGIONS = 10
VOLUMES = 60
ATLAS = "made-up-10"
TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "dropout": 0.0,
}
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "momentum_epochs": 1, "progress": False, "checkpoint_every": 0}


@dataclass(frozen=True)
class Study:
    """What a laboratory has: a folder with `participants.tsv`, `fc.npz` and `time_series.npz`, and the same arrays.

    Args:
        folder (`Path`): the files.
        participants (`pd.DataFrame`): `participant_id` (with leading zeros), `sex`, `age`, `group`, `site`, `score`.
        time_series (`np.ndarray` of shape `(subjects, volumes, regions)`): float32.
        connectivity (`np.ndarray` of shape `(subjects, regions, regions)`): float64 Pearson correlations.
    """

    folder: Path
    participants: pd.DataFrame
    time_series: np.ndarray
    connectivity: np.ndarray


def make_signals(group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise `(subjects, volumes, regions)`; in group B the first four regions share a signal, in A the last four."""
    signals = rng.standard_normal((len(group), VOLUMES, REGIONS))
    common = rng.standard_normal((len(group), VOLUMES, 1))
    is_b = group == "B"
    signals[is_b, :, :4] += 1.5 * common[is_b]
    signals[~is_b, :, -4:] += 1.5 * common[~is_b]
    return signals.astype(np.float32)


def make_study(folder: Path) -> Study:
    """Write the files of 24 subjects, 12 of each group, into a folder."""
    rng = np.random.default_rng(7)
    group = np.array(["A", "B"] * (PEOPLE // 2))
    ids = [f"{number:04d}" for number in range(1, PEOPLE + 1)]
    participants = pd.DataFrame(
        {
            "participant_id": ids,
            "sex": rng.permutation(["M", "F"] * (PEOPLE // 2)),
            "age": rng.integers(20, 70, PEOPLE) + 0.5,
            "group": group,
            "site": ["x"] * 12 + ["y"] * 12,
            "score": np.where(group == "B", 10.0, 5.0) + rng.normal(0, 0.5, PEOPLE).round(2),
        }
    )
    series = make_signals(group, rng)
    connectivity = np.stack([np.corrcoef(scan.T) for scan in series])
    participants.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    rows, columns = np.triu_indices(REGIONS, k=1)
    order = rng.permutation(PEOPLE)  # archives are not in the table's order
    np.savez(folder / "fc.npz", participant_id=np.array(ids)[order], fc_triu=connectivity[order][:, rows, columns])
    np.savez(
        folder / "time_series.npz",
        participant_id=np.array(ids)[order],
        data=series[order].reshape(-1, REGIONS),
        offsets=np.arange(PEOPLE + 1) * VOLUMES,
    )
    return Study(folder, participants, series, connectivity)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Files of the made-up study; do not write into its folder."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def prepare_arguments(study: Study, tmp_path: Path) -> Callable[..., PrepareArguments]:
    """Factory of settings that put the study's data set into the test's folder."""

    def make(**overrides: Any) -> PrepareArguments:
        settings: dict[str, Any] = {
            "output": str(tmp_path / "dataset"),
            "participants": str(study.folder / "participants.tsv"),
            "atlas": ATLAS,
            "bad_scans": "stop",
        }
        return PrepareArguments(**{**settings, **overrides})

    return make


@pytest.fixture(scope="session")
def dataset(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study as a prepared data set."""
    return prepare(
        PrepareArguments(
            output=str(tmp_path_factory.mktemp("prepared") / "dataset"),
            participants=str(study.folder / "participants.tsv"),
            connectivity=str(study.folder / "fc.npz"),
            atlas=ATLAS,
        )
    )


@pytest.fixture(scope="session")
def _loaded(dataset: Path) -> Cohort:
    return load_cohort(dataset)


@pytest.fixture
def cohort(_loaded: Cohort) -> Cohort:
    """The prepared data set in memory, with a table of its own that a test may change."""
    return Cohort(_loaded.table.copy(), _loaded.triangles, _loaded.feature_extractor)


@pytest.fixture(scope="session")
def pretrain_arguments() -> Callable[..., PretrainArguments]:
    """Factory of settings for a two-epoch pretraining of a tiny model."""
    return lambda **overrides: PretrainArguments(**{**TINY, **SHORT, **overrides})


@pytest.fixture(scope="session")
def pretrained(
    _loaded: Cohort, pretrain_arguments: Callable[..., PretrainArguments], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny checkpoint, pretrained on sex and age of everybody."""
    arguments, rows = pretrain_arguments(epochs=4), np.arange(PEOPLE)
    model, processor, history = pretrain(_loaded.select(rows), arguments)
    folder = tmp_path_factory.mktemp("pretrained") / "checkpoint"
    return save_checkpoint(folder, model, processor, arguments, record_of(_loaded.select(rows), history))


@pytest.fixture
def finetune_arguments(pretrained: Path) -> Callable[..., FinetuneArguments]:
    """Factory of settings for a two-epoch fine-tuning of the tiny checkpoint for the planted group."""
    return lambda **overrides: FinetuneArguments(
        **{**SHORT, "checkpoint": str(pretrained), "task": "group", **overrides}
    )


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., str]:
    """Factory of YAML files; returns the path."""

    def write(name: str, **settings: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


@pytest.fixture
def evaluate_arguments(
    dataset: Path, write_config: Callable[..., str], tmp_path: Path
) -> Callable[..., EvaluateArguments]:
    """Factory of settings for two folds, both stages, few labels."""

    def make(finetuning: dict | None = None, pretraining: dict | None = None, **overrides: Any) -> EvaluateArguments:
        settings = {
            "data": str(dataset),
            "output": str(tmp_path / "folds"),
            "pretrain": write_config("pretrain", **{**TINY, **SHORT, **(pretraining or {})}),
            "finetune": write_config(
                "finetune", **{**SHORT, "task": "group", "labels_per_class": 4, **(finetuning or {})}
            ),
            "n_folds": 2,
            "resamples": 0,
            "baselines": ["majority", "linear"],
            "workers": 1,
        }
        return EvaluateArguments(**{**settings, **overrides})

    return make


@pytest.fixture
def pretraining_only(evaluate_arguments: Callable[..., EvaluateArguments]) -> Callable[..., EvaluateArguments]:
    """Factory of settings for two folds in which sex, age and group are pretrained for an epoch and scored."""

    def make(pretraining: dict | None = None, **overrides: Any) -> EvaluateArguments:
        short = {"epochs": 1, "categorical": ["sex", "group"], **(pretraining or {})}
        return evaluate_arguments(pretraining=short, **{"finetune": "", "stratify": "group", **overrides})

    return make


@pytest.fixture
def use_table(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cohort]:
    """Function that makes the evaluation load the cohort with other columns."""

    def use(**columns: Any) -> Cohort:
        for name, values in columns.items():
            cohort.table[name] = values
        monkeypatch.setattr(training.evaluation.design, "load_cohort", lambda folder: cohort)
        return cohort

    return use


@pytest.fixture(scope="session")
def other_cohort(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second cohort, "other": the same scans under other ids."""
    folder = tmp_path_factory.mktemp("second")
    table = study.participants.drop(columns="score").assign(
        participant_id=[f"p{number}" for number in range(PEOPLE)],
        disease=["yes", "no"] * (PEOPLE // 2),
    )
    table.to_csv(folder / "subjects.tsv", sep="\t", index=False, na_rep="n/a")
    np.savez(
        folder / "fc.npz",
        participant_id=table["participant_id"].to_numpy(dtype=str),
        fc_triu=study.connectivity[:, *np.triu_indices(study.connectivity.shape[1], k=1)],
    )
    return prepare(
        PrepareArguments(
            output=str(folder / "other"),
            participants=str(folder / "subjects.tsv"),
            connectivity=str(folder / "fc.npz"),
            atlas=ATLAS,
        )
    )
