"""Small files that unpack to more than any memory: refused in a sentence, before they are read."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from training.preparation.sources.arrays import read_array
from training.preparation.sources.bounds import HARMLESS


def npy(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    """A `.npy` file whose header says what it likes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def zipped(path: Path, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """An `.npz` with one array."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("data.npy", content)
    return path


@pytest.mark.parametrize("shape", [(10**6, 10**6), (2**40,), (10**4, 10**4)])
def test_header_that_announces_too_much(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "a.npy").write_bytes(npy(shape, b"0" * 800))
    for path in (tmp_path / "a.npy", zipped(tmp_path / "a.npz", npy(shape, b"0" * 800))):
        with pytest.raises(ValueError, match=r"would take .* GB of memory, and has [\d,]+ bytes on the disk"):
            read_array(path)


def test_zeros_that_were_packed(tmp_path: Path) -> None:
    size = HARMLESS // 8 + 1000
    path = zipped(tmp_path / "a.npz", npy((size,), bytes(8 * size)))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="no scans compress like this"):
        read_array(path)
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"0\t" * (HARMLESS // 2 + 10)))
    with pytest.raises(ValueError, match="no scans compress like this"):
        read_array(tmp_path / "a.tsv.gz")


def test_matlab_variable_of_zeros(tmp_path: Path) -> None:
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"data": np.zeros((HARMLESS // 80, 11))}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="no scans compress like this"):
        read_array(tmp_path / "a.mat")


def test_image_of_zeros(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    from training.preparation.sources.images import load_image

    image = nibabel.Nifti1Image(np.zeros((2, 2, 2, 2), np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "small.nii")
    content = bytearray((tmp_path / "small.nii").read_bytes())
    content[40:56] = np.array([4, 3000, 3000, 3000, 300, 1, 1, 1], "<i2").tobytes()
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(ValueError, match="no scans compress like this"):
        load_image(tmp_path / "huge.nii.gz")


def test_honest_files_are_read(tmp_path: Path) -> None:
    from scipy.io import savemat

    values = np.random.default_rng(0).normal(size=(30, 5))
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "a.npz", data=values)
    np.savetxt(tmp_path / "a.tsv.gz", values, delimiter="\t")
    savemat(tmp_path / "a.mat", {"data": values, "more": values[0]}, do_compression=True)
    for name in ("a.npy", "a.npz", "a.tsv.gz", "a.mat"):
        np.testing.assert_allclose(read_array(tmp_path / name).values, values)
