"""The pictures of a report, as matplotlib figures; none needs a display.

Figures are made directly, without pyplot, so that nothing stays open and no backend is switched.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix, roc_auc_score, roc_curve

from .networks import network_of


matplotlib.rcParams["text.parse_math"] = False  # a label such as "$5-10$" is text, and not always valid mathematics

# Okabe and Ito's palette, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
NETWORK_TITLES = {
    "Vis": "visual",
    "SomMot": "somato-\nmotor",
    "DorsAttn": "dorsal\nattention",
    "SalVentAttn": "salience, ventral\nattention",
    "Limbic": "limbic",
    "Cont": "control",
    "Default": "default\nmode",
}
WIDTH_INCHES = 7.0
FEWEST_FOR_CURVE = 10  # subjects of either class for a fold's own ROC curve; with fewer it is a few large steps
CONNECTIONS = 30  # drawn in a glass brain


def plot_training_curves(histories: Sequence[Sequence[Mapping[str, Any]]]) -> Figure:
    """Training and validation loss by epoch: a thin line per fold, a thick one for their mean.

    Args:
        histories: per fold the records of its epochs, with `epoch` and `train_loss`; optional are `validation_loss`
            (None without validation) and `stage`, whose change is marked. For a single run give `[history]`.

    Raises:
        ValueError: no epoch at all.
    """
    if not any(histories):
        raise ValueError("The histories are empty: there is no epoch to plot.")
    figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
    axes = figure.subplots()
    _plot_loss(axes, histories, "train_loss", "training subjects", COLOURS[0])
    _plot_loss(axes, histories, "validation_loss", "validation subjects", COLOURS[1])
    switch = _stage_switch(histories)
    if switch is not None:
        epoch, stage = switch
        axes.axvline(epoch - 0.5, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(
            f"{stage.replace('_', ' ')} stage", (epoch - 0.5, 0.97), xycoords=("data", "axes fraction"),
            xytext=(4, 0), textcoords="offset points", va="top", fontsize=9, color="0.3",
        )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="upper right")
    _tidy(axes)
    return figure


def plot_roc(
    curves: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]], areas: Mapping[str, str] | None = None
) -> Figure:
    """ROC curves of several models: a thick line for the predictions of all folds, thin ones for large folds.

    Args:
        curves: per model one pair per fold, true classes `(subjects,)` (1 = positive) and probabilities of the
            positive class `(subjects,)`. A fold with one class only has no curve of its own.
        areas: per model the area as the tables have it, with its interval; by default that of the thick curve.

    Raises:
        ValueError: no model, or a model without a fold that holds both classes.
    """
    if not curves:
        raise ValueError("No model was given: there is no ROC curve to plot.")
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="chance (AUC 0.50)")
    for index, (name, folds) in enumerate(curves.items()):
        pairs = [(np.asarray(labels), np.asarray(scores)) for labels, scores in folds]
        drawn = [(labels, scores) for labels, scores in pairs if len(np.unique(labels)) == 2]
        if not drawn:
            raise ValueError(f"No fold of model {name!r} holds both classes: it has no ROC curve.")
        colour = COLOURS[index % len(COLOURS)]
        smallest = min(min(np.sum(labels == 0), np.sum(labels == 1)) for labels, _ in drawn)
        for labels, scores in drawn if len(pairs) > 1 and smallest >= FEWEST_FOR_CURVE else ():
            axes.plot(*roc_curve(labels, scores)[:2], color=colour, linewidth=0.6, alpha=0.3)
        labels, scores = (np.concatenate(part) for part in zip(*pairs, strict=True))
        area = (areas or {}).get(name) or f"{roc_auc_score(labels, scores):.2f}"
        axes.plot(
            *roc_curve(labels, scores, drop_intermediate=False)[:2], color=colour, linewidth=2.2,
            label=f"{name} (AUC {area})",
        )  # fmt: skip
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.14), fontsize=9)
    _tidy(axes)
    return figure


def plot_confusion(labels: ArrayLike, predictions: ArrayLike, label_names: Sequence[str]) -> Figure:
    """Confusion matrix with counts and, below them, shares of the true class, which colour it.

    Args:
        labels: true class indices `(subjects,)`.
        predictions: predicted class indices `(subjects,)`.
        label_names: one name per class.
    """
    counts = confusion_matrix(labels, predictions, labels=np.arange(len(label_names)))
    side = max(3.6, 1.0 * len(label_names) + 1.6)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    totals = counts.sum(axis=1, keepdims=True)
    # Coloured by the share of the true class: a small class does not look pale.
    shares = counts / np.maximum(totals, 1)
    display = ConfusionMatrixDisplay(shares, display_labels=[str(name) for name in label_names])
    display.plot(ax=axes, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    for (row, column), text in np.ndenumerate(display.text_):
        if totals[row, 0]:
            text.set_text(f"{counts[row, column]}\n{shares[row, column]:.0%}")
        else:
            text.set_text("0")
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(axis="y", labelrotation=90)
    for tick in axes.get_yticklabels():
        tick.set_verticalalignment("center")
    return figure


def plot_region_attention(scores: ArrayLike, coordinates: ArrayLike, title: str) -> Figure:
    """Scores of regions as markers in a glass brain; larger and darker means higher.

    Args:
        scores: one number per region `(regions,)`, such as the cross-attention of a BEI token.
        coordinates: centres of the regions `(regions, 3)`, MNI, in millimetres.
        title: what is shown.

    Raises:
        ValueError: scores and coordinates that do not match.
    """
    # Imported here because it takes seconds, and most users of this module draw no brain.
    from nilearn import plotting

    values = np.asarray(scores, dtype=np.float64)
    centres = np.asarray(coordinates, dtype=np.float64)
    if values.ndim != 1 or centres.shape != (len(values), 3):
        raise ValueError(
            f"Scores have shape {values.shape} and coordinates {centres.shape}, not (regions,) and (regions, 3)."
        )
    span = np.ptp(values)
    relative = (values - values.min()) / span if span > 0 else np.full_like(values, 0.5)
    order = np.argsort(values)  # the highest are drawn last, on top
    figure = Figure(figsize=(WIDTH_INCHES + 1, 3.1))
    plotting.plot_markers(
        values[order],
        centres[order],
        node_size=6 + 60 * relative[order] ** 2,
        node_cmap="YlOrRd",
        alpha=0.85,
        figure=figure,
        colorbar=True,
        node_kwargs={"linewidths": 0.3, "edgecolors": "0.35"},
    )
    figure.suptitle(title, fontsize=11, y=1.04)
    return figure


def plot_network_bars(scores: ArrayLike, region_names: Sequence[str]) -> Figure:
    """Mean score of every functional network or lobe, left and right hemisphere side by side; dots are the regions.

    Args:
        scores: one number per region `(regions,)`.
        region_names: names of the Schaefer atlas, such as "7Networks_LH_Vis_1", or of AAL, such as "Precentral_L".

    Raises:
        ValueError: scores and names that do not match, or a name of another atlas.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(region_names),):
        raise ValueError(f"Scores have shape {values.shape}, but there are {len(region_names)} region names.")
    groups: dict[str, dict[str, list[float]]] = {}
    for name, value in zip(region_names, values, strict=True):
        found = network_of(str(name))
        if found is None:
            raise ValueError(
                f"Region {name!r} is named neither as in the Schaefer atlas ('7Networks_LH_Vis_1') nor as in AAL "
                "('Precentral_L')."
            )
        groups.setdefault(found[0], {"LH": [], "RH": [], "": []})[found[1]].append(float(value))
    figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(groups))
    for shift, hemisphere, name, colour in ((-0.2, "LH", "left", COLOURS[0]), (0.2, "RH", "right", COLOURS[1])):
        members = [network[hemisphere] for network in groups.values()]
        means = [float(np.mean(group)) if group else np.nan for group in members]
        axes.bar(positions + shift, means, width=0.38, color=colour, alpha=0.75, label=f"{name} hemisphere")
        for position, group in zip(positions, members, strict=True):
            axes.scatter(np.full(len(group), position + shift), group, s=5, color="0.25", alpha=0.6, zorder=3)
    for position, network in zip(positions, groups.values(), strict=True):  # the vermis has no side
        axes.scatter(np.full(len(network[""]), position), network[""], s=5, color="0.25", alpha=0.6, zorder=3)
    axes.axhline(values.mean(), color="0.4", linestyle="--", linewidth=1, label="mean of all regions")
    titles = [NETWORK_TITLES.get(network, network.replace(" ", "\n")) for network in groups]
    axes.set_xticks(positions, titles, fontsize=9 if len(groups) < 8 else 8)
    axes.set(ylabel="score per region")
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _tidy(axes)
    return figure


