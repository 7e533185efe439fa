"""The presets beside unintegrated PCA, Harmony and scvi-tools' SCVI.

Same cells, same scores, several seeds, one table.

    make peers-env                  # once: scvi-tools and harmonypy in an environment of their own
    python tests/bench/peers.py nbs/peers.csv --seeds 3 \\
        --data kang_pbmc ../shared/data/vangalen_bm_normal_2000hvg.h5ad

Every contender sees all cells and all genes of the file, and no labels:
- `pca`: counts scaled to 10,000 per cell, log(1 + y), principal components (`--n_pcs`), no batch
- `harmony`: Harmony with harmonypy's settings on each of these
- `scvi`: SCVI as scvi-tools sets it up (10 latent dimensions, one layer of 128, ZINB), and with 30
  dimensions, two layers and NB. `--scvi_epochs EPOCHS:WARMUP`: WARMUP epochs until the KL term has
  full weight. scvi-tools' own choice for small data is 400:400
- `gmvae`: our presets (`--presets`), K = None for those that choose it and `--K` for the others,
  seeds as given, epochs as in the preset unless `--max_epochs` is given

Each fit is a process of its own; seconds, processor seconds and peak memory are those of the fit
(Harmony's include the PCA's, ours a checkpoint after each epoch). All are scored by
gmvae_nb.metrics.evaluate on all cells with the seed of the run. Summaries:
bio = mean(nmi_oracle, ari_oracle, asw), batch = mean(bras, ilisi, kbet), total = 0.6 bio + 0.4
batch. One row per data set, method and seed in the csv; finished rows are kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from cost import Cost
from gmvae_nb.counts import get_counts
from gmvae_nb.files import write_atomically
from gmvae_nb.metrics import evaluate
from gmvae_nb.network import PRESETS, Preset, get_preset
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
FAMILIES = ("pca", "harmony", "scvi", "gmvae")
SUMMARIES = {"bio": ("nmi_oracle", "ari_oracle", "asw"), "batch": ("bras", "ilisi", "kbet")}
SCVI = {"SCVI 10": {}, "SCVI 30": dict(n_latent=30, n_layers=2, gene_likelihood="nb")}
SHOWN = (
    "total bio batch nmi_oracle ari_oracle asw bras ilisi kbet batch_asw nmi_leiden1 "
    "ari_leiden1 nmi_clusters ari_clusters cpu_seconds seconds peak_gb"
).split()


@dataclass(frozen=True)
class Contender:
    family: str  # one of FAMILIES
    method: str  # its name in the table
    options: dict = field(default_factory=dict)

    @property
    def settings(self) -> str:
        "What a finished row must have been made with to be kept."
        return " ".join(f"{k}={v}" for k, v in self.options.items()).replace(", ", ",")


def contenders(args) -> list[Contender]:
    "In the order of the table."
    everyone = []
    for family, name in (("pca", "PCA"), ("harmony", "Harmony")):
        for n in args.n_pcs:
            everyone.append(Contender(family, f"{name} {n}", {"n_pcs": n}))
    for pair in args.scvi_epochs:
        epochs, warmup = map(int, pair.split(":"))
        schedule = {"max_epochs": epochs, "n_epochs_kl_warmup": warmup}
        for name, options in SCVI.items():
            everyone.append(Contender("scvi", f"{name}, {epochs} epochs", options | schedule))
    plain = asdict(Preset())
    for name in args.presets:
        preset = get_preset(name)
        K = None if preset.merge else args.K  # a preset that can choose K does
        options = {"preset": name, "K": K}
        told = asdict(preset)
        for name_of in ("label_weight", "recentre"):  # nobody has labels, or one cluster
            told[name_of] = plain[name_of]
        options |= {k: v for k, v in told.items() if v != plain[k]}
        if args.max_epochs is not None:  # else as many as the preset wants
            options["epochs"] = args.max_epochs
        everyone.append(Contender("gmvae", f"GMVAE {name}, K = {K or 'chosen'}", options))
    return [c for c in everyone if c.family in args.methods]


def fit_pca(adata, n_pcs: int, **_) -> tuple[dict, dict]:
    import scanpy as sc

    with Cost() as cost:
        shown = adata.copy()
        sc.pp.normalize_total(shown, target_sum=1e4)
        sc.pp.log1p(shown)
        sc.pp.pca(shown, n_comps=n_pcs, svd_solver="arpack", random_state=0)
    return {"latent": shown.obsm["X_pca"]}, cost.found


def fit_gmvae(
    adata, preset: str, K: int | None, seed: int, batch_key: str, epochs: int | None = None, **_
) -> tuple[dict, dict]:
    cells = read_input(adata)
    with tempfile.TemporaryDirectory() as folder, Cost() as cost:
        model = train_run(
            cells,
            folder,
            K=K,
            batch_key=batch_key,
            preset=preset,
            seed=seed,
            max_epochs=epochs,
            hold_out=False,  # all cells, as everyone else
        )
    arrays = {
        "latent": model.get_latent_representation(),
        "clusters": np.asarray(model.predict(), dtype=str),
    }
    return arrays, cost.found


def fit_here(job: dict) -> None:
    "PCA or one of our presets in this process: the npz, and a line of JSON."
    adata = anndata.read_h5ad(job["cells"])
    arrays, cost = {"pca": fit_pca, "gmvae": fit_gmvae}[job["family"]](adata, **job)
    np.savez(job["out"], **arrays)
    print(json.dumps(cost))


def run(command: list) -> dict:
    "The last line that a process prints, as JSON; what it says on stderr is seen at once."
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def fit(
    contender: Contender, cells: Path, batch_key: str, seed: int, python: Path
) -> tuple[dict, dict]:
    "Fit in a process of its own: the arrays `latent` and, for ours, `clusters`; and the cost."
    out = cells.with_name("fit.npz")
    job = {"cells": str(cells), "batch_key": batch_key, "seed": seed, **contender.options}

    def in_a_process(family: str, out: Path) -> dict:
        words = json.dumps({**job, "family": family, "out": str(out)})
        return run([sys.executable, __file__, "--fit", words])

    if contender.family == "scvi":
        command = [python, HERE / "scvi_worker.py", cells]
        options = {"batch_key": batch_key, "seed": seed, "out": out, **contender.options}
        for name, value in options.items():
            command += [f"--{name}", value]
        cost = run(command)
    elif contender.family == "harmony":
        unintegrated, pca = cells.with_name("unintegrated.npz"), cells.with_name("pca.npz")
        before = in_a_process("pca", unintegrated)
        batch = np.asarray(anndata.read_h5ad(cells, backed="r").obs[batch_key]).astype(str)
        np.savez(pca, latent=np.load(unintegrated)["latent"], batch=batch)
        after = run([python, HERE / "harmony_worker.py", pca, out, seed])
        cost = {name: after[name] + before[name] for name in ("seconds", "cpu_seconds")}
        cost["peak_gb"] = max(after["peak_gb"], before["peak_gb"])
    else:
        cost = in_a_process(contender.family, out)
    return dict(np.load(out)), {k: cost[k] for k in ("seconds", "cpu_seconds", "peak_gb")}


def score(adata, arrays: dict, batch_key: str, labels_key: str, K: int, seed: int) -> dict:
    "All scores, and the summaries."
    adata = adata.copy()
    adata.obsm["X_gmvae"], clusters = arrays["latent"], None
    if "clusters" in arrays:
        clusters = "gmvae_cluster"
        adata.obs[clusters] = pd.Categorical(arrays["clusters"])
    scores = evaluate(
        adata,
        "X_gmvae",
        batch_key,
        labels_key,
        clusters,
        seed,
        progress=False,
        baseline="X_pca",
        n_clusters=K,
    ).scores
    means = {name: float(np.mean([scores[k] for k in keys])) for name, keys in SUMMARIES.items()}
    return {"total": 0.6 * means["bio"] + 0.4 * means["batch"], **means, **scores}


def read(csv: Path) -> pd.DataFrame:
    if not csv.exists():
        return pd.DataFrame()
    exact = {"float_precision": "round_trip"}  # old rows keep their digits
    return pd.read_csv(csv, keep_default_na=False, na_values=[""], **exact)


def write_rows(csv: Path, rows: pd.DataFrame) -> None:
    write_atomically(csv, lambda path: rows.to_csv(path, index=False))


def finished(rows: pd.DataFrame, data: str, contender: Contender, seed: int) -> bool:
    "Whether the csv has this run, made with the same settings."
    if rows.empty:
        return False
    same = (rows["data"] == data) & (rows["method"] == contender.method) & (rows["seed"] == seed)
    settings = rows["settings"].fillna("")  # none: a preset as it is
    return bool((same & (settings == contender.settings)).any())


def add(rows: pd.DataFrame, row: dict) -> pd.DataFrame:
    "With this row in place of one of the same data set, method and seed that other settings made."
    if not rows.empty:
        same = pd.Series(True, index=rows.index)
        for name in ("data", "method", "seed"):
            same &= rows[name] == row[name]
        rows = rows[~same]
    return pd.concat([rows, pd.DataFrame([row])], ignore_index=True)


def table(rows: pd.DataFrame, shown=SHOWN) -> pd.DataFrame:
    "Mean ± sd over seeds, one line per data set and method, best total first."

    def cell(v):
        v = v.dropna()
        if v.empty:
            return ""
        digits = 3 if v.abs().max() < 10 else 0
        return f"{v.mean():.{digits}f}" + (f" ± {v.std():.{digits}f}" if len(v) > 1 else "")

    groups = rows.groupby(["data", "method"])
    means = groups[[c for c in shown if c in rows]].agg(cell)
    means.insert(0, "seeds", groups.size())
    order = groups["total"].mean().reset_index()
    order = order.sort_values(["data", "total"], ascending=[True, False])
    return means.loc[list(zip(order["data"], order["method"]))]


def arguments(description: str) -> argparse.ArgumentParser:
    "The table, the data and their keys."
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument(
        "--data", nargs="+", default=["kang_pbmc"], help="names that load_data knows, or h5ad files"
    )
    parser.add_argument("--layer", help="layer with the counts; without it X")
    parser.add_argument("--batch_key", default="batch")
    parser.add_argument("--labels_key", default="cell_type")
    return parser


def main():
    if sys.argv[1:2] == ["--fit"]:
        return fit_here(json.loads(sys.argv[2]))
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--n_pcs", type=int, nargs="+", default=[30, 50])
    parser.add_argument("--scvi_epochs", nargs="+", default=["100:20"], metavar="EPOCHS:WARMUP")
    presets = ["blog", "recommended"]
    parser.add_argument("--presets", nargs="+", default=presets, choices=list(PRESETS))
    help_K = "components of ours unless the preset chooses; clusters of everyone's k-means"
    parser.add_argument("--K", type=int, default=20, help=help_K)
    parser.add_argument("--max_epochs", type=int, help="of ours; without it the preset's")
    parser.add_argument(
        "--peers_python", type=Path, default=HERE.parents[1] / ".venv-peers/bin/python"
    )
    args = parser.parse_args()
    runs = contenders(args)
    if {"scvi", "harmony"} & {c.family for c in runs} and not args.peers_python.exists():
        sys.exit(
            f"peers: {args.peers_python} is not there; call `make peers-env`, or leave the peers "
            "out by --methods pca gmvae"
        )

    rows, failed = read(args.csv), []
    todo = [
        (data, c, seed)
        for data in args.data
        for seed in range(args.seeds)
        for c in runs
        if not finished(rows, Path(data).stem, c, seed)
    ]
    with tqdm(todo, unit="run") as bar, tempfile.TemporaryDirectory() as folder:
        prepared = None
        for data, c, seed in bar:
            cells = Path(folder) / f"{Path(data).stem}.h5ad"
            if prepared != data:
                prepared, adata = data, prepare(data, args, cells)
            if finished(read(args.csv), cells.stem, c, seed):
                continue  # by another process on the same csv
            name = f"{cells.stem}: {c.method}, seed {seed}"
            bar.set_description(name)
            try:
                arrays, cost = fit(c, cells, args.batch_key, seed, args.peers_python)
            except subprocess.CalledProcessError:  # the process has said why
                failed.append(name)
                continue
            scores = score(adata, arrays, args.batch_key, args.labels_key, args.K, seed)
            row = {"data": cells.stem, "method": c.method, "seed": seed, "settings": c.settings}
            write_rows(args.csv, add(read(args.csv), {**row, **scores, **cost}))
    rows = read(args.csv)
    if not rows.empty:
        for data, part in rows.groupby("data"):
            print(f"\n{data}\n{table(part).droplevel('data').to_string()}")
    if failed:
        sys.exit("peers: no result from " + "; ".join(failed) + "; the reason stands above")


def prepare(data: str, args, cells: Path):
    "The cells as every contender gets them, with counts in X, and written to `cells`; their PCA."
    keys = {"batch_key": args.batch_key, "labels_key": args.labels_key}
    try:
        read = read_input(data, **keys, layer=args.layer)
    except ValueError as error:
        sys.exit(f"peers: {error}")
    counts, obs = get_counts(read.cells, read.layer), read.cells.obs[list(keys.values())]
    adata = anndata.AnnData(counts, obs=obs, var=read.cells.var)
    adata.write_h5ad(cells)
    adata.obsm["X_pca"] = fit_pca(adata, min(args.n_pcs))[0]["latent"]
    return adata


if __name__ == "__main__":
    main()
