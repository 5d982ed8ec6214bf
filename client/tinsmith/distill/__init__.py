"""Distillation over any service that speaks Tinker's API, and better over one that judges by itself."""

from tinsmith.distill.distiller import Distiller as Distiller
from tinsmith.distill.distiller import Step as Step
from tinsmith.distill.methods import GKD as GKD
from tinsmith.distill.methods import GOLD as GOLD
from tinsmith.distill.methods import OPD as OPD
from tinsmith.distill.methods import SDFT as SDFT
from tinsmith.distill.methods import MiniLLM as MiniLLM
from tinsmith.distill.methods import PromptDistillation as PromptDistillation
from tinsmith.distill.reports import JSONL as JSONL
from tinsmith.distill.reports import TensorBoard as TensorBoard
from tinsmith.distill.reports import Wandb as Wandb
from tinsmith.distill.rollout import Example as Example
from tinsmith.distill.rollout import Rollout as Rollout
from tinsmith.distill.teacher import Teacher as Teacher
