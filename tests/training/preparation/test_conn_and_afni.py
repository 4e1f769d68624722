"""Files of CONN and AFNI's 3dNetCorr: read by their names, or refused by what they hold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from modeling_lcm.atlases import region_names
from tests.training.preparation.conftest import cells, check, conn, fc, names_of_cells
from tests.training.preparation.layouts import signals_of
from training.preparation.sources.arrays import read_array
from training.preparation.sources.netcc import read_netcc


AAL = region_names("aal-116")


def test_conn(prepare_files: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
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
            prepare_files("connectivity", "{participant_id}.mat", people=1, array_name="Z")
    content = cells(values)
    content[0, 3] = values[:20, [3]]
    scipy.io.savemat(tmp_path / "s0.mat", {"data": content, "names": names_of_cells(AAL)})
    with pytest.raises(ValueError, match="data holds 116 cells of different sizes"):
        prepare_files("time_series", "{participant_id}.mat", people=1, array_name="data")


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


def test_afnis_networks(prepare_files: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    series, order = signals_of(0, 40, rng), rng.permutation(116)
    names = [AAL[position] for position in order]
    for name in ("s0_000.netcc", "s0_netcc.1D"):
        (tmp_path / name).write_text(netcc(fc(series[:, order]), ("CC", "FZ"), names))
        check(prepare_files("connectivity", name.replace("s0", "{participant_id}"), people=1), [series])
    (tmp_path / "s0.netcc").write_text(netcc(fc(series)))
    check(prepare_files("connectivity", "{participant_id}.netcc", people=1), [series])
    assert read_array(tmp_path / "s0.netcc").header is None
    for text, message in (
        (netcc(fc(series), ("FZ",)), r"3dNetCorr holds no matrix CC, but FZ \(Fisher's z\)"),
        (netcc(fc(series))[:9000], "incomplete: CC has not 116 rows"),
    ):
        (tmp_path / "s0.netcc").write_text(text)
        with pytest.raises(ValueError, match=message):
            prepare_files("connectivity", "{participant_id}.netcc", people=1)
    with pytest.raises(ValueError, match="FZ of AFNI's 3dNetCorr is Fisher's z"):
        read_netcc(netcc(fc(series), ("CC", "FZ")), "FZ")
