"""FC processor: ROI time series or ready connectivity matrices to a checked batch, with the FC definition saved."""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, FeatureExtractionMixin

from .array_inputs import as_array, brings_names
from .atlas_extraction import extract_several
from .atlases import find_atlas, fingerprint, region_labels
from .atlases import region_names as atlas_region_names
from .config_checks_lcm import UNNAMED
from .connectivity import (
    CONSTANT_REGIONS,
    ESTIMATORS,
    check_option,
    compute_connectivity,
    correlate_scans,
    report_silent_regions,
    to_fisher_z,
)
from .connectivity_checks import as_scans, check_connectivity, check_scan_shapes
from .region_order import check_unique, positions_of, put_in_order
from .settings_lcm import refuse_misspelt


__all__ = ["FCFeatureExtractor", "compute_connectivity"]

PADDINGS = ("none", "zeros_at_end")
# Settings that change what a connectome's numbers are; the others say what is refused.
_DEFINES_FC = ("num_regions", "atlas", "region_names", "estimator", "fisher_z", "window", "padding")


class FCFeatureExtractor(FeatureExtractionMixin):
    """Turn fMRI region signals, or connectivity matrices, into the model's `connectivity`.

    All arguments are saved: together they define the functional connectivity (FC) that a model was trained on.

    Args:
        atlas (`str`, *optional*): Atlas id such as `"aal-116"` (see `modeling_lcm.atlases.ATLASES`) or a name of your
            own.
        region_names (`Sequence[str]`, *optional*): Names of the regions in matrix order.
        num_regions (`int`, *optional*): Number of regions; known from `region_names` or a known atlas. If none of the
            three is given, any number is accepted.
        estimator (`str`): `"pearson"` (equals `numpy.corrcoef`) or `"ledoit_wolf"` (nilearn's default, about 10 %
            smaller off-diagonal values).
        window (`int`, *optional*): Cut every scan into windows of this many volumes, without overlap, one matrix each;
            `None` takes the whole scan.
        padding (`str`): What happens to a last, shorter window. `"none"`: it is kept as it is if it has `min_volumes`
            volumes, otherwise dropped. `"zeros_at_end"`: filled up with zeros before the correlation, as in the
            research code for models of windows of 500 volumes. Wrong for signals whose mean is not 0 (the jump to zero
            correlates all regions), so use it only with converted official weights.
        fisher_z (`bool`): Return `atanh(r)` off the diagonal instead of `r`. Input matrices are Pearson's r in any
            case.
        constant_regions (`str`): Regions without variance: `"zero"` (correlations 0, one warning) or `"error"`.
        min_volumes (`int`): Fewest volumes a scan may have.
        atlases (`Mapping[str, Mapping[str, Any]]`, *optional*): Instead of `atlas`, `region_names` and `num_regions`:
            several atlases by id, each with `num_regions` and, where they are known, `region_names`. Input and output
            then are dictionaries by atlas.

    Raises:
        ValueError: Contradicting or unknown options.
        TypeError: An argument that does not exist.

    Example:
        >>> extractor = FCFeatureExtractor(atlas="aal-116")
        >>> scans = [np.random.default_rng(0).normal(size=(volumes, 116)) for volumes in (120, 150)]
        >>> extractor(time_series=scans, return_tensors="pt")["connectivity"].shape
        torch.Size([2, 116, 116])
    """

    model_input_names = ["connectivity"]  # noqa: RUF012 - Transformers' own declaration

    def __init__(
        self,
        atlas: str | None = None,
        region_names: Sequence[str] | None = None,
        num_regions: int | None = None,
        estimator: str = "pearson",
        window: int | None = None,
        padding: str = "none",
        fisher_z: bool = False,
        constant_regions: str = "zero",
        min_volumes: int = 20,
        atlases: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise TypeError(f"FCFeatureExtractor has no argument {', '.join(sorted(kwargs))}; see its documentation.")
        check_option("estimator", estimator, ESTIMATORS)
        check_option("padding", padding, PADDINGS)
        check_option("constant_regions", constant_regions, CONSTANT_REGIONS)
        if min_volumes < 2:
            raise ValueError(f"min_volumes is {min_volumes}; a correlation needs at least 2 volumes.")
        if window is not None and window < min_volumes:
            raise ValueError(f"window is {window} volumes, but min_volumes asks for at least {min_volumes}.")
        if padding != "none" and window is None:
            raise ValueError(f"padding={padding!r} fills up the last window: it needs window= (official code: 500).")
        if atlases is not None and (window is not None or not (atlas is region_names is num_regions is None)):
            raise ValueError("With atlases, leave out atlas, region_names, num_regions and window: each has its own.")
        self.atlases = None if atlases is None else {name: dict(atlases[name]) for name in sorted(atlases)}
        known = None if atlas is None else find_atlas(atlas)
        self.atlas = atlas if known is None else known.id
        self.region_names = None if region_names is None else [str(name) for name in region_names]
        self.num_regions = _agreed_region_count(
            {
                "num_regions": num_regions,
                "region_names": None if self.region_names is None else len(self.region_names),
                f"atlas {self.atlas}": None if known is None else known.num_regions,
            }
        )
        if self.region_names is not None:
            check_unique(self.region_names, "region_names")
        self.estimator = estimator
        self.window = window
        self.padding = padding
        self.fisher_z = fisher_z
        self.constant_regions = constant_regions
        self.min_volumes = min_volumes
        super().__init__()

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as in Transformers, with notes that other tools set on the extractor.

        Raises:
            ValueError: A note's name looks like a misspelt setting, and would be refused when it is loaded.
        """
        refuse_misspelt(type(self).__name__, vars(self), self._settings())
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def _settings(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters if name != "kwargs"]

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build an extractor from a saved file's content, and settings that replace some of it.

        What Transformers and other tools wrote besides is kept, and saved again.

        Raises:
            ValueError: A name looks like a misspelt setting, or as for the class.
        """
        own = cls._settings()
        refuse_misspelt(cls.__name__, [*feature_extractor_dict, *kwargs], own)
        given = feature_extractor_dict | {name: kwargs.pop(name) for name in own if name in kwargs}
        made = super().from_dict({name: given.pop(name) for name in own if name in given}, **kwargs)
        FeatureExtractionMixin.__init__(made[0] if isinstance(made, tuple) else made, **given)
        return made

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> "FCFeatureExtractor":
        """Build an extractor from a saved file: see [`from_dict`]."""
        return cls.from_dict(json.loads(Path(json_file).read_text(encoding="utf-8")))

    @classmethod
    def from_atlas(cls, atlas: str, **options: Any) -> "FCFeatureExtractor":
        """Build an extractor whose region names are those of an atlas that this package has a table of.

        Args:
            atlas (`str`): Atlas id or alias.
            options: Other arguments of the class.

        Raises:
            ValueError: The atlas is unknown, or its names are not in this package.
        """
        names = atlas_region_names(atlas)
        if names is None:
            raise ValueError(f"The region names of {atlas!r} are not in this package; pass region_names= yourself.")
        return cls(atlas=atlas, region_names=names, **options)

    @property
    def by_atlas(self) -> dict[str, "FCFeatureExtractor"]:
        """An extractor for every atlas, by its id; of one atlas, this one alone."""
        if self.atlases is None:
            return {self.atlas or UNNAMED: self}
        shared = ("estimator", "fisher_z", "constant_regions", "min_volumes")
        options = {name: getattr(self, name) for name in shared}
        return {name: type(self)(name, **regions, **options) for name, regions in self.atlases.items()}

    @property
    def region_fingerprint(self) -> str | None:
        """Hash of the ordered region names, to compare two processors; `None` without names."""
        return None if self.region_names is None else fingerprint(self.region_names)

    def differences(self, other: "FCFeatureExtractor") -> dict[str, tuple[Any, Any]]:
        """In what two definitions of FC differ: the one home of "do these connectomes fit together".

        Args:
            other (`FCFeatureExtractor`): the other definition.

        Returns:
            Own value and the other's by setting, empty if connectomes of both are of the same regions in the same
            order, computed the same way. Region names stand there as fingerprints. Another name for an atlas whose
            region names are the same is no difference.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        found = {name: (mine[name], theirs[name]) for name in _DEFINES_FC if mine[name] != theirs[name]}
        if "region_names" in found:
            found["region_names"] = (self.region_fingerprint, other.region_fingerprint)
        elif self.region_names is not None:
            found.pop("atlas", None)
        return found

    def to_dict(self) -> dict[str, Any]:
        """All fields, as saved."""
        # NOTE: Transformers drops a field called `window` (for its audio extractors it is an array, not a setting).
        return {**super().to_dict(), "window": self.window}

    def __call__(
        self,
        connectivity: Any = None,
        time_series: Any = None,
        region_names: Sequence[str] | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Check the input and compute what is missing.

        Args:
            connectivity (`Any`, *optional*): Ready Pearson matrices, `(regions, regions)` or `(batch, regions,
                regions)`. A region whose row and column are NaN has no signal and is treated like a constant one.
            time_series (`Any`, *optional*): Instead of `connectivity`: a scan `(volumes, regions)`, scans of one
                length `(batch, volumes, regions)` or a list of scans of any lengths. DataFrames, here and as
                connectivity, are matched by the names of their columns; masked values count as NaN. With several
                atlases, dictionaries by atlas; a scan without one is None, or NaN throughout.
            region_names (`Sequence[str]`, *optional*): Names of the input's regions, if their order may differ from
                the extractor's (of several atlases, a dictionary): regions are matched by name (in any usual
                spelling), additional ones dropped.
            return_tensors (`str`, *optional*): `"pt"` for tensors, otherwise NumPy arrays.

        Returns:
            `connectivity`, float32 `(batch, regions, regions)`, diagonal 1; of several atlases a dictionary by atlas,
            NaN for a scan that lacks one. With `window` and `time_series` one matrix
            per window, and `scan_index`, int64 `(batch,)`: the scan that each came from.

        Raises:
            ValueError: Wrong input; the message says what was given, what is needed and what to do.
            TypeError: The values are not numbers.
        """
        if (connectivity is None) == (time_series is None):
            raise ValueError("Pass either connectivity= (ready matrices) or time_series= (signals), not both.")
        if self.atlases is not None:
            kind, given = ("connectivity", connectivity) if time_series is None else ("time_series", time_series)
            matrices_of = extract_several(self.by_atlas, kind, given, region_names)
            if return_tensors == "pt":
                return BatchFeature({"connectivity": {name: torch.from_numpy(m) for name, m in matrices_of.items()}})
            return BatchFeature({"connectivity": matrices_of})
        connectivity, time_series = (self._only_atlas(given) for given in (connectivity, time_series))
        data: dict[str, np.ndarray] = {}
        if time_series is None:
            connectivity = self._in_order(connectivity, region_names, "connectivity")
            matrices, silent = check_connectivity(connectivity, self.num_regions, self.atlas, self.region_names)
        else:
            scans = as_scans(self._in_order(time_series, region_names, "time_series"))
            check_scan_shapes(scans, self.num_regions, self.min_volumes, self.atlas)
            windows = [self._windows(scan) for scan in scans]
            flat = [window for of_scan in windows for window in of_scan]
            matrices, silent = correlate_scans(flat, self.estimator, self.region_names)
            if self.window is not None:
                data["scan_index"] = np.repeat(np.arange(len(scans)), [len(of_scan) for of_scan in windows])
        report_silent_regions(silent, self.constant_regions, self.region_names)
        data["connectivity"] = to_fisher_z(matrices) if self.fisher_z else matrices
        return BatchFeature(data, tensor_type=return_tensors)

    def _only_atlas(self, given: Any) -> Any:
        """What a dictionary by atlas holds of this extractor's one; anything else as it is."""
        if not isinstance(given, Mapping) or self.num_regions is None:
            return given
        own = self.atlas or UNNAMED
        if [*given] != [own]:
            raise ValueError(
                f"Got the atlases {', '.join(map(str, given)) or 'none'}; this extractor is for {own} alone: give its "
                "matrices or signals."
            )
        return given[own]

    def window_connectivity(self, time_series: Any) -> np.ndarray:
        """Connectivity of every window of one scan `(volumes, regions)`: float32 `(windows, regions, regions)`.

        Raises:
            ValueError: More than one scan, or as for calling the extractor.
        """
        if as_array(time_series, "time_series").ndim != 2:
            raise ValueError("window_connectivity takes one scan (volumes, regions); call the extractor for several.")
        return self(time_series=time_series)["connectivity"]

    def reorder(self, connectivity: Any, region_names: Sequence[str]) -> np.ndarray:
        """Bring matrices whose regions have these names into the extractor's order; additional regions are dropped.

        Args:
            connectivity (`Any`): `(regions, regions)` or `(batch, regions, regions)`.
            region_names (`Sequence[str]`): Name of each row.

        Returns:
            Array with as many axes as the input.

        Raises:
            ValueError: The extractor has no region names, names are missing or double, or do not fit the matrix.
        """
        array = as_array(connectivity, "connectivity")
        if array.ndim not in (2, 3) or array.shape[-2:] != (len(region_names), len(region_names)):
            raise ValueError(
                f"Got {len(region_names)} region names for connectivity of shape {array.shape}; needed is one name "
                "per row of (batch, regions, regions)."
            )
        positions = self._positions(region_names)
        return array[..., positions[:, None], positions]

    @property
    def knows_regions(self) -> bool:
        """Whether there are names, its own or the atlas's, that regions can be matched with."""
        return self._wanted_regions()[0] is not None

    def _wanted_regions(self) -> tuple[list[str] | None, Mapping[int, str] | None]:
        """Names in matrix order, and names of the atlas's label values, as far as they are known."""
        known = None if self.atlas is None else find_atlas(self.atlas)
        try:
            of_atlas = None if known is None else atlas_region_names(known)
        except FileNotFoundError:  # this code lies beside model weights, without the package's tables
            return self.region_names, None
        names = of_atlas if self.region_names is None else self.region_names
        return names, region_labels(known) if known is not None and names == of_atlas and names else None

    def _positions(self, region_names: Sequence[str]) -> np.ndarray:
        """Where each of the extractor's regions is among `region_names`."""
        wanted, labels = self._wanted_regions()
        if wanted is None:
            raise ValueError(
                "This extractor has no region names to match; build it with region_names= or from_atlas()."
            )
        return positions_of(wanted, region_names, labels)

    def _in_order(self, values: Any, region_names: Sequence[str] | None, kind: str) -> Any:
        """Scans whose regions have names, of their own or given, in the extractor's order; others as they are."""
        if brings_names(values):
            several = isinstance(values, list | tuple) or getattr(values, "ndim", 2) == 3
            scans = list(values) if several else [values]
            arranged = put_in_order(scans, kind, *self._wanted_regions(), region_names)
            return values if arranged is None else arranged
        if region_names is None:
            return values
        if kind == "connectivity":
            return self.reorder(values, region_names)
        scans = as_scans(values)
        positions = self._positions(region_names)
        check_scan_shapes(scans, len(region_names), self.min_volumes)
        return [scan[:, positions] for scan in scans]

    def _windows(self, scan: np.ndarray) -> list[np.ndarray]:
        """Cut one scan into the pieces that get a matrix each."""
        if self.window is None:
            return [scan]
        windows = [scan[start : start + self.window] for start in range(0, len(scan), self.window)]
        if self.padding == "zeros_at_end":
            # PARITY: the research code pads raw signals before the correlation, however short the last window is.
            windows[-1] = np.pad(windows[-1], ((0, self.window - len(windows[-1])), (0, 0)))
        elif len(windows[-1]) < self.min_volumes:
            windows.pop()
        return windows


def _agreed_region_count(counts: dict[str, int | None]) -> int | None:
    known = {source: count for source, count in counts.items() if count is not None}
    for source, count in known.items():
        if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{source} is {count!r}: a number of regions is needed.")
    if len(set(known.values())) > 1:
        said = ", ".join(f"{source} says {count}" for source, count in known.items())
        raise ValueError(f"The number of regions is contradictory: {said}. Correct or leave out one of them.")
    return next(iter(known.values()), None)
