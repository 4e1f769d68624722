"""Whether the atlases of a data set are of the same scans."""

from collections.abc import Sequence

from modeling_lcm.atlas_agreement import SHUFFLED, Chunks, compare_atlases


def check_agreement(atlases: Sequence[str], chunks: Sequence[Chunks], places: Sequence[str]) -> list[str]:
    """Compare every further atlas of a data set with the first one.

    Args:
        atlases (`Sequence[str]`): ids.
        chunks (`Sequence[Callable]`): per atlas, gives the triangles; NaN for a scan without it.
        places (`Sequence[str]`): what the scans are called in messages.

    Returns:
        Remarks about single scans whose atlases differ.

    Raises:
        ValueError: two atlases are of other scans altogether.
    """
    remarks = []
    for atlas, pieces in zip(atlases[1:], chunks[1:], strict=True):
        rank, odd = compare_atlases(chunks[0], pieces)
        if rank > SHUFFLED:
            raise ValueError(
                f"The connectomes of {atlases[0]} and {atlas} are not of the same scans: those that are alike in one "
                f"are not in the other (rank {rank:.2f}; 0.50 would be chance). Are files of subjects or sessions "
                "mixed up?"
            )
        if odd:
            named = ", ".join(places[scan] for scan in odd[:3])
            remarks.append(
                f"{len(odd)} scans look as if {atlases[0]} and {atlas} were of different subjects or sessions: {named}"
            )
    return remarks
