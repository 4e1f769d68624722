"""Scans a second that are predicted, beside scikit-learn's pipeline on the same scans, and how that grows.

    python -m benchmarks.throughput --folder SCRATCH --scans 20000
    python -m benchmarks.throughput --folder SCRATCH --growth docs/throughput.png

The scans are prepared ones on the disk: FC of the shipped cohort over and over (of more than 200 regions: of random
signals), read in batches as `training.predict` reads them. The peer is what nilearn's users write: the triangle
(`sym_matrix_to_vec`), `StandardScaler` and `LogisticRegression`. Weights are random: no time depends on them.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from training.command_line.cli import command, require_choices, setting
from training.trainer.arguments import Size


DEMO_FC = Path(__file__).parents[1] / "training" / "demo_data" / "lemon-schaefer200" / "fc.npz"
PRECISIONS = ("float32", "int8")
# What --growth varies, one at a time; the others are those of the first values.
GROWTH: dict[str, tuple[Any, ...]] = {
    "scans": (1000, 250, 4000),
    "regions": (116, 200, 400, 1000),
    "tokens": (6, 31, 128),
    "model": ("nano", "linear", "147m"),
}
ORDER = ("linear", "nano", "147m", "735m", "1.2b")
FEW = {"147m": 48, "735m": 16, "1.2b": 16}  # scans that are enough for a rate of slow models ...
FEW_OF_REGIONS = {400: 250, 1000: 48}  # ... and large atlases


@dataclass
class ThroughputArguments:
    """Scans a second through prediction, beside scikit-learn's pipeline."""

    folder: str = setting("", "Scratch for the data sets.", example="scratch", required=True)
    model: Size = setting("nano", "Named size of the model.")
    scans: int = setting(10_000, "Scans that are predicted.")
    regions: int = setting(116, "Regions of the atlas.")
    tokens: int = setting(6, "BEI tokens, at least 4.")
    batch_size: int = setting(64, "Scans per forward pass.")
    repeats: int = setting(3, "Runs of each, in turns.")
    threads: int = setting(0, "Threads; 0: as many as CPUs may be used.")
    clock: Literal["wall", "processor"] = setting(
        "wall", "Seconds of the clock, or, where other programs run, of all processors together."
    )
    growth: str = setting("", "Picture (PNG) of the rate over scans, regions, tokens and model size.")
    memory_of: Literal["", "float32", "int8", "peer"] = setting("", "Only one run of this, whose memory is watched.")

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        require_choices(self)
        for name, least in (("scans", 1), ("regions", 2), ("tokens", 4), ("batch_size", 1), ("repeats", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Case:
    """What is predicted by what."""

    model: str = "nano"
    scans: int = 1000
    regions: int = 116
    tokens: int = 6
    batch_size: int = 64


@command(ThroughputArguments)
def main(options: ThroughputArguments) -> None:
    """Command line."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    case = Case(options.model, options.scans, options.regions, options.tokens, options.batch_size)
    folder = Path(options.folder)
    if options.memory_of:
        runs_of(case, folder)[options.memory_of]()
        return
    if options.growth:
        draw_growth(measure_growth(folder, options.repeats, options.clock), options.growth)
        return
    stored_cohort(folder, case)  # written once, by this process
    peaks = {name: memory_of(options, name) for name in (*PRECISIONS, "peer")}
    print(f"{case.scans} scans of {case.regions} regions, {case.model}, {torch.get_num_threads()} threads")
    print(f"{'':10}{'scans a second':>28}{'peak memory, MiB':>20}")
    for name, rates in measure(case, folder, options.repeats, options.clock).items():
        low, middle, high = quartiles(rates)
        print(f"{name:10}{f'{middle:.0f} [{low:.0f}-{high:.0f}]':>28}{peaks[name]:20.0f}", flush=True)


def memory_of(options: ThroughputArguments, name: str) -> float:
    """Most memory (MiB) of a process that predicts all scans once, without the file that it maps."""
    import psutil

    names = ("folder", "model", "scans", "regions", "tokens", "batch_size", "threads")
    words = [f"--{each}={getattr(options, each)}" for each in names]
    start = [sys.executable, "-m", "benchmarks.throughput", *words, f"--memory_of={name}"]
    process, peak = psutil.Popen(start, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        with suppress(psutil.Error):  # it may end meanwhile
            used = process.memory_info()
            peak = max(peak, used.rss - getattr(used, "shared", 0))  # mapped pages are "shared", where there is such
        time.sleep(0.02)
    if process.returncode:
        raise ChildProcessError(f"{' '.join(start)} ended with exit code {process.returncode}.")
    return peak / 2**20


def measure(case: Case, folder: Path, repeats: int, clock: str = "wall") -> dict[str, list[float]]:
    """Scans a second of every run, by what predicts; the runs take turns."""
    runs, now = runs_of(case, folder), time.perf_counter if clock == "wall" else time.process_time
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            start = now()
            run()
            if number:  # the first run warms up
                rates[name].append(case.scans / (now() - start))
    return rates


def runs_of(case: Case, folder: Path) -> dict[str, Callable[[], Any]]:
    """What predicts all scans of a case: the model in both precisions, and the peer."""
    from copy import deepcopy

    from modeling_lcm.quantization_lcm import pack
    from training.trainer.prediction import predict_logits

    cohort, model, peer = stored_cohort(folder, case), make_model(case), make_peer(case)
    # The closed form has no decoder whose weights could be packed.
    packed = {} if case.model == "linear" else {"int8": pack(deepcopy(model), "int8")}
    models = {"float32": model, **packed}
    found: dict[str, Callable[[], Any]] = {
        name: partial(predict_logits, each, cohort, case.batch_size) for name, each in models.items()
    }

    def of_peer() -> None:
        for batch in cohort.batches(case.batch_size):
            peer(batch.numpy())

    return found | {"peer": of_peer}


def ratio_to_peer(case: Case, repeats: int) -> list[float]:
    """Quartiles of the model's rate over the peer's, in float32."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rates = measure(case, Path(folder), repeats, "processor")
    return quartiles([ours / theirs for ours, theirs in zip(rates["float32"], rates["peer"], strict=True)])


def quartiles(values: list[float]) -> list[float]:
    """Quartiles of a few values."""
    import numpy as np

    return [float(value) for value in np.percentile(values, [25, 50, 75])]


def make_model(case: Case) -> Any:
    """A pretrained model of so many tokens, with random weights."""
    import torch

    from modeling_lcm import LCMConfig, LCMForMultitaskPretraining

    torch.manual_seed(0)
    labels = [str(number) for number in range(case.tokens - 1)]
    variables = [
        {"name": "group", "kind": "categorical", "labels": labels, "loss_weight": 1.0},
        {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1.0},
    ]
    config = LCMConfig.from_size(case.model, num_regions=case.regions, bei_variables=variables)
    return LCMForMultitaskPretraining(config).eval()


def make_peer(case: Case) -> Callable[[Any], Any]:
    """Triangle, standardisation and logistic regression of nilearn's and scikit-learn's users."""
    import numpy as np
    from nilearn.connectome import sym_matrix_to_vec
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=50))
    some = real_connectomes(case.regions)[:40]
    pipeline.fit(sym_matrix_to_vec(some, discard_diagonal=True), np.arange(len(some)) % 2)
    return lambda matrices: pipeline.predict_proba(sym_matrix_to_vec(matrices, discard_diagonal=True))


