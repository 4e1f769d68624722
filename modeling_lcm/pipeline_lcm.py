"""The pipeline "connectome-classification": one scan, or a list of scans, in; labels with scores, or a value, out."""

from typing import Any

import numpy as np
import torch
from transformers import Pipeline
from transformers.modeling_outputs import ModelOutput

from .decisions import at_prevalence
from .limits_lcm import NOT_KNOWN
from .readouts_lcm import prevalences
from .sites_lcm import compares_with_site, site_means


# What an input dictionary may hold, one of them; without a dictionary, the shape tells.
INPUT_KEYS = ("connectivity", "time_series")


class ConnectomeClassificationPipeline(Pipeline):
    """Predict a downstream task from connectomes, with a model and the processor that was saved with it.

    An input is one scan: a square matrix is read as functional connectivity `(regions, regions)`, another array as
    region time series `(volumes, regions)`. `{"connectivity": matrix}` and `{"time_series": signals}` say it outright.
    A list is a list of scans, as is an array with a leading batch axis. A dictionary may also have the subject's `age`
    in years, which is compared with the training subjects', and its `site`; `sites` of a call are those of its scans.

    Per scan a classification returns `[{"label": str, "score": float}, ...]`, highest score first (softmax for
    single-label, one sigmoid per label for multi-label tasks). Of a task fitted in closed form, scores speak of labels
    that are equally frequent, and `"probability"` of their shares among the training scans. A regression returns
    `{"value": float, "unit": str | None}` in the unit of the tokenizer's task variable, or a list of these with a
    "label" each if it has several outputs.

    Each of these also says whether the answer can mean something: `"out_of_distribution": bool | None` (None where the
    checkpoint does not know its training scans) and `"limits": str`, a sentence for every limit that the scan passes.
    Where the checkpoint knows how far its predictions are off, `"possible": bool` marks the labels that cannot be
    ruled out, and `"range": (low, high)` goes with a value; both hold the truth nine times of ten. A model that
    compares scans with their site says by `"site_mean"` what the site's mean was made from: the scans of this site in
    the list, and its training scans.

    Raises:
        ValueError: no processor, a processor of another model, or a model whose downstream task was never trained.

    Example:
        `pipeline("connectome-classification", model="path/to/checkpoint")(time_series)`
    """

    processor: Any  # LCMProcessor
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("The pipeline needs processor=, the LCMProcessor that was saved with the model.")
        self.processor.check_config(self.model.config)
        _check_task_is_trained(self.model)
        # Batching asks a tokenizer for its pad token, and BEI tokens have none; it does need a feature extractor.
        self.tokenizer = None
        self.feature_extractor = self.processor.feature_extractor
        self.model.eval()

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save model, processor and the pipeline's code, for `pipeline(model=..., trust_remote_code=True)`.

        Transformers then asks for `trust_remote_code=True` even where this package is installed; save the model and
        the processor on their own where that is unwanted.
        """
        # The processor's file holds the feature extractor too; a second copy of it would have no effect.
        self.feature_extractor = None
        try:
            super().save_pretrained(save_directory, **kwargs)
            self.processor.save_pretrained(save_directory)
        finally:
            self.feature_extractor = self.processor.feature_extractor

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict one scan or a list of scans.

        Args:
            inputs: see the class; arrays may be NumPy arrays, tensors or nested lists inside a dictionary.
            *args: not used by any pipeline.
            **kwargs: `batch_size` (`int`, default 1): scans that pass the model together; the results do not depend
                on it. `top_k` (`int`, default all): labels to return. `sites` (`list`): site of every scan, None where
                it is not recorded; changes nothing for a model that does not compare scans with their site.

        Raises:
            ValueError: whatever the processor refuses, e.g. a wrong number of regions, or an empty list.
        """
        sites = kwargs.pop("sites", None)
        if isinstance(inputs, list | tuple) and not len(inputs):
            raise ValueError("The list of scans is empty; give at least one.")
        is_batch = not isinstance(inputs, dict) and getattr(inputs, "ndim", 0) == 3
        inputs = list(inputs) if is_batch or isinstance(inputs, tuple) else inputs
        if isinstance(inputs, list):
            inputs = self._beside_sites(inputs, sites)
        elif sites is not None:
            raise ValueError("sites goes with a list of scans; one scan has its site in a dictionary, under site.")
        return super().__call__(inputs, *args, **kwargs)

    @torch.no_grad()
    def _beside_sites(self, scans: list, sites: Any) -> list:
        """Scans as dictionaries with the means of their sites, of models that compare scans with these."""
        if sites is not None and (isinstance(sites, str) or len(sites) != len(scans)):
            raise ValueError(f"There are {len(scans)} scans; sites needs as many names, in a list, got {sites!r:.60}.")
        config: Any = self.model.config
        if not compares_with_site(config, [config.task_variable]):
            return scans
        scans = [scan if isinstance(scan, dict) else {_guess_key(scan): scan} for scan in scans]
        known = [scan.get("site") for scan in scans] if sites is None else list(sites)
        read, present = [], []
        for scan in scans:  # one by one: a cohort may be larger than the memory
            inputs = self._ensure_tensor_on_device(self._prepare(scan), device=self.device)
            given = inputs["connectivity"]
            read.append(self.model(connectivity=given).site_logits.cpu())
            present.append(_atlases(config, given))
        means = site_means(config, torch.cat(read), known, present)
        return [
            scan | {"site_means": value[None], "site_mean": remark}
            for scan, value, remark in zip(scans, means.values, means.remarks, strict=True)
        ]

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            raise TypeError(f"The pipeline does not know {', '.join(kwargs)}; it knows batch_size and top_k.")
        if top_k is None:
            return {}, {}, {}
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        return {}, {}, {"top_k": top_k}

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """Turn one scan into the model's `connectivity`, `(1, regions, regions)`."""
        if not isinstance(input_, dict):
            input_ = {_guess_key(input_): input_}
        if "site_mean" not in input_:  # not of a list
            (input_,) = self._beside_sites([input_], None)
        beside = {key: input_[key] for key in ("site_means", "site_mean") if key in input_}
        return self._prepare(input_) | beside

    def _prepare(self, scan: dict[str, Any]) -> dict[str, Any]:
        """Connectivity and age of a scan, whatever its site."""
        age = _age(scan.get("age"))
        input_ = {key: value for key, value in scan.items() if key not in ("age", "site", "site_means", "site_mean")}
        if len(input_) != 1 or next(iter(input_)) not in INPUT_KEYS:
            raise ValueError(
                f"A scan given as a dictionary needs one key, connectivity or time_series, got {[*input_]}. Only age "
                "and site may stand beside it."
            )
        batch = self.processor(**input_, return_tensors="pt")
        given = batch["connectivity"]
        count = len(next(iter(given.values()))) if isinstance(given, dict) else len(given)
        if count != 1:
            raise ValueError(
                f"The processor cut this scan into {count} windows (window="
                f"{self.processor.feature_extractor.window} volumes) and a pipeline predicts one result per scan: "
                "cut the scan with window_connectivity and give a list of matrices."
            )
        return {"connectivity": batch["connectivity"], "age": torch.tensor([age], dtype=torch.float64)}

    def _forward(self, input_tensors: Any, **forward_parameters: Any) -> ModelOutput:
        means = {key: input_tensors[key] for key in ("site_means",) if key in input_tensors}
        logits = self.model(connectivity=input_tensors["connectivity"], **means).logits
        return ModelOutput({"logits": logits, **input_tensors})

    def postprocess(  # type: ignore[override]
        self, model_outputs: ModelOutput, top_k: int | None = None, **postprocess_parameters: Any
    ) -> Any:
        """Turn the logits `(1, num_labels)` of one scan into labels with scores, or a value in its unit."""
        logits = model_outputs["logits"][0].double()
        said = self._limits(model_outputs)
        if "site_mean" in model_outputs:
            said["site_mean"] = model_outputs["site_mean"]
        config: Any = self.model.config
        if config.problem_type == "regression":
            values = self._values(logits)
            return [value | said for value in values] if isinstance(values, list) else self._with_range(values) | said
        is_multi_label = config.problem_type == "multi_label_classification"
        scores = logits.sigmoid() if is_multi_label else logits.softmax(-1)
        order = scores.argsort(descending=True).tolist()[:top_k]
        if scores.isnan().any():
            raise ValueError(
                f"The model was fitted on {' or '.join(config.closed_form)}; this scan has "
                f"{' and '.join(model_outputs['connectivity'])} alone."
            )
        answer = [{"label": config.id2label[index], "score": scores[index].item()} for index in order]
        shares = self._prevalence(model_outputs["connectivity"])
        if shares is not None:
            shown = at_prevalence(scores[None].numpy(), shares)[0]
            answer = [
                entry | {"probability": float(shown[index])} for entry, index in zip(answer, order, strict=False)
            ]
        possible = self._uncertainty({config.id2label[index]: score for index, score in enumerate(scores.tolist())})
        if possible is not None:
            answer = [entry | {"possible": entry["label"] in possible} for entry in answer]
        return [entry | said for entry in answer]

    def _prevalence(self, connectivity: Any) -> np.ndarray | None:
        """Shares of the task's labels among the training scans, if its logits speak of equal ones."""
        config: Any = self.model.config
        return prevalences(config, [_atlases(config, connectivity)]).get(config.task_variable)

    def _limits(self, model_outputs: ModelOutput) -> dict[str, Any]:
        """What goes beside every answer about a scan."""
        # A processor of an earlier version has no such attribute.
        limits = getattr(self.processor, "limits", None)
        scan = model_outputs["connectivity"]
        by_atlas = scan if isinstance(scan, dict) else {"": scan}
        on_cpu = {name: part.float().cpu().numpy() for name, part in by_atlas.items()}
        check = None if limits is None else limits.check_each(on_cpu, model_outputs["age"].cpu())[0]
        if check is None:  # of another atlas, or absent
            return {"out_of_distribution": None, "limits": NOT_KNOWN}
        of_task = check.of_variables.get(self.processor.tokenizer.task)
        reasons = [*check.reasons, *([of_task] if of_task else [])]
        return {"out_of_distribution": bool(reasons), "limits": " ".join(reasons)}

    def _uncertainty(self, predicted: Any) -> Any:
        limits, task = getattr(self.processor, "limits", None), self.processor.tokenizer.task
        return None if limits is None or task is None else limits.uncertainty(task, predicted)

    def _with_range(self, value: dict[str, Any]) -> dict[str, Any]:
        found = self._uncertainty(value["value"])
        return value if found is None else value | {"range": found}

    def _values(self, logits: torch.Tensor) -> dict[str, Any] | list[dict[str, Any]]:
        """Regression results of one scan; only a single output can be the task variable, whose scaling is undone."""
        task = self.processor.tokenizer.task_variable
        if len(logits) == 1:
            if task is None or task.kind != "continuous":
                return {"value": logits[0].item(), "unit": None}
            return self.processor.decode(logits, variables=[task.name])[task.name]
        labels: Any = self.model.config.id2label
        return [{"label": labels[i], "value": value, "unit": None} for i, value in enumerate(logits.tolist())]


def _atlases(config: Any, connectivity: Any) -> tuple[str, ...]:
    """The atlases of one scan, by the model's ids."""
    return tuple(connectivity) if isinstance(connectivity, dict) else tuple(config.atlas_regions)


def _age(value: Any) -> float:
    """An age in years, NaN where none is given."""
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"age must be a number of years, got {value!r}.") from error


def _guess_key(scan: Any) -> str:
    """Connectivity for a square matrix (and for what is no matrix at all: the processor explains it)."""
    shape = np.shape(scan)
    return "time_series" if len(shape) == 2 and shape[0] != shape[1] else "connectivity"


def _check_task_is_trained(model: Any) -> None:
    """Raise `ValueError` for a pretrained model that was loaded for a task without ever being fine-tuned for it."""
    saved_as = (model.config.architectures or ["LCMForSequenceClassification"])[0]
    if saved_as != "LCMForSequenceClassification" and not model.task_layer_choice.is_trained:
        raise ValueError(
            f"This checkpoint was saved by {saved_as}: it has no downstream task yet, and answers would be random. "
            "Fine-tune it first, or use LCMForMultitaskPretraining and processor.post_process for the pretrained "
            "variables."
        )
