"""Labels in part: ours, scANVI and the vote of nearest labelled cells, on the same splits.

    make peers-env                      # once, for scANVI
    python tests/bench/labels.py nbs/labels.csv --cells 1000 --genes 500 --max_epochs 60 \\
        --seeds 0 1 2 --data kang_pbmc=B ../shared/data/vangalen_bm_normal_2000hvg.h5ad=Plasma \\
        ../shared/data/mouse_bladder.h5ad=type03

Behind = stands the type that has no labels in the third split; in the first a tenth of all cells
have labels, in the others half of them. Types with fewer than three labelled cells have none.
- `ours`: `recommended` with labels_key
- `bound alone`: the same without the labels' cross-entropy
- `vote, ours` and `vote, PCA`: the 15 nearest labelled cells in the embedding of `recommended`
  without labels, and in 30 principal components
- `scANVI`: SCVI as scvi-tools sets it up, as many epochs as ours, and 20 more of SCANVI

f1 (macro), accuracy and ece (expected calibration error) are of the cells without a label whose
type has some; `ece_before` is that of ours without the temperature by the held-out labels. `none`
is the share of them that are called none of these, `found` that of the type without labels, and
auroc how well the probability of none tells these from those. Ours has such a probability; of the
others it is one minus the confidence, and below 0.5 a cell is called none in `none` and `found`,
but keeps its best type in f1 and accuracy.
One row per data set, split, method and seed; finished rows are kept.
"""

import os
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from gmvae_nb.calibration import calibration
from gmvae_nb.inference import shared_noise
from gmvae_nb.labels import LEAST_LABELLED, NONE, summed_by_type
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.train import GMVAE
from peers import arguments, fit_pca, read, write_rows
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

HERE, UNKNOWN = Path(__file__).resolve().parent, "Unknown"
PEERS_PYTHON = HERE.parents[1] / ".venv-peers/bin/python"
METHODS = ("ours", "bound alone", "vote, ours", "vote, PCA", "scANVI")


def split(types: np.ndarray, share: float, left_out: str | None, seed: int) -> np.ndarray:
    "The types of a share of the cells, UNKNOWN for the others."
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(len(types)) < share, types, UNKNOWN)
    labels[types == left_out] = UNKNOWN
    sizes = pd.Series(labels).value_counts()
    labels[np.isin(labels, sizes.index[sizes < LEAST_LABELLED])] = UNKNOWN
    return labels


def judge(prob: pd.DataFrame, types: np.ndarray, labels: np.ndarray, left_out: str | None) -> dict:
    "The figures of one method; `prob` has a column for each type, and perhaps one of NONE."
    best, confidence = prob.idxmax(axis=1).to_numpy(), prob.max(axis=1).to_numpy().clip(0, 1)
    none = prob[NONE].to_numpy() if NONE in prob else 1 - confidence
    is_none = best == NONE if NONE in prob else confidence < 0.5
    test = (labels == UNKNOWN) & np.isin(types, np.unique(labels))
    right = (best == types)[test]
    names = np.unique(types[test])
    row = dict(
        f1=f1_score(types[test], best[test], average="macro", labels=names),
        accuracy=right.mean(),
        ece=calibration(confidence[test], right).ece,
        none=is_none[test].mean(),
    )
    new = types == left_out
    if new.any():
        both = np.repeat([1, 0], [new.sum(), test.sum()])
        row["found"] = is_none[new].mean()
        row["auroc"] = roc_auc_score(both, np.r_[none[new], none[test]])
    return {name: float(value) for name, value in row.items()}


def before_temperature(model: GMVAE, cells) -> pd.DataFrame:
    "What `predict_labels` says, as sure as the responsibilities are."
    noise = shared_noise(model.network, 50, model.seed)
    of = model.network, model.match_cells(cells), noise, len(model.types)
    return pd.DataFrame(summed_by_type(*of).numpy(), columns=[*model.types, NONE])


