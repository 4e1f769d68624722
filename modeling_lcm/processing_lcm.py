"""LCMProcessor: connectomes and non-imaging records in, model inputs out; logits in, readable records out."""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from .feature_extraction_lcm import FCFeatureExtractor
from .limits_lcm import TrainingLimits
from .tokenization_bei import BEITokenizer


HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")


class LCMProcessor(ProcessorMixin):
    """FC processor and BEI tokenizer in one, so that `model(**processor(...))` works.

    Args:
        feature_extractor: What functional connectivity is.
        tokenizer: What the records mean.

    Attributes:
        limits ([`TrainingLimits`], *optional*): What the training scans were like; saved and loaded beside the rest.
            None where that is not known.

    Example:
        >>> processor = LCMProcessor(FCFeatureExtractor(), BEITokenizer.from_records([{"sex": "F"}, {"sex": "M"}]))
        >>> inputs = processor(connectivity=[[1.0, 0.5], [0.5, 1.0]], records={"sex": "M"}, return_tensors="pt")
        >>> inputs["labels"]
        tensor([[1.]])
    """

    def __init__(
        self, feature_extractor: FCFeatureExtractor | None = None, tokenizer: BEITokenizer | None = None
    ) -> None:
        super().__init__(feature_extractor, tokenizer)
        self.limits: TrainingLimits | None = None

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as in Transformers, with the limits, if they are known."""
        if self.limits is not None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.limits.save(save_directory)  # first: what is pushed to the Hub holds it
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Any:
        """Load as in Transformers, with the limits, if there are some."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        hub = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        processor.limits = TrainingLimits.load(pretrained_model_name_or_path, **hub)
        return processor

    def __call__(
        self,
        connectivity: Any = None,
        time_series: Any = None,
        records: Any = None,
        pseudo_labels: bool = False,
        region_names: Sequence[str] | None = None,
        return_tensors: str | None = None,
        images: Any = None,
        label_images: Mapping[str, Any] | None = None,
        confounds: Any = None,
        image_options: Mapping[str, Any] | None = None,
    ) -> BatchFeature:
        """Build the inputs of a model.

        Args:
            connectivity: Ready matrices: see `FCFeatureExtractor`. For a checkpoint of several atlases a dictionary,
                `{"aal-116": fc, "harvard-oxford-111": fc2}`; a missing atlas, or None or NaN for some scans, is
                allowed.
            time_series: Region signals, instead of `connectivity`.
            records: One record per scan, to train or evaluate with: see `BEITokenizer`. Not needed to predict.
            pseudo_labels: Label subjects of whom nothing is recorded with each variable's default.
            region_names: Names of the input's regions, to reorder them.
            return_tensors: `"pt"` for tensors, otherwise NumPy arrays.
            images: Preprocessed 4-D NIfTI images in MNI space, instead of `connectivity`: a path, a nibabel image, or
                a list. Each is read once for all atlases (extra `nifti`).
            label_images: Label image of every atlas, by its id: path, nibabel image, or what
                `modeling_lcm.nifti.load_label_atlas` returned. Atlases without one are absent, which a warning says.
                Default: those that nilearn can fetch.
            confounds: Nuisance signals of each image, to be regressed out: array, table or path.
            image_options: Other arguments of `modeling_lcm.nifti.extract_time_series`, such as `{"low_pass": 0.1,
                "t_r": 2.0}`.

        Returns:
            `connectivity` `(batch, regions, regions)`; with `records` also `labels`, and `bei_targets` if the
            tokenizer has a downstream task. A processor with windows repeats a scan's labels for each of its windows
            and returns `scan_index` too, which is not a model input.

        Raises:
            ValueError: Not as many records as scans, or input that either part refuses.
        """
        if images is not None:
            if connectivity is not None or time_series is not None or region_names is not None:
                raise ValueError("Pass images alone, without connectivity, time_series and region_names.")
            time_series, region_names = self._signals(images, label_images, confounds, image_options)
        elif label_images is not None or confounds is not None or image_options is not None:
            raise ValueError("label_images, confounds and image_options belong to images: pass images, too.")
        batch = self.feature_extractor(connectivity, time_series, region_names, return_tensors)
        if records is None:
            return batch
        encoded = self.tokenizer(records, pseudo_labels=pseudo_labels, return_tensors=return_tensors)
        scan_index = batch.get("scan_index")
        matrices = batch["connectivity"]
        counted = next(iter(matrices.values())) if isinstance(matrices, Mapping) else matrices
        scans = len(counted) if scan_index is None else int(scan_index[-1]) + 1
        for name, values in encoded.items():
            if len(values) != scans:
                raise ValueError(
                    f"Got {scans} scans but {len(values)} records; give one record per scan, in the same order."
                )
            batch[name] = values if scan_index is None else values[scan_index]
        return batch

    def _signals(self, images: Any, *options: Any) -> tuple[Any, Any]:
        """Signals and names of regions of images, as the feature extractor takes them."""
        try:
            # By name: Transformers would ask for nilearn wherever this code is loaded from beside model weights.
            inputs = import_module(".image_inputs", __package__)
        except ModuleNotFoundError as error:
            raise ImportError(
                "Reading images needs the installed package: run `pip install large-connectome-model[nifti]`."
            ) from error
        extractors = self.feature_extractor.by_atlas
        signals, names = inputs.signals_of_images(images, extractors, *options)
        if self.feature_extractor.atlases is not None:
            return signals, {name: names.get(name) for name in signals}
        (one,) = signals
        return signals[one], names.get(one)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the arrays that a model takes."""
        return ["connectivity", "labels"] if self.tokenizer.task is None else ["connectivity", "labels", "bei_targets"]

    def decode(self, logits: Any, **options: Any) -> dict[str, Any]:
        """One subject's logits `(tokens,)` as a record: see `BEITokenizer.decode`."""
        return self.tokenizer.decode(logits, **options)

    def batch_decode(self, logits: Any, **options: Any) -> list[dict[str, Any]]:
        """Logits `(batch, tokens)` as records: see `BEITokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(logits, **options)

    def post_process(self, outputs: Any) -> list[dict[str, Any]]:
        """Turn a model's output into records.

        Args:
            outputs: Of `LCMForMultitaskPretraining` (`logits`) or `LCMForSequenceClassification` (`logits` of the task
                and `bei_logits` of the pretrained variables).

        Returns:
            Per scan the record that `BEITokenizer.decode` makes; a downstream task comes first.

        Raises:
            ValueError: The output is not that of a model with this tokenizer's variables.
        """
        bei_logits = getattr(outputs, "bei_logits", None)
        if bei_logits is None:
            return self.tokenizer.batch_decode(outputs.logits)
        if self.tokenizer.task is None:
            raise ValueError(
                "The output comes from a model with a downstream task, but this tokenizer has none; load the "
                "tokenizer that was saved with the model, or make one with add_variable(..., task=True) "
                "or for_task(name)."
            )
        task = self.tokenizer.task
        pretrained = [variable["name"] for variable in self.tokenizer.model_variables]
        task_records = self.tokenizer.batch_decode(outputs.logits, variables=[task])
        records = self.tokenizer.batch_decode(bei_logits, variables=pretrained)
        # A pretrained task has been fine-tuned: its own read-out counts.
        return [{**mine, **other, **mine} for mine, other in zip(task_records, records, strict=True)]

    def check_config(self, config: Any) -> None:
        """Check that a model was built for this processor's regions and variables.

        Args:
            config: `LCMConfig` of the model.

        Raises:
            ValueError: They differ; the message says where.
        """
        ours = {name: extractor.num_regions for name, extractor in self.feature_extractor.by_atlas.items()}
        theirs = config.atlas_regions
        same = ours == theirs if len(ours) > 1 or len(theirs) > 1 else [*ours.values()] in ([None], [*theirs.values()])
        if not same:
            shown = [", ".join(f"{count} regions ({name})" for name, count in each.items()) for each in (ours, theirs)]
            raise ValueError(
                f"The processor is for {shown[0]}, the model for {shown[1]}. Use the processor that was saved with "
                "the model."
            )
        self.tokenizer.check_config(config)
