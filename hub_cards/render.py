"""Cards are produced, not written: facts, configuration, vocabulary, records and results in, Markdown out."""

import re
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from modeling_lcm import FCFeatureExtractor, LCMConfig, LCMProcessor
from modeling_lcm.atlases import fingerprint
from modeling_lcm.limits_lcm import TrainingLimits
from modeling_lcm.sites_lcm import compares_with_site
from training.reporting.plain import markdown_code, markdown_text
from training.reporting.results import Results

from .results import eval_results, score_rows, shown_results


CITATION = """@inproceedings{wei2026lcm,
  title = {Large Connectome Model: An fMRI Foundation Model of Brain Connectomes Empowered by Brain-Environment
           Interaction in Multitask Learning Landscape},
  author = {Wei, Ziquan and Dan, Tingting and Wu, Guorong},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year = {2026},
  note = {arXiv:2510.18910}
}"""
TAGS = ["fmri", "functional-connectivity", "connectome", "neuroimaging", "large-connectome-model"]


def _refuse_empty(value: Any) -> Any:
    """Jinja's last step before a value is printed: nothing empty gets into a card."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("a field is empty")
    return value


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        finalize=_refuse_empty,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _written_cell, "plain": markdown_text, "code": markdown_code}
    return environment


def _written_cell(value: Any) -> str:
    """What whoever publishes has written, and may hold Markdown, inside a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _render(template: str, **context: Any) -> str:
    try:
        text = _environment().get_template(template).render(**context)
    except (ValueError, jinja2.UndefinedError) as error:
        raise ValueError(f"The card is not complete ({template}: {error}).") from error
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def fc_facts(extractor: FCFeatureExtractor) -> dict[str, Any]:
    """Atlas, region order and FC definition, for a card.

    Raises:
        ValueError: the atlas is not named, so that nobody could prepare data for the model.
    """
    if extractor.atlases is not None:
        several = [fc_facts(each) for each in extractor.by_atlas.values()]
        named = {name: ", ".join(str(each[name]) for each in several) for name in ("atlas", "regions")}
        prints = ", ".join(each["fingerprint"] if each["region_names"] else "not recorded" for each in several)
        return several[0] | named | {"fingerprint": prints, "region_names": [], "several": [*extractor.by_atlas]}
    if extractor.atlas is None or extractor.num_regions is None:
        raise ValueError(
            "The processor names no atlas: without one nobody can prepare data. Set atlas= and save again."
        )
    names = extractor.region_names
    whole = "the whole scan"
    window = whole if extractor.window is None else f"windows of {extractor.window} volumes, without overlap"
    padding = {
        "none": "none",
        "zeros_at_end": "last window filled up with zeros before the correlation (wrong unless their mean is 0)",
    }
    return {
        "atlas": extractor.atlas,
        "regions": extractor.num_regions,
        "region_names": names or [],
        "several": [],
        "fingerprint": fingerprint(names) if names else "none: the names of the regions were not recorded",
        "estimator": {"pearson": "Pearson correlation", "ledoit_wolf": "Ledoit-Wolf shrunk correlation"}[
            extractor.estimator
        ],
        "window": window,
        "padding": padding[extractor.padding],
        "fisher_z": "yes (atanh off the diagonal)" if extractor.fisher_z else "no (plain r)",
        "constant_regions": {"zero": "correlations set to 0, with a warning", "error": "refused"}[
            extractor.constant_regions
        ],
        "min_volumes": extractor.min_volumes,
    }


def variable_rows(processor: LCMProcessor) -> list[dict[str, str]]:
    """One row per BEI variable: what its tokens mean."""
    rows = []
    for variable in processor.tokenizer.variables:
        scaled = (variable.mean, variable.std) != (0, 1)
        value = "log value" if variable.log else "value"
        scaling = f"scaled: ({value} - {variable.mean:.4g}) / {variable.std:.4g}" if scaled else "not scaled"
        positive = variable.positive_label if variable.name == processor.tokenizer.task else variable.positive
        named = [f"{label} (positive)" if label == positive else label for label in variable.labels]
        meaning = ", ".join(named) or f"{variable.unit or 'no unit recorded'}; {scaling}"
        aliases = "; ".join(f"{alias} = {label}" for alias, label in variable.aliases.items())
        role = "downstream task" if variable.name == processor.tokenizer.task else "pretrained"
        rows.append(
            {
                "name": variable.name,
                "kind": variable.kind,
                "role": role,
                "labels": meaning + (f" (also: {aliases})" if aliases else ""),
                "description": variable.description or "-",
            }
        )
    return rows


