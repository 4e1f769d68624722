"""Large Connectome Model: a foundation model of fMRI functional connectomes for Transformers.

Importing this package registers its classes with Transformers' Auto classes and its pipeline.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from .callback import SupervisionCallback
from .configuration_lcm import LCMConfig
from .modeling_lcm import LCMForMultitaskPretraining, LCMForSequenceClassification, LCMModel


AutoConfig.register(LCMConfig.model_type, LCMConfig, exist_ok=True)
AutoModel.register(LCMConfig, LCMModel, exist_ok=True)
AutoModelForPreTraining.register(LCMConfig, LCMForMultitaskPretraining, exist_ok=True)
AutoModelForSequenceClassification.register(LCMConfig, LCMForSequenceClassification, exist_ok=True)
