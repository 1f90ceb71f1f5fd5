from diffusional import baselines as baselines
from diffusional import data as data
from diffusional import exact as exact
from diffusional import gaussian as gaussian
from diffusional import ledger as ledger
from diffusional import levels as levels
from diffusional import networks as networks
from diffusional import schedule as schedule
from diffusional import space as space
from diffusional.errors import DiffusionalError as DiffusionalError
from diffusional.evaluation.evaluation import Evaluation as Evaluation
from diffusional.evaluation.evaluation import evaluate as evaluate
from diffusional.forward import GaussianDiffusion as GaussianDiffusion
from diffusional.gaussian import Gaussian as Gaussian
from diffusional.ledger import Estimate as Estimate
from diffusional.ledger import Ledger as Ledger
from diffusional.ledger import LevelDraws as LevelDraws
from diffusional.models import likelihood as likelihood
from diffusional.models.base import LatentVariableModel as LatentVariableModel
from diffusional.models.denoiser import Denoiser as Denoiser
from diffusional.models.diffusion import DiffusionModel as DiffusionModel
from diffusional.space import Continuous as Continuous
from diffusional.space import Discrete as Discrete
from diffusional.training.config import Config as Config
from diffusional.training.loop import train as train
from diffusional.training.run import load as load

__version__: str