def real_connectomes(regions: int) -> Any:
    """FC `(scans, regions, regions)` of the shipped cohort's first regions; of random signals where it has fewer."""
    import numpy as np
    import torch

    from training.data.triangles import to_matrices

    with np.load(DEMO_FC) as file:
        shipped = to_matrices(torch.from_numpy(file["fc_triu"]), int(file["n_rois"])).numpy()
    if regions <= shipped.shape[1]:
        return shipped[:, :regions, :regions].astype(np.float32)
    signals = np.random.default_rng(0).standard_normal((48, regions, 2 * regions), dtype=np.float32)
    return np.stack([np.corrcoef(signal) for signal in signals]).astype(np.float32)


def stored_cohort(folder: Path, case: Case) -> Any:
    """Prepared scans on the disk, written if they are not there yet; read from there batch by batch."""
    import datasets
    import pandas as pd

    from modeling_lcm import FCFeatureExtractor
    from training.data.cohort import Cohort
    from training.data.triangles import StoredTriangles

    edges, path = case.regions * (case.regions - 1) // 2, folder / f"{case.scans}_scans_{case.regions}_regions.arrow"
    if not path.is_file():
        write_scans(path, case)
    stored = StoredTriangles(datasets.Dataset.from_file(str(path)), edges)
    table = pd.DataFrame({"subject_id": [f"s{number}" for number in range(case.scans)], "session": "1"})
    return Cohort(table, stored, FCFeatureExtractor(f"first-{case.regions}", num_regions=case.regions))


