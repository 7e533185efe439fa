"""One thread for whatever the tests train: forked copies have no other, and bits are compared."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
