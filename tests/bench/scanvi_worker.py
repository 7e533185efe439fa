"""One process that trains scvi-tools' SCVI, and SCANVI on top of it for each split of the labels.

Run by the peers' own environment (`make peers-env`), for tests/bench/labels.py:

    .venv-peers/bin/python tests/bench/scanvi_worker.py cells.h5ad --n_splits 3 --out scanvi.npz

Labels of split i are in obs["labels<i>"], "Unknown" where there is none. The npz gets `prob<i>`
(n, types), SCANVI's probabilities of all cells, and `types<i>`, their names. SCVI is trained for
`--max_epochs`, its KL term rising for a fifth of them, SCANVI for `--scanvi_epochs` more; all else
is left to scvi-tools.
"""

import argparse
import logging
import os
import warnings

os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="an h5ad with counts")
    parser.add_argument("--layer", help="layer with the counts; without it X")
    parser.add_argument("--batch_key", default="batch", help="column of obs; '' for none")
    parser.add_argument("--n_splits", type=int, default=1)
    parser.add_argument("--max_epochs", type=int, default=400)
    parser.add_argument("--scanvi_epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="npz to write")
    args = parser.parse_args()

    warnings.filterwarnings("ignore")
    import anndata
    import scvi

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    scvi.settings.seed = args.seed
    scvi.settings.verbosity = 30  # warnings only
    cells = anndata.read_h5ad(args.file)
    counts = cells.X if args.layer is None else cells.layers[args.layer]
    cells = anndata.AnnData(counts, obs=cells.obs, var=cells.var[[]])
    scvi.model.SCVI.setup_anndata(cells, batch_key=args.batch_key or None)
    how = dict(accelerator="cpu", train_size=1.0)
    how |= dict(enable_progress_bar=False, enable_model_summary=False)
    base = scvi.model.SCVI(cells)
    warmup = dict(n_epochs_kl_warmup=max(1, args.max_epochs // 5))
    base.train(max_epochs=args.max_epochs, plan_kwargs=warmup, **how)
    found = {}
    for i in range(args.n_splits):
        key = f"labels{i}"
        model = scvi.model.SCANVI.from_scvi_model(
            base, labels_key=key, unlabeled_category="Unknown"
        )
        model.train(max_epochs=args.scanvi_epochs, **how)
        prob = model.predict(soft=True)
        found[f"prob{i}"] = prob.to_numpy()
        found[f"types{i}"] = np.array(prob.columns, dtype=str)
    np.savez(args.out, **found)


if __name__ == "__main__":
    main()
