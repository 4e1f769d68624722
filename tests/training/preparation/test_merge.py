"""From prepared cohorts to one data set; quality rules; shards, workers, interrupted runs; splits by site."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

import training.preparation.workers
from modeling_lcm import BEITokenizer, FCFeatureExtractor
from modeling_lcm.atlases import region_coordinates, region_names
from tests.training.preparation.layouts import signals_of
from training.data.cohort import load_cohort
from training.data.duplicates import find_duplicates
from training.data.folds import Folds, leave_site_out, official_folds
from training.preparation.arguments import MergeArguments, PrepareArguments
from training.preparation.build import prepare
from training.preparation.merging import merge
from training.preparation.quality import Rules, Statistics, homotopic_pairs, measure, shift_against
from training.preparation.shards import FinishedScans, Shard, ShardWriter
from training.preparation.sources.base import Scan, Source
from training.preparation.stamps import WHOLE_BYTES, are_unchanged, stamps_of
from training.preparation.workers import Job, run
from training.splits import main
from training.storage.manifest import seal


COHORTS = Path(__file__).parent / "cohorts"
REGIONS = 116


def write_cohort(folder: Path, table: pd.DataFrame, scans: np.ndarray) -> Path:
    """A folder with participants.tsv and timeseries.npz `(subjects, volumes, regions)`."""
    folder.mkdir(parents=True)
    table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    np.savez(
        folder / "timeseries.npz",
        participant_id=table["participant_id"].to_numpy(dtype=str),
        data=scans.reshape(-1, scans.shape[-1]),
        offsets=np.arange(len(scans) + 1) * scans.shape[1],
    )
    return folder


@pytest.fixture
def make_cohort(tmp_path: Path, rng: np.random.Generator) -> Callable[..., PrepareArguments]:
    """Factory of small cohorts in the recipes' converted layouts, ready to be prepared."""

    def make(name: str, columns: dict, people: int = 6, **settings: object) -> PrepareArguments:
        table = pd.DataFrame({"participant_id": [f"s{number}" for number in range(people)]} | columns)
        scans = np.stack([signals_of(number, 40, rng) for number in range(people)])
        folder = write_cohort(tmp_path / "raw" / name, table, scans)
        return PrepareArguments(
            recipe=str(COHORTS / f"{name}.yaml"), data_dir=str(folder), output=str(tmp_path / name), **settings
        )

    return make


ABIDE = {
    "age": [10, 11, 12, 13, 14, 15], "sex": list("MFMFMF"), "site": ["NYU", "NYU", "PITT", "PITT", "KKI", "KKI"],
    "diagnosis": ["ASD", "control"] * 3, "mean_fd_mm": [0.1, 0.2, 0.9, 0.1, 0.1, None],
    "same_person_in_adhd200": [None, "s3", None, None, None, "s99"],
}  # fmt: skip
ADHD = {
    "age": [9, 10, 11, 12, 13, 14], "sex": list("FFMMFM"), "site": ["NYU"] * 4 + ["Peking"] * 2,
    "diagnosis": ["ADHD", "control"] * 3, "same_person_in_abide1": [None, None, None, "s1", None, None],
}  # fmt: skip


