"""Explanations of a checkpoint or of all folds of an evaluation."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from modeling_lcm import BEITokenizer, BEIVariable, LCMProcessor
from modeling_lcm.loss_lcm import IGNORE_INDEX

from ..data.cohort import Cohort, load_cohort
from ..data.combine import for_checkpoint
from ..data.folds import Folds
from ..storage.files import claim
from ..trainer.checkpoints import load_model, load_processor
from .arguments import ExplainArguments
from .association import Explained, explain_token
from .attention import attention_by_scan, best_layer
from .report import write_explanation


def explain(arguments: ExplainArguments) -> list[Explained]:
    """Make maps, tests, stability, tables and the page.

    Args:
        arguments (`ExplainArguments`): what to explain.

    Returns:
        One entry per token.

    Raises:
        ValueError: no such checkpoint or variable, another atlas, or a variable that nobody has a value of.
        FileExistsError: the output holds results.
    """
    with claim(arguments.output) as output:
        return _explain(arguments, output)


def _explain(arguments: ExplainArguments, output: Path) -> list[Explained]:
    cohort = load_cohort(arguments.data)
    models = _models(arguments, cohort)
    processor = load_processor(models[0][0])
    cohort, tokenizer = _in_one_atlas(processor, cohort, arguments.atlas), processor.tokenizer
    variables = _variables(arguments, tokenizer)
    parts: dict[str, list[dict[str, Any]]] = {variable.name: [] for variable in variables}
    reads_edges = False
    for checkpoint, shown in models:
        model, own_tokenizer, shown = _load(checkpoint, shown, arguments.atlas)
        reads_edges |= model.config.edge_readout
        for variable in variables:
            parts[variable.name].append(_part(model, own_tokenizer, shown, variable.name, arguments))
    found = []
    for variable in variables:
        for number, token in enumerate(variable.tokens):
            found.append(
                explain_token(variable, number, token, parts[variable.name], arguments.permutations, arguments.seed)
            )
    write_explanation(output, arguments, cohort, found, reads_edges)
    return found


def _models(arguments: ExplainArguments, cohort: Cohort) -> list[tuple[str, Cohort]]:
    """Checkpoints, each with the scans that it is shown."""
    if arguments.evaluation is None:
        return [(arguments.checkpoint, cohort)]
    folder = Path(arguments.evaluation)
    repeated = (folder / "splits_0.json").is_file()
    folds = Folds.load(folder / ("splits_0.json" if repeated else "splits.json"))
    found = []
    for fold in range(len(folds.test_subjects)):
        place = folder / (f"repeat_0_fold_{fold}" if repeated else f"fold_{fold}")
        inside = [place / part / name for name in ("checkpoint", "pretrained") for part in ("", "member_0")]
        checkpoint = next((path for path in inside if (path / "config.json").is_file()), None)
        if checkpoint is None:
            raise ValueError(f"{place} holds no checkpoint: run the evaluation with keep_checkpoints.")
        found.append((str(checkpoint), folds.split(cohort, fold)[1]))
    return found


def _variables(arguments: ExplainArguments, tokenizer: BEITokenizer) -> list[BEIVariable]:
    known = {variable.name: variable for variable in tokenizer.variables}
    names = arguments.variables or ([tokenizer.task] if tokenizer.task is not None else list(known))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"The checkpoint has no variable {', '.join(unknown)}; it has {', '.join(known)}.")
    return [known[name] for name in names]


def _in_one_atlas(processor: LCMProcessor, cohort: Cohort, atlas: str | None) -> Cohort:
    """The scans in the checkpoint's atlas; of several in common with the data, in the one that was named."""
    shared = for_checkpoint(processor, cohort)
    if atlas is None and shared.others:
        raise ValueError(
            f"Checkpoint and data have the atlases {', '.join(shared.atlases)} in common: name the one whose regions "
            "are to be shown, with --atlas."
        )
    return shared if atlas is None else shared.with_atlas(atlas)


def _load(checkpoint: str, cohort: Cohort, atlas: str | None) -> tuple[PreTrainedModel, BEITokenizer, Cohort]:
    """Model and tokenizer of a checkpoint, and the scans in its atlas."""
    processor = load_processor(checkpoint)
    shown = _in_one_atlas(processor, cohort, atlas)
    model = load_model(checkpoint, attn_implementation="eager")
    if model.config.closed_form:
        raise ValueError(
            f"{checkpoint} was fitted in closed form: its tokens read edges and attend to no region, so there is "
            "nothing to explain by attention. Look at the weights of its edge read-outs (bei_edge_readout)."
        )
    return model, processor.tokenizer, shown


def _part(
    model: PreTrainedModel,
    tokenizer: BEITokenizer,
    cohort: Cohort,
    name: str,
    arguments: ExplainArguments,
) -> dict[str, Any]:
    """Maps by method `(scans, tokens, regions)`, values and subjects of the scans that have a value of a variable."""
    variable = next(variable for variable in tokenizer.variables if variable.name == name)
    cohort.require_column(name)
    values = BEITokenizer(variables=[variable])(cohort.table)["labels"][:, 0].astype(float)
    known = values != IGNORE_INDEX
    if not known.any():
        raise ValueError(f"{name!r} is recorded for none of the subjects that are shown to the model.")
    cohort, values = cohort.select(known), values[known]
    tokens = tokenizer.token_slices[name]
    layers, rolled, logits = attention_by_scan(model, cohort, tokens, arguments.batch_size)
    best = best_layer(logits, values, variable.kind)
    return {
        "maps": {"mean": layers.mean(1), "rollout": rolled, "best_layer": layers[:, best]},
        "best_layer": best,
        "values": values,
        "subjects": cohort.subjects.to_numpy(),
        "scans": cohort.table.index.to_numpy(),
    }
