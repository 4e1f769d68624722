"""Large Connectome Model: a foundation model of fMRI functional connectomes for Transformers.

Importing this package registers its classes with Transformers' Auto classes and its pipeline.
"""

from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .adapter_saving_lcm import save_adapter
from .adapters_lcm import adapter_task, load_adapter, stack_adapter, use_adapter
from .bei_vocabulary import BEIVariable
from .callback import SupervisionCallback
from .configuration_lcm import LCMConfig
from .edges_lcm import log_edges
from .feature_extraction_lcm import FCFeatureExtractor
from .modeling_lcm import LCMForMultitaskPretraining, LCMForSequenceClassification, LCMModel
from .pipeline_lcm import ConnectomeClassificationPipeline
from .processing_lcm import LCMProcessor
from .quantization_lcm import LCMPackedConfig
from .sites_lcm import SiteMeans, site_means
from .tokenization_bei import BEITokenizer


if TYPE_CHECKING:
    from .estimators import LCMClassifier, LCMRegressor

__version__ = "0.1.0"

__all__ = [
    "BEITokenizer",
    "BEIVariable",
    "ConnectomeClassificationPipeline",
    "FCFeatureExtractor",
    "LCMClassifier",
    "LCMConfig",
    "LCMForMultitaskPretraining",
    "LCMForSequenceClassification",
    "LCMModel",
    "LCMPackedConfig",
    "LCMProcessor",
    "LCMRegressor",
    "SiteMeans",
    "SupervisionCallback",
    "adapter_task",
    "load_adapter",
    "log_edges",
    "save_adapter",
    "site_means",
    "stack_adapter",
    "use_adapter",
]


def __getattr__(name: str) -> Any:
    """The estimators, once they are asked for: they bring scikit-learn, if it is there."""
    if name not in ("LCMClassifier", "LCMRegressor"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import estimators

    return getattr(estimators, name)


class _BEIVocabularyConfig(PreTrainedConfig):
    """Key under which the tokenizer is registered.

    AutoTokenizer prefers a checkpoint's own code to the class registered for the model's configuration, even where
    this package is installed; under a key of its own the tokenizer is found by its class name instead.
    """

    model_type = "lcm_bei_vocabulary"


AutoConfig.register(LCMConfig.model_type, LCMConfig, exist_ok=True)
AutoTokenizer.register(_BEIVocabularyConfig, tokenizer_class=BEITokenizer, exist_ok=True)
AutoFeatureExtractor.register(LCMConfig, FCFeatureExtractor, exist_ok=True)
AutoProcessor.register(LCMConfig, LCMProcessor, exist_ok=True)
AutoModel.register(LCMConfig, LCMModel, exist_ok=True)
AutoModelForPreTraining.register(LCMConfig, LCMForMultitaskPretraining, exist_ok=True)
AutoModelForSequenceClassification.register(LCMConfig, LCMForSequenceClassification, exist_ok=True)
# A second registration (the package reloaded) would only print a warning.
if "connectome-classification" not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(
        "connectome-classification",
        pipeline_class=ConnectomeClassificationPipeline,
        pt_model=AutoModelForSequenceClassification,
        type="multimodal",
    )

# Saving a marked class puts its code beside the weights, so that the folder also loads where this package is missing.
LCMConfig.register_for_auto_class("AutoConfig")
BEITokenizer.register_for_auto_class("AutoTokenizer")
FCFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
LCMProcessor.register_for_auto_class("AutoProcessor")
LCMModel.register_for_auto_class("AutoModel")
LCMForMultitaskPretraining.register_for_auto_class("AutoModelForPreTraining")
LCMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
