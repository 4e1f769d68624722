"""Fixtures of the tests of files: FC in the shapes that programs write, and `training.prepare` of a folder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training.data.cohort import load_cohort
from training.preparation.arguments import PrepareArguments
from training.preparation.build import prepare


HALF_PRECISION = 6e-4


def fc(series: np.ndarray) -> np.ndarray:
    """Pearson FC in double precision."""
    return np.corrcoef(series.T.astype(np.float64))


def names_of_cells(names: list[str]) -> np.ndarray:
    """Names as a MATLAB cell array."""
    return np.array(names, dtype=object)[None]


def frame(series: np.ndarray, names: list[str]) -> pd.DataFrame:
    """FC as a table."""
    return pd.DataFrame(fc(series), index=names, columns=names)


def lower(matrix: np.ndarray) -> np.ndarray:
    """Vectorised as nilearn does."""
    return matrix[np.tril_indices(len(matrix), -1)]


def cells(series: np.ndarray) -> np.ndarray:
    """A cell with one column per region."""
    content = np.empty((1, series.shape[1]), dtype=object)
    content[0] = [series[:, [region]] for region in range(series.shape[1])]
    return content


def conn(content: np.ndarray, names: list[str], targets: str = "") -> dict:
    """Variables of CONN's ROI files, whose columns may be further targets."""
    named = {"names": names_of_cells(names), "names2": names_of_cells([*names, *targets])}
    return {"data" if content.dtype == object else "Z": content, **named, "xyz": np.zeros((len(names), 3))}


@pytest.fixture
def prepare_files(tmp_path: Path) -> Callable[..., Path]:
    """Function that prepares the scans s0, s1, ... of files; returns the data set."""

    outputs = iter(range(99))

    def prepared(kind: str, pattern: str, people: int = 2, **overrides: object) -> Path:
        table = tmp_path / "subjects.tsv"
        pd.DataFrame({"participant_id": [f"s{n}" for n in range(people)]}).to_csv(table, sep="\t", index=False)
        options = {"atlas": "aal-116", "parquet": False, kind: str(tmp_path / pattern), **overrides}
        output = str(tmp_path / f"out{next(outputs)}")
        return prepare(PrepareArguments(output=output, participants=str(table), **options))

    return prepared


def check(folder: Path, series: list[np.ndarray]) -> None:
    """The stored FC is that of these signals."""
    np.testing.assert_allclose(load_cohort(folder).connectivity(), [fc(x) for x in series], atol=HALF_PRECISION)


def quality_of(folder: Path) -> dict:
    return json.loads((folder / "quality.json").read_text())