def write_scans(path: Path, case: Case) -> None:
    """Real connectomes, over and over, as float16 triangles in the form in which data sets hold them."""
    import datasets
    import numpy as np
    from datasets.arrow_writer import ArrowWriter

    from training.data.triangles import to_triangles

    triangles = to_triangles(real_connectomes(case.regions))
    kind = datasets.List(datasets.Value("float16"), length=triangles.shape[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(path=str(path), features=datasets.Features({"connectivity": kind})) as writer:
        for start in range(0, case.scans, 500):
            rows = np.arange(start, min(start + 500, case.scans)) % len(triangles)
            writer.write_batch({"connectivity": list(triangles[rows])})
        writer.finalize()


def measure_growth(folder: Path, repeats: int, clock: str) -> dict[str, dict[Any, dict[str, list[float]]]]:
    """Rates by dimension and its value; the other three stay at the first of their values."""
    start = Case(**{name: values[0] for name, values in GROWTH.items()})
    found: dict[str, dict[Any, dict[str, list[float]]]] = {}
    known: dict[Case, dict[str, list[float]]] = {}
    for name, values in GROWTH.items():
        found[name] = {}
        for value in sorted(values, key=ORDER.index if name == "model" else None):
            varied: dict[str, Any] = {name: value}
            case = replace(start, **varied)
            few = min(FEW.get(case.model, case.scans), FEW_OF_REGIONS.get(case.regions, case.scans))
            case = replace(case, scans=min(case.scans, few))
            if case not in known:
                known[case] = measure(case, folder, repeats, clock)
            found[name][value] = known[case]
            rates = {each: round(quartiles(of)[1]) for each, of in known[case].items()}
            print(f"{name} {value}: scans a second {rates}", file=sys.stderr, flush=True)
    return found


def draw_growth(results: dict[str, dict[Any, dict[str, list[float]]]], path: str) -> None:
    """Scans a second over each dimension, with the range of the runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    colours = {"float32": "tab:blue", "int8": "tab:green", "peer": "tab:orange"}
    for axis, (name, cases) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        for what, colour in colours.items():
            shown = {value: of[what] for value, of in cases.items() if what in of}
            middles = [quartiles(rates)[1] for rates in shown.values()]
            below = [middle - min(rates) for middle, rates in zip(middles, shown.values(), strict=True)]
            above = [max(rates) - middle for middle, rates in zip(middles, shown.values(), strict=True)]
            places = [str(value) for value in shown] if name == "model" else list(shown)
            label = "nilearn and scikit-learn" if what == "peer" else f"LCM, {what}"
            axis.errorbar(places, middles, [below, above], fmt="o-", color=colour, capsize=3, label=label)
        axis.set_yscale("log")
        if name != "model":
            axis.set_xscale("log")
            axis.set_xticks(list(cases), [str(value) for value in cases])
            axis.minorticks_off()
        axis.set_title("model size" if name == "model" else name)
    figure.axes[0].set_ylabel("scans a second")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
