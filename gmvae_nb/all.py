"""Everything public: `from gmvae_nb.all import *`."""
from .data import *
from .gmvae_loss import *
from .metrics import *
from .nb_likelihood import *
from .results import *
from .train import *
from .vae import *
