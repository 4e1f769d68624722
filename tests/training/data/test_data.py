"""Time series kept in a data set: the same FC comes out of them, and every step carries them along."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from modeling_lcm import FCFeatureExtractor
from tests.training.conftest import PEOPLE, REGIONS, VOLUMES, Study
from training.data.cohort import AtlasScans, Cohort, join_scans, load_cohort
from training.data.combine import in_atlas_of
from training.data.harmonise import harmonise
from training.preparation.arguments import MergeArguments, PrepareArguments
from training.preparation.build import prepare
from training.preparation.merging import merge
from training.preparation.workers import standardise


HALF_PRECISION = 1e-3


@pytest.fixture
def series_arguments(
    prepare_arguments: Callable[..., PrepareArguments], study: Study, tmp_path: Path
) -> Callable[..., PrepareArguments]:
    """Factory of settings that prepare the study from its time series, and keep them."""
    series = {"time_series": str(study.folder / "time_series.npz"), "keep_time_series": True}
    return lambda **overrides: prepare_arguments(**{"output": str(tmp_path / "with"), **series, **overrides})


def test_kept_time_series_give_the_stored_fc(series_arguments: Callable[..., PrepareArguments], study: Study) -> None:
    folder = prepare(series_arguments())
    cohort = load_cohort(folder)
    rows = np.array([7, 0, 23])
    series = cohort.time_series(rows)
    assert [scan.shape for scan in series] == [(VOLUMES, REGIONS)] * 3
    raw = study.time_series[rows]
    np.testing.assert_allclose(
        np.stack(series), (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True), atol=5e-3
    )
    found = cohort.feature_extractor(time_series=[scan.astype(np.float32) for scan in series])["connectivity"]
    np.testing.assert_allclose(found, cohort.connectivity(rows), atol=HALF_PRECISION)
    assert cohort.volumes() == [VOLUMES] * PEOPLE
    assert not {"time_series", "volumes"} & {*cohort.table, *cohort.phenotypes()}
    assert "time_series" in (folder / "README.md").read_text()
    parquet = datasets.load_dataset(str(folder / "parquet"), split="train", streaming=True)
    first = next(iter(parquet))
    np.testing.assert_array_equal(
        np.array(first["time_series"], np.float16).reshape(first["volumes"], -1), cohort.time_series(np.array([0]))[0]
    )


def test_data_sets_without_time_series_say_so(
    cohort: Cohort, series_arguments: Callable[..., PrepareArguments], study: Study
) -> None:
    assert not cohort.has_time_series
    assert cohort.time_series(np.array([1, 2])) == [None, None]
    without = series_arguments(time_series=None, connectivity=str(study.folder / "fc.npz"))
    with pytest.raises(ValueError, match="FC matrices hold none"):
        prepare(without)


def test_merged_and_joined_scans_keep_what_there_is(
    cohort: Cohort, dataset: Path, series_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    kept = prepare(series_arguments(parquet=False))
    (merged,) = merge(MergeArguments(inputs=[str(dataset), str(kept)], output=str(tmp_path / "merged"), parquet=False))
    both, own = load_cohort(merged), load_cohort(kept)
    rows = np.array([PEOPLE + 5, 5])
    for triangles, series in ((both.triangles, both.series), join_scans([cohort, own])):
        assert len(triangles) == len(series) == 2 * PEOPLE
        np.testing.assert_array_equal(triangles[PEOPLE:], own.triangles)
        found = series[rows]
        np.testing.assert_array_equal(found[0], own.time_series(np.array([5]))[0])
        assert found[1] is None
    in_memory = replace(cohort, triangles=cohort.triangles[:])
    triangles, series = join_scans([in_memory, cohort])
    assert series is None
    np.testing.assert_array_equal(triangles[:PEOPLE], triangles[PEOPLE:])


def test_harmonised_fc_has_no_time_series(series_arguments: Callable[..., PrepareArguments]) -> None:
    pytest.importorskip("combatlearn", reason="the extra [harmonise] is not installed")
    cohort = load_cohort(prepare(series_arguments(parquet=False)))
    assert not harmonise(cohort, cohort).has_time_series


def test_standardised_signals_fit_into_half_precision() -> None:
    rng = np.random.default_rng(0)
    signals = rng.normal(80_000, 50, (200, 4)).astype(np.float32)  # beyond the largest float16
    signals[:, 1] = 80_000
    signals[:, 2] = np.nan
    found = standardise(signals)
    assert found.dtype == np.float16
    assert not found[:, [1, 2]].any()
    expected = np.corrcoef(signals[:, 0], signals[:, 3])[0, 1]
    assert np.corrcoef(found[:, 0].astype(float), found[:, 3].astype(float))[0, 1] == pytest.approx(expected, abs=1e-3)


def test_stored_rows_are_indexed_like_an_array(cohort: Cohort) -> None:
    array = cohort.triangles[:]
    assert array.flags.writeable
    assert cohort.triangles.shape == array.shape
    mask = np.arange(PEOPLE) % 3 == 0
    for rows in (5, slice(4, 20, 3), np.array([9, 2, 2, 17]), [3], mask, np.array([], dtype=int)):
        np.testing.assert_array_equal(cohort.triangles[rows], array[rows])
    np.testing.assert_array_equal(np.asarray(cohort.triangles), array)
    with pytest.raises(IndexError):
        cohort.triangles[PEOPLE]


def test_a_cohort_of_two_atlases_reads_as_one_of_either(cohort: Cohort, tmp_path: Path) -> None:
    scans, small = len(cohort), 4
    other = FCFeatureExtractor(atlas="harvard-oxford-111", num_regions=111)
    edges = 111 * 110 // 2
    triangles = np.random.default_rng(0).uniform(-0.5, 0.5, (scans, edges)).astype(np.float16)
    triangles[small:] = np.nan  # most scans lack the second atlas
    both = replace(cohort, others=(AtlasScans(other, triangles),))
    assert list(both.atlases) == [cohort.feature_extractor.atlas, "harvard-oxford-111"]
    found = both.connectivity(np.arange(small + 1))
    np.testing.assert_array_equal(found[cohort.feature_extractor.atlas], cohort.connectivity(np.arange(small + 1)))
    assert found["harvard-oxford-111"].shape == (small + 1, 111, 111)
    assert (
        np.isnan(found["harvard-oxford-111"][small]).all() and not np.isnan(found["harvard-oxford-111"][:small]).any()
    )
    one = both.with_atlas("HO")
    assert one.table.index.tolist() == list(range(small)) and not one.others
    np.testing.assert_array_equal(one.connectivity(), found["harvard-oxford-111"][:small])
    assert len(both.with_atlas(cohort.feature_extractor.atlas)) == scans
    assert both.has_atlas("harvard-oxford-111").sum() == small
    assert {name: len(part) for name, part in next(both.select(np.arange(3, 9)).batches(4)).items()} == dict.fromkeys(
        both.atlases, 4
    )
    assert both.checksum() != cohort.checksum()
    with pytest.raises(ValueError, match="one of them has to be chosen with atlas"):
        both.with_atlas()
    with pytest.raises(ValueError, match="harvard-oxford-111: not schaefer"):
        both.with_atlas("schaefer-100")
    assert in_atlas_of(other, both).feature_extractor is other
    assert in_atlas_of(other, cohort) is cohort  # refused elsewhere, with what the user can do
    with pytest.raises(ValueError, match="0 of them fit the 100 regions of schaefer-100"):
        in_atlas_of(FCFeatureExtractor(atlas="schaefer-100"), both)
