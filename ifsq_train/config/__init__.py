"""Recipes: what a run is, typed and checked before anything starts.

A recipe is a YAML file. OmegaConf merges and interpolates it (``recipe.py``); the models
here say what is allowed. Recipes hold science only; the shape of the machine is
``LaunchConfig``. Every model is frozen and refuses unknown keys.
"""

from ifsq_train.config.base import Config, to_dict
from ifsq_train.config.data import DataConfig, ImageDataConfig, TokenDataConfig, ViewConfig
from ifsq_train.config.evaluate import EvaluateConfig
from ifsq_train.config.launch import LaunchConfig, LoadingConfig
from ifsq_train.config.networks import (
    ContinuousConfig,
    DiTConfig,
    FsqConfig,
    LfqConfig,
    LlamaGenConfig,
    QuantizerConfig,
    TokenizerConfig,
    VqConfig,
)
from ifsq_train.config.precompute import PrecomputeConfig, TeacherFeaturesConfig
from ifsq_train.config.recipes import RecipeConfig
from ifsq_train.config.sample import FlowDrawConfig, SampleConfig
from ifsq_train.config.study import StudyConfig
from ifsq_train.config.tasks import (
    AdversarialConfig,
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    FlowConfig,
    GeneratorTaskConfig,
    LatentConfig,
    PerceptualConfig,
    RepaConfig,
    TaskConfig,
    TaskConfigBase,
    TokenizerTaskConfig,
)
from ifsq_train.config.trackers import TrackImagesConfig
from ifsq_train.config.train import (
    CheckpointConfig,
    KeepBestConfig,
    OptimConfig,
    ProfileConfig,
    StrategyConfig,
    TrainConfig,
)

__all__ = [
    "AdversarialConfig",
    "AutoregressiveTaskConfig",
    "CheckpointConfig",
    "Config",
    "ContinuousConfig",
    "DataConfig",
    "DiTConfig",
    "DiffusionTaskConfig",
    "EvaluateConfig",
    "FlowConfig",
    "FlowDrawConfig",
    "FsqConfig",
    "GeneratorTaskConfig",
    "ImageDataConfig",
    "KeepBestConfig",
    "LatentConfig",
    "LaunchConfig",
    "LfqConfig",
    "LlamaGenConfig",
    "LoadingConfig",
    "OptimConfig",
    "PerceptualConfig",
    "PrecomputeConfig",
    "ProfileConfig",
    "QuantizerConfig",
    "RecipeConfig",
    "RepaConfig",
    "SampleConfig",
    "StrategyConfig",
    "StudyConfig",
    "TaskConfig",
    "TaskConfigBase",
    "TeacherFeaturesConfig",
    "TokenDataConfig",
    "TokenizerConfig",
    "TokenizerTaskConfig",
    "TrackImagesConfig",
    "TrainConfig",
    "ViewConfig",
    "VqConfig",
    "to_dict",
]
