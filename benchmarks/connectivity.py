"""FC of many scans: ours, nilearn's `ConnectivityMeasure`, and a loop over `numpy.corrcoef`, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.connectivity --scans 1000

All three compute plain Pearson correlations of the same signals; the largest difference is printed with the times.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.command_line.cli import command, setting


if TYPE_CHECKING:
    import numpy as np


def measure(name: str, compute: "Callable[[], np.ndarray]", repeats: int) -> "tuple[float, np.ndarray]":
    """Best time in seconds of several runs, and the result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = compute()
        times.append(time.perf_counter() - start)
    print(f"{name:<42} {min(times):8.3f} s (best of {repeats})")
    return min(times), result


@dataclass
class ConnectivityArguments:
    """FC of many scans: ours, nilearn's, and a loop over numpy.corrcoef."""

    scans: int = setting(1000, "Scans.")
    volumes: int = setting(200, "Volumes of a scan.")
    regions: int = setting(116, "Regions of the atlas.")
    repeats: int = setting(3, "Runs of each, of which the best counts.")


@command(ConnectivityArguments)
def main(options: ConnectivityArguments) -> None:
    """Command line."""
    import numpy as np
    import torch
    from nilearn.connectome import ConnectivityMeasure
    from sklearn.covariance import EmpiricalCovariance

    from modeling_lcm import FCFeatureExtractor

    generator = np.random.default_rng(0)
    scans = generator.standard_normal((options.scans, options.volumes, options.regions))
    extractor = FCFeatureExtractor(num_regions=options.regions)
    single = scans.astype(np.float32)

    def nilearn_fc() -> np.ndarray:
        estimator = EmpiricalCovariance(store_precision=False)
        return ConnectivityMeasure(cov_estimator=estimator, kind="correlation", standardize=False).fit_transform(
            list(scans)
        )

    print(f"{options.scans} scans of {options.volumes} x {options.regions}, {torch.get_num_threads()} thread(s)")
    ours, result = measure(
        "FCFeatureExtractor (float32)", lambda: extractor(time_series=single)["connectivity"], options.repeats
    )
    double, _ = measure(
        "FCFeatureExtractor (float64 signals)", lambda: extractor(time_series=scans)["connectivity"], options.repeats
    )
    theirs, expected = measure("nilearn ConnectivityMeasure", nilearn_fc, options.repeats)
    loop, plain = measure(
        "loop over numpy.corrcoef", lambda: np.stack([np.corrcoef(scan.T) for scan in scans]), options.repeats
    )
    print(f"ours / nilearn: {theirs / ours:.1f} times as fast (float64 signals: {theirs / double:.1f})")
    print(f"ours / loop: {loop / ours:.1f} times as fast (float64 signals: {loop / double:.1f})")
    print(
        f"largest difference: nilearn {np.abs(result - expected).max():.1e}, numpy {np.abs(result - plain).max():.1e}"
    )


if __name__ == "__main__":
    main()
