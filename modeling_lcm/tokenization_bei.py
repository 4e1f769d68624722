"""BEI tokenizer: non-imaging records (sex, age, diagnosis, ...) to label arrays, and logits back to readable records.

Tokens follow the vocabulary (see `bei_vocabulary`): one per label or continuous variable, numbered from 0, no special
tokens. Their order is the order of the model's token embeddings, so growing a vocabulary only ever appends.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizer, default_data_collator

from .bei_decoding import decode_records, plain_logits
from .bei_merging import merge_variables
from .bei_records import RecordTable
from .bei_vocabulary import BEIVariable, as_variables, infer_variables, read_vocabulary
from .loss_lcm import IGNORE_INDEX
from .settings_lcm import refuse_misspelt


__all__ = ["BEITokenizer", "BEIVariable"]

Vocabulary = Iterable[BEIVariable | Mapping[str, Any]]


class BEITokenizer(PreTrainedTokenizer):
    """Tokenizer of non-imaging records; saved as `bei_vocab.json` beside the model.

    Args:
        vocab_file: A saved vocabulary; give this or `variables`.
        variables: `BEIVariable`s, or dictionaries of their fields, in token order.
        task: Name of the downstream variable, if any.
        task_is_new: Whether the task was added for fine-tuning, so that its tokens come after the pretrained ones;
            otherwise it is one of the pretrained variables.

    Raises:
        ValueError: The vocabulary is contradictory, unreadable, or lacks the task; or an argument is misspelt.

    Example:
        >>> tokenizer = BEITokenizer(variables=[
        ...     BEIVariable("sex", "categorical", ["M", "F"], aliases={"male": "M", "female": "F"}),
        ...     BEIVariable("age", "continuous", unit="years", mean=40.0, std=20.0),
        ... ])
        >>> tokenizer([{"sex": "female", "age": 60}, {"sex": "n/a", "age": 20}])["labels"].tolist()
        [[1.0, 1.0], [-100.0, -1.0]]
        >>> tokenizer.decode([0.0, 0.0, 0.5])["age"]
        {'value': 50.0, 'unit': 'years'}
    """

    vocab_files_names = {"vocab_file": "bei_vocab.json"}  # noqa: RUF012 - Transformers' own declaration
    model_input_names = ["labels"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        variables: Vocabulary | None = None,
        task: str | None = None,
        task_is_new: bool = False,
        **kwargs: Any,
    ) -> None:
        if (vocab_file is None) == (variables is None):
            raise ValueError("BEITokenizer needs either vocab_file (a saved bei_vocab.json) or variables.")
        refuse_misspelt("BEITokenizer", kwargs, ("vocab_file", "variables", "task", "task_is_new"))
        if vocab_file is not None:
            variables = read_vocabulary(vocab_file)
        self._variables = as_variables(variables or [])
        names = [variable.name for variable in self._variables]
        if task is not None and task not in names:
            raise ValueError(
                f"The task {task!r} is not in the vocabulary ({', '.join(names)}); use add_variable first."
            )
        if task_is_new and (task is None or task != names[-1]):
            raise ValueError(
                f"A new task's tokens come after the pretrained ones: put {task!r} last, or task_is_new=False."
            )
        self._tokens = [token for variable in self._variables for token in variable.tokens]
        self._token_numbers = {token: number for number, token in enumerate(self._tokens)}
        self.task, self.task_is_new = task, task_is_new
        super().__init__(task=task, task_is_new=task_is_new, **kwargs)

    @property
    def variables(self) -> list[BEIVariable]:
        """Copies of all variables, in token order."""
        return as_variables(self._variables)

    @property
    def task_variable(self) -> BEIVariable | None:
        """Copy of the downstream variable, or `None`."""
        return next((variable for variable in self.variables if variable.name == self.task), None)

    @property
    def model_variables(self) -> list[dict[str, Any]]:
        """The pretrained vocabulary as `LCMConfig.bei_variables` wants it; a new task is left out."""
        keys = ("name", "kind", "labels", "loss_weight")
        return [{key: getattr(variable, key) for key in keys} for variable in as_variables(self._pretrained)]

    @property
    def _pretrained(self) -> list[BEIVariable]:
        return self._variables[:-1] if self.task_is_new else self._variables

    @property
    def token_slices(self) -> dict[str, slice]:
        """Token numbers of each variable, a `slice` by its name."""
        ends = np.cumsum([len(variable.tokens) for variable in self._variables]).tolist()
        starts = [0, *ends[:-1]]
        return {v.name: slice(start, end) for v, start, end in zip(self._variables, starts, ends, strict=True)}

    @property
    def vocab_size(self) -> int:
        """Number of tokens, those of a new task included."""
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """Token text to token number, e.g. `{"sex=M": 0, "sex=F": 1, "age": 2}`."""
        return dict(self._token_numbers)

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._token_numbers.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens[index]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        raise TypeError("BEI tokens stand for records, not text; call tokenizer({'sex': 'F', ...}).")

    def _add_tokens(self, new_tokens: Sequence[Any], special_tokens: bool = False) -> int:
        unknown = [str(token) for token in new_tokens if str(token) not in self._token_numbers]
        if unknown:
            raise ValueError(f"Cannot add the tokens {unknown}: a token belongs to a variable; use add_variable.")
        return 0

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a special token that is none of the vocabulary's tokens could not be loaded again."""
        if value is not None and name in self.SPECIAL_TOKENS_ATTRIBUTES and str(value) not in self._token_numbers:
            raise ValueError(f"BEI tokens stand for labels of variables: {name} cannot be {value!s}. Leave it out.")
        super().__setattr__(name, value)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write `bei_vocab.json` and return its path."""
        name = self.vocab_files_names["vocab_file"]
        path = os.path.join(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
        content = {"format": "bei-vocabulary", "version": 1, "variables": [asdict(item) for item in self._variables]}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")
        return (path,)

    def __call__(self, records: Any, pseudo_labels: bool = False, return_tensors: str | None = None) -> BatchEncoding:
        """Turn records into label arrays.

        Args:
            records: One record (dict or pandas row), a list of them, or a DataFrame such as a BIDS `participants.tsv`.
                Columns that are no variable are ignored; None, NaN, "", "n/a", "nan" and absent mean not recorded.
            pseudo_labels: Label subjects of whom nothing is recorded with the variable's default; never the task.
            return_tensors: `"pt"` for tensors, otherwise NumPy arrays.

        Returns:
            `labels`, float32 `(batch, variables)`: label index or scaled value, -100 if not recorded. With a task,
            `labels` `(batch,)` is the task (int64 class, or float32 if continuous) and `bei_targets`
            `(batch, pretrained variables)` the rest; a pretrained task keeps its column there, filled with -100.

        Raises:
            ValueError: Empty batch, unknown label or non-numeric value; the message names row and variable.
            TypeError: Something that is no record, or a value that is neither text nor a number.
        """
        table = RecordTable(records)
        table.warn_of_misspelt(variable.name for variable in self._variables)
        columns = {}
        for variable in self._variables:
            fill = pseudo_labels and variable.name != self.task
            columns[variable.name] = variable.encode(table.column(variable.name), table.where, fill)
        arrays = {}
        if self.task is not None:
            labels = columns[self.task]
            arrays["labels"] = labels if self._find(self.task).kind == "continuous" else labels.astype(np.int64)
            # A pretrained task would be counted twice if its column stayed among the pretrained labels.
            columns[self.task] = np.full_like(labels, IGNORE_INDEX)
        pretrained = [columns[variable.name] for variable in self._pretrained]
        matrix = np.array(pretrained, dtype=np.float32).reshape(len(pretrained), table.count).T.copy()
        arrays["labels" if self.task is None else "bei_targets"] = matrix
        if return_tensors == "pt":
            return BatchEncoding({name: torch.from_numpy(array) for name, array in arrays.items()})
        return BatchEncoding(arrays, tensor_type=return_tensors)

    def pad(self, encoded_inputs: Any, *args: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchEncoding:
        """Make a batch, for `Trainer(processing_class=tokenizer)`; labels have no length, so nothing is padded.

        Args:
            encoded_inputs: One dictionary per scan, such as `{"connectivity": ..., "labels": ...}`, or one of batches.
            *args, **kwargs: Not used.
            return_tensors: `"pt"` for tensors, otherwise NumPy arrays.
        """
        if isinstance(encoded_inputs, Mapping):
            return BatchEncoding(dict(encoded_inputs), tensor_type=return_tensors or "np")
        return BatchEncoding(default_data_collator(list(encoded_inputs), return_tensors or "np"))

    def batch_decode(  # type: ignore[override]
        self,
        logits: Any,
        variables: Sequence[str] | None = None,
        prevalence: Mapping[str, np.ndarray] | None = None,
    ) -> list[dict[str, Any]]:
        """Turn the logits of several subjects into readable records.

        Args:
            logits: `(batch, tokens)` tensor, array or nested list.
            variables: Names of the variables whose tokens these are, in this order; all by default. For the logits of
                a downstream task alone: `[tokenizer.task]`.
            prevalence: Shares of the labels `(batch, labels)` of variables that were fitted in closed form, whose
                logits speak of labels that are equally frequent: probabilities then are those at these shares.

        Returns:
            Per scan a `dict` by variable: `label`, `probability` and `probabilities` (a softmax over the variable's
            labels), or `value` and `unit`. A variable that cannot be read from the atlases of a scan (all its logits
            are NaN) is left out.

        Raises:
            ValueError: Wrong number of axes or tokens, NaN or infinite logits, or an unknown variable.
        """
        chosen = self._variables if variables is None else [self._find(name) for name in variables]
        return decode_records(chosen, logits, prevalence)

    def decode(self, logits: Any, variables: Sequence[str] | None = None) -> dict[str, Any]:  # type: ignore[override]
        """Turn one subject's logits `(tokens,)` into a readable record: see `batch_decode`."""
        array = plain_logits(logits)
        if array.ndim != 1:
            raise ValueError(
                f"decode takes one subject's logits (tokens,), got shape {array.shape}; use batch_decode."
            )
        return self.batch_decode(array[None], variables)[0]

    def to_frame(self, logits: Any, variables: Sequence[str] | None = None) -> Any:
        """Decode `(batch, tokens)` into a pandas table with columns such as sex, sex_probability and age.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: run `pip install pandas`, or use batch_decode.") from error
        rows = []
        for record in self.batch_decode(logits, variables):
            row: dict[str, Any] = {}
            for name, entry in record.items():
                row[name] = entry.get("label", entry.get("value"))
                if "probability" in entry:
                    row[f"{name}_probability"] = entry["probability"]
            rows.append(row)
        return pd.DataFrame(rows)

    def add_variable(self, variable: BEIVariable | Mapping[str, Any], task: bool = False) -> "BEITokenizer":
        """Return a tokenizer with one more variable; the tokens so far keep their numbers.

        Args:
            variable: The new variable.
            task: Make it the downstream task of a fine-tuning, outside the pretrained vocabulary.

        Raises:
            ValueError: The name is taken, or this tokenizer already has a new task, whose tokens must stay last.
        """
        self._require_pretrained()
        added = as_variables([*self._variables, variable])
        if task:
            return type(self)(variables=added, task=added[-1].name, task_is_new=True)
        return type(self)(variables=added, task=self.task)

    def for_task(self, name: str, positive: str | None = None) -> "BEITokenizer":
        """Return a tokenizer whose downstream task is the pretrained variable `name`; its own tokens are fine-tuned.

        Args:
            name: The variable; its tokens keep their order.
            positive: Its positive label, if it is another one than so far.

        Raises:
            ValueError: There is no such variable or label, or this tokenizer already has a new task.
        """
        self._require_pretrained()
        task = self._find(name)
        task = task if positive is None else replace(task, positive=positive)
        variables = [task if variable.name == name else variable for variable in self._variables]
        return type(self)(variables=variables, task=name)

    def fit_scaling(self, records: Any, names: Sequence[str] | None = None) -> "BEITokenizer":
        """Return a tokenizer whose continuous variables have mean 0 and standard deviation 1 on these records.

        Args:
            records: Training records only; held-out subjects must not shape the labels.
            names: Variables to refit, all continuous ones by default. Name the new ones when fine-tuning: the tokens
                of a pretrained variable have learnt its present scaling.

        Raises:
            ValueError: `names` holds something that is not a continuous variable, or as for calling the tokenizer.
        """
        table = RecordTable(records)
        continuous = [variable.name for variable in self._variables if variable.kind == "continuous"]
        for name in names or []:
            if name not in continuous:
                raise ValueError(
                    f"{name!r} is not a continuous variable; those are {', '.join(continuous) or 'none'}."
                )
        fitted = []
        for variable in self._variables:
            if variable.name in (continuous if names is None else names):
                values = variable.parse(table.column(variable.name), table.where)
                values = values[~np.isnan(values)]
                values = np.log(values[values > 0]) if variable.log else values
                if len(values):  # a variable that these subjects lack keeps its scaling
                    variable = replace(
                        variable, mean=float(values.mean()), std=float(values.std()) if np.ptp(values) else 1.0
                    )
            fitted.append(variable)
        return type(self)(variables=fitted, task=self.task, task_is_new=self.task_is_new)

    @classmethod
    def from_records(cls, records: Any, columns: Sequence[str] | None = None) -> "BEITokenizer":
        """Propose a vocabulary for a table: a starting point to be read, named and given units and aliases.

        Numeric columns with more than 10 different values become continuous (unscaled: see `fit_scaling`), others
        categorical with sorted labels; of two, that of a comparison group such as `control` comes first, because the
        last one is the positive one. By default all columns but identifiers and constant ones are taken.

        Raises:
            ValueError: An absent column, an explicitly named constant one, or a text column that looks like free text.
        """
        return cls(variables=infer_variables(RecordTable(records), columns))

    @classmethod
    def merge(
        cls,
        vocabularies: Iterable["BEITokenizer | Vocabulary"],
        aliases: Mapping[str, Mapping[str, str]] | None = None,
    ) -> "BEITokenizer":
        """Unify the vocabularies of several cohorts; the result has no task.

        Variables of the same name become one. Its labels are the union in first-seen order, after labels that an alias
        table declares equal have been joined. Scaling, loss weight and description are those of the first vocabulary
        that has the variable: call `fit_scaling` on the pooled training records.

        Args:
            vocabularies: Tokenizers or lists of variables.
            aliases: `{variable: {other spelling: label}}` that holds across the vocabularies.

        Raises:
            ValueError: Contradicting aliases, kinds, units or defaults; the message names both.
        """
        lists = [item.variables if isinstance(item, BEITokenizer) else as_variables(item) for item in vocabularies]
        return cls(variables=merge_variables(lists, aliases))

    def check_config(self, config: Any) -> None:
        """Check that a model was built for this vocabulary.

        Args:
            config: Model configuration with `bei_variables`.

        Raises:
            ValueError: Names, kinds or labels differ; the message names the first difference.
        """
        ours, theirs = self.model_variables, list(config.bei_variables or [])
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
            for key in ("name", "kind", "labels"):
                if mine[key] != other[key]:
                    raise ValueError(
                        f"Tokenizer and model disagree on the {key} of BEI variable {index}: {mine[key]!r} and "
                        f"{other[key]!r}. Use the tokenizer that was saved with the model."
                    )
        if len(ours) != len(theirs):
            unmatched = max(ours, theirs, key=len)[min(len(ours), len(theirs))]
            raise ValueError(
                f"The tokenizer has {len(ours)} pretrained BEI variables, the model {len(theirs)}; the first that "
                f"only one of them has is {unmatched['name']!r}. Use the tokenizer that was saved with the model."
            )

    def _find(self, name: str) -> BEIVariable:
        for variable in self._variables:
            if variable.name == name:
                return variable
        known = ", ".join(variable.name for variable in self._variables)
        raise ValueError(f"There is no BEI variable {name!r}; the vocabulary has {known}.")

    def _require_pretrained(self) -> None:
        if self.task_is_new:
            raise ValueError(
                f"This tokenizer already has the new task {self.task!r}; start from the pretrained tokenizer."
            )
