"""Which network or lobe a region belongs to, read off the names of an atlas."""

import re
from collections.abc import Sequence


SCHAEFER_NAME = re.compile(r"^(?:\d+Networks_)?(?P<hemisphere>LH|RH)_(?P<network>[A-Za-z]+)(?:_|$)")
AAL_HEMISPHERES = {"L": "LH", "R": "RH"}
# Beginnings of AAL names (Tzourio-Mazoyer et al. 2002, table 2), in the order that a bar plot shows.
AAL_LOBES = {
    "frontal": ("Frontal", "Precentral", "Rolandic", "Supp_Motor", "Olfactory", "Rectus", "Paracentral"),
    "insula": ("Insula",),
    "cingulate": ("Cingulum",),
    "medial temporal": ("Hippocampus", "ParaHippocampal", "Amygdala"),
    "temporal": ("Temporal", "Heschl"),
    "parietal": ("Parietal", "Postcentral", "SupraMarginal", "Angular", "Precuneus"),
    "occipital": ("Occipital", "Calcarine", "Cuneus", "Lingual", "Fusiform"),
    "subcortical": ("Caudate", "Putamen", "Pallidum", "Thalamus"),
    "cerebellum": ("Cerebelum", "Vermis"),
}


def network_of(name: str) -> tuple[str, str] | None:
    """Network (Schaefer's names carry Yeo's) or lobe (AAL) of a region and its hemisphere, LH, RH or "" (midline).

    None for a name of another atlas.
    """
    match = SCHAEFER_NAME.match(name)
    if match is not None:
        return match["network"], match["hemisphere"]
    for lobe, beginnings in AAL_LOBES.items():
        if name.startswith(beginnings):
            return lobe, AAL_HEMISPHERES.get(name.rpartition("_")[2], "")
    return None


def networks_of(names: Sequence[str] | None) -> list[tuple[str, str]] | None:
    """The same for all regions; None unless all of them are known."""
    found = [network_of(str(name)) for name in names or ()]
    return [entry for entry in found if entry is not None] if found and all(found) else None
