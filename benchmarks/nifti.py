"""NIfTI to FC: ours against nilearn's masker alone, and how it scales with worker processes.

    OMP_NUM_THREADS=1 python -m benchmarks.nifti --images 8

Both average the same regions of the same compressed images; ours also checks them, correlates and packs the triangle.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from training.command_line.cli import command, setting


SHAPE, SPACING, ORIGIN = (61, 73, 61), 3.0, (-90.0, -126.0, -72.0)  # 3 mm, MNI152's field of view
FARTHEST_MM = 12.0


def write_images(folder: Path, images: int, volumes: int) -> tuple[Path, list[Path]]:
    """Write a label image (every voxel belongs to the nearest centre of AAL's regions) and images of noise."""
    import nibabel
    import numpy as np
    from scipy.spatial import cKDTree

    from modeling_lcm.atlases import region_coordinates, region_labels

    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = ORIGIN
    places = np.argwhere(np.ones(SHAPE, dtype=bool)) * SPACING + np.array(ORIGIN)
    distance, nearest = cKDTree(region_coordinates("aal-116")).query(places)
    values = np.array(list(region_labels("aal-116") or {}), dtype=np.int32)
    labels = np.where(distance < FARTHEST_MM, values[nearest], 0).astype(np.int32).reshape(SHAPE)
    nibabel.save(nibabel.Nifti1Image(labels, affine), folder / "labels.nii.gz")
    rng = np.random.default_rng(0)
    paths = [folder / f"scan{number}.nii.gz" for number in range(images)]
    for path in paths:
        data = (1000 + 50 * rng.standard_normal((*SHAPE, volumes), dtype=np.float32)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return folder / "labels.nii.gz", paths


@dataclass
class NiftiArguments:
    """Time series from 4-D images: ours beside nilearn's masker."""

    images: int = setting(8, "Images.")
    volumes: int = setting(100, "Volumes of an image.")


@command(NiftiArguments)
def main(options: NiftiArguments) -> None:
    """Command line."""
    import numpy as np
    import pandas as pd
    from nilearn.maskers import NiftiLabelsMasker

    from modeling_lcm import FCFeatureExtractor
    from training.preparation.sources.images import ImageSource
    from training.preparation.workers import Job, run

    with tempfile.TemporaryDirectory() as temporary:
        labels_img, paths = write_images(Path(temporary), options.images, options.volumes)
        table = pd.DataFrame({"participant_id": [path.stem for path in paths]})
        source = ImageSource(table, [path.name for path in paths], paths=paths, labels_img=str(labels_img))
        job = Job(source, FCFeatureExtractor(atlas="aal-116"), np.empty((0, 2), dtype=int))
        masker = NiftiLabelsMasker(str(labels_img), standardize=None).fit()
        job.do([0])  # loads the atlas
        ours, theirs = [], []
        for row, path in enumerate(paths):  # in turn, so that both meet the same load of the machine
            start = time.perf_counter()
            masker.transform(str(path))
            middle = time.perf_counter()
            (result,) = job.do([row])
            ours.append(time.perf_counter() - middle)
            theirs.append(middle - start)
            if result.triangle is None:
                raise RuntimeError(result.record["error"])
        print(f"{options.images} images of {' x '.join(map(str, SHAPE))}, {options.volumes} volumes, one process")
        print(f"nilearn's masker alone {np.median(theirs):.2f} s an image, ours {np.median(ours):.2f} s (medians)")
        for workers in (1, 2):
            start = time.perf_counter()
            done = len(list(run(job, range(options.images), workers)))
            elapsed = time.perf_counter() - start
            print(f"{workers} worker(s), start-up included: {elapsed:.1f} s, {done / elapsed:.2f} images a second")


if __name__ == "__main__":
    main()
