"""Table 1 of a paper: who the subjects of each label are, and how much they differ in what is no label."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


# Column of a data set, what the table calls it, and decimals.
NUMBERS = (
    ("age", "age (years)", 1),
    ("qc_mean_fd", "mean framewise displacement (mm)", 3),
    ("qc_volumes", "volumes", 0),
    ("qc_missing_regions", "regions without signal", 0),
    ("qc_mean_fc", "mean FC", 3),
)
MOST_SITES = 12
LARGE = 0.2  # standardised difference from which on a label's subjects differ visibly (Austin 2009: 0.1 to 0.2)
NOT_RECORDED = "-"


def table_one(
    table: pd.DataFrame, groups: Sequence[str], labels: Sequence[str], columns: Sequence[str] = ("sex", "site")
) -> tuple[list[list[str]], list[str]]:
    """Describe the subjects by label.

    Args:
        table (`pd.DataFrame`): one row per scan; of every subject the first one counts.
        groups (`Sequence[str]`): label of every scan.
        labels (`Sequence[str]`): the labels in their order.
        columns (`Sequence[str]`): further columns with labels of their own.

    Returns:
        Rows of text, the first one being the header: mean ± standard deviation of numbers, n (%) of labels, the
        largest standardised difference between two labels, and how many values are missing; and sentences about
        columns that are the same for all, and about differences above 0.2.
    """
    first = ~table["subject_id"].astype(str).duplicated().to_numpy()
    table, membership = table[first], np.asarray(groups, dtype=object)[first]
    parts = {label: table[membership == label] for label in labels}
    rows = [["", *(f"{label} (n = {len(part)})" for label, part in parts.items()), "std. difference", "missing"]]
    constant: list[str] = []
    large: list[str] = []
    for name, title, digits in NUMBERS:
        if name not in table or not pd.api.types.is_numeric_dtype(table[name]) or table[name].isna().all():
            continue
        if table[name].nunique() == 1:
            constant.append(f"{title} {table[name].dropna().iloc[0]:.{digits}f}")
            continue
        values = [part[name].dropna().to_numpy(dtype=float) for part in parts.values()]
        difference = largest_difference(values)
        cells = [_mean_text(each, digits) for each in values]
        rows.append([title, *cells, _difference_text(difference), _missing_text(table[name])])
        large += [title] if difference > LARGE else []
    for name in columns:
        if name not in table or table[name].isna().all():
            continue
        texts = table[name].astype("string")
        if texts.nunique() == 1:
            constant.append(f"{name} {texts.dropna().iloc[0]}")
            continue
        shares = _shares(parts, name)
        difference = largest_share_difference(shares.to_numpy(dtype=float))
        rows += _label_rows(name, shares, _difference_text(difference), _missing_text(table[name]))
        large += [name] if difference > LARGE else []
    sentences = [f"The same for all subjects: {', '.join(constant)}."] if constant else []
    if large:
        sentences.append(
            f"The labels' subjects differ in {', '.join(large)} (standardised difference above {LARGE}): part of any "
            "score may be about that."
        )
    return rows, sentences


def largest_difference(groups: Sequence[np.ndarray]) -> float:
    """Largest standardised difference of means between two groups, in their pooled deviation; NaN if undefined."""
    found = []
    for position, first in enumerate(groups):
        for second in groups[position + 1 :]:
            if len(first) > 1 and len(second) > 1:
                pooled = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
                found.append(abs(first.mean() - second.mean()) / pooled if pooled > 0 else np.nan)
    return float(np.nanmax(found)) if found and not np.isnan(found).all() else float("nan")


def largest_share_difference(counts: np.ndarray) -> float:
    """Largest standardised difference of shares between two groups.

    Args:
        counts (`np.ndarray` of shape `(values, groups)`): how often each value occurs.

    Source: Yang and Dalton 2012, for columns with any number of values.
    """
    shares = counts / np.maximum(counts.sum(0), 1)
    found = [0.0]
    for first in range(shares.shape[1]):
        for second in range(first + 1, shares.shape[1]):
            one, other = shares[1:, first], shares[1:, second]
            spread = (np.diag(one + other) - np.outer(one, one) - np.outer(other, other)) / 2
            gap = one - other
            found.append(float(np.sqrt(max(gap @ np.linalg.pinv(spread) @ gap, 0.0))))
    return max(found)


def _shares(parts: dict[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """How often each value occurs with each label; rare values together."""
    counts = pd.DataFrame({label: part[name].astype("string").value_counts() for label, part in parts.items()})
    counts = counts.fillna(0).astype(int)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    if len(counts) > MOST_SITES:
        rest = counts.iloc[MOST_SITES - 1 :].sum()
        counts = counts.iloc[: MOST_SITES - 1]
        counts.loc["(others)"] = rest
    return counts


def _label_rows(name: str, counts: pd.DataFrame, difference: str, missing: str) -> list[list[str]]:
    totals = counts.sum()
    rows = [[name, *([""] * len(totals)), difference, missing]]
    for value, each in counts.iterrows():
        cells = [
            f"{count} ({count / total:.0%})" if total else NOT_RECORDED
            for count, total in zip(each, totals, strict=True)
        ]
        rows.append([f"   {value}", *cells, "", ""])
    return rows


def _mean_text(values: np.ndarray, digits: int) -> str:
    if not len(values):
        return NOT_RECORDED
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def _difference_text(value: float) -> str:
    return NOT_RECORDED if np.isnan(value) else f"{value:.2f}"


def _missing_text(values: pd.Series) -> str:
    return str(int(values.isna().sum()))