def range_rows(limits: TrainingLimits | None) -> list[dict[str, str]]:
    """One row per variable that was learnt from a part of an atlas's scans: what these are like."""
    rows = []
    for atlas in (limits.facts.get("atlases") or [limits.facts.get("atlas")]) if limits is not None else ():
        of_atlas = limits.of_atlas(atlas) if limits is not None else None
        for name, known in (of_atlas.facts.get("ranges", {}) if of_atlas is not None else {}).items():
            low, high = (round(each, 2) + 0.0 for each in known["mean_fc"])  # never -0.00
            ages = known["age"]
            rows.append(
                {
                    "name": name,
                    "atlas": str(atlas),
                    "scans": f"{known['scans']} of {', '.join(known['cohorts']) or 'the training data'}",
                    "ages": "not known" if ages is None else f"{ages[0]:g} to {ages[1]:g}",
                    "mean_fc": f"{low:.2f} to {high:.2f}",
                }
            )
    return rows


def _architecture(config: LCMConfig, parameters: int) -> list[tuple[str, str]]:
    readout = {
        "mean": "mean over layers",
        "max": "maximum over layers for classes, mean for numbers",
        "best_layer": "the layer chosen per variable in training",
        "last_layer": "last layer",
    }
    return [
        ("class", (config.architectures or ["LCMModel"])[0]),
        ("parameters", f"{parameters:,}"),
        ("layers", str(config.num_hidden_layers)),
        ("width", str(config.hidden_size)),
        ("attention heads", str(config.num_attention_heads)),
        ("feed-forward width", str(config.intermediate_size)),
        ("pretrained BEI tokens", str(config.num_bei_tokens)),
        ("type of the weights", str(config.dtype).removeprefix("torch.")),
        ("supervision in the last stage", config.supervision),
        ("read-out", readout[config.effective_readout]),
        ("rows of FC normalised", "yes (beyond the paper)" if config.normalize_rows else "no"),
        ("edge read-out", "yes (beyond the paper)" if config.edge_readout else "no"),
        *([("fitted in closed form", "yes: the logits are those of the edges alone")] if config.closed_form else []),
        *_site_rows(config),
    ]


def _site_rows(config: LCMConfig) -> list[tuple[str, str]]:
    """Variables that are read beside the mean of the scan's site."""
    names = [name for name in config.token_slices if name is not None and compares_with_site(config, [name])]
    return [("compared with the mean of the scan's site", ", ".join(names))] if names else []


