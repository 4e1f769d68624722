"""Conversions that are refused: damaged, foreign and harmful files, vocabularies that do not fit, a full disk."""

import errno
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from conversion import converting
from conversion.official import load_state
from conversion.run_files import find_run
from tests.conversion.conftest import RUN, TEMPLATE, convert, refused


# What the library raises on a file system without space.
FULL_DISK = "Error while serializing: I/O error: No space left on device (os error 28)"


class _Opener:
    """Unpickling it would create a file: a harmless stand-in for an attack."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def change(run: Path, part: str, **changes: Any) -> None:
    """Replace tensors of one of a run's files."""
    path = next(run.glob(f"{part}_*"))
    torch.save(torch.load(path, weights_only=True) | changes, path)


class TestHostileTensors:
    """Small files that would fill the memory, or hold something else than weights."""

    @pytest.mark.parametrize("number", [7, 99999999999, 10**30])
    def test_numbers_of_layers(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
    ) -> None:
        change(run_copy, "head", **{f"decoder.layers.{number}.norm1.weight": torch.zeros(32)})
        message = refused(capsys, run_copy, "--output", tmp_path / "out")
        assert len(message) < 500 + len(str(tmp_path))
        assert "foreign" in message

    @pytest.mark.parametrize(
        ("tensor", "words"),
        [
            (torch.zeros(1).expand(10**5, 10**5), "share or repeat values"),
            (torch.zeros(10**5).as_strided((10**4, 10**4), (1, 1)), "share or repeat values"),
            (torch.zeros(10**6, 10**6, device="meta"), "share or repeat values"),
            (torch.zeros(2, 2).to_sparse(), "is sparse"),
            (torch.zeros(2, 2, dtype=torch.complex64), "is torch.complex64"),
            (torch.zeros(2, 2).to(torch.float8_e4m3fn), "is torch.float8_e4m3fn"),
            (torch.zeros(2, dtype=torch.bool), "is torch.bool"),
        ],
    )  # fmt: skip
    def test_odd_tensors(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tensor: torch.Tensor, words: str
    ) -> None:
        change(run_copy, "bb", **{"lin.0.weight": tensor})
        assert words in refused(capsys, run_copy, "--output", tmp_path / "out")

    def test_many_views_of_the_same_bytes(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shared = torch.zeros(1000, 1000)
        change(run_copy, "head", **{f"more.{number}": shared for number in range(100)})
        assert "share or repeat values" in refused(capsys, run_copy, "--output", tmp_path / "out")

    def test_compressed_archive(self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = next(run_copy.glob("head_*"))
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        shutil.copy(tmp_path / "a", path)
        assert "is a compressed archive" in refused(capsys, run_copy, "--output", tmp_path / "out")

    def test_negative_variances(self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        state = torch.load(next(run_copy.glob("bb_*")), weights_only=True)
        change(run_copy, "bb", **{"lin.1.running_var": -state["lin.1.running_var"]})
        assert "has negative variances" in refused(capsys, run_copy, "--output", tmp_path / "out")

    def test_keys_that_are_no_names(self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = next(run_copy.glob("bb_*"))
        torch.save({1: torch.zeros(2)}, path)
        assert "is not a state dict" in refused(capsys, run_copy, "--output", tmp_path / "out")


class TestBadInput:
    @pytest.mark.parametrize("part", ["bb", "head"])
    def test_missing_half(self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str) -> None:
        next(run_copy.glob(f"{part}_*")).unlink()
        assert f"{part}_fold0_*.pt" in refused(capsys, run_copy, "--output", tmp_path / "out")

    def test_arguments(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "No run_dir was given" in refused(capsys, "--output", tmp_path / "out")
        message = refused(capsys, "--output", tmp_path / "out", RUN, "--heads", 0)
        assert "num_attention_heads must be at least 1" in message
        assert "too many values" in refused(capsys, RUN, "another", "--output", tmp_path / "out")

    def test_no_folder_and_no_files(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no folder" in refused(capsys, tmp_path / "absent", "--output", tmp_path / "out")
        (tmp_path / "empty").mkdir()
        assert "no bb_fold*.pt" in refused(capsys, tmp_path / "empty", "--output", tmp_path / "out")

    def test_several_pairs(self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for path in list(run_copy.iterdir()):
            shutil.copy(path, path.with_name(path.name.replace("fold0", "fold1")))
        message = refused(capsys, run_copy, "--output", tmp_path / "out")
        assert "fold 0, dataset hcpa" in message
        assert "--fold" in message
        assert find_run(run_copy, fold=1).head.name.startswith("head_fold1")
        assert "0 checkpoints" in refused(capsys, run_copy, "--output", tmp_path / "out", "--fold", 7)

    @pytest.mark.parametrize("packed", [True, False], ids=["torch.save", "plain pickle"])
    def test_pickle_with_code_is_refused_and_not_run(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool
    ) -> None:
        marker = tmp_path / "executed"
        path = next(run_copy.glob("head_*"))
        harmful = {"object_query.weight": torch.zeros(3, 4), "x": _Opener(marker)}
        if packed:
            torch.save(harmful, path)
        else:
            path.write_bytes(pickle.dumps(harmful))
        message = refused(capsys, run_copy, "--output", tmp_path / "out")
        assert not marker.exists()
        assert path.name in message
        assert "weights_only" not in message  # nothing that would lead somebody to run it after all
        # The file is what it claims to be: trusted blindly, it would have run.
        if packed:
            torch.load(path, weights_only=False)
        else:
            pickle.loads(path.read_bytes())
        assert marker.exists()

    @pytest.mark.parametrize("content", [[torch.zeros(2)], {"model": {"a": torch.zeros(2)}}, {}, {"a": 1}])
    def test_foreign_pickle(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any
    ) -> None:
        torch.save(content, next(run_copy.glob("bb_*")))
        assert "is not a state dict" in refused(capsys, run_copy, "--output", tmp_path / "out")

    def test_foreign_state_dict(self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        torch.save({"conv1.weight": torch.zeros(2, 2)}, next(run_copy.glob("head_*")))
        assert "conv1.weight" in refused(capsys, run_copy, "--output", tmp_path / "out")

    @pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
    def test_truncated_file(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: float
    ) -> None:
        path = next(run_copy.glob("head_*"))
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        message = refused(capsys, run_copy, "--output", tmp_path / "out")
        assert path.name in message
        assert "truncated" in message

    def test_damaged_file(self, run_copy: Path) -> None:
        path = next(run_copy.glob("head_*"))
        content = bytearray(path.read_bytes())
        content[:400] = bytes(400)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name):
            load_state(path)

    @pytest.mark.parametrize(
        ("part", "name", "shape"),
        [
            ("head", "decoder.layers.1.linear1.weight", (47, 32)),
            ("head", "object_query.weight", (27, 31)),
            ("head", "object_query.weight", (27,)),
            ("bb", "lin.1.running_var", (31,)),
        ],
    )
    def test_wrong_shapes(
        self,
        run_copy: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        part: str,
        name: str,
        shape: tuple[int, ...],
    ) -> None:
        path = next(run_copy.glob(f"{part}_*"))
        torch.save(torch.load(path, weights_only=True) | {name: torch.zeros(shape)}, path)
        assert name in refused(capsys, run_copy, "--output", tmp_path / "out")

    @pytest.mark.parametrize("name", ["decoder.norm.weight", "decoder.layers.0.linear1.weight", "finetune"])
    def test_missing_and_foreign_tensors(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        path = next(run_copy.glob("head_*"))
        state = torch.load(path, weights_only=True)
        if state.pop(name, None) is None:
            state[name] = torch.zeros(2)
        torch.save(state, path)
        assert name in refused(capsys, run_copy, "--output", tmp_path / "out")

    @pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (1e9, "float16")])
    def test_not_finite(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, dtype: str
    ) -> None:
        path = next(run_copy.glob("bb_*"))
        state = torch.load(path, weights_only=True)
        state["lin.1.running_var"][3] = value
        torch.save(state, path)
        message = refused(capsys, run_copy, "--output", tmp_path / "out", "--dtype", dtype)
        assert "lin.1.running_var" in message

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"ppmi": {"labels": ["CN", "PD"], "default": None}},
                "group 3 (ppmi) has 5 tokens there, and 'ppmi' has 2",
            ),
            ({"sex": {"labels": ["M", "F", "X"]}}, "two tokens of sex"),
            ({"age": {"mean": 30.0}}, "unscaled years"),
            ({"more": [{"name": "site", "kind": "continuous"}]}, "after age there must be no variable; got site (1)"),
        ],
    )
    def test_vocabulary_that_does_not_fit(
        self,
        vocabulary: Callable[..., Path],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        changes: dict[str, Any],
        message: str,
    ) -> None:
        path = vocabulary(**changes)
        assert message in refused(capsys, RUN, "--output", tmp_path / "out", "--vocabulary", path)

    def test_vocabulary_in_another_order_of_groups(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refused(capsys, RUN, "--output", tmp_path / "out", "--vocabulary", TEMPLATE)
        assert "group 3 (ppmi) has 5 tokens there, and 'abide' has 3 in the vocabulary" in message

    def test_groups_that_nothing_tells(
        self, run_copy: Path, vocabulary: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        renamed = run_copy.rename(tmp_path / "mystery")
        assert "--group-sizes" in refused(capsys, renamed, "--output", tmp_path / "out")
        message = refused(capsys, renamed, "--output", tmp_path / "out", "--group-sizes", 3, 5)
        assert "24 tokens besides sex and age" in message
        convert(renamed, "--output", tmp_path / "sized", "--group-sizes", 3, 5, 8, 5, 3)
        convert(renamed, "--output", tmp_path / "named", "--vocabulary", vocabulary())
        shorter = vocabulary(adni={"labels": ["CN", "AD"], "default": None})
        message = refused(capsys, renamed, "--output", tmp_path / "out", "--vocabulary", shorter)
        assert "groups have 23 (adni 2" in message

    def test_unknown_atlas_and_wrong_atlas(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(capsys, run_copy, "--output", tmp_path / "out", "--atlas", "schaefer-200")
        assert "200 regions, the stem 116" in message
        path = next(run_copy.glob("bb_*"))
        state = torch.load(path, weights_only=True)
        state["lin.0.weight"] = state["lin.0.weight"][:, :90].clone()
        torch.save(state, path)
        assert "--atlas" in refused(capsys, run_copy, "--output", tmp_path / "out")

    def test_existing_output_is_not_touched(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        converted = tmp_path / "out"
        convert(RUN, "--output", converted)
        before = (converted / "config.json").read_bytes()
        with pytest.raises(SystemExit):
            convert(RUN, "--output", converted)
        assert "never overwritten" in capsys.readouterr().err
        assert (converted / "config.json").read_bytes() == before

    @pytest.mark.parametrize("size", ["2", "GB", "2 giga"])
    def test_shard_size(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
        assert "2GB" in refused(capsys, RUN, "--output", tmp_path / "out", "--max-shard-size", size)

    @pytest.mark.parametrize("successful_writes", [0, 2])
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError(FULL_DISK)])
    def test_full_disk_leaves_nothing(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        successful_writes: int,
        error: Exception,
    ) -> None:
        original, count = converting.save_file, iter(range(1000))

        def write(*arguments: Any, **options: Any) -> None:
            if next(count) >= successful_writes:
                raise error
            original(*arguments, **options)

        monkeypatch.setattr(converting, "save_file", write)
        (tmp_path / "disk").mkdir()
        message = refused(capsys, RUN, "--output", tmp_path / "disk" / "out", "--max-shard-size", "20KB")
        assert "No space left on device" in message
        assert list((tmp_path / "disk").iterdir()) == []
