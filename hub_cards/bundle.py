"""What a repository will hold: the right files of a folder, private things taken out, and the card."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

import modeling_lcm
from modeling_lcm import LCMConfig
from modeling_lcm.limits_lcm import LIMITS_FILE
from training.data.card import describe_dataset
from training.data.cohort import load_cohort
from training.data.dataset_folder import COHORTS_FILE, FC_DEFINITION, FURTHER_ATLASES, QUALITY, cohort_records
from training.reporting.results import Results
from training.storage.checked_files import load_own_processor, weight_files
from training.storage.files import read_json, without_nan
from training.storage.manifest import CHECKSUMS, FORMAT, checksum

from .public import public_record, public_report, public_results
from .render import dataset_card, model_card
from .results import load_results


# Files of a checkpoint folder that are published, with the code that they name; everything else stays here.
MODEL_FILES = (
    "config.json",
    SAFE_WEIGHTS_INDEX_NAME,
    "official_unused.safetensors",
    "evaluation.json",
)
PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json", "bei_vocab.json", LIMITS_FILE)
ADAPTER_FILES = ("adapter_model.safetensors", "config.json", "adapter_base.json")
ROWS_PER_FILE = 20_000  # scans in a file of a published data set


@dataclass
class Bundle:
    """The content of a repository.

    Args:
        kind (`str`): "model", "adapter" or "dataset".
        files (`dict[str, Path | bytes]`): path in the repository -> file here, or content.
        left_out (`list[str]`): files of the folder that are not published.
    """

    kind: str
    files: dict[str, Path | bytes]
    left_out: list[str] = field(default_factory=list)

    @property
    def repo_type(self) -> str:
        """The Hub's word for the kind."""
        return "dataset" if self.kind == "dataset" else "model"

    @property
    def readme(self) -> str:
        """The card."""
        content = self.files["README.md"]
        assert isinstance(content, bytes)
        return content.decode()


def with_checksums(bundle: Bundle) -> Bundle:
    """Add the list of all files' checksums, which whoever loads the repository compares them with."""
    found = {name: checksum(content) for name, content in sorted(bundle.files.items())}
    bundle.files[CHECKSUMS] = _as_bytes({"format": FORMAT, "files": found})
    return bundle


def _select(folder: Path, names: Iterable[str]) -> dict[str, Path | bytes]:
    return {name: folder / name for name in names if (folder / name).is_file()}


def refuse_links(folder: Path) -> None:
    """Raise `ValueError` for a folder with symbolic links in it: what they lead to is not meant to be published."""
    link = next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), None)
    if link is not None:
        raise ValueError(
            f"{link.relative_to(folder)} in {folder} is a symbolic link to {link.readlink()}, and links are not "
            "published: put the file itself there (cp -rL copies a folder so), or remove the link."
        )


def code_files(folder: Path) -> set[str]:
    """Names of the code that a checkpoint's Auto classes need, and of what that code imports from beside it."""
    maps = [
        (_read_json(folder / name) or {}).get("auto_map") or {}
        for name in ("config.json", "processor_config.json", "tokenizer_config.json")
    ]
    targets = [
        target
        for entry in maps
        for value in entry.values()
        for target in ([value] if isinstance(value, str) else value)
    ]
    foreign = [target for target in targets if target and not re.fullmatch(r"\w+\.\w+", target)]
    if foreign:
        raise ValueError(f"{folder} names code outside the folder ({foreign[0]}): save model and processor again.")
    waiting = {f"{target.split('.')[0]}.py" for target in targets if target}
    needed: set[str] = set()
    place = code_place(folder)
    while waiting:
        name = waiting.pop()
        needed.add(name)
        if (place / name).is_file():
            siblings = re.findall(r"^from \.(\w+) import", (place / name).read_text(encoding="utf-8"), re.MULTILINE)
            waiting |= {f"{sibling}.py" for sibling in siblings} - needed
    return needed


def code_place(folder: Path) -> Path:
    """Where the code of a checkpoint is: beside its weights, or in the package for one that was kept without it."""
    return folder if any(folder.glob("*.py")) else Path(modeling_lcm.__file__).parent


