"""Checksums of finished files: a changed bit is noticed by every door; folders without them load as ever."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_lcm import LCMForMultitaskPretraining
from training import predict, verify
from training.data.cohort import load_cohort
from training.storage import manifest
from training.storage.checked_files import check_files
from training.storage.manifest import CHECKSUMS, checksum, differences, read_checksums, require_intact, seal
from training.trainer.checkpoints import load_model, load_processor, read_record


def flip(path: Path, position: int = -1, bit: int = 6) -> None:
    """Change one bit, by default in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position < 0 else position] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder with files in it and below."""
    place = tmp_path / "folder"
    (place / "inside").mkdir(parents=True)
    (place / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (place / "inside" / "settings.json").write_text("{}")
    (place / "README.md").write_text("card")
    (place / ".hidden").write_text("-")
    seal(place)
    return place


def test_all_files_are_listed_but_hidden_ones(folder: Path) -> None:
    assert list(read_checksums(folder) or ()) == ["README.md", "inside/settings.json", "weights.bin"]
    assert differences(folder) == []
    require_intact(folder)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: flip(folder / "weights.bin"), "weights.bin has changed"),
        (lambda folder: (folder / "weights.bin").write_bytes(b"-"), "weights.bin has 1 bytes, not 10,240"),
        (lambda folder: (folder / "inside" / "settings.json").unlink(), "inside/settings.json is missing"),
    ],
)
def test_what_has_changed_is_named(folder: Path, harm: Callable[[Path], Any], message: str) -> None:
    harm(folder)
    with pytest.raises(ValueError, match=rf"is not as it was written: {message}\. Copy the folder again"):
        require_intact(folder)


def test_a_card_may_be_edited_and_files_added(folder: Path) -> None:
    (folder / "README.md").write_text("another card")
    (folder / "more").write_text("more")
    require_intact(folder)
    assert differences(folder) == ["README.md has 12 bytes, not 4"]


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", '{"files": 1}', '{"files": {"a": 1}}', '{"files": {"a": {"bytes": 1}}}',
        '{"files": {"../a": {"bytes": 1, "sha256": "' + "0" * 64 + '"}}}',
        '{"files": {"/etc/passwd": {"bytes": 1, "sha256": "' + "0" * 64 + '"}}}',
        '{"files": {"a": {"bytes": 1, "sha256": "00"}}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_damaged_list_is_a_sentence(folder: Path, content: str) -> None:
    (folder / CHECKSUMS).write_text(content)
    with pytest.raises(ValueError, match=r"checksums\.json is damaged"):
        require_intact(folder)


def test_every_bit_of_the_list_counts(folder: Path) -> None:
    """A flipped bit in the list is noticed, or changes nothing that it says."""
    whole = (folder / CHECKSUMS).read_bytes()
    said = json.loads(whole)["files"]
    for position in range(0, len(whole), 7):
        flip(folder / CHECKSUMS, position, position % 8)
        try:
            require_intact(folder)
        except ValueError:
            pass
        else:
            now = read_checksums(folder) or {}
            assert {name: now.get(name) for name in said if name != "README.md"} == {
                name: entry for name, entry in said.items() if name != "README.md"
            }
        (folder / CHECKSUMS).write_bytes(whole)


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is noted what was compared; nothing was, and the file system's clock has no ticks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "NOTED", 1000)
    monkeypatch.setattr(manifest, "TICK", -1)
    monkeypatch.setattr(manifest, "_compared", set())
    return tmp_path / "cache" / "large-connectome-model" / "compared"


def test_large_files_are_read_once_and_again_when_touched(folder: Path, notes: Path) -> None:
    require_intact(folder)
    (note,) = notes.iterdir()
    wrong, right = "0" * 64, checksum(folder / "weights.bin")["sha256"]
    for path in (note, folder / CHECKSUMS):
        path.write_text(path.read_text().replace(right, wrong))
    require_intact(folder)  # size, times and place are those of the note: not read again
    assert differences(folder, again=True) == ["weights.bin has changed"]
    (folder / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"weights\.bin has changed"):
        require_intact(folder)


def test_change_that_keeps_size_and_time_is_noticed(folder: Path, notes: Path) -> None:
    for name in ("weights.bin", "inside/settings.json"):
        require_intact(folder)
        time.sleep(0.05)  # a tick of the file system's clock
        status = (folder / name).stat()
        flip(folder / name)
        os.utime(folder / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(ValueError, match=rf"{name} has changed"):
            require_intact(folder)
        flip(folder / name)


def test_file_that_has_just_been_written_is_read_every_time(folder: Path, notes: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(manifest, "TICK", 10**12)
    require_intact(folder)
    assert not manifest._compared
    assert not notes.exists()


def test_without_a_home_large_files_are_read_by_every_process(folder: Path, notes: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    require_intact(folder)
    require_intact(folder)


# --- through the doors ---


def test_checkpoints_and_data_sets_are_sealed_when_written(pretrained: Path, dataset: Path) -> None:
    for place in (pretrained, dataset):
        assert differences(place, again=True) == []
        listed = set(read_checksums(place) or ())
        assert listed == {
            path.relative_to(place).as_posix()
            for path in place.rglob("*")
            # Other tests may have left their log FC in the cache, which is keyed by content.
            if path.is_file() and path != place / CHECKSUMS and path.parent != place / "cache"
        }
    verify.main([str(pretrained)])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "bei_vocab.json", "training_record.json"])
def test_flipped_bit_of_a_checkpoint_is_refused_everywhere(pretrained: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(pretrained, tmp_path / "copy"))
    flip(copy / name)
    for load in (load_processor, load_model, read_record, check_files):
        with pytest.raises(ValueError, match=f"is not as it was written: {name} has changed"):
            load(str(copy))


def test_flipped_bit_of_a_data_set_is_refused(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    flip(next(copy.glob("*.arrow")))
    with pytest.raises(ValueError, match=r"data-.*arrow has changed"):
        load_cohort(copy)


def test_verify_finds_what_no_door_reads_and_renews(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    flip(copy / "quality.html")
    load_cohort(copy)
    with pytest.raises(SystemExit) as caught:
        verify.main([str(copy)])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {copy}: quality.html has changed.\n"
    verify.main([str(copy), "--renew"])
    verify.main([str(copy)])
    assert "all as they were written" in capsys.readouterr().out


def test_predictions_have_a_checksum_beside_them(
    pretrained: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.tsv"
    predict.main(["--checkpoint", str(pretrained), "--data", str(dataset), "--output", str(table)])
    assert (tmp_path / "table.tsv.sha256").read_text().endswith("  table.tsv\n")
    verify.main([str(table)])
    flip(table)
    with pytest.raises(SystemExit):
        verify.main([str(table)])
    assert "is not as it was written" in capsys.readouterr().err


def test_folder_without_checksums_loads_as_ever(pretrained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pretrained, tmp_path / "copy"))
    (copy / CHECKSUMS).unlink()
    load_model(str(copy))
    with pytest.raises(SystemExit):
        verify.main([str(copy)])
    flip(copy / "training_record.json")
    LCMForMultitaskPretraining.from_pretrained(copy)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"model_type": "evil"}),
        ("processor_config.json", {"processor_class": "Evil"}),
        ("processor_config.json", {"feature_extractor": {"feature_extractor_type": "Evil"}}),
        ("tokenizer_config.json", {"tokenizer_class": "Evil"}),
        ("adapter_config.json", {"megatron_config": {}, "megatron_core": "evil"}),
    ],
)
def test_foreign_classes_are_refused(pretrained: Path, tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    copy = Path(shutil.copytree(pretrained, tmp_path / "copy"))
    content = json.loads((copy / name).read_text()) if (copy / name).is_file() else {}
    (copy / name).write_text(json.dumps(content | changes))
    seal(copy)
    with pytest.raises(ValueError, match=r"[Nn]othing (of it )?was run"):
        check_files(str(copy))
