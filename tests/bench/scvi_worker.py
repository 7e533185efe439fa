"""One process that trains scvi-tools' SCVI.

Run by the peers' own environment (`make peers-env`), which needs nothing of ours:

    .venv-peers/bin/python tests/bench/scvi_worker.py cells.h5ad --batch_key batch \
        --n_latent 30 --n_layers 2 --gene_likelihood nb \
        --max_epochs 100 --n_epochs_kl_warmup 20 --seed 0 --out scvi.npz
    .venv-peers/bin/python tests/bench/scvi_worker.py cells.h5ad --time-only

The first form writes `latent` (n, n_latent; the posterior means of all cells) and `seconds` (one
number per epoch; loading, set-up and imports are not in it) to the npz, and prints one line of
JSON: settings, seconds in all and per epoch (median), cells per second, peak memory.
The second takes turns with other contenders: it trains an epoch to warm up, prints
`{"ready": true, ...}`, and then for every line that it reads on stdin trains one more epoch and
prints its line of JSON; the end of stdin, or "stop", ends it.

An option that is not given is left to scvi-tools. Also left: the data loader (the matrix stays
sparse in memory, each mini-batch is made dense by the main process: load_sparse_tensor=False, no
workers), Adam at 1e-3, fp32. All cells are trained on: no epoch is spent on validation.
"""

import argparse
import json
import logging
import os
import sys
import time
import warnings

# OpenMP threads that spin while they wait ruin a shared machine.
# The same for every contender, and before torch is imported.
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from cost import Cost

MODEL = ("n_latent", "n_hidden", "n_layers", "gene_likelihood", "dispersion")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="an h5ad with counts")
    parser.add_argument("--layer", help="layer with the counts; without it X")
    parser.add_argument("--batch_key", default="batch", help="column of obs; '' for none")
    parser.add_argument("--n_latent", type=int)
    parser.add_argument("--n_hidden", type=int)
    parser.add_argument("--n_layers", type=int)
    parser.add_argument("--gene_likelihood", choices=("zinb", "nb", "poisson"))
    parser.add_argument("--dispersion", choices=("gene", "gene-batch", "gene-cell"))
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument(
        "--max_epochs", type=int, help="without it scvi-tools' rule: 400, fewer above 20,000 cells"
    )
    parser.add_argument(
        "--n_epochs_kl_warmup",
        type=int,
        help="epochs over which the KL weight rises to 1; scvi-tools' default is 400",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of torch; without it torch's own choice")
    parser.add_argument("--out", help="npz to write")
    parser.add_argument(
        "--time-only", action="store_true", help="train an epoch for every line on stdin"
    )
    args = parser.parse_args()
    if not args.time_only and not args.out:
        parser.error("--out is needed: the npz to write the latent space to (or --time-only)")
    if not os.path.isfile(args.file):
        parser.error(f"{args.file} is not a file; give the path of an h5ad")

    warnings.filterwarnings("ignore")
    import anndata
    import scvi
    import torch
    from lightning.pytorch import Callback
    from tqdm import tqdm

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if args.threads:
        torch.set_num_threads(args.threads)
    scvi.settings.seed = args.seed
    scvi.settings.verbosity = 30  # warnings only
    adata = anndata.read_h5ad(args.file)
    counts = adata.X if args.layer is None else adata.layers[args.layer]
    adata = anndata.AnnData(counts, obs=adata.obs, var=adata.var[[]])
    scvi.model.SCVI.setup_anndata(adata, batch_key=args.batch_key or None)
    given = {k: getattr(args, k) for k in MODEL if getattr(args, k) is not None}
    model = scvi.model.SCVI(adata, **given)
    cost, seconds = Cost(), []

    def print_json(**values):
        print(json.dumps(values), flush=True)

    class Clock(Callback):
        "Time each epoch; in turns, hold the next one back until it is asked for."

        def on_train_epoch_start(self, trainer, _):
            self.start = time.perf_counter()

        def on_train_epoch_end(self, trainer, _):
            seconds.append(time.perf_counter() - self.start)
            bar.total = trainer.max_epochs
            bar.update()
            if not args.time_only:
                return
            found = {
                "epoch": len(seconds) - 1,
                "seconds": seconds[-1],
                "cells_per_second": adata.n_obs / seconds[-1],
                "peak_gb": cost.peak.gb,
            }
            if len(seconds) == 1:
                found["ready"] = True
            print_json(**found)
            trainer.should_stop = sys.stdin.readline() in ("", "stop\n")

    warmup = {}
    if args.n_epochs_kl_warmup is not None:
        warmup["n_epochs_kl_warmup"] = args.n_epochs_kl_warmup
    with cost, tqdm(desc="SCVI", unit="epoch", disable=args.time_only) as bar:
        model.train(
            max_epochs=10**6 if args.time_only else args.max_epochs,
            accelerator="cpu",
            train_size=1.0,
            batch_size=args.batch_size,
            plan_kwargs=warmup,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Clock()],
        )
    if args.time_only:
        return
    np.savez(
        args.out,
        latent=model.get_latent_representation().astype(np.float32),
        seconds=np.array(seconds),
    )
    per_epoch = float(np.median(seconds))
    print_json(
        scvi=scvi.__version__,
        cells=adata.n_obs,
        genes=adata.n_vars,
        **given,
        n_epochs_kl_warmup=args.n_epochs_kl_warmup,
        epochs=len(seconds),
        seed=args.seed,
        threads=torch.get_num_threads(),
        epoch_seconds=per_epoch,
        cells_per_second=adata.n_obs / per_epoch,
        **cost.found,
    )


if __name__ == "__main__":
    main()
