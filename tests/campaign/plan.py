"""What the campaign does to which commands."""

import shutil
from pathlib import Path
from typing import Any

from modeling_lcm import load_adapter
from training.data.cohort import load_cohort
from training.storage.checked_files import check_adapter_files
from training.storage.manifest import require_intact_file
from training.trainer.checkpoints import load_model, load_processor, read_record

from .damage import flip_bits, full_disks, load_pickles
from .doors import FACTS, finetuning, make_cohort, pretraining, run, write_yaml
from .kills import Stage
from .odd_files import RUN, OddFiles


class Campaign:
    """Everything that is tried, on one small cohort.

    Args:
        folder (`Path`): existing folder for everything.
        seed (`int`): of the moments and places.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, log = folder, seed, folder / "log"
        self.preparing = make_cohort(folder / "scans")
        self.data, self.start, self.tuned = (folder / name for name in ("data", "start", "tuned"))
        run("training.prepare", *self.preparing, "--output", self.data, log=log)
        self.pretraining, self.finetuning = pretraining(folder), finetuning(folder)
        short = {"epochs": 2, "checkpoint_every": 0, "checkpoint_every_steps": 0}
        self.short = pretraining(folder, name="short.yaml", **short), finetuning(folder, name="tune.yaml", **short)
        run("training.pretrain", *self._pretrain(self.start), log=log)
        run("training.finetune", *self._finetune(self.tuned), "--lora_rank", 2, log=log)
        self.table = folder / "table.tsv"
        predicting = ("--checkpoint", self.tuned / "checkpoint", "--data", self.data, "--output", self.table)
        run("training.predict", *predicting, log=log)

    def _prepare(self, output: Path) -> list[Any]:
        return [*self.preparing, "--output", output]

    def _pretrain(self, output: Path) -> list[Any]:
        return ["--config", self.pretraining, "--data", self.data, "--output", output]

    def _finetune(self, output: Path) -> list[Any]:
        checkpoint = self.start / "checkpoint"
        return ["--config", self.finetuning, "--checkpoint", checkpoint, "--data", self.data, "--output", output]

    def _evaluate(self, output: Path, workers: int = 1) -> list[Any]:
        common = ["--data", self.data, "--pretrain", self.short[0], "--finetune", self.short[1], "--n_folds", 3]
        quick = ["--resamples", 0, "--baselines", "majority", "--workers", workers]
        return [*common, *quick, "--output", output]

    def pickles(self) -> dict[str, Any]:
        """Malicious files in the place of a stem that is converted."""
        return load_pickles(RUN, self.folder / "pickles")

    def flips(self, tries: int) -> dict[str, Any]:
        """Bits of a checkpoint, an adapter, a data set and a table of predictions."""
        place = self.folder / "flips"
        place.mkdir()
        predictions = self.folder / "predictions"
        predictions.mkdir()
        for path in (self.table, self.table.with_name(f"{self.table.name}.sha256")):
            shutil.copy(path, predictions)
        sealed = {
            "checkpoint": self.start / "checkpoint",
            "adapter": self.tuned / "checkpoint" / "adapter",
            "data": self.data,
            "predictions": predictions,
        }

        def load_checkpoint(folder: Path) -> None:
            load_processor(str(folder))
            load_model(str(folder))
            read_record(str(folder))

        def load_one_adapter(folder: Path) -> None:
            check_adapter_files(str(folder), str(self.start / "checkpoint"))
            load_adapter(str(folder), base=str(self.start / "checkpoint"))

        load = {
            "checkpoint": load_checkpoint,
            "adapter": load_one_adapter,
            "data": load_cohort,
            "predictions": lambda folder: require_intact_file(folder / self.table.name),
        }
        return flip_bits(sealed, load, place, tries, self.seed)

    def disks(self, runs: int) -> dict[str, Any]:
        """Disks from 8 kB on."""
        doors = {
            "prepare": lambda output: ("training.prepare", self._prepare(output)),
            "pretrain": lambda output: ("training.pretrain", self._pretrain(output)),
            "finetune": lambda output: ("training.finetune", self._finetune(output)),
            "evaluate": lambda output: ("training.evaluate", self._evaluate(output)),
            "convert": lambda output: ("conversion.convert_official", [RUN, "--output", output]),
        }
        return full_disks(doors, self.folder / "disks", runs)

    def stages(self) -> list[Stage]:
        """What is killed."""
        card = write_yaml(self.folder / "card.yaml", **FACTS)
        weights = ("checkpoint/model*.safetensors", "checkpoint/config.json")
        resume = ("--resume", "true")
        uploading = [self.start / "checkpoint", "--card", card, "--no-dry-run"]
        tables = ("predictions*.tsv",)
        return [
            Stage("prepare", "training.prepare", self._prepare, ("*.arrow", "fc_definition.json")),
            Stage("pretrain", "training.pretrain", self._pretrain, weights, resume),
            Stage("finetune", "training.finetune", self._finetune, weights, resume),
            Stage("evaluate", "training.evaluate", self._evaluate, tables, resume),
            Stage("evaluate with workers", "training.evaluate", lambda out: self._evaluate(out, 2), tables, resume),
            Stage("convert", "conversion.convert_official", lambda out: [RUN, "--output", out], ("*.safetensors",)),
            Stage("publish", "hub_cards.publish", lambda out: [*uploading, "--repo-id", f"me/{out.name}"], ()),
        ]

    def odd_files(self) -> OddFiles:
        """Kinds of files that are changed at random."""
        adapter = self.tuned / "checkpoint" / "adapter"
        return OddFiles(self.start / "checkpoint", adapter, self.data, self.folder / "odd")