def code_of(folder: Path) -> dict[str, Path | bytes]:
    """The code that a checkpoint needs, by name."""
    return _select(code_place(folder), sorted(code_files(folder)))


def _as_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _read_json(path: Path, kind: type = dict) -> Any:
    return read_json(path, kind) if path.is_file() else None


def _skeleton(folder: Path) -> torch.nn.Module:
    """The model of a checkpoint folder without its weights."""
    config = LCMConfig.from_pretrained(folder)
    with torch.device("meta"):
        return getattr(modeling_lcm, (config.architectures or ["LCMModel"])[0])(config)


def count_parameters(folder: Path) -> int:
    """Number of `model.parameters()` of a checkpoint folder; buffers such as running means are none."""
    return sum(parameter.numel() for parameter in _skeleton(folder).parameters())


def count_adapter_parameters(adapter: Path, whole: Path) -> int:
    """Parameters in an adapter's file, read off its header; buffers that it brings along are none.

    Args:
        adapter: Its `adapter_model.safetensors`.
        whole: Checkpoint folder of the model that it is for.
    """
    buffers = tuple(f".{name}" for name, _ in _skeleton(whole).named_buffers())
    with safe_open(adapter, framework="pt") as file:
        names = [name for name in file.keys() if not name.endswith(buffers)]  # noqa: SIM118 (not a dictionary)
        return sum(prod(file.get_slice(name).get_shape()) for name in names)


def model_bundle(
    folder: Path,
    facts: dict[str, Any],
    repo_id: str,
    revision: str,
    metrics: str | None = None,
    hashes: bool = True,
) -> Bundle:
    """The content of a model's repository.

    Args:
        folder (`Path`): checkpoint folder.
        facts (`dict`): see `hub_cards.facts`.
        repo_id (`str`): where it goes.
        revision (`str`): tag or branch that the card's snippets load.
        metrics (`str`, *optional*): `metrics.json`; default: the one in the folder, if any.
        hashes (`bool`): whether salted hashes of the training subjects' ids are published.

    Raises:
        FileNotFoundError: it is not a checkpoint folder.
        ValueError: links, or weights that are not safetensors, or something that the card needs is missing.
    """
    refuse_links(folder)
    weights = weight_files(str(folder))
    files = _select(folder, (*MODEL_FILES, *weights, *PROCESSOR_FILES)) | code_of(folder)
    for name in ("config.json", "processor_config.json", "bei_vocab.json"):
        if name not in files:
            raise FileNotFoundError(f"{folder} is not a checkpoint folder: it has no {name}.")
    lacking = [name for name in weights if name not in files]
    if lacking:
        raise FileNotFoundError(f"{folder} has no {lacking[0]}: pickled weights are not published.")
    record, results = _add_records(folder, files, metrics, hashes)
    conversion = _read_json(folder / "conversion_report.json")
    if conversion is not None:
        conversion = public_report(conversion)
        files["conversion_report.json"] = _as_bytes(conversion)
    left_out = sorted({path.name for path in folder.iterdir()} - files.keys() - {"README.md", CHECKSUMS})
    card = model_card(
        facts,
        repo_id,
        revision,
        config=LCMConfig.from_pretrained(folder),
        processor=load_own_processor(str(folder)),
        parameters=count_parameters(folder),
        record=record,
        conversion=conversion,
        results=results,
        scores=(_read_json(folder / "evaluation.json") or {}).get("scores"),
    )
    files["README.md"] = card.encode()
    return Bundle("model", files, left_out)


def _add_records(
    folder: Path, files: dict[str, Path | bytes], metrics: str | None, hashes: bool
) -> tuple[dict[str, Any] | None, Results | None]:
    """Put the public forms of the run's record and results among the files."""
    record = _read_json(folder / "training_record.json")
    if record is not None:
        record = public_record(record, hashes)
        files["training_record.json"] = _as_bytes(record)
    path = Path(metrics) if metrics is not None else folder / "metrics.json"
    results = None
    if metrics is not None or path.is_file():
        results = public_results(load_results(path))
        files["metrics.json"] = _as_bytes(without_nan(results.to_json()))
    return record, results


