"""One process that runs Harmony on a PCA that is not integrated.

Run by the peers' own environment (`make peers-env`):

    .venv-peers/bin/python tests/bench/harmony_worker.py pca.npz harmony.npz 0

pca.npz holds `latent` (n, d) and `batch` (n,); harmony.npz gets `latent` (n, d). The last word
is the seed. Prints one line of JSON: time and peak memory of Harmony alone. Settings are
harmonypy's own: theta 2, at most 10 rounds.
"""

import json
import logging
import os
import sys

os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from cost import Cost


def main():
    source, target, seed = sys.argv[1:]
    import harmonypy

    logging.getLogger("harmonypy").setLevel(logging.WARNING)
    found = np.load(source)
    with Cost() as cost:
        done = harmonypy.run_harmony(
            found["latent"].astype(np.float64),
            {"batch": found["batch"]},
            "batch",
            random_state=int(seed),
            verbose=False,
        )
    # (n, d) since harmonypy 2.0; (d, n) before
    np.savez(target, latent=np.asarray(done.Z_corr, dtype=np.float32))
    print(json.dumps({**cost.found, "harmonypy": harmonypy.__version__}))


if __name__ == "__main__":
    main()