def test_merge_keeps_people_sites_vocabularies_and_both_formats(
    make_cohort: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    abide = prepare(make_cohort("abide1", ABIDE, max_mean_fd=0.5))
    adhd = prepare(make_cohort("adhd200", ADHD))
    (merged,) = merge(MergeArguments(inputs=[str(abide), str(adhd)], output=str(tmp_path / "merged")))
    cohort = load_cohort(merged)
    table = cohort.table
    assert len(table) == 11  # one scan moved too much
    assert table["subject_id"].nunique() == 10  # one subject is in both
    both = table[table["subject_id"] == "abide1/s1"]
    assert both["dataset"].tolist() == ["abide1", "adhd200"]
    assert both["cohort_subject_id"].tolist() == ["s1", "s3"]
    assert both["session"].tolist() == ["abide1-1", "adhd200-1"]
    assert cohort.phenotypes() == ["site", "autism", "sex", "age", "state", "adhd"]
    for separate, rows in ((abide, slice(0, 5)), (adhd, slice(5, 11))):
        np.testing.assert_array_equal(cohort.triangles[rows], load_cohort(separate).triangles)
    tokenizer = BEITokenizer.from_pretrained(merged / "vocabulary")
    assert [variable.name for variable in tokenizer.variables] == ["autism", "sex", "age", "state", "adhd"]
    labels = tokenizer(table, pseudo_labels=True)["labels"]
    assert (labels[5:, 0] == 0).all()  # nothing is known of autism there: the default, "not applicable"
    # Two folders of one name in one cache: each gives its own scans.
    own = datasets.load_dataset(str(abide / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert own["subject_id"][:] == ["s0", "s1", "s3", "s4", "s5"]
    parquet = datasets.load_dataset(str(merged / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(np.array(parquet["connectivity"], dtype=np.float16), cohort.triangles)
    streamed = next(iter(datasets.load_dataset(str(merged / "parquet"), split="train", streaming=True)))
    assert streamed["subject_id"] == "abide1/s0"
    card = (merged / "README.md").read_text()
    assert "CC BY-NC-SA 3.0" in card
    assert "1 scans were left out, 1 of them by rule" in card
    report = (merged / "quality.html").read_text()
    assert "mean framewise displacement 0.90 mm is above 0.5 mm" in report
    folds = leave_site_out(table)
    nyu = next(fold for fold, people in enumerate(folds.test_subjects) if "abide1/s1" in people)
    training, test = folds.split(cohort, nyu)
    assert set(both.index) <= set(test.table.index)
    assert not set(training.table["site"]) & {"NYU"}


def test_merge_refuses_what_does_not_fit(make_cohort: Callable[..., PrepareArguments], tmp_path: Path) -> None:
    abide = prepare(make_cohort("abide1", ABIDE, parquet=False))
    other = prepare(make_cohort("neurocon", {"age": 60, "sex": "M", "diagnosis": "PD"}, estimator="ledoit_wolf"))
    with pytest.raises(ValueError, match="estimator is 'pearson' and 'ledoit_wolf'"):
        merge(MergeArguments(inputs=[str(abide), str(other)], output=str(tmp_path / "merged")))
    with pytest.raises(ValueError, match="Two inputs are the cohort 'abide1'"):
        merge(MergeArguments(inputs=[str(abide), str(abide)], output=str(tmp_path / "merged")))
    with pytest.raises(ValueError, match="at least two data sets"):
        merge(MergeArguments(inputs=[str(abide)], output=str(tmp_path / "merged")))
    definition = json.loads((other / "fc_definition.json").read_text()) | {"estimator": "pearson"}
    definition["region_names"] = definition["region_names"][::-1]
    (other / "fc_definition.json").write_text(json.dumps(definition))
    seal(other)
    with pytest.raises(ValueError, match="another order of them"):
        merge(MergeArguments(inputs=[str(abide), str(other)], output=str(tmp_path / "merged")))


# --- quality ---


@pytest.mark.parametrize(
    ("name", "content"),
    [("quality.json", "{}"), ("quality.json", "[1"), ("cohorts.json", '[{"dataset": 3}]'), ("cohorts.json", "[]")],
)
def test_merge_of_damaged_records_is_a_sentence(
    dataset: Path, other_cohort: Path, tmp_path: Path, name: str, content: str
) -> None:
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    (damaged / "checksums.json").unlink()
    (damaged / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*(damaged|make it again)"):
        merge(MergeArguments(inputs=[str(damaged), str(other_cohort)], output=str(tmp_path / "merged")))
    assert not (tmp_path / "merged").exists()


def test_homotopic_order_tells_right_from_wrong(rng: np.random.Generator) -> None:
    names = region_names("aal-116")
    pairs = homotopic_pairs(names, region_coordinates("aal-116"))
    assert len(pairs) == 54  # all but the eight of the vermis
    assert all(names[a][:-1] == names[b][:-1] for a, b in pairs)
    matrix = np.corrcoef(signals_of(0, 200, rng).T).astype("f4")
    assert measure(matrix, pairs)["homotopic"] > 0.95
    shuffled = rng.permutation(REGIONS)
    assert measure(matrix[np.ix_(shuffled, shuffled)], pairs)["homotopic"] < 0.7
    matrix[5] = matrix[:, 5] = 0
    assert measure(matrix, pairs)["silent"] == [5]
    assert len(homotopic_pairs(region_names("schaefer-200"), region_coordinates("schaefer-200"))) > 70


def test_rules_give_reasons_and_unknown_values_pass() -> None:
    rules = Rules(max_mean_fd=0.5, min_volumes=100, max_missing_regions=3, min_homotopic=0.7)
    assert rules.reason({"mean_fd": 0.51}) == "mean framewise displacement 0.51 mm is above 0.5 mm"
    assert rules.reason({"volumes": 99}) == "99 volumes are fewer than 100"
    assert rules.reason({"missing_regions": 4}) == "4 regions without signal are more than 3"
    assert rules.reason({"homotopic": 0.5}) == "homotopic order 0.50 is below 0.7"
    assert rules.reason({"mean_fd": None, "volumes": 100, "missing_regions": 3, "homotopic": 0.7}) is None
    with pytest.raises(ValueError, match="duplicates must be one of report, drop"):
        Rules(duplicates="delete")


def test_near_identical_scans_of_two_people_are_found(rng: np.random.Generator) -> None:
    triangles = np.tanh(rng.normal(0.2, 0.3, (50, 2000))).astype(np.float16)
    triangles[40] = triangles[3] + rng.normal(0, 0.02, 2000).astype(np.float16)
    triangles[41] = triangles[4]
    subjects = [f"s{number}" for number in range(50)]
    subjects[41] = "s4"  # another session of the same subject
    mean = triangles.mean(axis=0, dtype=np.float64)
    found = find_duplicates(lambda: iter(np.array_split(triangles, 7)), subjects, mean, 0.9)
    assert [(first, second) for first, second, _ in found] == [(3, 40)]
    assert found[0][2] > 0.95


def test_shift_against_a_reference(tmp_path: Path, rng: np.random.Generator) -> None:
    pattern = rng.normal(0, 0.2, 500)
    reference, alike, shifted = (Statistics(500) for _ in range(3))
    reference.add((pattern + rng.normal(0, 0.1, (80, 500))).astype(np.float16))
    alike.add((pattern + rng.normal(0, 0.1, (30, 500))).astype(np.float16))
    shifted.add((pattern + 0.3 + rng.normal(0, 0.1, (30, 500))).astype(np.float16))
    reference.save(tmp_path / "fc_statistics.npz", "abc")
    assert shift_against(str(tmp_path), alike, "abc")["verdict"] == "comparable"
    found = shift_against(str(tmp_path), shifted, "abc")
    assert str(found["verdict"]).startswith("shifted")
    assert found["shift of the mean FC (in spreads of the reference)"] == pytest.approx(3, abs=0.2)
    with pytest.raises(ValueError, match="other regions"):
        shift_against(str(tmp_path), alike, "xyz")


# --- scale ---


def write_files(folder: Path, people: int, rng: np.random.Generator) -> PrepareArguments:
    table = pd.DataFrame({"participant_id": [f"s{number:03d}" for number in range(people)], "age": 20})
    table.to_csv(folder / "subjects.tsv", sep="\t", index=False)
    for person in table["participant_id"]:
        np.save(folder / f"{person}.npy", rng.standard_normal((30, 10)).astype("f4"))
    return PrepareArguments(
        output=str(folder / "out"), participants=str(folder / "subjects.tsv"), atlas="made-up-10", parquet=False,
        time_series=str(folder / "{participant_id}.npy"),
    )  # fmt: skip


def test_shards_then_merge_equals_one_run(tmp_path: Path, rng: np.random.Generator) -> None:
    arguments = write_files(tmp_path, 11, rng)
    whole = load_cohort(prepare(arguments))
    sharded = replace(arguments, output=str(tmp_path / "sharded"))
    prepare(replace(sharded, shard="2/3"))
    with pytest.raises(ValueError, match=r"Shard 1/3 has 4 of 4 scans to do: .* --shard 1/3 first"):
        prepare(replace(sharded, merge_shards=3))
    for shard in ("1/3", "3/3"):
        prepare(replace(sharded, shard=shard))
    together = load_cohort(prepare(replace(sharded, merge_shards=3)))
    pd.testing.assert_frame_equal(together.table, whole.table)
    np.testing.assert_array_equal(together.triangles, whole.triangles)
    assert not (tmp_path / "sharded.work").exists()
    with pytest.raises(ValueError, match="INDEX/COUNT"):
        Shard.parse("4/3")


def test_changed_files_are_read_again_or_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    arguments = write_files(tmp_path, 6, rng)
    good = (tmp_path / "s005.npy").read_bytes()
    for change in ("content", "time only", "same time"):
        (tmp_path / "s005.npy").write_bytes(good[:-40])  # stops the run
        stopping = replace(arguments, bad_scans="stop", output=str(tmp_path / change))
        with pytest.raises(ValueError, match=r"s005\.npy"):
            prepare(stopping)
        before = (tmp_path / "s001.npy").stat()
        if change == "time only":  # a copy: the same scan, nothing has to be read again
            os.utime(tmp_path / "s001.npy", ns=(1, 1))
        else:
            np.save(tmp_path / "s001.npy", rng.standard_normal((30, 10)).astype("f4"))
        if change == "same time":
            os.utime(tmp_path / "s001.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "s005.npy").write_bytes(good)
        cohort = load_cohort(prepare(stopping))
        expected = [np.corrcoef(np.load(tmp_path / f"s{number:03d}.npy").T) for number in range(6)]
        np.testing.assert_allclose(cohort.connectivity(), expected, atol=1e-3)
    sharded = replace(arguments, output=str(tmp_path / "sharded"))
    for shard in ("1/2", "2/2"):
        prepare(replace(sharded, shard=shard))
    np.save(tmp_path / "s002.npy", rng.standard_normal((30, 10)).astype("f4"))
    with pytest.raises(ValueError, match=r"files of 1 scans of shard 1/2 have changed .* --shard 1/2 first"):
        prepare(replace(sharded, merge_shards=2))
    prepare(replace(sharded, shard="1/2"))
    cohort = load_cohort(prepare(replace(sharded, merge_shards=2)))
    expected = [np.corrcoef(np.load(tmp_path / f"s{number:03d}.npy").T) for number in range(6)]
    np.testing.assert_allclose(cohort.connectivity(), expected, atol=1e-3)


@pytest.mark.parametrize("size", [100, WHOLE_BYTES + 3])
def test_stamps_notice_size_time_and_content(tmp_path: Path, size: int) -> None:
    path, absent = tmp_path / "scan", tmp_path / "absent"
    path.write_bytes(bytes(size))
    os.utime(path, ns=(5, 5))
    stamps = json.loads(json.dumps(stamps_of([path, absent])))
    assert are_unchanged(stamps, [path, absent]) and are_unchanged(stamps, [path, absent], with_content=False)
    for position in (0, size // 2, size - 1):
        content = bytearray(size)
        content[position] = 1
        path.write_bytes(content)
        os.utime(path, ns=(5, 5))
        assert not are_unchanged(stamps, [path, absent])
    path.write_bytes(bytes(size))
    os.utime(path, ns=(6, 6))
    assert are_unchanged(stamps, [path, absent]) == (size <= WHOLE_BYTES)  # large files are not read whole
    os.utime(path, ns=(5, 5))
    absent.touch()
    assert not are_unchanged(stamps, [path, absent])
    assert not are_unchanged(stamps, [path]) and not are_unchanged(None, [path])


def test_any_flipped_bit_in_a_finished_shard_is_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    arguments = write_files(tmp_path, 4, rng)
    for shard in ("1/2", "2/2"):
        prepare(replace(arguments, shard=shard))
    folder = tmp_path / "out.work"
    for name in ("shard-1-of-2.fc", "shard-2-of-2.jsonl"):
        good = (folder / name).read_bytes()
        for position in rng.integers(0, len(good) - 1, 25):
            content = bytearray(good)
            content[position] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"Shard {name[6]}/2 is damaged: .* --shard {name[6]}/2 first"):
                FinishedScans.open(folder, 2, 4, 45)
        (folder / name).write_bytes(good)
    assert len(FinishedScans.open(folder, 2, 4, 45).records) == 4


def test_interrupted_run_goes_on_without_redoing(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = write_files(tmp_path, 80, rng)
    do, done = Job.do, []

    def interrupted(job: Job, rows: list[int]) -> list:
        if len(done) >= 32:
            raise KeyboardInterrupt
        done.extend(rows)
        return do(job, rows)

    monkeypatch.setattr(Job, "do", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(arguments)
    # The kill came while a line was being written, too.
    with (tmp_path / "out.work" / "shard-1-of-1.jsonl").open("ab") as journal:
        journal.write(b'{"row": 32, "off')
    with (tmp_path / "out.work" / "shard-1-of-1.fc").open("ab") as values:
        values.write(b"half a triangle")
    again: list[int] = []
    monkeypatch.setattr(Job, "do", lambda job, rows: again.extend(rows) or do(job, rows))
    with pytest.raises(ValueError, match=r"other scans or settings \(fc\)"):
        prepare(replace(arguments, estimator="ledoit_wolf"))
    cohort = load_cohort(prepare(arguments))
    assert sorted(done + again) == list(range(80))
    expected = [np.corrcoef(np.load(tmp_path / f"s{number:03d}.npy").T) for number in range(80)]
    np.testing.assert_allclose(cohort.connectivity(), expected, atol=1e-3)


def test_two_processes_cannot_write_one_shard(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, Shard())
    with pytest.raises(ValueError, match="Another process works on shard 1/1"):
        ShardWriter(tmp_path, Shard())
    writer.close()
    ShardWriter(tmp_path, Shard()).close()


@dataclass
class DeadlySource(Source):
    """Random scans; reading row 5 kills the process, as the system does when memory runs out."""

    def read(self, row: int) -> Scan:
        if row == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return Scan(np.random.default_rng(row).standard_normal((30, 10)), "time_series", volumes=30)


@pytest.mark.slow
def test_killed_worker_costs_its_scan_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.preparation.workers, "CHUNK", 4)
    source = DeadlySource(pd.DataFrame(index=range(20)), [""] * 20)
    job = Job(source, FCFeatureExtractor(num_regions=10), np.empty((0, 2), dtype=int))
    results = {result.row: result for result in run(job, list(range(20)), workers=2)}
    assert sorted(results) == list(range(20))
    assert [row for row, result in results.items() if result.triangle is None] == [5]
    assert "killed twice" in results[5].record["error"]


# --- splits and harmonisation ---


def test_splits_by_column_and_their_errors(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"subject_id": list("aabbc"), "site": ["x", "y", "y", "y", "x"], "fold": [1, 1, 2, 2, 2]})
    assert leave_site_out(table).test_subjects == (("a", "c"), ("b",))
    assert official_folds(table, "fold").test_subjects == (("a",), ("b", "c"))
    with pytest.raises(ValueError, match="Subject a is in two folds"):
        official_folds(table, "site")
    with pytest.raises(ValueError, match="same site"):
        leave_site_out(table.assign(site="x"))
    with pytest.raises(ValueError, match="1 scans have no site in 'site', c among them"):
        leave_site_out(table.assign(site=["x", "y", "y", "y", None]))
    with pytest.raises(ValueError, match="no column 'centre'"):
        leave_site_out(table, "centre")
    main(f"--data {dataset} --kind leave_site_out --output {tmp_path / 'splits.json'}".split())
    folds = Folds.load(tmp_path / "splits.json")
    assert (len(folds.test_subjects), folds.stratified_by) == (2, "site")
    assert folds.checksum in capsys.readouterr().out
