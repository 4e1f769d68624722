"""Which regions a BEI token reads, and what that has to do with the label: `python -m training.explain`.

Cross-attention per scan is drawn together in three ways, averaged per class, tested against shuffled labels, and
compared between the models of an evaluation's folds (or halves of the people): a map that they do not share is called
unstable. Attention says where a token looks, not what the prediction depends on.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling_lcm import BEITokenizer, BEIVariable
from modeling_lcm.loss_lcm import IGNORE_INDEX

from .arguments import command_line, parse_arguments, setting
from .association import Explained, explain_token
from .checkpoints import check_same_regions, load_model, load_processor
from .data import Cohort, load_cohort, to_matrices
from .explain_report import write_explanation
from .files import require_new, require_writable
from .splits import Folds


METHODS = ("mean", "rollout", "best_layer")


@dataclass
class ExplainArguments:
    """Show which regions the tokens of a variable read, and whether that differs between people with other labels."""

    checkpoint: str = setting("", "Checkpoint folder or Hub repository; pretrained or fine-tuned.")
    evaluation: str | None = setting(
        None, "Folder of training.evaluate instead: every fold's checkpoint is shown its own test people."
    )
    data: str = setting("", "Folder made by training.prepare; with evaluation, the data set it was made with.")
    output: str = setting("", "Folder for tables, pictures and the HTML page.")
    variables: list[str] = field(
        default_factory=list, metadata={"help": "Variables to explain; default: the task, or all pretrained ones."}
    )
    method: str = setting(
        "mean",
        'What is drawn: "mean" (over heads and layers), "rollout" (followed through the layers), or "best_layer" (the '
        "layer that predicts the variable best, as the paper draws it). The table has all three.",
    )
    permutations: int = setting(5000, "Shuffles of the labels.")
    seed: int = setting(0, "Seed of the shuffles and of the halves.")
    batch_size: int = setting(32, "Scans per forward pass.")

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if self.permutations < 100:
            raise ValueError(f"permutations must be at least 100, got {self.permutations}.")
        if bool(self.checkpoint) == (self.evaluation is not None):
            raise ValueError("Give either checkpoint or evaluation (a folder of training.evaluate).")


@torch.no_grad()
def region_attention(model: PreTrainedModel, cohort: Cohort, rows: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Mean cross-attention of every token over regions (paper, section 3.2; maps averaged over heads and layers).

    Args:
        model (`PreTrainedModel`): an LCM head loaded with `attn_implementation="eager"`, which makes the maps.
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): scans to average over.
        batch_size (`int`): scans per forward pass.

    Returns:
        `(tokens, regions)`, float32: pretrained tokens first, then the task's; each row sums to 1.

    Raises:
        ValueError: the model's attention implementation makes no maps.
    """
    tokens = slice(None)
    return (
        attention_by_scan(model, cohort, rows, tokens, batch_size)[0].mean((0, 1), dtype=np.float64).astype("float32")
    )


