"""tests/bench/peers.py: contenders in processes of their own, rows that are kept, a table.

SCVI and Harmony where `make peers-env` was called."""

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

BENCH = Path(__file__).parent / "bench"
PEERS_PYTHON = BENCH.parents[1] / ".venv-peers/bin/python"
sys.path.insert(0, str(BENCH))
import peers  # noqa: E402

needs_peers = pytest.mark.skipif(not PEERS_PYTHON.exists(), reason="no .venv-peers: make peers-env")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    "240 cells of three types, each with its genes, in two batches of unequal depth: an h5ad."
    rng = np.random.default_rng(0)
    types, batch = rng.integers(0, 3, 240), rng.integers(0, 2, 240)
    mean = np.where(np.arange(60) // 20 == types[:, None], 6.0, 1.0)
    mean = mean * np.where(batch, 1.5, 1.0)[:, None]
    obs = pd.DataFrame(
        {"cell_type": [f"type {t}" for t in types], "batch": [f"batch {b}" for b in batch]},
        index=[f"c{i}" for i in range(240)],
    )
    path = tmp_path_factory.mktemp("peers") / "tiny.h5ad"
    ad.AnnData(
        csr_matrix(rng.poisson(mean).astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=[f"g{i}" for i in range(60)]),
    ).write_h5ad(path)
    return path


def run(monkeypatch, csv, *words) -> pd.DataFrame:
    monkeypatch.setattr(sys, "argv", ["peers.py", str(csv), *map(str, words)])
    peers.main()
    return peers.read(csv)


def test_rows_are_scored_and_kept(cells, tmp_path, monkeypatch, capsys):
    csv = tmp_path / "peers.csv"
    words = "--methods pca gmvae --presets blog --n_pcs 5 --K 3 --max_epochs 1 --seeds 1".split()
    words = ["--data", cells, *words]
    rows = run(monkeypatch, csv, *words)
    assert list(rows["method"]) == ["PCA 5", "GMVAE blog, K = 3"] and set(rows["data"]) == {"tiny"}
    pca, ours = rows.iloc[0], rows.iloc[1]
    # the types are plain to see; PCA is its own baseline
    assert pca["ari_oracle"] > 0.95 and pca["pcr"] < 1e-9
    assert np.isnan(pca["ari_clusters"]) and 0 <= ours["nmi_clusters"] <= 1
    assert (rows[["seconds", "cpu_seconds", "peak_gb"]] > 0).all(axis=None)
    for row in (pca, ours):
        assert np.isclose(row["bio"], (row["nmi_oracle"] + row["ari_oracle"] + row["asw"]) / 3)
        assert np.isclose(row["batch"], (row["bras"] + row["ilisi"] + row["kbet"]) / 3)
        assert np.isclose(row["total"], 0.6 * row["bio"] + 0.4 * row["batch"])
    printed = capsys.readouterr().out
    assert "GMVAE blog, K = 3" in printed and "nmi_oracle" in printed

    def none(*_):
        raise AssertionError("a finished row was made again")

    monkeypatch.setattr(peers, "fit", none)
    before = csv.read_bytes()
    run(monkeypatch, csv, *words)
    assert csv.read_bytes() == before


def test_a_failure_costs_one_row(cells, tmp_path, monkeypatch):
    def fit(contender, *_):
        if contender.method == "PCA 4":
            raise subprocess.CalledProcessError(1, "pca")
        latent = np.random.default_rng(0).normal(size=(240, 4))
        return {"latent": latent}, {"seconds": 1.0, "cpu_seconds": 1.0, "peak_gb": 1.0}

    monkeypatch.setattr(peers, "fit", fit)
    csv = tmp_path / "peers.csv"
    with pytest.raises(SystemExit, match="no result from tiny: PCA 4, seed 0; tiny: PCA 4, seed 1"):
        run(monkeypatch, csv, "--data", cells, "--methods", "pca", "--n_pcs", 3, 4, 5, "--seeds", 2)
    assert list(zip(peers.read(csv)["method"], peers.read(csv)["seed"])) == [
        ("PCA 3", 0),
        ("PCA 5", 0),
        ("PCA 3", 1),
        ("PCA 5", 1),
    ]


def test_other_settings_replace_a_row():
    options = {"preset": "p", "K": 3}
    old, new = (peers.Contender("gmvae", "GMVAE p", {**options, "M": M}) for M in (1, 2))

    def row(contender, seed):
        key = {"data": "d", "method": contender.method, "seed": seed}
        return {**key, "settings": contender.settings, "total": 0.1}

    rows = pd.DataFrame()
    for seed in range(2):
        rows = peers.add(rows, row(old, seed))
    assert peers.finished(rows, "d", old, 0)
    assert not peers.finished(rows, "d", new, 0) and not peers.finished(rows, "e", old, 0)
    rows = peers.add(rows, row(new, 0))
    assert peers.finished(rows, "d", new, 0) and peers.finished(rows, "d", old, 1)
    assert len(rows) == 2


def test_table_has_mean_and_sd_and_sorts_by_total():
    rows = pd.DataFrame({"data": "d", "method": list("aab"), "seed": [0, 1, 0]})
    rows = rows.assign(total=[0.1, 0.3, 0.5], ilisi=[0.2, 0.4, np.nan])
    table = peers.table(rows, ("total", "ilisi"))
    assert list(table.index) == [("d", "b"), ("d", "a")] and list(table["seeds"]) == [1, 2]
    assert table.loc[("d", "a"), "total"] == "0.200 ± 0.141"
    assert table.loc[("d", "b"), "ilisi"] == ""


def test_the_table_of_the_page_is_of_todays_presets(monkeypatch):
    "A field that got another name or place would have hours of runs made again."
    seen = []
    monkeypatch.setattr(peers, "prepare", lambda *a: pytest.fail("a finished run is not found"))
    monkeypatch.setattr(peers, "table", lambda rows: seen.append(rows) or pd.DataFrame())
    monkeypatch.setattr(pd.DataFrame, "droplevel", lambda self, level: self)
    words = ["--data", "kang_pbmc", "vangalen_bm_normal_2000hvg.h5ad", "--methods", "gmvae"]
    run(monkeypatch, BENCH.parents[1] / "nbs/peers.csv", *words)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["--data", "nowhere.h5ad"], "there is no file"),
        (["--batch_key", "donor"], "donor"),
        (["--labels_key", "kind"], "kind"),
        (["--methods", "scvi", "--peers_python", "/nowhere/python"], "make peers-env"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    cells, tmp_path, monkeypatch, words, message
):
    if "--data" not in words:
        words = ["--data", cells, *words]
    if "--methods" not in words:
        words = [*words, "--methods", "pca"]
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, tmp_path / "peers.csv", *words)
    assert not (tmp_path / "peers.csv").exists()