def _training_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What the run's record says, without the subjects' names."""
    if not record:
        return []
    arguments = record.get("arguments", {})
    rows = [
        ("training subjects", str(record["num_training_subjects"])),
        ("training scans", str(record["num_training_scans"])),
        ("epochs", str(len(record.get("history") or []))),
    ]
    for name in (
        "batch_size",
        "learning_rate",
        "weight_decay",
        "lora_rank",
        "labels_per_class",
        "pseudo_labels",
        "seed",
    ):
        if arguments.get(name) is not None:
            rows.append((name.replace("_", " "), str(arguments[name])))
    rows += [(f"{name} version", str(version)) for name, version in record.get("versions", {}).items()]
    return rows


def _metadata(facts: dict[str, Any], **more: Any) -> dict[str, Any]:
    licence = {name: facts[name] for name in ("license", "license_name", "license_link") if facts.get(name)}
    return {**licence, "language": None, "tags": TAGS, **more}


def model_card(
    facts: dict[str, Any],
    repo_id: str,
    revision: str,
    config: LCMConfig,
    processor: LCMProcessor,
    parameters: int,
    record: dict[str, Any] | None = None,
    conversion: dict[str, Any] | None = None,
    results: Results | None = None,
    scores: list[dict[str, Any]] | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
) -> str:
    """The card of a model, or of an adapter (with `base_model`).

    Args:
        facts (`dict`): see `hub_cards.facts`.
        repo_id (`str`): where it is published.
        revision (`str`): tag or branch that the snippets load.
        config (`LCMConfig`): of the (merged) model.
        processor (`LCMProcessor`): saved with it.
        parameters (`int`): number of parameters, without buffers.
        record (`dict`, *optional*): redacted `training_record.json`.
        conversion (`dict`, *optional*): `conversion_report.json`.
        results (`Results`, *optional*): checked.
        scores (`list[dict]`, *optional*): `evaluation.json` of training.open_weights.
        base_model (`str`, *optional*): Hub id of an adapter's base model.
        base_revision (`str`, *optional*): its revision.

    Returns:
        The text of `README.md`.

    Raises:
        ValueError: something that belongs on the card is missing or empty.
    """
    if results is None and not facts.get("no_results"):
        raise ValueError(
            "The card needs results: put the metrics.json of training.evaluate beside the checkpoint or give "
            "--metrics FILE, or say in the field no_results why there are none."
        )
    facts = {**facts, "cohorts": _cohorts_of(facts["cohorts"], conversion)}
    names = ", ".join(cohort["name"] for cohort in facts["cohorts"])
    data = ModelCardData(
        **_metadata(
            facts,
            library_name="peft" if base_model else "transformers",
            base_model=base_model,
            model_name=repo_id.split("/")[-1] if results else None,
            eval_results=eval_results(results, names) if results else None,
        )
    )
    body = _render(
        "adapter_card.md" if base_model else "model_card.md",
        facts=facts,
        repo_id=repo_id,
        revision=revision,
        model_class=(config.architectures or ["LCMModel"])[0],
        architecture=_architecture(config, parameters),
        fc=fc_facts(processor.feature_extractor),
        variables=variable_rows(processor),
        ranges=range_rows(processor.limits),
        unnamed=any("(unnamed)" in label for item in processor.tokenizer.variables for label in item.labels),
        training=_training_rows(record or {}),
        conversion=conversion,
        results=None if results is None else shown_results(results),
        scores=score_rows(scores or []),
        task=config.task_variable,
        base_model=base_model,
        base_revision=base_revision,
        citation=CITATION,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _cohorts_of(cohorts: list[dict[str, str]], conversion: dict[str, Any] | None) -> list[dict[str, str]]:
    """The cohorts that the converted run's folder names; all of them for other checkpoints."""
    datasets = (conversion or {}).get("source", {}).get("datasets")
    by_run_name = {cohort["run_name"]: cohort for cohort in cohorts if "run_name" in cohort}
    if not datasets or not by_run_name:
        return cohorts
    unknown = [name for name in datasets if name not in by_run_name]
    if unknown:
        raise ValueError(
            f"The weights saw {', '.join(unknown)}, which the card does not describe: add a cohort with run_name."
        )
    return [by_run_name[name] for name in datasets]


def dataset_card(
    facts: dict[str, Any], repo_id: str, revision: str, description: str, scans: int, extractor: FCFeatureExtractor
) -> str:
    """The card of a prepared data set.

    Args:
        facts (`dict`): see `hub_cards.facts`.
        repo_id (`str`): where it is published.
        revision (`str`): tag or branch that the snippet loads.
        description (`str`): what the data set tells of itself; see `training.data.card`.
        scans (`int`): number of scans.
        extractor (`FCFeatureExtractor`): the FC definition of all scans.

    Returns:
        The text of `README.md`.
    """
    size = (
        "n<1K" if scans < 1000 else "1K<n<10K" if scans < 10_000 else "10K<n<100K" if scans < 100_000 else "100K<n<1M"
    )
    data = DatasetCardData(
        **_metadata(
            facts,
            pretty_name=facts["title"],
            size_categories=[size],
            configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        )
    )
    body = _render(
        "dataset_card.md",
        facts=facts,
        repo_id=repo_id,
        revision=revision,
        description=description,
        fc=fc_facts(extractor),
        citation=CITATION,
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))
