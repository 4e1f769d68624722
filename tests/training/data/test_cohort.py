"""From the folder of a data set to cohorts and batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.conftest import PEOPLE, REGIONS, VOLUMES, Study
from training.data.cohort import Cohort, load_cohort
from training.data.torch_datasets import ConnectomeDataset
from training.data.triangles import to_matrices, to_triangles
from training.storage.files import write_folder, write_json


def test_write_folder_replaces_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "result"
    write_folder(target, lambda folder: (folder / "a").write_text("first"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("second")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_folder(target, fail)
    assert (target / "a").read_text() == "first"
    write_folder(target, lambda folder: (folder / "b").write_text("third"))
    assert [path.name for path in tmp_path.rglob("*")] == ["result", "b"]


def test_write_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.5, float("inf")]})
    assert (tmp_path / "x.json").read_text().split() == ["{", '"a":', "null,", '"b":', "[", "1.5,", "null", "]", "}"]


def test_load_cohort_errors(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No data was given: add --data"):
        load_cohort("")
    with pytest.raises(FileNotFoundError, match="nowhere is not a data set made by"):
        load_cohort(tmp_path / "nowhere")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "fc_definition.json").write_bytes((dataset / "fc_definition.json").read_bytes())
    with pytest.raises(ValueError, match="is damaged"):
        load_cohort(damaged)


def test_load_cohort_refuses_another_fc_definition(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in filter(Path.is_file, dataset.iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    definition = (folder / "fc_definition.json").read_text().replace('"num_regions": 10', '"num_regions": 12')
    (folder / "fc_definition.json").write_text(definition)
    with pytest.raises(ValueError, match=r"fc_definition\.json has changed"):
        load_cohort(folder)
    (folder / "checksums.json").unlink()
    with pytest.raises(ValueError, match="45 edges a scan in connectivity, but its FC definition has 12 regions"):
        load_cohort(folder)


@given(regions=st.integers(2, 12), scans=st.integers(1, 4), seed=st.integers(0, 99))
def test_triangles_and_matrices_are_inverse(regions: int, scans: int, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-1, 1, (scans, regions, regions)).astype(np.float16)
    symmetric = np.triu(values, 1) + np.triu(values, 1).transpose(0, 2, 1) + np.eye(regions, dtype=np.float16)
    triangles = to_triangles(symmetric)
    assert triangles.shape == (scans, regions * (regions - 1) // 2)
    matrices = to_matrices(torch.from_numpy(triangles), regions)
    assert matrices.dtype == torch.float32
    np.testing.assert_array_equal(matrices.numpy(), symmetric.astype(np.float32))
    np.testing.assert_array_equal(to_triangles(matrices.numpy()), triangles)


def test_connectome_dataset_batches(cohort: Cohort) -> None:
    rows = np.array([5, 2, 9])
    labels = {"labels": torch.tensor([[1.0], [2.0], [3.0]])}
    data = ConnectomeDataset(cohort.select(rows), labels)
    assert (len(data), data.subjects) == (3, ["0006", "0003", "0010"])
    batch = data.__getitems__([2, 0])
    assert batch["positions"].tolist() == [2, 0]
    assert batch["labels"].tolist() == [[3.0], [1.0]]
    np.testing.assert_array_equal(batch["connectivity"].numpy(), cohort.connectivity(np.array([9, 5])))
    single = data[1]
    assert single["connectivity"].shape == (REGIONS, REGIONS)
    assert single["labels"].tolist() == [2.0]
    assert isinstance(data, ConnectomeDataset)


def test_cohort_names_the_known_columns(cohort: Cohort) -> None:
    with pytest.raises(ValueError, match="no phenotype 'weight' in the data; it has sex, age, group, site, score"):
        cohort.require_column("weight")


def test_study_has_the_planted_effect(study: Study) -> None:
    """The other tests rely on it."""
    assert study.time_series.shape == (PEOPLE, VOLUMES, REGIONS)
    inside = study.connectivity[:, :4, :4].mean((1, 2))
    is_b = (study.participants["group"] == "B").to_numpy()
    assert inside[is_b].min() > inside[~is_b].max()
