"""Try a checkpoint on one scan in the browser: `python -m hub_cards.space.app --checkpoint FOLDER`.

The file that is dropped is read as `training.prepare` reads it, and refused with the same words. As a Space (see
README.md in this folder) the app takes the checkpoint from the variable LCM_CHECKPOINT.
"""

import argparse
import os
import warnings
import zipfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import AutoConfig

import modeling_lcm
from modeling_lcm.atlases import find_atlas, region_coordinates
from modeling_lcm.edges_lcm import LCMEdgeFeatures
from modeling_lcm.limits_lcm import NOT_KNOWN
from modeling_lcm.readouts_lcm import prevalences
from training.preparation.quality import homotopic_pairs, measure
from training.preparation.sources.arrays import read_array
from training.preparation.sources.text import FileArray
from training.reporting.figures import plot_region_attention


if TYPE_CHECKING:
    import gradio


FORMATS = (".npy", ".npz", ".mat", ".tsv", ".csv", ".txt", ".1D")
LARGEST_MB = 20  # a scan of 1,000 regions and 1,200 volumes in single precision has 5
LARGEST_UNPACKED_MB = 200
TITLE = "Large Connectome Model: try it on a scan"
INTRODUCTION = """
Drop **one scan**: ROI time series (volumes, regions) or Pearson FC (regions, regions), in {atlases}. The file is read
on this machine and deleted after an hour.

This is research software, not a diagnostic device: nothing on this page says anything about a patient.
"""
NOT_NAMED = "The file names no regions: their order was not checked."
NO_MAP = "There is no map: {why}."
ABOUT_MAP = "How much the token reads of each region, averaged over layers and heads (1 = evenly)."
ABOUT_EDGES = " What the model reads from single edges is not in it."
ABOUT_SHARES = "How much each region's edges moved the answer for this scan, up or down (1 = all alike)."
SHIPPED = Path(__file__).resolve().parents[1] / "lcm-open"


@dataclass(frozen=True)
class Answer:
    """What the page says about a scan.

    Args:
        status (`str`): one paragraph: whether the scan is one that the model can say something about.
        quality (`list[tuple[str, str]]`): measures of the scan and their values.
        predictions (`list[tuple[str, str, str]]`): variable, prediction, and how sure it is; none beyond a limit.
        atlas (`str`): the atlas that the scan was read in.
        maps (`dict[str, np.ndarray]`): per token how much each region counts `(regions,)`, 1 on average.
        shown (`str`): the token whose map is shown first; empty without maps.
    """

    status: str
    quality: list[tuple[str, str]]
    predictions: list[tuple[str, str, str]]
    atlas: str
    maps: dict[str, np.ndarray]
    shown: str


