"""Cohorts that nilearn downloads: one command from nothing to a data set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .files import FileSource, file_source
from .regions import Regions
from .tables import as_text_table


def fetch_abide(data_dir: str | None, url: str | None, options: dict[str, Any], regions: Regions) -> FileSource:
    """ABIDE I as preprocessed by the Preprocessed Connectomes Project: AAL time series and phenotypes.

    Args:
        data_dir (`str`, *optional*): where nilearn keeps its downloads.
        url (`str`, *optional*): a mirror in the same layout.
        options (`dict`): arguments of `nilearn.datasets.fetch_abide_pcp`, e.g. `{"n_subjects": 20}`.
        regions (`Regions`): the atlas; checked against the label values in every file's header.

    Raises:
        ValueError: nilearn could not fetch it.
    """
    from nilearn.datasets import fetch_abide_pcp

    chosen = {"pipeline": "cpac", "band_pass_filtering": True, "global_signal_regression": False, **options}
    derivative = chosen.pop("derivatives", "rois_aal")
    if chosen.get("quality_checked", True) is True:
        chosen["quality_checked"] = True
    try:
        bunch = fetch_abide_pcp(data_dir=data_dir, url=url, derivatives=[derivative], verbose=0, **chosen)
    except (TypeError, KeyError) as error:
        raise ValueError(f"nilearn does not know these options of fetch_abide_pcp: {error}.") from error
    table = as_text_table(pd.DataFrame(bunch.phenotypic))
    table.index = pd.Index(range(1, len(table) + 1))
    strategy = "_".join(
        (
            "filt" if chosen["band_pass_filtering"] else "nofilt",
            "global" if chosen["global_signal_regression"] else "noglobal",
        )
    )
    folder = _dataset_folder(data_dir) / chosen["pipeline"] / strategy
    source = file_source(
        str(folder / ("{FILE_ID}_" + derivative + ".1D")),
        "time_series",
        table,
        lambda row: f"subject {table['SUB_ID'].iloc[row]}",
        regions,
        None,
    )
    source.settings = {"fetched by": "nilearn.datasets.fetch_abide_pcp", **{k: str(v) for k, v in chosen.items()}}
    return source


def _dataset_folder(data_dir: str | None) -> Path:
    from nilearn.datasets import get_data_dirs

    folders = [Path(folder) / "ABIDE_pcp" for folder in get_data_dirs(data_dir)]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


FETCHERS: dict[str, Callable[..., FileSource]] = {"abide_pcp": fetch_abide}


def fetch_source(
    name: str, data_dir: str | None, url: str | None, options: Sequence[str], regions: Regions
) -> FileSource:
    """Download a cohort through nilearn.

    Args:
        name (`str`): one of `FETCHERS`.
        data_dir (`str`, *optional*): where nilearn keeps its downloads.
        url (`str`, *optional*): a mirror in the same layout.
        options (`Sequence[str]`): further arguments of the fetcher, as NAME=VALUE.
        regions (`Regions`): the atlas.

    Raises:
        ValueError: no such fetcher, or an option that is not NAME=VALUE.
    """
    if name not in FETCHERS:
        raise ValueError(f"There is no fetcher {name!r}; those here are {', '.join(FETCHERS)}.")
    parsed: dict[str, Any] = {}
    for option in options:
        key, sign, text = option.partition("=")
        if not sign:
            raise ValueError(f"fetch_options are NAME=VALUE, got {option!r}.")
        parsed[key] = {"true": True, "false": False}.get(text.lower(), int(text) if text.isdigit() else text)
    return FETCHERS[name](data_dir, url, parsed, regions)