@needs_peers
def test_scvi_and_harmony(cells, tmp_path, monkeypatch):
    words = "--methods harmony scvi --n_pcs 5 --scvi_epochs 1:1 --seeds 1".split()
    rows = run(monkeypatch, tmp_path / "peers.csv", "--data", cells, *words)
    assert list(rows["method"]) == ["Harmony 5", "SCVI 10, 1 epochs", "SCVI 30, 1 epochs"]
    assert rows["total"].notna().all() and rows.loc[0, "ari_oracle"] > 0.95


@needs_peers
def test_scvi_takes_turns(cells):
    words = "--time-only --n_latent 5 --n_hidden 8 --gene_likelihood nb --dispersion gene-cell"
    command = [PEERS_PYTHON, BENCH / "scvi_worker.py", cells, *words.split()]
    with subprocess.Popen(
        [str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        first = json.loads(worker.stdout.readline())
        assert first["ready"] and first["epoch"] == 0
        for epoch in (1, 2):
            print(file=worker.stdin, flush=True)
            told = json.loads(worker.stdout.readline())
            assert told["epoch"] == epoch and told["peak_gb"] > 0
            assert np.isclose(told["cells_per_second"] * told["seconds"], 240)
        print("stop", file=worker.stdin, flush=True)
        assert worker.stdout.read() == ""
    assert worker.returncode == 0
