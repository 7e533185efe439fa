"""What a user calls: `from gmvae_nb.all import *`."""
from .calibration import *
from .counts import *
from .counts_on_disk import *
from .data import *
from .fractional import *
from .gaussian_products import *
from .gmvae_loss import *
from .h5ad import open_h5ad, read_h5ad
from .kbet import *
from .match import *
from .metrics import *
from .nb_heads import *
from .nb_likelihood import *
from .neighbors import *
from .network import *
from .results import *
from .schedule import *
from .train import *
from .vae import *
