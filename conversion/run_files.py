"""Files of the research code on disk: finding a pair. Nothing heavy is imported here."""

import re
from dataclasses import dataclass
from pathlib import Path


# bb_fold0_hcpaBest-y_2025-01-30-16-59-56.pt; older runs write Best_ instead of Best-y_.
FILE_NAME = re.compile(
    r"(?P<part>bb|head)_fold(?P<fold>\d+)_(?P<dataset>.+?)Best(?:-(?P<metric>y|sex|age))?_(?P<date>.+)\.pt"
)
# none_decoder20_adni-hcpa_boldwin500_FCFC
RUN_NAME = re.compile(r"none_decoder(?P<layers>\d+)_(?P<datasets>.+)_boldwin500_FCFC")


@dataclass(frozen=True)
class OfficialRun:
    """One pair of pickles.

    Args:
        stem (`Path`): the stem's state dict (`bb_*.pt`).
        head (`Path`): the decoder's state dict (`head_*.pt`).
        datasets (`tuple[str, ...]`): data sets named by the run's folder; empty where it names none.
        layers (`int`, *optional*): decoder layers that the folder's name says.
    """

    stem: Path
    head: Path
    datasets: tuple[str, ...]
    layers: int | None


def find_run(
    folder: str | Path,
    fold: int | None = None,
    dataset: str | None = None,
    metric: str | None = None,
    head: str | Path | None = None,
) -> OfficialRun:
    """Find one pair of files in a run's folder.

    Args:
        folder (`str` or `Path`): the folder with `bb_*.pt` and `head_*.pt`.
        fold (`int`, *optional*): needed where the folder holds several.
        dataset (`str`, *optional*): data set that the epoch was chosen on; needed where there are several.
        metric (`str`, *optional*): "y", "sex" or "age", that the epoch was chosen by; likewise.
        head (`str` or `Path`, *optional*): another head file for this stem, such as a fine-tuned one.

    Raises:
        FileNotFoundError: the folder or the head does not exist, or half of the pair is missing.
        ValueError: no file fits, or several pairs do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    pairs: dict[tuple, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.pt")):
        name = FILE_NAME.fullmatch(path.name)
        if name is not None:
            key = (int(name["fold"]), name["dataset"], name["metric"] or "y", name["date"])
            pairs.setdefault(key, {})[name["part"]] = path
    wanted = (fold, dataset, metric)
    found = {
        key: parts
        for key, parts in pairs.items()
        if all(want is None or want == have for want, have in zip(wanted, key, strict=False))
    }
    if head is not None:
        if not Path(head).is_file():
            raise FileNotFoundError(f"There is no head file {head}.")
        found = {key: {**parts, "head": Path(head)} for key, parts in found.items() if "bb" in parts}
    if len(found) != 1:
        options = "; ".join(f"fold {key[0]}, dataset {key[1]}, metric {key[2]}, {key[3]}" for key in found or pairs)
        raise ValueError(
            f"{len(found)} checkpoints of {folder} fit, needed is one. It holds: {options or 'no bb_fold*.pt files'}."
            + (" Choose with --fold, --dataset and --metric." if pairs else "")
        )
    ((key, parts),) = found.items()
    for part, other in (("bb", "head"), ("head", "bb")):
        if part not in parts:
            raise FileNotFoundError(
                f"{folder} has {parts[other].name}, but not the {part}_fold{key[0]}_*.pt of the same date: both "
                "halves of the pair are needed."
            )
    named = RUN_NAME.fullmatch(folder.resolve().name)
    datasets = tuple(named["datasets"].split("-")) if named else ()
    return OfficialRun(parts["bb"], parts["head"], datasets, int(named["layers"]) if named else None)
