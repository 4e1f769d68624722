"""Peak memory of training and prediction at the published sizes, each in a process of its own, beside the estimate.

    OMP_NUM_THREADS=2 python -m benchmarks.memory --folder /some/scratch
    python -m benchmarks.memory --folder /some/scratch --cases lora-1.2b predict-1.2b

The cases run the stages of the training scripts for two steps on random connectomes (116 regions, 31 tokens), from a
checkpoint with random weights. What is reported is the highest resident memory of the process (VmHWM): libraries, and
pages of mapped files, included.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    FCFeatureExtractor,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMProcessor,
)
from modeling_lcm.edges_lcm import LCMEdgeFeatures
from training.command_line.cli import command, did_you_mean, setting
from training.data.cohort import Cohort
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.finetuning import finetune
from training.trainer.memory import GB, Setup, footprint
from training.trainer.prediction import predict_logits
from training.trainer.pretraining import pretrain


REGIONS, SCANS, LABELS = 116, 16, 30
FRUGAL = {"optimizer": "adafactor", "activation_checkpointing": True}
# Settings of a case, and the gigabytes it may take (None: measured for the table only).
CASES: dict[str, tuple[str, str, dict[str, Any], float | None]] = {
    "finetune-147m": ("147m", "finetune", {}, 4.0),
    "finetune-147m-frugal": ("147m", "finetune", FRUGAL, None),
    "pretrain-147m": ("147m", "pretrain", {}, None),
    "lora-1.2b": ("1.2b", "lora", {"activation_checkpointing": True}, 8.0),
    "pretrain-1.2b": ("1.2b", "pretrain", FRUGAL, 24.0),
    "predict-1.2b": ("1.2b", "predict", {"precision": "bf16"}, 3.5),
    "finetune-nano": ("nano", "finetune", {}, None),
    "predict-nano": ("nano", "predict", {"precision": "bf16"}, None),
}


def random_cohort(scans: int, regions: int) -> Cohort:
    """Random connectomes of subjects with an age, a group of 30 labels and a task of two."""
    rng = np.random.default_rng(0)
    groups = [f"g{number % LABELS:02d}" for number in range(scans)]
    table = pd.DataFrame(
        {
            "subject_id": [f"s{number:05d}" for number in range(scans)],
            "session": "1",
            "group": groups,
            "age": rng.uniform(20, 80, scans),
            "task": ["a", "b"] * (scans // 2) + ["a"] * (scans % 2),
        }
    )
    triangles = rng.uniform(-0.5, 0.5, (scans, regions * (regions - 1) // 2)).astype(np.float16)
    return Cohort(table, triangles, FCFeatureExtractor(atlas=f"random-{regions}", num_regions=regions))


def vocabulary() -> BEITokenizer:
    """31 tokens: 30 labels and the age."""
    labels = [f"g{number:02d}" for number in range(LABELS)]
    variables = [BEIVariable("group", "categorical", labels), BEIVariable("age", "continuous", unit="years")]
    return BEITokenizer(variables=variables).fit_scaling(random_cohort(SCANS, REGIONS).table)


def make_checkpoint(size: str, precision: str, folder: Path) -> None:
    """A checkpoint with random weights; made without the initialisation, whose result nobody looks at."""
    tokenizer = vocabulary()
    config = LCMConfig.from_size(size, num_regions=REGIONS, bei_variables=tokenizer.model_variables)
    with torch.device("meta"):
        model: Any = LCMForMultitaskPretraining(config)
    model = model.to(torch.bfloat16 if precision == "bf16" else torch.float32).to_empty(device="cpu")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.uniform_(-0.02, 0.02)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, LCMEdgeFeatures):
                module.mean.zero_()
                module.batches.zero_()
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()
        model.bei_layer_choice.running_loss.fill_(1.0)
        model.bei_layer_choice.best_layer.fill_(0)
    model.save_pretrained(folder)
    LCMProcessor(random_cohort(SCANS, REGIONS).feature_extractor, tokenizer).save_pretrained(folder)


def run_case(case: str, checkpoint: str, batch_size: int) -> None:
    """The case itself, in this process; prints its seconds and peak memory as JSON."""
    size, mode, settings, _ = CASES[case]
    scans = max(2 * batch_size, 4)
    cohort = random_cohort(scans, REGIONS)
    started = time.monotonic()
    loop: dict[str, Any] = {"epochs": 1, "batch_size": batch_size, "progress": False, "checkpoint_every": 0}
    loop["momentum_epochs"] = 1
    if mode == "predict":
        model = LCMForMultitaskPretraining.from_pretrained(checkpoint, dtype=torch.bfloat16)
        with torch.inference_mode():
            predict_logits(model, cohort.select(np.arange(batch_size)), batch_size)
    elif mode == "pretrain":
        tokens = str(Path(checkpoint))
        pretrain(cohort, PretrainArguments(**{"size": size, "vocabulary": tokens, **loop, **settings}))
    else:
        rank = 8 if mode == "lora" else 0
        given = {"checkpoint": checkpoint, "task": "task", "lora_rank": rank, **loop, **settings}
        finetune(cohort, FinetuneArguments(**given))
    print(json.dumps({"seconds": round(time.monotonic() - started, 1), "peak_gb": peak_gb()}))


def peak_gb() -> float:
    """Highest resident memory of this process so far, as Linux reports it."""
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    if peak is None:
        raise OSError("This system does not report the peak of a process in /proc/self/status.")
    return int(peak[1]) * 1024 / GB


def estimate(case: str, batch_size: int) -> float:
    """Gigabytes that `training.plan` expects."""
    size, mode, settings, _ = CASES[case]
    checkpointing = settings.get("activation_checkpointing", False)
    setup = Setup(
        size,
        mode,
        batch_size,
        REGIONS,
        LABELS + 1,
        optimizer=settings.get("optimizer", "adamw"),
        checkpointing=checkpointing,
        precision=settings.get("precision", "float32"),
    )
    return footprint(setup).total / GB


def measure(case: str, folder: Path, batch_size: int) -> dict[str, Any]:
    """Make the case's checkpoint if need be, run it in a new process, and read what it prints.

    Raises:
        RuntimeError: the process failed; ends with what it printed.
    """
    size, mode, settings, _ = CASES[case]
    precision = settings.get("precision", "float32")
    # Pretraining starts from the vocabulary alone.
    checkpoint = folder / ("nano-float32" if mode == "pretrain" else f"{size}-{precision}")
    if not (checkpoint / "config.json").is_file():
        _in_new_process(["--make", *checkpoint.name.split("-"), "--folder", str(folder)])
    answer = _in_new_process(["--run", case, "--folder", str(checkpoint), "--batch-size", str(batch_size)])
    return json.loads(answer.strip().splitlines()[-1])


def _in_new_process(arguments: list[str]) -> str:
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout


@dataclass
class MemoryArguments:
    """Peak memory of trainings and predictions beside what training.plan expects."""

    folder: str = setting("", "Scratch for checkpoints, up to 8 GB.", example="scratch", required=True)
    cases: list[str] = setting([case for case in CASES if not case.endswith("nano")], "Cases.")
    batch_size: int = setting(8, "Scans a step.")
    make: list[str] = setting([], "Only make the checkpoint of a size and a precision.", example="147m float32")
    run: str = setting("", "Only run this case with the checkpoint in folder.")

    def __post_init__(self) -> None:
        """Refuse cases that there are not."""
        for case in [*self.cases, *filter(None, [self.run])]:
            if case not in CASES:
                raise ValueError(f"There is no case {case}.{did_you_mean(case, CASES)} There are {', '.join(CASES)}.")


@command(MemoryArguments)
def main(options: MemoryArguments) -> None:
    """Command line."""
    folder = Path(options.folder)
    if options.make:
        size, precision = options.make
        make_checkpoint(size, precision, folder / f"{size}-{precision}")
    elif options.run:
        run_case(options.run, str(options.folder), options.batch_size)
    else:
        print(f"{'case':22}{'peak GB':>9}{'plan GB':>9}{'goal GB':>9}{'seconds':>9}", flush=True)
        for case in options.cases:
            found, planned = measure(case, folder, options.batch_size), estimate(case, options.batch_size)
            goal = CASES[case][3]
            row = f"{found['peak_gb']:9.2f}{planned:9.2f}{goal if goal else '-':>9}{found['seconds']:9.1f}"
            print(f"{case:22}{row}", flush=True)


if __name__ == "__main__":
    main()
