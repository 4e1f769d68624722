"""`training.prepare` on files that name their regions or do not, on triangles, and on files of CONN and AFNI."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import zscore

from modeling_lcm.atlases import region_labels, region_names
from tests.training.preparation.conftest import cells, check, conn, fc, frame, lower, names_of_cells, quality_of
from tests.training.preparation.layouts import signals_of
from training.data.cohort import load_cohort
from training.preparation.arguments import MergeArguments
from training.preparation.assemble import summary_of
from training.preparation.merging import merge
from training.preparation.sources.base import Source
from training.preparation.sources.files import file_source
from training.preparation.sources.regions import Regions
from training.preparation.workers import standardise
from training.prepare import main


AAL = region_names("aal-116")
MINE = [
    f"{side} {name}" for name in ("Alpha", "Beta", "Gamma", "Delta", "Epsilon", "Zeta") for side in ("Left", "Right")
]
Writer = Callable[[Path, np.ndarray, list[str]], None]


WRITERS: dict[str, tuple[str, str, Writer]] = {
    "header": ("time_series", ".tsv", lambda p, x, n: pd.DataFrame(x, columns=n).to_csv(p, sep="\t", index=False)),
    "header, index": ("time_series", ".csv", lambda p, x, n: pd.DataFrame(x, columns=n).to_csv(p)),
    "regions in rows": ("time_series", ".csv", lambda p, x, n: pd.DataFrame(x.T, index=n).to_csv(p, header=False)),
    "savetxt": ("time_series", ".txt", lambda p, x, n: np.savetxt(p, x, delimiter="\t", header="\t".join(n))),
    "npz": ("time_series", ".npz", lambda p, x, n: np.savez(p, signals=x, region_names=np.array(n))),
    "npz, bytes": ("time_series", ".npz", lambda p, x, n: np.savez(p, signals=x, labels=np.array(n).astype("S"))),
    "npy": ("time_series", ".npy", lambda p, x, n: np.save(p, np.rec.fromarrays(x.T, names=n))),
    "mat": ("time_series", ".mat", lambda p, x, n: scipy.io.savemat(p, {"ts": x, "roi_names": names_of_cells(n)})),
    "mat, text": ("time_series", ".mat", lambda p, x, n: scipy.io.savemat(p, {"ts": x, "names": np.array(n)})),
    "CONN": ("time_series", ".mat", lambda p, x, n: scipy.io.savemat(p, conn(cells(x), n))),
    "FC header": ("connectivity", ".tsv", lambda p, x, n: frame(x, n).to_csv(p, sep="\t", index=False)),
    "FC relmat": ("connectivity", ".tsv", lambda p, x, n: frame(x, n).to_csv(p, sep="\t", index_label="Node")),
    "FC index": ("connectivity", ".csv", lambda p, x, n: frame(x, n).to_csv(p, header=False)),
    "FC rows and columns": ("connectivity", ".csv", lambda p, x, n: frame(x, n).iloc[::-1].to_csv(p)),
    "FC npz": ("connectivity", ".npz", lambda p, x, n: np.savez(p, fc=fc(x), rois=np.array(n))),
    "FC mat": ("connectivity", ".mat", lambda p, x, n: scipy.io.savemat(p, conn(fc(x), n))),
    "FC triangle": ("connectivity", ".npz", lambda p, x, n: np.savez(p, fc=lower(fc(x)), names=np.array(n))),
}  # fmt: skip

ARRAYS = {"FC mat": "Z", "CONN": "data"}  # of files that hold several


# Names --------------------------------------------------------------------------------------------------------------


def read_all(folder: Path, writer: str, people: int, regions: Regions) -> tuple[Source, list[np.ndarray | str]]:
    """FC in the order that a source finds of each scan, or why it is refused."""
    kind, suffix, _ = WRITERS[writer]
    table = pd.DataFrame({"id": [f"s{number}" for number in range(people)]})
    triangle = "lower" if writer == "FC triangle" else None
    source = file_source(f"{folder}/{{id}}{suffix}", kind, table, str, regions, ARRAYS.get(writer), triangle)
    found: list[np.ndarray | str] = []
    for row in range(people):
        try:
            scan = source.read(row)
        except ValueError as error:
            found.append(str(error))
            continue
        assert scan.named
        found.append(scan.values if kind == "connectivity" else fc(scan.values))
    return source, found


@pytest.mark.parametrize("writer", WRITERS)
def test_regions_are_put_into_the_atlas_order(writer: str, tmp_path: Path, rng: np.random.Generator) -> None:
    series = [signals_of(n, 40, rng) for n in range(2)]
    for number, values in enumerate(series):
        order = rng.permutation(116)
        path = tmp_path / f"s{number}{WRITERS[writer][1]}"
        WRITERS[writer][2](path, values[:, order], [AAL[position] for position in order])
    _, found = read_all(tmp_path, writer, 2, Regions.of_atlas("aal-116", 116, AAL))
    np.testing.assert_allclose(found, [fc(values) for values in series], atol=1e-6)


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_an_atlas_without_a_table_agree_or_are_refused(
    writer: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    series, order = [signals_of(n, 40, rng)[:, :12] for n in range(4)], rng.permutation(12)
    names = {1: [MINE[n].replace(" ", "_") for n in order], 2: [*MINE[:11], "Left Omega"]}
    for number, values in enumerate(series):
        path = tmp_path / f"s{number}{WRITERS[writer][1]}"
        WRITERS[writer][2](path, values[:, order] if number == 1 else values, names.get(number, MINE))
    source, found = read_all(tmp_path, writer, 4, Regions.of_atlas("mine", None, None))
    assert (source.region_names(), source.num_regions()) == (MINE, 12)
    for number in (0, 1, 3):
        np.testing.assert_allclose(found[number], fc(series[number]), atol=1e-6)
    assert "1 of its columns are no regions of the atlas: Left Omega" in found[2]
    assert "region 12 is 'Left Omega' in the data and 'Right Zeta' here" in found[2]


def test_names_lead_to_the_data_set(prepare_files: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    series = [signals_of(n, 40, rng) for n in range(2)]
    for number, values in enumerate(series):
        frame(values[:, ::-1], AAL[::-1]).to_csv(tmp_path / f"s{number}.csv")
    folder = prepare_files("connectivity", "{participant_id}.csv")
    check(folder, series)
    assert quality_of(folder)["region_order"].startswith("order of regions known by the names")
    assert quality_of(folder)["remarks"] == ["2 files: reordered"]


def test_files_without_names_among_others_with_names(
    prepare_files: Callable, tmp_path: Path, rng: np.random.Generator
) -> None:
    series = [signals_of(n, 40, rng) for n in range(3)]
    for number, values in enumerate(series):
        pd.DataFrame(values, columns=AAL).to_csv(tmp_path / f"s{number}.csv", index=False, header=number != 1)
    for atlas, count in (("aal-116", 116), ("mine", 116)):
        folder = prepare_files("time_series", "{participant_id}.csv", people=3, atlas=atlas)
        check(folder, [series[0], series[2]])
        (excluded,) = quality_of(folder)["excluded"]
        assert "does not name its regions, but others of the data set do" in excluded["reason"]
        assert load_cohort(folder).feature_extractor.num_regions == count


@pytest.mark.parametrize("kind", ["matrices", "triangles", "time series"])
def test_names_of_an_archive(kind: str, prepare_files: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    series, order = [signals_of(n, 40, rng) for n in range(2)], rng.permutation(116)
    content: dict[str, object] = {
        "participant_id": ["s0", "s1"],
        "labels": np.array(list(region_labels("aal-116")))[order],
    }
    if kind == "time series":
        content |= {"data": np.concatenate(series)[:, order], "offsets": [0, 40, 80]}
    else:
        matrices = np.stack([fc(x) for x in series])[:, order][:, :, order]
        content["connectivity"] = matrices if kind == "matrices" else np.stack([lower(matrix) for matrix in matrices])
    np.savez(tmp_path / "all.npz", **content)
    check(prepare_files("time_series" if kind == "time series" else "connectivity", "all.npz"), series)
    np.savez(tmp_path / "odd.npz", **content, region_names=np.array(AAL[:90]))
    with pytest.raises(
        ValueError, match=r"odd\.npz cannot be used: its region_names holds 90 names, which fit neither"
    ):
        prepare_files("time_series" if kind == "time series" else "connectivity", "odd.npz")


def test_names_that_numpy_pickled_are_refused(
    prepare_files: Callable, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Reading them could run any program; leaving them out would lose the order."""
    values, names = signals_of(0, 40, rng), np.array(AAL, dtype=object)
    np.savez(tmp_path / "s0.npz", ts=values, names=names)
    with pytest.raises(
        ValueError, match=r"s0\.npz .*its names holds Python objects.*numpy\.array\(names, dtype=str\)"
    ):
        prepare_files("time_series", "{participant_id}.npz", people=1)
    np.savez(tmp_path / "all.npz", participant_id=["s0"], connectivity=fc(values)[None], region_names=names)
    with pytest.raises(ValueError, match=r"all\.npz cannot be used: its region_names holds Python objects"):
        prepare_files("connectivity", "all.npz", people=1)
    np.savez(tmp_path / "s0.npz", ts=values, notes=np.array(["a", 1], dtype=object))
    check(prepare_files("time_series", "{participant_id}.npz", people=1), [values])
    np.save(tmp_path / "s0.npy", np.array([values, values[:30]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects instead of numbers"):
        prepare_files("time_series", "{participant_id}.npy", people=1)


def test_other_networks_and_other_atlases_are_refused(
    prepare_files: Callable, tmp_path: Path, rng: np.random.Generator
) -> None:
    names = region_names("schaefer-200")
    values = rng.standard_normal((40, 200))
    for number, (header, message) in enumerate(
        (
            ([name.replace("7Networks", "17Networks") for name in names], "The 17-network version has another order"),
            (names[:50] + names[100:150], "100 of the 200 regions of schaefer-200, as many as schaefer-100"),
            ([*names[:199], "csf"], r"1 of its columns .* csf .*region 200 is 'csf' in the data and '7Networks_RH"),
            ([*names[:199], names[0]], "has two columns"),
            ([f"area {n}" for n in rng.permutation(200)], "200 of its columns are no regions of the atlas"),
        )
    ):
        table = pd.DataFrame(values[:, : len(header)], columns=header)
        table.to_csv(tmp_path / "s0.csv", index=False)
        with pytest.raises(ValueError, match=message) as told:
            prepare_files("time_series", "{participant_id}.csv", people=1, atlas="schaefer-200")
        assert len(str(told.value).replace(str(tmp_path), "")) < 400, number


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.sets(st.integers(0, 115), min_size=60), seed=st.integers(0, 99))
def test_absent_regions_have_no_signal(kept: set[int], seed: int) -> None:
    positions = np.random.default_rng(seed).permutation(sorted(kept))
    regions = Regions.of_atlas("aal-116", 116, AAL)
    values = np.random.default_rng(seed).normal(size=(30, len(positions)))
    names = [AAL[position] for position in positions]
    arranged, _ = regions.arrange(values, names)
    np.testing.assert_array_equal(arranged[:, positions], values)
    assert np.isnan(np.delete(arranged, positions, axis=1)).all()
    matrix, _ = regions.arrange_matrix(fc(values), names, None)
    np.testing.assert_array_equal(matrix[np.ix_(positions, positions)], fc(values))
    assert np.isnan(np.delete(matrix, positions, axis=0)).all()


# What is told of the order ------------------------------------------------------------------------------------------


def test_an_order_that_nobody_knows_is_told(
    prepare_files: Callable, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        np.save(tmp_path / f"s{number}.npy", signals_of(number, 40, rng))
    unknown, known = (
        prepare_files("time_series", "{participant_id}.npy", atlas=atlas) for atlas in ("mine", "aal-116")
    )
    told = "order of regions not checked"
    for text in (summary_of(unknown)[0], (unknown / "quality.html").read_text(), (unknown / "README.md").read_text()):
        assert told in text
    for text in (summary_of(known)[0], (known / "quality.html").read_text(), (known / "README.md").read_text()):
        assert told not in text
    assert quality_of(known)["region_order"] == (
        "order of regions taken to be that of aal-116: the files do not name them"
    )
    (tmp_path / "other").mkdir()
    unknown.rename(tmp_path / "other" / "again")
    again = prepare_files("time_series", "{participant_id}.npy", atlas="mine")
    (merged,) = merge(
        MergeArguments(
            inputs=[str(again), str(tmp_path / "other" / "again")], output=str(tmp_path / "m"), parquet=False
        )
    )
    assert quality_of(merged)["region_order"].count(told) == 1
    assert told in (merged / "README.md").read_text()


def test_the_number_of_regions_is_not_that_of_one_file(
    prepare_files: Callable, tmp_path: Path, rng: np.random.Generator
) -> None:
    for number, regions in enumerate((7, 6, 6)):
        np.save(tmp_path / f"s{number}.npy", rng.standard_normal((40, regions)))
    with pytest.raises(
        ValueError, match=r"do not agree in the number of regions: .*s0\.npy .* has 7, .*s1\.npy .* has 6"
    ):
        prepare_files("time_series", "{participant_id}.npy", atlas="mine")
    cohort = load_cohort(prepare_files("time_series", "{participant_id}.npy", atlas="mine", people=3))
    assert cohort.table["subject_id"].tolist() == ["s1", "s2"]
    columns = pd.DataFrame(rng.standard_normal((40, 3)), columns=["V1", "global_signal", "trans_x"])
    columns.to_csv(tmp_path / "s0.csv", index=False)
    with pytest.raises(ValueError, match="2 of its columns are nuisance signals, not regions"):
        prepare_files("time_series", "{participant_id}.csv", atlas="mine", people=1)


# Triangles and other measures ---------------------------------------------------------------------------------------


def test_triangles_in_files(prepare_files: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    series = [signals_of(n, 40, rng) for n in range(3)]
    few = [rng.standard_normal((40, 6)) for _ in range(3)]
    for number, values in enumerate(series):
        np.save(tmp_path / f"s{number}.npy", lower(fc(values)))
        np.savetxt(tmp_path / f"s{number}.txt", fc(values)[np.tril_indices(116)])
        np.save(tmp_path / f"s{number}-few.npy", lower(fc(few[number])))
    check(prepare_files("connectivity", "{participant_id}.npy"), series[:2])
    check(prepare_files("connectivity", "{participant_id}.txt"), series[:2])
    with pytest.raises(ValueError, match="triangle='upper' or 'lower'"):
        prepare_files("connectivity", "{participant_id}-few.npy", atlas="mine")
    check(prepare_files("connectivity", "{participant_id}-few.npy", atlas="mine", triangle="lower"), few[:2])
    np.save(tmp_path / "s2.npy", fc(series[2])[np.triu_indices(116, 1)])
    folder = prepare_files("connectivity", "{participant_id}.npy", people=3)
    check(folder, series[:2])
    assert "FC is read as lower triangles" in quality_of(folder)["excluded"][0]["reason"]
    with pytest.raises(ValueError, match="set triangle='lower'"):
        prepare_files("connectivity", "{participant_id}.npy", triangle="upper")
    for key in ("fc_triu", "fc_tril"):
        np.savez(
            tmp_path / "all.npz", participant_id=["s0", "s1"], **{key: np.stack([lower(fc(x)) for x in series[:2]])}
        )
        if key == "fc_tril":
            check(prepare_files("connectivity", "all.npz"), series[:2])
            continue
        with pytest.raises(ValueError, match=r"all\.npz .*set triangle='lower'"):
            prepare_files("connectivity", "all.npz")
        with pytest.raises(ValueError, match="calls its FC fc_triu, that is upper triangles, but triangle is lower"):
            prepare_files("connectivity", "all.npz", triangle="lower")


def test_files_of_another_measure_are_refused_whole(
    prepare_files: Callable, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Single matrices of Fisher's z may pass for correlations; their data set must not."""
    for number, share in enumerate((1, 1, 1, 0.5)):
        r = fc(signals_of(number, 40, rng)[:, :12] + 2 * rng.standard_normal((40, 1)))
        np.save(tmp_path / f"s{number}.npy", np.arctanh(share * (r - np.eye(12))))
    with pytest.raises(ValueError, match=r"s0\.npy .*numpy\.tanh.*\(3 of 4 scans looked at\.\)"):
        prepare_files("connectivity", "{participant_id}.npy", atlas="mine", people=4)
    assert not list(tmp_path.glob("out*"))


def test_the_command_ends_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "people.tsv").write_text("participant_id\na\nb\n")
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((116, 116)))
    with pytest.raises(SystemExit) as status:
        main(
            f"--participants {tmp_path}/people.tsv --connectivity {tmp_path}/{{participant_id}}.npy "
            f"--output {tmp_path}/o".split()
        )
    message = capsys.readouterr().err
    assert status.value.code != 0 and not (tmp_path / "o").exists()
    assert "holds no correlations" in message and len(message.strip().splitlines()) == 1


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e15])
@pytest.mark.parametrize("mean", [0.0, 1e7])
def test_stored_time_series_have_the_signals_that_fc_has(unit: float, mean: float, rng: np.random.Generator) -> None:
    values = (rng.standard_normal((40, 3)) + mean) * unit
    values[:, 2] = mean * unit
    stored = standardise(values)
    np.testing.assert_allclose(stored[:, :2], zscore(values[:, :2]), atol=2e-3)
    assert not stored[:, 2].any()
