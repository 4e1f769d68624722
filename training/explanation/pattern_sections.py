"""What a page shows of edge patterns."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.atlases import find_atlas, region_coordinates

from ..reporting.figures import plot_region_attention
from ..reporting.pages import Section
from .association import SIGNIFICANT
from .figures import plot_network_pairs, plot_region_shares
from .patterns import Patterns


MOST_PAIRS = 8


def pattern_sections(extractor: FCFeatureExtractor, patterns: Sequence[Patterns]) -> list[Section]:
    """A section for every pattern: its pictures where folds agree on it, else the figures that say that they do not.

    Args:
        extractor (`FCFeatureExtractor`): FC definition, with atlas and names of regions.
        patterns (`Sequence[Patterns]`): see [`edge_patterns`].
    """
    sections = []
    for each in patterns:
        title = f"What the prediction of {each.label} follows" if each.label else "What the prediction follows"
        if not each.is_shown:
            sections.append(Section(title, [each.sentence]))
            continue
        known = find_atlas(extractor.atlas) if extractor.atlas else None
        places = region_coordinates(known) if known is not None and known.has_table else None
        figures: dict[str, Figure] = {}
        if len(each.pairs):
            figure = plot_network_pairs(each.pairs, SIGNIFICANT)
            strongest = each.pairs.iloc[int(each.pairs["pattern"].abs().to_numpy().argmax())]
            figure.set_label(
                f"Pairs of networks. Strongest: {strongest['first']} with {strongest['second']}, "
                f"r = {strongest['pattern']:.2f}."
            )
            figures["Networks: r of mean log FC and the score; a dot where it goes with the label itself"] = figure
        figure = plot_region_shares(each.regions)
        named = ", ".join(each.regions["region"].head(3))
        figure.set_label(f"Regions with the largest share of the pattern: {named}.")
        figures["Regions by their share of the pattern; orange where FC rises with the score, blue where it falls"] = (
            figure
        )
        if places is not None and extractor.region_names is not None:
            share = each.regions.set_index("region")["share"].loc[extractor.region_names]
            figure = plot_region_attention(share.to_numpy() * len(share), places, "Share of the pattern (1 = even)")
            figure.set_label(f"The same in a glass brain; largest: {named}.")
            figures["The same regions in a glass brain; larger and darker means a larger share"] = figure
        texts = [
            each.sentence + " Shown is which edges go with the score of left-out subjects (patterns, not weights: "
            "Haufe et al. 2014). It says what the model measures, not why the labels differ.",
        ]
        sections.append(Section(title, texts, figures=figures, tables=_pair_table(each)))
    return sections


def _pair_table(patterns: Patterns) -> dict[str, list[list[str]]]:
    if not len(patterns.pairs):
        return {}
    order = patterns.pairs["pattern"].abs().sort_values(ascending=False).index[:MOST_PAIRS]
    rows = [["networks", "r with the score", "r with the label", "q"]]
    for row in patterns.pairs.loc[order].to_dict("records"):
        within = row["first"] == row["second"]
        name = f"within {row['first']}" if within else f"{row['first']} with {row['second']}"
        rows.append([name, f"{row['pattern']:+.2f}", f"{row['label_r']:+.2f}", f"{row['q']:.3f}"])
    return {"Pairs of networks that go most with the score": rows}
