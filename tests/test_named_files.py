"""`training.prepare` on files that name their regions or do not, on triangles, and on files of CONN and AFNI."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_lcm.atlases import region_labels, region_names
from tests.cohort_layouts import signals_of
from training.assemble import summary_of
from training.data import load_cohort
from training.merge import MergeArguments, merge
from training.prepare import PrepareArguments, main, prepare
from training.sources.arrays import read_array
from training.sources.netcc import read_netcc
from training.sources.regions import Regions


HALF_PRECISION = 6e-4
AAL = region_names("aal-116")
MINE = [
    f"{side} {name}" for name in ("Alpha", "Beta", "Gamma", "Delta", "Epsilon", "Zeta") for side in ("Left", "Right")
]
Writer = Callable[[Path, np.ndarray, list[str]], None]


def fc(series: np.ndarray) -> np.ndarray:
    """Pearson FC in double precision."""
    return np.corrcoef(series.T.astype(np.float64))


def names_of_cells(names: list[str]) -> np.ndarray:
    """Names as a MATLAB cell array."""
    return np.array(names, dtype=object)[None]


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
def run(tmp_path: Path) -> Callable[..., Path]:
    """Function that prepares the scans s0, s1, ... of files; returns the data set."""

    outputs = iter(range(99))

    def prepared(kind: str, pattern: str, people: int = 2, **overrides: object) -> Path:
        table = tmp_path / "people.tsv"
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


# Names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_regions_are_put_into_the_atlas_order(
    writer: str, run: Callable, tmp_path: Path, rng: np.random.Generator
) -> None:
    kind, suffix, write = WRITERS[writer]
    series = [signals_of(n, 40, rng) for n in range(2)]
    for number, values in enumerate(series):
        order = rng.permutation(116)
        write(tmp_path / f"s{number}{suffix}", values[:, order], [AAL[position] for position in order])
    folder = run(kind, "{participant_id}" + suffix, array_name=ARRAYS.get(writer))
    check(folder, series)
    assert quality_of(folder)["region_order"].startswith("order of regions known by the names")


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_an_atlas_without_a_table_agree_or_are_refused(
    writer: str, run: Callable, tmp_path: Path, rng: np.random.Generator
) -> None:
    kind, suffix, write = WRITERS[writer]
    series = [signals_of(n, 40, rng)[:, :12] for n in range(4)]
    order = rng.permutation(12)
    names = {1: [MINE[n].replace(" ", "_") for n in order], 2: [*MINE[:11], "Left Omega"]}
    for number, values in enumerate(series):
        values = values[:, order] if number == 1 else values
        write(tmp_path / f"s{number}{suffix}", values, names.get(number, MINE))
    settings_of_run = {"atlas": "mine", "people": 4, "array_name": ARRAYS.get(writer)}
    folder = run(
        kind, "{participant_id}" + suffix, triangle="lower" if writer == "FC triangle" else None, **settings_of_run
    )
    check(folder, [series[0], series[1], series[3]])
    assert load_cohort(folder).feature_extractor.region_names == MINE
    (excluded,) = quality_of(folder)["excluded"]
    assert "1 of its columns are no regions of the atlas: Left Omega" in excluded["reason"]
    assert "region 12 is 'Left Omega' in the data and 'Right Zeta' here" in excluded["reason"]


def test_files_without_names_among_others_with_names(run: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    series = [signals_of(n, 40, rng) for n in range(3)]
    for number, values in enumerate(series):
        pd.DataFrame(values, columns=AAL).to_csv(tmp_path / f"s{number}.csv", index=False, header=number != 1)
    for atlas, count in (("aal-116", 116), ("mine", 116)):
        folder = run("time_series", "{participant_id}.csv", people=3, atlas=atlas)
        check(folder, [series[0], series[2]])
        (excluded,) = quality_of(folder)["excluded"]
        assert "does not name its regions, but others of the data set do" in excluded["reason"]
        assert load_cohort(folder).feature_extractor.num_regions == count


@pytest.mark.parametrize("kind", ["matrices", "triangles", "time series"])
def test_names_of_an_archive(kind: str, run: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
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
    check(run("time_series" if kind == "time series" else "connectivity", "all.npz"), series)
    np.savez(tmp_path / "odd.npz", **content, region_names=np.array(AAL[:90]))
    with pytest.raises(
        ValueError, match=r"odd\.npz cannot be used: its region_names holds 90 names, which fit neither"
    ):
        run("time_series" if kind == "time series" else "connectivity", "odd.npz")


def test_other_networks_and_other_atlases_are_refused(run: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
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
            run("time_series", "{participant_id}.csv", people=1, atlas="schaefer-200")
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
    run: Callable, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        np.save(tmp_path / f"s{number}.npy", signals_of(number, 40, rng))
    unknown, known = (run("time_series", "{participant_id}.npy", atlas=atlas) for atlas in ("mine", "aal-116"))
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
    again = run("time_series", "{participant_id}.npy", atlas="mine")
    (merged,) = merge(
        MergeArguments(
            inputs=[str(again), str(tmp_path / "other" / "again")], output=str(tmp_path / "m"), parquet=False
        )
    )
    assert quality_of(merged)["region_order"].count(told) == 1
    assert told in (merged / "README.md").read_text()


def test_the_number_of_regions_is_not_that_of_one_file(
    run: Callable, tmp_path: Path, rng: np.random.Generator
) -> None:
    for number, regions in enumerate((7, 6, 6)):
        np.save(tmp_path / f"s{number}.npy", rng.standard_normal((40, regions)))
    with pytest.raises(
        ValueError, match=r"do not agree in the number of regions: .*s0\.npy .* has 7, .*s1\.npy .* has 6"
    ):
        run("time_series", "{participant_id}.npy", atlas="mine")
    cohort = load_cohort(run("time_series", "{participant_id}.npy", atlas="mine", people=3))
    assert cohort.table["subject_id"].tolist() == ["s1", "s2"]
    columns = pd.DataFrame(rng.standard_normal((40, 3)), columns=["V1", "global_signal", "trans_x"])
    columns.to_csv(tmp_path / "s0.csv", index=False)
    with pytest.raises(ValueError, match="2 of its columns are nuisance signals, not regions"):
        run("time_series", "{participant_id}.csv", atlas="mine", people=1)


# Triangles and other measures ---------------------------------------------------------------------------------------


def test_triangles_in_files(run: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    series = [signals_of(n, 40, rng) for n in range(3)]
    few = [rng.standard_normal((40, 6)) for _ in range(3)]
    for number, values in enumerate(series):
        np.save(tmp_path / f"s{number}.npy", lower(fc(values)))
        np.savetxt(tmp_path / f"s{number}.txt", fc(values)[np.tril_indices(116)])
        np.save(tmp_path / f"s{number}-few.npy", lower(fc(few[number])))
    check(run("connectivity", "{participant_id}.npy"), series[:2])
    check(run("connectivity", "{participant_id}.txt"), series[:2])
    with pytest.raises(ValueError, match="triangle='upper' or 'lower'"):
        run("connectivity", "{participant_id}-few.npy", atlas="mine")
    check(run("connectivity", "{participant_id}-few.npy", atlas="mine", triangle="lower"), few[:2])
    np.save(tmp_path / "s2.npy", fc(series[2])[np.triu_indices(116, 1)])
    folder = run("connectivity", "{participant_id}.npy", people=3)
    check(folder, series[:2])
    assert "FC is read as lower triangles" in quality_of(folder)["excluded"][0]["reason"]
    with pytest.raises(ValueError, match="set triangle='lower'"):
        run("connectivity", "{participant_id}.npy", triangle="upper")
    for key in ("fc_triu", "fc_tril"):
        np.savez(
            tmp_path / "all.npz", participant_id=["s0", "s1"], **{key: np.stack([lower(fc(x)) for x in series[:2]])}
        )
        if key == "fc_tril":
            check(run("connectivity", "all.npz"), series[:2])
            continue
        with pytest.raises(ValueError, match=r"all\.npz .*set triangle='lower'"):
            run("connectivity", "all.npz")
        with pytest.raises(ValueError, match="calls its FC fc_triu, that is upper triangles, but triangle is lower"):
            run("connectivity", "all.npz", triangle="lower")


def test_files_of_another_measure_are_refused_whole(run: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    """Single matrices of Fisher's z may pass for correlations; their data set must not."""
    for number, share in enumerate((1, 1, 1, 0.5)):
        r = fc(signals_of(number, 40, rng)[:, :12] + 2 * rng.standard_normal((40, 1)))
        np.save(tmp_path / f"s{number}.npy", np.arctanh(share * (r - np.eye(12))))
    with pytest.raises(ValueError, match=r"s0\.npy .*numpy\.tanh.*\(3 of 4 scans looked at\.\)"):
        run("connectivity", "{participant_id}.npy", atlas="mine", people=4)
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