def adapter_bundle(
    folder: Path,
    facts: dict[str, Any],
    repo_id: str,
    revision: str,
    base_model: str,
    base_revision: str,
    metrics: str | None = None,
    hashes: bool = True,
) -> Bundle:
    """The content of an adapter's repository; its processor lies in a folder of its own.

    PEFT takes a tokenizer beside an adapter for a request to enlarge the base model's embeddings, which a new task's
    tokens are not part of.

    Args:
        folder (`Path`): `adapter/` inside a checkpoint of training.finetune.
        facts, repo_id, revision, metrics, hashes: as for a model.
        base_model (`str`): Hub id of the base model.
        base_revision (`str`): its revision.

    Raises:
        FileNotFoundError: it is not an adapter, or the checkpoint around it is missing.
    """
    refuse_links(folder)
    refuse_links(folder.parent)
    files = _select(folder, ADAPTER_FILES)
    settings = _read_json(folder / "adapter_config.json")
    if settings is None or "adapter_model.safetensors" not in files:
        raise FileNotFoundError(
            f"{folder} is not an adapter: adapter_config.json or adapter_model.safetensors is missing."
        )
    whole = folder.parent
    if not (whole / "config.json").is_file():
        raise FileNotFoundError(f"Beside {folder} the merged checkpoint is missing, which knows labels and processor.")
    settings |= {"base_model_name_or_path": base_model, "revision": base_revision}
    files["adapter_config.json"] = _as_bytes(settings)
    beside = _select(whole, (*PROCESSOR_FILES, *sorted(code_files(whole))))
    files |= {f"processor/{name}": path for name, path in beside.items()}
    record, results = _add_records(whole, files, metrics, hashes)
    card = model_card(
        facts,
        repo_id,
        revision,
        config=LCMConfig.from_pretrained(whole),
        processor=load_own_processor(str(whole)),
        parameters=count_adapter_parameters(folder / "adapter_model.safetensors", whole),
        record=record,
        results=results,
        base_model=base_model,
        base_revision=base_revision,
    )
    files["README.md"] = card.encode()
    left_out = sorted({path.name for path in folder.iterdir()} - files.keys() - {"README.md", CHECKSUMS})
    return Bundle("adapter", files, left_out)


@contextmanager
def dataset_bundle(folder: Path, facts: dict[str, Any], repo_id: str, revision: str) -> Iterator[Bundle]:
    """The content of a data set's repository: Parquet files, which exist for the duration of the `with`.

    Args:
        folder (`Path`): made by training.prepare.
        facts (`dict`): see `hub_cards.facts`.
        repo_id (`str`): where it goes.
        revision (`str`): tag or branch that the card's snippet loads.

    Raises:
        FileNotFoundError: the folder does not say what was left out, or where the data come from.
    """
    refuse_links(folder)
    cohort = load_cohort(folder)
    data = datasets.load_from_disk(str(folder))
    quality, cohorts = _read_json(folder / QUALITY), cohort_records(folder)
    if quality is None or not cohorts:
        raise FileNotFoundError(f"{folder} lacks {QUALITY} or {COHORTS_FILE}: make it again with training.prepare.")
    description = describe_dataset(
        quality, cohorts, list(cohort.atlases.values()), cohort.table, cohort.has_time_series
    )
    card = dataset_card(facts, repo_id, revision, description, len(cohort.table), cohort.feature_extractor)
    files: dict[str, Path | bytes] = {FC_DEFINITION: folder / FC_DEFINITION, "README.md": card.encode()}
    if cohort.others:
        files[FURTHER_ATLASES] = folder / FURTHER_ATLASES
    with TemporaryDirectory() as temporary:
        shards = -(-len(data) // ROWS_PER_FILE)
        for index in range(shards):
            name = f"train-{index:05d}-of-{shards:05d}.parquet"
            data.shard(shards, index, contiguous=True).to_parquet(f"{temporary}/{name}")
            files[f"data/{name}"] = Path(temporary) / name
        yield Bundle("dataset", files)
