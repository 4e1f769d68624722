"""Files that users write or receive, changed at random: read, or refused by a sentence of ours, never by another's."""

import copy
import json
import random
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from conversion.arguments import ConvertArguments
from conversion.official import infer_architecture, load_state
from conversion.run_files import find_run
from hub_cards.facts import load_facts
from modeling_lcm import load_adapter
from tests.conftest import REPOSITORY
from training.command_line.cli import sentence_of
from training.command_line.doors import DOORS
from training.command_line.settings import parse_arguments
from training.data.cohort import load_cohort
from training.data.folds import Folds
from training.data.identity import seen_subjects
from training.preparation.arguments import PATHS, PrepareArguments
from training.preparation.recipes import available, load_recipe
from training.preparation.sources.base import Scan, Source
from training.preparation.sources.tables import read_table
from training.preparation.table import check_table, describe
from training.storage.checked_files import check_adapter_files, check_files, load_own_processor
from training.trainer.checkpoints import load_model, read_record

from .odd_values import changed, changed_text, odd


RECIPES = REPOSITORY / "training" / "cohorts"
CARD = REPOSITORY / "hub_cards" / "card_template.yaml"
RUN = next((REPOSITORY / "tests" / "fixtures" / "official_small").glob("none_*"))
UNCHECKED = ("checksums.json", "training_record.json", "README.md")  # what a folder may lack
SMALL_FILES = ("config.json", "processor_config.json", "tokenizer_config.json", "bei_vocab.json")  # of checkpoints
KINDS = ("recipes", *SMALL_FILES, "training records", "adapters", "data sets", "split files", "settings of commands",
         "facts of cards", "phenotype tables", "tensors")  # fmt: skip
LONGEST = 700  # characters of a sentence
HALF_TEXT = 0.2  # share of files that are changed as text


class _Unread(Source):
    """Scans of which the table alone matters."""

    def read(self, row: int) -> Scan:
        raise AssertionError("odd tables are read without their scans")


