"""Batches from Parquet files without loading the data set: for cohorts larger than memory, or on the Hub."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from modeling_lcm import BEITokenizer, FCFeatureExtractor

from .data.cohort import FC_DEFINITION
from .data.triangles import to_matrices


class StreamedConnectomes(torch.utils.data.IterableDataset):
    """Stream `connectivity` and `labels` for `LCMForMultitaskPretraining`.

    Every process of a distributed run, and every worker of a loader, reads its own share of the files' rows.

    Args:
        folder (`str` or `Path`): `parquet/` of a prepared data set, with its FC definition.
        tokenizer (`BEITokenizer`): makes the labels; scaling fitted on training records.
        batch_size (`int`): scans per batch; the last one may be smaller.
        leave_out (`frozenset[str]`): subjects that are never given, such as a fold's test subjects.
        seed (`int`): seed of the shuffle; call `set_epoch` before every pass.
        buffer (`int`): scans held in memory to shuffle among.
        rank (`int`): this process.
        world_size (`int`): number of processes.

    Example:
        loader = torch.utils.data.DataLoader(StreamedConnectomes(folder, tokenizer), batch_size=None)
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: BEITokenizer,
        batch_size: int = 32,
        leave_out: frozenset[str] = frozenset(),
        seed: int = 0,
        buffer: int = 2000,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        files = sorted(Path(folder).glob("data/*.parquet"))
        if not files or not (Path(folder) / FC_DEFINITION).is_file():
            raise FileNotFoundError(f"{folder} is not the parquet/ folder of a data set made by training.prepare.")
        self.num_regions = FCFeatureExtractor.from_json_file(Path(folder) / FC_DEFINITION).num_regions
        self.tokenizer, self.batch_size = tokenizer, batch_size
        stream = datasets.load_dataset("parquet", data_files=list(map(str, files)), split="train", streaming=True)
        if leave_out:
            stream = stream.filter(lambda row: str(row["subject_id"]) not in leave_out)
        stream = split_dataset_by_node(stream, rank, world_size)
        self.stream = stream.shuffle(seed=seed, buffer_size=buffer)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle otherwise in every pass."""
        self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches: `connectivity` `(batch, regions, regions)` and `labels` `(batch, variables)`."""
        names = [variable.name for variable in self.tokenizer.variables]
        for table in self.stream.with_format("arrow").iter(batch_size=self.batch_size):
            known = table.select([name for name in names if name in table.column_names]).to_pylist()
            edges = table.column("connectivity").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            triangles = torch.from_numpy(edges.astype(np.float32)).view(len(table), -1)
            yield {
                "connectivity": to_matrices(triangles, self.num_regions),
                "labels": self.tokenizer(known, return_tensors="pt")["labels"],
            }
