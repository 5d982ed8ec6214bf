"""TRL's distillation trainers under their own names, driving a Tinsmith service.

`from tinsmith.trl import GKDTrainer, GKDConfig` in place of `from trl import ...`. trl is not needed.
"""

from tinsmith.trl.configs import DistillationConfig as DistillationConfig
from tinsmith.trl.configs import GKDConfig as GKDConfig
from tinsmith.trl.configs import GOLDConfig as GOLDConfig
from tinsmith.trl.configs import MiniLLMConfig as MiniLLMConfig
from tinsmith.trl.configs import SDFTConfig as SDFTConfig
from tinsmith.trl.trainers import DistillationTrainer as DistillationTrainer
from tinsmith.trl.trainers import GKDTrainer as GKDTrainer
from tinsmith.trl.trainers import GOLDTrainer as GOLDTrainer
from tinsmith.trl.trainers import MiniLLMTrainer as MiniLLMTrainer
from tinsmith.trl.trainers import SDFTTrainer as SDFTTrainer
