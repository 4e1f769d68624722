"""Fit read-outs on all cohorts, score them on subjects left out, and write the checkpoint folder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modeling_lcm import BEITokenizer, LCMProcessor
from modeling_lcm.closed_form_fit import one_extractor
from modeling_lcm.closed_form_model import build_model
from modeling_lcm.limits_lcm import PART, TrainingLimits, most_scans

from ..data.identity import hash_names
from ..storage.files import write_folder, write_json
from ..storage.manifest import seal
from .checkpoints import RECORD
from .open_arguments import OpenWeightsArguments
from .open_heads import Pool, evaluate_pool, fit_pool, load_pool
from .runs import git_revision, library_versions


SCORES = "evaluation.json"


def make_open_weights(arguments: OpenWeightsArguments, output: Path) -> Iterator[str]:
    """Write the checkpoint, and say what happens.

    Args:
        arguments (`OpenWeightsArguments`): settings.
        output (`Path`): the new folder.

    Raises:
        FileNotFoundError: a data set of the recipe is not there.
        ValueError: data sets of one atlas have different regions.
    """
    pool = load_pool(arguments.data, arguments.recipe)
    subjects = len(set(pool.subjects.tolist()))
    yield f"{len(pool.table)} scans of {subjects} subjects, atlases {', '.join(pool.edges)}"
    heads = fit_pool(pool, site_relative=arguments.site_relative)
    for key, of_key in heads.items():
        for name, head in of_key.items():
            score = f"AUC {head.record['auc']:.3f}" if "auc" in head.record else f"r {head.record['r']:.3f}"
            gate = f", compared with the site by {head.record['site_gate']:g}" if head.record.get("site_gate") else ""
            yield f"{name} from {key}: {head.record['scans']} scans, each subject left out {score}{gate}"
    rows = evaluate_pool(pool, arguments.folds, arguments.seed, arguments.site_relative) if arguments.folds else []
    for row in rows:
        score = f"AUC {row['auc']:.3f}" if "auc" in row else f"r {row['r']:.3f}"
        yield f"{row['variable']} from {row['atlases']}, {row['cohort']} ({row['scans']}): {score}"
    tokenizer = BEITokenizer(variables=pool.variables)
    means = {name: np.asarray(np.nanmean(each, axis=0, dtype=np.float64)) for name, each in pool.edges.items()}
    model = build_model(heads, means, pool.extractors, tokenizer)
    processor = LCMProcessor(one_extractor(pool.extractors), tokenizer)
    processor.limits = TrainingLimits.several({atlas: _limits(pool, atlas) for atlas in pool.rows})
    record = {
        "training_subject_hashes": [hash_names([*pool.table["name"], *pool.table["data_name"]])],
        "num_training_scans": len(pool.table),
        "num_training_subjects": subjects,
        "cohorts": {name: int(count) for name, count in pool.table["cohort"].value_counts(sort=False).items()},
        "history": [],
        "versions": library_versions(),
        "git_revision": git_revision(),
    }

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        for code in folder.glob("*.py"):  # the package has it; publishing puts it back
            code.unlink()
        write_json(folder / RECORD, record)
        write_json(folder / SCORES, {"folds": arguments.folds, "scores": rows})
        seal(folder)

    write_folder(output, fill)
    yield f"Written to {output}"


def _limits(pool: Pool, atlas: str) -> TrainingLimits | None:
    """What the scans of an atlas are like, evenly chosen where there are very many."""
    rows, matrices = pool.rows[atlas], pool.connectivity[atlas]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most_scans(matrices.shape[-1])), dtype=int))
    ages = pool.table["age"].to_numpy(float)[rows]
    limits = TrainingLimits.of(matrices[chosen], pool.subjects[rows[chosen]].tolist())
    if limits is None:
        return None
    limits.learn_ages(ages)
    for variable in pool.variables:
        known = pool.table[variable.name].notna().to_numpy()[rows]
        if 0 < known.mean() < PART:
            cohorts = pool.table["cohort"].iloc[rows[known]].unique().tolist()
            limits.learn_range(variable.name, matrices[known], ages[known], cohorts)
    return limits