def plot_connections(edges: ArrayLike, coordinates: ArrayLike, title: str) -> Figure:
    """The strongest connections of a symmetric matrix in a glass brain; red is positive, blue negative.

    Args:
        edges: `(regions, regions)`; 0 where there is nothing to draw.
        coordinates: centres of the regions `(regions, 3)`, MNI, in millimetres.
        title: what is shown.
    """
    from nilearn import plotting

    matrix = np.array(edges, dtype=np.float64)
    np.fill_diagonal(matrix, 0)
    strengths = np.sort(np.abs(matrix[np.triu_indices_from(matrix, k=1)]))
    matrix[np.abs(matrix) < strengths[-min(CONNECTIONS, len(strengths))]] = 0
    used = np.flatnonzero(np.abs(matrix).sum(0))
    figure = Figure(figsize=(WIDTH_INCHES + 1, 3.1))
    limit = max(float(strengths[-1]), 1e-6)
    plotting.plot_connectome(
        matrix[np.ix_(used, used)], np.asarray(coordinates)[used], figure=figure, node_size=18, node_color="0.25",
        edge_cmap="RdBu_r", edge_vmin=-limit, edge_vmax=limit, colorbar=True, edge_kwargs={"linewidth": 1.6},
    )  # fmt: skip
    figure.suptitle(title, fontsize=11, y=1.04)
    return figure