class OddFiles:
    """Kinds of files, each with a function that writes one changed file and reads it as the commands do.

    Args:
        checkpoint (`Path`): a pretrained checkpoint.
        adapter (`Path`): an adapter of it.
        data (`Path`): a prepared data set.
        folder (`Path`): new folder for the changed files.
    """

    def __init__(self, checkpoint: Path, adapter: Path, data: Path, folder: Path) -> None:
        self.folder, self.base = folder, checkpoint
        folder.mkdir()
        self.checkpoint = self._copy(checkpoint, "checkpoint")
        self.adapter = self._copy(adapter, "adapter")
        self.data = self._copy(data, "data")
        self.table = load_cohort(data).table
        self.record = json.loads((checkpoint / "training_record.json").read_text(encoding="utf-8"))
        self.kinds: dict[str, Callable[[random.Random], None]] = {
            name: partial(self.of_checkpoint, name) if name in SMALL_FILES else getattr(self, name.replace(" ", "_"))
            for name in KINDS
        }

    def _copy(self, source: Path, name: str) -> Path:
        """A folder without what vouches for its files."""
        return Path(shutil.copytree(source, self.folder / name, ignore=shutil.ignore_patterns(*UNCHECKED)))

    def recipes(self, choose: random.Random) -> None:
        name = choose.choice(available())
        path = self._write_yaml("recipe.yaml", _yaml(RECIPES / f"{name}.yaml"), choose)
        given = PrepareArguments(output="x", data_dir="y")
        load_recipe(str(path)).complete(given, PATHS)

    def of_checkpoint(self, name: str, choose: random.Random) -> None:
        with self._changed_json(self.checkpoint / name, choose):
            check_files(str(self.checkpoint))
            load_own_processor(str(self.checkpoint))
            if name == "config.json":
                load_model(str(self.checkpoint))

    def training_records(self, choose: random.Random) -> None:
        path = self.checkpoint / "training_record.json"
        record = copy.deepcopy(self.record)
        record["training_subjects"] = record["training_subjects"][:2]
        for entry in record["training_subject_hashes"]:
            entry["hashes"] = entry["hashes"][:2]
        path.write_text(_json(record, choose), encoding="utf-8")
        seen_subjects(read_record(self.checkpoint), self.table.iloc[:2])

    def adapters(self, choose: random.Random) -> None:
        name = choose.choice(("adapter_config.json", "adapter_base.json", "config.json"))
        with self._changed_json(self.adapter / name, choose):
            check_adapter_files(str(self.adapter), str(self.base))
            load_adapter(str(self.adapter), base=str(self.base))

    def data_sets(self, choose: random.Random) -> None:
        names = ("fc_definition.json", "cohorts.json", "state.json", "dataset_info.json", "checksums.json")
        name = choose.choice(names)
        with self._changed_json(self.data / name, choose):
            load_cohort(self.data)

    def split_files(self, choose: random.Random) -> None:
        path = self.folder / "splits.json"
        Folds((("a", "b"), ("c", "d")), 0, groups=(("a", "x"),), data="00").save(path)
        path.write_text(_json(json.loads(path.read_text()), choose), encoding="utf-8")
        Folds.load(path)

    def settings_of_commands(self, choose: random.Random) -> None:
        kind = choose.choice(_settings())
        values = {choose.choice(sorted(kind.__dataclass_fields__)): odd(choose) for _ in range(2)}
        if choose.random() < 0.3:
            values[choose.choice(("", "epochs", "nothing", "--output"))] = odd(choose)
        path = self._write_yaml("settings.yaml", values, choose)
        parse_arguments(kind, ["--config", str(path)])

    def facts_of_cards(self, choose: random.Random) -> None:
        load_facts(self._write_yaml("card.yaml", _yaml(CARD), choose))

    def phenotype_tables(self, choose: random.Random) -> None:
        """A table with odd cells, or cut, doubled and strewn with odd characters."""
        separator = choose.choice(("\t", ",", ";", "|"))
        header = ["participant_id", "age", "sex", "iq", "dx"]
        ages, labels = choose.choice((("20.5", "30", "n/a"), ("20,5", "1,234"), ("7 y", ">89"))), ("F", "M", "", "1")
        rows = [
            [f"sub-{number:02d}", choose.choice(ages), choose.choice(labels), str(90 + number), choose.choice("ab")]
            for number in range(choose.randint(0, 8))
        ]
        for row in rows:
            if choose.random() < 0.3:
                row[choose.randrange(5)] = str(odd(choose)).encode("utf-8", "replace").decode()
        text = "\n".join(separator.join(row) for row in [header, *rows])
        text = changed_text(text, choose) if choose.random() < 0.6 else text
        path = self.folder / choose.choice(("table.tsv", "table.csv"))
        encoding = choose.choice(("utf-8", "utf-8", "cp1252", "utf-16", "latin-1"))
        path.write_bytes(text.encode(encoding, "ignore"))
        arguments = PrepareArguments(participants=str(path), output="x")
        table = read_table(path)
        check_table(table, arguments, load_recipe(None))
        describe(arguments, load_recipe(None), _Unread(table, list(map(str, table.index))))

    def tensors(self, choose: random.Random) -> None:
        part = choose.choice(("bb", "head"))
        states = {each: _state(each) for each in ("bb", "head")}
        state: dict[Any, Any] = dict(states[part])
        for _ in range(choose.randint(1, 3)):
            name = choose.choice((choose.choice(sorted(states[part])), "odd", 7, "lin.0.weight"))
            if choose.random() < 0.7:
                state[name] = _odd_tensor(choose)
            else:
                state.pop(name, None)
        path = self.folder / "state.pt"
        torch.save(state, path)
        states[part] = load_state(path)
        infer_architecture(stem=states["bb"], head=states["head"])

    def _write_yaml(self, name: str, content: Any, choose: random.Random) -> Path:
        content = changed(content, choose)
        try:
            text = yaml.dump(content, Dumper=yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper)
        except ValueError:  # half a character
            text = json.dumps(content)
        path = self.folder / name
        text = changed_text(text, choose) if choose.random() < HALF_TEXT else text
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return path

    @contextmanager
    def _changed_json(self, path: Path, choose: random.Random) -> Iterator[None]:
        """Change a file of a folder, and put it back."""
        before = path.read_text(encoding="utf-8") if path.exists() else None
        content = json.loads(before) if before is not None else {"files": {"config.json": {"bytes": 1, "sha256": "0"}}}
        path.write_text(_json(content, choose), encoding="utf-8", errors="surrogatepass")
        try:
            yield
        finally:
            path.unlink() if before is None else path.write_text(before, encoding="utf-8")