def vote(embedding: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    "The share of each type among the 15 nearest labelled cells."
    known = labels != UNKNOWN
    found = KNeighborsClassifier(15).fit(embedding[known], labels[known])
    return pd.DataFrame(found.predict_proba(embedding), columns=found.classes_)


def scanvi(cells, layer, labels: dict[str, np.ndarray], args, seed: int) -> dict[str, pd.DataFrame]:
    "What scANVI says after each split, by the peers' own environment."
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "cells.h5ad", Path(folder) / "out.npz"
        given = cells.copy()
        for i, values in enumerate(labels.values()):
            given.obs[f"labels{i}"] = values
        given.write_h5ad(file)
        options = ["--max_epochs", args.max_epochs or 400, "--seed", seed, "--out", out]
        options += ["--layer", layer] if layer else []
        options += ["--batch_key", args.batch_key or "", "--n_splits", len(labels)]
        worker = [PEERS_PYTHON, HERE / "scanvi_worker.py", file, *options]
        subprocess.run(list(map(str, worker)), check=True)
        with np.load(out) as arrays:
            for i, name in enumerate(labels):
                columns = arrays[f"types{i}"].astype(object)
                found[name] = pd.DataFrame(arrays[f"prob{i}"], columns=columns)
    return found


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cells", type=int, default=2000, help="at most; a random sample")
    parser.add_argument("--genes", type=int, help="highly variable ones; by default all")
    parser.add_argument("--max_epochs", type=int, help="by default the preset's")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for pair in args.data:
        data, left_out = pair.rsplit("=", 1)
        keys = dict(batch_key=args.batch_key, labels_key=args.labels_key, layer=args.layer)
        given = read_input(data, **keys, n_top_genes=args.genes)
        cells = given.cells
        for seed in args.seeds:
            some = cells
            if cells.n_obs > args.cells:
                chosen = np.random.default_rng(seed).choice(cells.n_obs, args.cells, False)
                some = cells[np.sort(chosen)].copy()
            types = some.obs[args.labels_key].astype(str).to_numpy(dtype=object)
            labels = {
                "10 %": split(types, 0.1, None, seed),
                "50 %": split(types, 0.5, None, seed),
                f"50 %, not {left_out}": split(types, 0.5, left_out, seed),
            }
            size = dict(cells=some.n_obs, genes=some.n_vars, max_epochs=args.max_epochs)
            run(Path(data).stem, some, given.layer, types, labels, left_out, seed, size, args)
    shown = ["f1", "accuracy", "ece", "none", "found", "auroc"]
    print(read(args.csv).set_index(["data", "split", "method"])[shown].round(3).to_string())


def run(data, cells, layer, types, labels, left_out, seed, size, args) -> None:
    "All rows of one data set and seed that are not there yet."
    keys = dict(batch_key=args.batch_key, layer=layer, seed=seed)
    embeddings, of_scanvi, before = {}, {}, {}

    def fit(method: str, name: str) -> pd.DataFrame:
        if method in ("ours", "bound alone"):
            given, preset = cells.copy(), PRESETS["recommended"]
            given.obs["labels"] = labels[name]
            if method == "bound alone":
                preset = replace(preset, label_weight=0.0)
            model = GMVAE(given, labels_key="labels", preset=preset, **keys)
            model.train(args.max_epochs, progress=False)
            before[method, name] = before_temperature(model, given)
            return model.predict_labels()
        if method == "scANVI":
            if not of_scanvi:
                of_scanvi.update(scanvi(cells, layer, labels, args, seed))
            return of_scanvi[name]
        if method not in embeddings:
            if method == "vote, PCA":
                given = cells.copy()
                given.X = given.layers[layer] if layer else given.X
                embeddings[method] = fit_pca(given, 30)[0]["latent"]
            else:
                model = GMVAE(cells, **keys).train(args.max_epochs, progress=False)
                embeddings[method] = model.get_latent_representation()
        return vote(embeddings[method], labels[name])

    for method in args.methods:
        for name, given in labels.items():
            key = dict(data=data, split=name, method=method, seed=seed)
            done = read(args.csv)
            if not done.empty and (done[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            start = time.process_time()
            left = left_out if "not" in name else None
            row = judge(fit(method, name), types, given, left)
            if (method, name) in before:
                plain = judge(before[method, name], types, given, left)
                row["ece_before"] = plain["ece"]
            row |= dict(size, cpu_seconds=time.process_time() - start)
            if method == "scANVI":
                row["cpu_seconds"] = np.nan  # another process
            write_rows(args.csv, pd.concat([done, pd.DataFrame([key | row])], ignore_index=True))


if __name__ == "__main__":
    main()