def _plot_loss(axes: Axes, histories: Sequence[Sequence[Mapping[str, Any]]], key: str, name: str, colour: str) -> None:
    """One kind of loss; epochs and folds without it are left out."""
    folds: list[dict[int, float]] = [
        {record["epoch"]: record[key] for record in history if record.get(key) is not None} for history in histories
    ]
    folds = [losses for losses in folds if losses]
    if not folds:
        return
    if len(folds) > 1:
        for losses in folds:
            axes.plot(list(losses), list(losses.values()), color=colour, linewidth=0.7, alpha=0.35)
    # Folds may stop at different epochs: the mean goes on as far as all of them do, so that it never jumps.
    shared = sorted(set.intersection(*(set(losses) for losses in folds)))
    mean = [np.mean([losses[epoch] for losses in folds]) for epoch in shared]
    axes.plot(shared, mean, color=colour, linewidth=2.2, label=name, marker="o" if len(shared) == 1 else None)


def _stage_switch(histories: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[int, str] | None:
    """First epoch under the second stage and that stage's name, None where the stage never changes."""
    stages = sorted(
        (record["epoch"], record["stage"]) for history in histories for record in history if record.get("stage")
    )
    return next(((epoch, stage) for epoch, stage in stages if stage != stages[0][1]), None)


def _tidy(axes: Axes) -> None:
    """Leave away the lines that carry no information."""
    axes.spines[["top", "right"]].set_visible(False)