# CONN and AFNI ------------------------------------------------------------------------------------------------------


def test_conn(run: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    values = signals_of(0, 40, rng)
    z = np.arctanh(fc(values) - np.eye(116)) + np.diag(np.full(116, np.nan))
    for variables, message in (
        (conn(z, AAL), "looks like Fisher's z .as CONN writes it"),
        (
            conn(np.hstack([z, z[:, :4]]), AAL, "abcd"),
            "4 of its columns are no regions",
        ),
        ({"Z": np.hstack([z, z[:, :4]])}, "further targets .CONN's ROI files: keep the first 116 columns"),
        ({"Z": z, "names": names_of_cells(AAL[:90])}, "names holds 90 names, which fit neither rows nor columns of Z"),
    ):
        scipy.io.savemat(tmp_path / "s0.mat", variables)
        with pytest.raises(ValueError, match=message):
            run("connectivity", "{participant_id}.mat", people=1, array_name="Z")
    content = cells(values)
    content[0, 3] = values[:20, [3]]
    scipy.io.savemat(tmp_path / "s0.mat", {"data": content, "names": names_of_cells(AAL)})
    with pytest.raises(ValueError, match="data holds 116 cells of different sizes"):
        run("time_series", "{participant_id}.mat", people=1, array_name="data")


def netcc(matrix: np.ndarray, blocks: tuple[str, ...] = ("CC",), names: list[str] | None = None) -> str:
    """A file of AFNI's 3dNetCorr."""
    size = len(matrix)
    lines = [f"# {size}  # Number of network ROIs", f"# {len(blocks)}  # Number of netcc matrices"]
    lines += ["# WITH_ROI_LABELS", "\t".join(names)] if names else []
    lines.append("\t".join(map(str, range(1, size + 1))))
    for block in blocks:
        other = np.arctanh(matrix - np.eye(size)) + 4 * np.eye(size) if block == "FZ" else matrix
        lines += [f"# {block}", *("\t".join(f"{value:.5f}" for value in row) for row in other)]
    return "\n".join(lines) + "\n"


def test_afnis_networks(run: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    series, order = signals_of(0, 40, rng), rng.permutation(116)
    names = [AAL[position] for position in order]
    for name in ("s0_000.netcc", "s0_netcc.1D"):
        (tmp_path / name).write_text(netcc(fc(series[:, order]), ("CC", "FZ"), names))
        check(run("connectivity", name.replace("s0", "{participant_id}"), people=1), [series])
    (tmp_path / "s0.netcc").write_text(netcc(fc(series)))
    check(run("connectivity", "{participant_id}.netcc", people=1), [series])
    assert read_array(tmp_path / "s0.netcc").header is None
    for text, message in (
        (netcc(fc(series), ("FZ",)), r"3dNetCorr holds no matrix CC, but FZ \(Fisher's z\)"),
        (netcc(fc(series))[:9000], "incomplete: CC has not 116 rows"),
    ):
        (tmp_path / "s0.netcc").write_text(text)
        with pytest.raises(ValueError, match=message):
            run("connectivity", "{participant_id}.netcc", people=1)
    with pytest.raises(ValueError, match="FZ of AFNI's 3dNetCorr is Fisher's z"):
        read_netcc(netcc(fc(series), ("CC", "FZ")), "FZ")