class Reader:
    """A checkpoint that answers about scans.

    Args:
        checkpoint (`str`): folder or Hub repository of a model with its processor.

    Raises:
        ValueError: it is no checkpoint of this package.
    """

    def __init__(self, checkpoint: str) -> None:
        config = AutoConfig.from_pretrained(checkpoint)
        name = (config.architectures or ["none"])[0]
        kind = getattr(modeling_lcm, name, None)
        if not isinstance(config, modeling_lcm.LCMConfig) or kind is None:
            raise ValueError(f"{checkpoint} holds a {name}: a checkpoint of this package is needed.")
        self.processor = modeling_lcm.LCMProcessor.from_pretrained(checkpoint)
        # Only this implementation returns the maps.
        self.model = kind.from_pretrained(checkpoint, attn_implementation="eager").eval().requires_grad_(False)
        self.extractors = self.processor.feature_extractor.by_atlas

    def read(self, path: Path, age: float | None = None) -> Answer:
        """Read a file, measure the scan, and predict.

        Args:
            path (`Path`): the file.
            age (`float`, *optional*): of the subject in years, which is compared with the training subjects'.

        Raises:
            ValueError: the file is too large, or no scan that the processor takes.
        """
        _require_size(path)
        array = read_array(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            given = self.processor(**_as_scan(array), return_tensors="pt")["connectivity"]
        # Of several atlases, the one that has as many regions as the scan.
        by_atlas = given if isinstance(given, dict) else dict(zip(self.extractors, [given], strict=True))
        atlas, connectivity = next(iter(by_atlas.items()))
        remarks = [*array.remarks, *(str(each.message) for each in caught if each.category is UserWarning)]
        if array.header is None:
            remarks.append(NOT_NAMED)
        if len(connectivity) != 1:
            raise ValueError("The checkpoint cuts scans into windows: this page takes one that reads them whole.")
        outputs, edges = self._run(given)
        record = self._record(outputs, atlas)
        closed, regions = bool(self.model.config.closed_form), connectivity.shape[-1]
        maps = _shares(self._logits(outputs), edges, regions) if closed else self._maps(outputs)
        first = self._first_token(record)
        is_outside, status = self._status(atlas, connectivity, age)
        return Answer(
            status,
            [*self._quality(array, atlas, connectivity[0].numpy()), *(("remark", text) for text in remarks)],
            [] if is_outside else [(name, *self._words(name, said)) for name, said in record.items()],
            atlas,
            maps,
            first if first in maps else next(iter(maps), ""),
        )

    def _run(self, given: Any) -> tuple[Any, list[torch.Tensor]]:
        """Outputs of the model, and the edges that it reads, with their share in every logit still to be asked for."""
        edges: list[torch.Tensor] = []

        def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            edges.append(output.detach().requires_grad_())
            return edges[-1]

        hooks = [m.register_forward_hook(keep) for m in self.model.modules() if isinstance(m, LCMEdgeFeatures)]
        try:
            return self.model(connectivity=given, output_attentions=True), edges
        finally:
            for hook in hooks:
                hook.remove()

    def _record(self, outputs: Any, atlas: str) -> dict[str, Any]:
        """Predictions by variable, the task first; of what was fitted in closed form at its labels' own shares."""
        tokenizer, shares = self.processor.tokenizer, prevalences(self.model.config, [(atlas,)])
        pretrained = [variable["name"] for variable in tokenizer.model_variables]
        bei_logits = getattr(outputs, "bei_logits", None)
        if bei_logits is None:
            return tokenizer.batch_decode(outputs.logits.detach(), prevalence=shares)[0]
        task = tokenizer.batch_decode(outputs.logits.detach(), [tokenizer.task], shares)[0]
        return task | tokenizer.batch_decode(bei_logits.detach(), pretrained, shares)[0] | task

    def _logits(self, outputs: Any) -> dict[str, torch.Tensor]:
        """Logits of the tokens that can be read from the scan, by variable and token: against the others' mean."""
        bei_logits = getattr(outputs, "bei_logits", None)
        logits = (outputs.logits if bei_logits is None else torch.cat([bei_logits, outputs.logits], 1))[0]
        names = list(self.processor.tokenizer.get_vocab())
        found: dict[str, torch.Tensor] = {}
        for tokens in self.processor.tokenizer.token_slices.values():
            values = logits[tokens]
            if not values.isnan().any():
                against = values - values.mean() if len(values) > 1 else values
                found |= dict(zip(names[tokens], against, strict=True))
        return found

    def _status(self, atlas: str, connectivity: torch.Tensor, age: float | None) -> tuple[bool, str]:
        """Whether the scan lies beyond a limit, so that no prediction is shown; and what is said of it."""
        limits = self.processor.limits
        if limits is not None and len(self.extractors) > 1:
            limits = limits.of_atlas(atlas)
        if limits is None:
            return False, NOT_KNOWN
        check = limits.check(connectivity, None if age is None else [age])[0]
        if check.out_of_distribution:
            outside = "**This scan lies outside the training scans: no prediction is shown.** "
            return True, outside + " ".join(check.reasons)
        unlike = "".join(f" **{said}**" for said in check.of_variables.values())
        return False, (
            f"This scan resembles the training scans: {check.beyond:.0%} of them lie further from their mean. "
            f"Predictions are about groups, and often wrong about one subject.{unlike}"
        )

    def _quality(self, array: FileArray, atlas: str, matrix: np.ndarray) -> list[tuple[str, str]]:
        names, known = self.extractors[atlas].region_names, find_atlas(atlas)
        pairs = homotopic_pairs(names, None if known is None else region_coordinates(known))
        found = measure(matrix, pairs)
        silent = [names[place] if names else f"region {place + 1}" for place in found["silent"]]
        rows, columns = array.values.shape[:2]
        rank = found["homotopic"]
        return [
            ("atlas", atlas),
            ("read as", f"FC of {columns} regions" if rows == columns else f"{rows} volumes of {columns} regions"),
            ("regions without signal", ", ".join(silent) or "none"),
            ("mean FC", "-" if found["mean_fc"] is None else f"{found['mean_fc']:.2f}"),
            (
                "left and right counterparts",
                "-" if rank is None else f"more alike than {rank:.0%} of all pairs of regions (50% = by chance)",
            ),
        ]

    def _words(self, name: str, said: dict[str, Any]) -> tuple[str, str]:
        """A prediction, and how sure it is."""
        limits = self.processor.limits
        if "probabilities" in said:
            possible = None if limits is None else limits.uncertainty(name, said["probabilities"])
            sure = f"probability {said['probability']:.0%}"
            if possible is not None:
                sure += f"; not ruled out at 90 %: {', '.join(possible) or 'none'}"
            return str(said["label"]), sure
        span = None if limits is None else limits.uncertainty(name, said["value"])
        sure = "range not known" if span is None else f"90 % range {span[0]:.1f} to {span[1]:.1f}"
        return f"{said['value']:.1f} {said.get('unit') or ''}".strip(), sure

    def _maps(self, outputs: Any) -> dict[str, np.ndarray]:
        """How much every token reads of each region, 1 on average; none where the model has no attention."""
        layers = getattr(outputs, "cross_attentions", None)
        if not layers:
            return {}
        read = torch.stack([layer[0].float().mean(0) for layer in layers]).mean(0)  # (tokens, regions)
        names = list(self.processor.tokenizer.get_vocab())
        return {name: (row * len(row)).numpy() for name, row in zip(names, read, strict=True)}

    @staticmethod
    def _first_token(record: dict[str, Any]) -> str:
        """The token of the first variable's predicted label."""
        name, said = next(iter(record.items()), ("", dict[str, Any]()))
        return f"{name}={said['label']}" if "label" in said else name

    def draw(self, answer: Answer, token: str) -> Figure | None:
        """The glass brain of one token, where the places of the regions are known."""
        known = find_atlas(answer.atlas)
        places = None if known is None else region_coordinates(known)
        if token not in answer.maps or places is None:
            return None
        return plot_region_attention(answer.maps[token], places, f"{token}")

    def about_map(self, answer: Answer) -> str:
        """What stands below the map."""
        known = find_atlas(answer.atlas)
        if not answer.maps or known is None or region_coordinates(known) is None:
            return NO_MAP.format(why=f"the places of the regions of {answer.atlas} are not known here")
        if self.model.config.closed_form:
            return ABOUT_SHARES
        return ABOUT_MAP + (ABOUT_EDGES if self.model.config.edge_readout else "")


def _shares(logits: dict[str, torch.Tensor], edges: list[torch.Tensor], regions: int) -> dict[str, np.ndarray]:
    """By token, how much the edges of each region moved a logit that is read from edges: absolute, 1 on average."""
    (values,) = edges  # (1, edges) of the one atlas: in the order of triu_indices, once for every shrinkage
    ends = np.triu_indices(regions, 1)
    found: dict[str, np.ndarray] = {}
    for token, logit in logits.items():
        (slope,) = torch.autograd.grad(logit, values, retain_graph=True)
        each = (slope * values)[0].detach().double().reshape(-1, len(ends[0]))  # (shrinkages, pairs of regions)
        moved = each.sum(0).abs().numpy()
        of_region = np.bincount(np.concatenate(ends), np.tile(moved, 2), regions)
        if of_region.any():
            found[token] = of_region / of_region.mean()
    return found


def _require_size(path: Path) -> None:
    """Raise `ValueError` for a file that is too large for a page, also once it is unpacked."""
    if path.suffix.lower() not in [each.lower() for each in FORMATS]:
        raise ValueError(f"{path.name} is no file of one scan that is read here: give {', '.join(FORMATS)}.")
    size = path.stat().st_size / 1e6
    if size > LARGEST_MB:
        raise ValueError(
            f"{path.name} has {size:.0f} MB, and one scan has at most {LARGEST_MB}: give FC or ROI time series, not "
            "voxels; many scans are for training.predict."
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist()) / 1e6
        if unpacked > LARGEST_UNPACKED_MB:
            raise ValueError(f"{path.name} holds {unpacked:.0f} MB unpacked: give one scan.")


def _years(text: str) -> float | None:
    """An age as it is typed, with a decimal point or comma; None where nothing is."""
    try:
        return float(text.replace(",", ".")) if text.strip() else None
    except ValueError:
        raise ValueError(f"The age is {text!r}: a number of years is needed, or nothing.") from None


def _as_scan(array: FileArray) -> dict[str, Any]:
    """What the processor is called with; names stay with the numbers."""
    values = array.values
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2:
        raise ValueError(
            f"The file has an array of shape {values.shape}: one scan is needed, (volumes, regions) or (regions, "
            "regions)."
        )
    square = values.shape[0] == values.shape[1]
    content: Any = values
    if array.header is not None:
        rows = (array.rows or array.header) if square else None
        content = pd.DataFrame(values, columns=array.header, index=rows)
    return {"connectivity" if square else "time_series": content}


def _table(header: tuple[str, ...], rows: list[Any]) -> str:
    """A table in Markdown; what comes from the file is escaped."""
    if not rows:
        return ""
    cells = [
        header,
        ("---",) * len(header),
        *[[escape(str(cell)).replace("|", "\\|") for cell in row] for row in rows],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def build(reader: Reader) -> "gradio.Blocks":
    """The page."""
    import gradio as gr

    def look(path: str | None, age: str) -> tuple[Any, ...]:
        empty = gr.update(choices=[], value=None, visible=False)
        if path is None:
            return "", "", "", None, None, empty, ""
        try:
            answer = reader.read(Path(path), _years(age))
        except (ValueError, TypeError, OSError) as error:
            return f"**This file was not used.** {escape(str(error))}", "", "", None, None, empty, ""
        tokens = gr.update(choices=[*answer.maps], value=answer.shown or None, visible=bool(answer.maps))
        return (
            answer.status,
            _table(("quality", "value"), answer.quality),
            _table(("variable", "prediction", "how sure"), answer.predictions),
            answer,
            reader.draw(answer, answer.shown),
            tokens,
            reader.about_map(answer),
        )

    # Files of visitors are deleted after an hour, and nothing is reported to anybody.
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}")
        atlases = (f"**{name}** ({extractor.num_regions} regions)" for name, extractor in reader.extractors.items())
        gr.Markdown(INTRODUCTION.format(atlases=" or ".join(atlases)))
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                file = gr.File(label="Scan", file_types=list(FORMATS), type="filepath")
                age = gr.Textbox(label="Age in years (optional)", max_lines=1)
            with gr.Column(scale=2, min_width=300):
                status = gr.Markdown(elem_id="status")
                predictions = gr.Markdown(elem_id="predictions")
                quality = gr.Markdown(elem_id="quality")
        token = gr.Dropdown(label="Map of the token", choices=[], visible=False, elem_id="token")
        brain = gr.Plot(show_label=False, elem_id="map")
        caption = gr.Markdown(elem_id="caption")
        answer = gr.State()
        outputs = [status, quality, predictions, answer, brain, token, caption]
        gr.on([file.change, age.submit], look, inputs=[file, age], outputs=outputs)
        token.input(
            lambda answer, token: None if answer is None else reader.draw(answer, token), [answer, token], brain
        )
    return page


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--checkpoint",
        default=os.environ.get("LCM_CHECKPOINT") or (str(SHIPPED) if SHIPPED.is_dir() else None),
        help="folder or Hub repository (default: the variable LCM_CHECKPOINT, or the weights that come along)",
    )
    parser.add_argument("--port", type=int, default=None, help="default: 7860, or the next free one")
    options = parser.parse_args(argv)
    if not options.checkpoint:
        parser.error("no checkpoint: give --checkpoint, or set the variable LCM_CHECKPOINT")
    try:
        import gradio as gr
    except ImportError:
        parser.error("Gradio is not installed: pip install 'large-connectome-model[app]'")
    # Fonts of the system: the themes' own would be fetched from elsewhere.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = build(Reader(options.checkpoint))
    page.launch(server_port=options.port, max_file_size=f"{LARGEST_MB}mb", theme=theme, ssr_mode=False)


if __name__ == "__main__":
    main()