def read_odd_file(kind: Callable[[random.Random], None], choose: random.Random) -> str | None:
    """Read a changed file; what is wrong about the error, if there is one that is no sentence of this repository's.

    Args:
        kind (`Callable`): of [`OddFiles`].
        choose (`random.Random`): chooses what is changed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind(choose)
    except (ValueError, OSError) as error:
        raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        text = sentence_of(error)
        if not raised.is_relative_to(REPOSITORY):
            return f"{raised.name} says: {text[:300]}"
        if len(text.split()) <= 3 or len(text) > LONGEST or not text.isprintable():
            return f"no short sentence: {text[:800]!r}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = next(each for each in reversed(frames) if Path(each.filename).is_relative_to(REPOSITORY))
        where = f"{frames[-1].filename}, {frames[-1].lineno}; {ours.filename}, {ours.lineno}"
        return f"{type(error).__name__}: {str(error)[:200]} ({where})"
    return None


def read_odd_files(
    name: str, kind: Callable[[random.Random], None], seed: int, numbers: Iterable[int]
) -> dict[str, Any]:
    """How many changed files of a kind were read, and what went wrong.

    Args:
        name (`str`): the kind.
        kind (`Callable`): of [`OddFiles`].
        seed (`int`): of all files.
        numbers (`Iterable[int]`): of these files.
    """
    found = [(number, read_odd_file(kind, random.Random(f"{seed} {name} {number}"))) for number in numbers]
    return {
        "files": len(found),
        "problems": [f"{number}: {problem}" for number, problem in found if problem is not None],
    }


def _json(content: Any, choose: random.Random) -> str:
    text = json.dumps(changed(content, choose), indent=2)
    return changed_text(text, choose) if choose.random() < HALF_TEXT else text


@cache
def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def _state(part: str) -> dict[str, Any]:
    """Tensors of the stem or the head of a run of the research code."""
    return load_state(find_run(RUN).stem if part == "bb" else find_run(RUN).head)


@cache
def _settings() -> list[type]:
    """Settings of all commands."""
    kinds: list[type] = [ConvertArguments]
    for module, _ in DOORS.values():
        found = import_module(module)
        kinds += [each for name, each in vars(found).items() if name.endswith("Arguments") and isinstance(each, type)]
    return sorted(set(kinds), key=lambda kind: (kind.__module__, kind.__name__))


DTYPES = (torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn)


def _odd_tensor(choose: random.Random) -> Any:
    size = choose.choice((0, 1, 2, 5, 40))
    return choose.choice((
        lambda: torch.zeros([choose.randint(0, 40) for _ in range(choose.randint(0, 4))]),
        lambda: torch.zeros(size).to(choose.choice(DTYPES)),
        lambda: torch.zeros(1).expand(choose.choice((1, 100, 10**6)), 10**6),
        lambda: torch.zeros(size, size).to_sparse(),
        lambda: torch.zeros(choose.choice((0, 7, 10**9)), 3, device="meta"),
        lambda: torch.full((size, 3), float("nan")),
        lambda: choose.choice((None, 1, "text", [1], {"a": torch.zeros(1)}, torch.nn.Parameter(torch.zeros(3)))),
    ))()  # fmt: skip