@torch.no_grad()
def attention_by_scan(
    model: PreTrainedModel, cohort: Cohort, rows: np.ndarray, tokens: slice, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cross-attention of some tokens, scan by scan.

    Args:
        model (`PreTrainedModel`): an LCM head loaded with `attn_implementation="eager"`.
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): scans.
        tokens (`slice`): which tokens.
        batch_size (`int`): scans per forward pass.

    Returns:
        Maps of every layer, averaged over heads, `(scans, layers, tokens, regions)`; the rollout `(scans, tokens,
        regions)`; and the layers' logits `(scans, layers, tokens)`; float32.

    Raises:
        ValueError: the model's attention implementation makes no maps.
    """
    if model.config._attn_implementation != "eager":
        raise ValueError('Attention maps need a model loaded with attn_implementation="eager".')
    model.eval()
    layers, rolled, logits = [], [], []
    for start in range(0, len(rows), batch_size):
        triangles = torch.from_numpy(cohort.triangles[rows[start : start + batch_size]])
        connectivity = to_matrices(triangles, cohort.feature_extractor.num_regions).to(model.device)
        outputs = model(connectivity=connectivity, output_attentions=True)
        cross = torch.stack([maps.float().mean(1) for maps in outputs.cross_attentions], dim=1)
        own = torch.stack([maps.float().mean(1) for maps in outputs.attentions], dim=1)
        layers.append(cross[:, :, tokens].cpu().numpy())
        rolled.append(rollout(own, cross)[:, tokens].cpu().numpy())
        logits.append(outputs.layer_logits[..., tokens].float().cpu().numpy())
    return np.concatenate(layers), np.concatenate(rolled), np.concatenate(logits)


def rollout(own: Tensor, cross: Tensor) -> Tensor:
    """Follow what tokens read through the layers: a token also carries what other tokens had read before.

    Each residual block is taken as half of what was there and half of what its attention brings; the first layer's
    self-attention has nothing to pass on.

    Args:
        own (`Tensor` of shape `(batch, layers, tokens, tokens)`): self-attention, averaged over heads.
        cross (`Tensor` of shape `(batch, layers, tokens, regions)`): cross-attention, averaged over heads.

    Returns:
        `(batch, tokens, regions)`; rows sum to 1.

    Source: Abnar and Zuidema 2020, ACL, doi:10.18653/v1/2020.acl-main.385, for a decoder with cross-attention.
    """
    carried = torch.zeros_like(cross[:, 0])
    for layer in range(cross.shape[1]):
        carried = (carried + own[:, layer] @ carried) / 2
        carried = (carried + cross[:, layer]) / 2
    return carried / carried.sum(-1, keepdim=True)


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
    output = require_new(arguments.output)
    cohort = load_cohort(arguments.data)
    models = _models(arguments, cohort)
    tokenizer = load_processor(models[0][0]).tokenizer
    variables = _variables(arguments, tokenizer)
    require_writable(output.parent)
    parts: dict[str, list[dict[str, Any]]] = {variable.name: [] for variable in variables}
    reads_edges = False
    for checkpoint, rows in models:
        model, own_tokenizer = _load(checkpoint, cohort)
        reads_edges |= model.config.edge_readout
        for variable in variables:
            parts[variable.name].append(_part(model, own_tokenizer, cohort, rows, variable.name, arguments))
    found = []
    for variable in variables:
        for number, token in enumerate(variable.tokens):
            found.append(
                explain_token(variable, number, token, parts[variable.name], arguments.permutations, arguments.seed)
            )
    write_explanation(output, arguments, cohort, found, reads_edges)
    return found


def _models(arguments: ExplainArguments, cohort: Cohort) -> list[tuple[str, np.ndarray]]:
    """Checkpoints, each with the rows that it is shown."""
    if arguments.evaluation is None:
        return [(arguments.checkpoint, np.arange(len(cohort.table)))]
    folder = Path(arguments.evaluation)
    repeated = (folder / "splits_0.json").is_file()
    folds = Folds.load(folder / ("splits_0.json" if repeated else "splits.json"))
    subjects = cohort.table["subject_id"].astype(str)
    found = []
    for fold in range(len(folds.test_subjects)):
        place = folder / (f"repeat_0_fold_{fold}" if repeated else f"fold_{fold}")
        inside = [place / part / name for name in ("checkpoint", "pretrained") for part in ("", "member_0")]
        checkpoint = next((path for path in inside if (path / "config.json").is_file()), None)
        if checkpoint is None:
            raise ValueError(f"{place} holds no checkpoint: run the evaluation with keep_checkpoints.")
        found.append((str(checkpoint), folds.rows(subjects, fold)[1]))
    return found


def _variables(arguments: ExplainArguments, tokenizer: BEITokenizer) -> list[BEIVariable]:
    known = {variable.name: variable for variable in tokenizer.variables}
    names = arguments.variables or ([tokenizer.task] if tokenizer.task is not None else list(known))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"The checkpoint has no variable {', '.join(unknown)}; it has {', '.join(known)}.")
    return [known[name] for name in names]


def _load(checkpoint: str, cohort: Cohort) -> tuple[PreTrainedModel, BEITokenizer]:
    processor = load_processor(checkpoint)
    check_same_regions(processor, cohort)
    return load_model(checkpoint, attn_implementation="eager"), processor.tokenizer


def _part(
    model: PreTrainedModel,
    tokenizer: BEITokenizer,
    cohort: Cohort,
    rows: np.ndarray,
    name: str,
    arguments: ExplainArguments,
) -> dict[str, Any]:
    """Maps by method `(scans, tokens, regions)`, values and subjects of the scans that have a value of a variable."""
    variable = next(variable for variable in tokenizer.variables if variable.name == name)
    cohort.require_column(name)
    values = BEITokenizer(variables=[variable])(cohort.table.iloc[rows])["labels"][:, 0].astype(float)
    known = values != IGNORE_INDEX
    if not known.any():
        raise ValueError(f"{name!r} is recorded for none of the people who are shown to the model.")
    rows, values = rows[known], values[known]
    tokens = tokenizer.token_slices[name]
    layers, rolled, logits = attention_by_scan(model, cohort, rows, tokens, arguments.batch_size)
    best = best_layer(logits, values, variable.kind)
    return {
        "maps": {"mean": layers.mean(1), "rollout": rolled, "best_layer": layers[:, best]},
        "best_layer": best,
        "values": values,
        "subjects": cohort.table["subject_id"].astype(str).iloc[rows].to_numpy(),
        "rows": rows,
    }


def best_layer(logits: np.ndarray, values: np.ndarray, kind: str) -> int:
    """The layer with the lowest loss of a variable on these scans.

    Args:
        logits (`np.ndarray` of shape `(scans, layers, tokens)`): of the variable's tokens.
        values (`np.ndarray` of shape `(scans,)`): class index, or scaled value.
        kind (`str`): "categorical" or "continuous".
    """
    if kind == "continuous":
        losses = (logits[..., 0] - values[:, None]) ** 2
    else:
        log_probabilities = torch.from_numpy(logits).double().log_softmax(-1).numpy()
        losses = -np.take_along_axis(log_probabilities, values.astype(int)[:, None, None], axis=2)[..., 0]
    return int(losses.mean(0).argmin())


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(ExplainArguments, argv)
    for entry in explain(arguments):
        print(entry.sentence(arguments.method))
    print(f"Page: {Path(arguments.output) / 'explanation.html'}")


if __name__ == "__main__":
    main()
