"""Recipes: one YAML file is one stage. Validated without importing torch; unknown keys are errors with a suggestion."""

from clinstack.recipe.adapters import RESERVED_ADAPTER_NAMES, AdapterRecipe, stack_label
from clinstack.recipe.align import AlignRecipe
from clinstack.recipe.audit import AuditRecipe
from clinstack.recipe.canaries import CanariesRecipe
from clinstack.recipe.endpoint import EndpointRecipe
from clinstack.recipe.evaluate import EvaluateRecipe
from clinstack.recipe.finetune import FinetuneRecipe, LossRecipe
from clinstack.recipe.generate import DecodingRecipe, GenerateRecipe
from clinstack.recipe.instruct import InstructRecipe
from clinstack.recipe.judge import JudgeRecipe
from clinstack.recipe.predict import PredictRecipe
from clinstack.recipe.pretrain import PretrainRecipe
from clinstack.recipe.prompt import PromptRecipe
from clinstack.recipe.reading import (
    PRESETS,
    STAGES,
    apply_overrides,
    dump_recipe,
    explain,
    load_recipe,
    parse_recipe,
    read_yaml,
    recipe_file,
    set_value,
    suggest,
)
from clinstack.recipe.section import Section
from clinstack.recipe.stage import StageRecipe, TrainingStageRecipe
from clinstack.recipe.study import StudyCell, StudyRecipe
from clinstack.recipe.sweep import SpaceEntry, SweepRecipe
from clinstack.recipe.training import EvaluationRecipe, TrainingRecipe

__all__ = [
    "PRESETS",
    "RESERVED_ADAPTER_NAMES",
    "STAGES",
    "AdapterRecipe",
    "AlignRecipe",
    "AuditRecipe",
    "CanariesRecipe",
    "DecodingRecipe",
    "EndpointRecipe",
    "EvaluateRecipe",
    "EvaluationRecipe",
    "FinetuneRecipe",
    "GenerateRecipe",
    "InstructRecipe",
    "JudgeRecipe",
    "LossRecipe",
    "PredictRecipe",
    "PretrainRecipe",
    "PromptRecipe",
    "Section",
    "SpaceEntry",
    "StageRecipe",
    "StudyCell",
    "StudyRecipe",
    "SweepRecipe",
    "TrainingRecipe",
    "TrainingStageRecipe",
    "apply_overrides",
    "dump_recipe",
    "explain",
    "load_recipe",
    "parse_recipe",
    "read_yaml",
    "recipe_file",
    "set_value",
    "stack_label",
    "suggest",
]
