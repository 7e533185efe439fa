"""Whether a graphics card gives the processor's numbers, the same ones twice, and how fast.

    python tests/gpu_check.py cuda nbs/gpu.csv      on a machine with a card; three minutes
    python tests/gpu_check.py cpu                   the same script without one, smaller

Each part stands alone, prints its findings, and writes them to the csv, if one is named. The exit
code is 1 if a part failed or a promise was not kept. All cells are simulated."""

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gmvae_nb  # noqa: F401, before torch
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from gmvae_nb.gpu import CountsOnCard, counts_for
from gmvae_nb.network import PRESETS, training_loss
from gmvae_nb.train import GMVAE
from scipy import sparse

PRESETS_TRIED = ("recommended", "blog", "with_w", "original")
rows: list[dict] = []
begin = time.perf_counter()


def note(part: str, what: str, value: float, unit: str = "", kept: bool | None = None) -> None:
    "A finding; `kept`: whether a promise is, if it is one."
    rows.append(dict(part=part, what=what, value=float(value), unit=unit, kept=kept))
    told = {None: "", True: "  kept", False: "  NOT KEPT"}[kept]
    seconds = time.perf_counter() - begin
    print(f"[{seconds:5.1f}] {part}: {what}: {value:.4g} {unit}{told}", flush=True)


def cells(N: int, G: int, seed: int = 0) -> AnnData:
    "Six types, four batches; no cell and no gene is empty."
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(-3.5, 1.5, (6, G))).astype(np.float32)
    kind, parts = rng.integers(0, 6, N), []
    for start in range(0, N, 2000):
        of = kind[start : start + 2000]
        y = rng.poisson(rate[of] * rng.gamma(5, 0.2, (len(of), 1)).astype(np.float32))
        parts.append(sparse.csr_matrix(y.astype(np.float32)))
    n = max(N, G)
    one = (np.ones(n, np.float32), (np.arange(n) % N, np.arange(n) % G))
    y = (sparse.vstack(parts) + sparse.csr_matrix(one, shape=(N, G))).tocsr()
    obs = pd.DataFrame({"batch": rng.choice(list("abcd"), N)}, index=[f"c{i}" for i in range(N)])
    return AnnData(y, obs=obs, var=pd.DataFrame(index=[f"g{g}" for g in range(G)]))


def model(adata: AnnData, device: str, preset: str = "recommended", **settings) -> GMVAE:
    p = replace(PRESETS[preset], **settings)
    return GMVAE(adata, None if p.merge else 10, batch_key="batch", preset=p, device=device)


class Step:
    "A training step, as `train` does it, on one mini-batch."

    def __init__(self, m: GMVAE, N: int, dtype: torch.dtype = torch.float32):
        self.m, self.net, self.p = m, m.network.to(dtype).train(), m.preset
        self.net.y_mean.fill_(0.1)
        source = counts_for(m.device, m.counts, m.batch)
        self.y, self.b, _ = next(source(np.arange(N), N))
        torch.manual_seed(0)
        noise = self.net.paired_noise(self.p.M, N, min(self.p.M_w, self.p.M))
        self.noise = [eps.to(dtype) for eps in noise]

    def loss(self) -> torch.Tensor:
        terms = self.net(self.y, self.b, *self.noise, reduction="mean")
        loss = training_loss(terms, self.p)
        if self.p.align:
            log_stds = self.net.prior.log_stds[0, 0]
            cells = terms["x_mean"], terms["gamma"], self.b
            loss = loss + self.p.align * self.net.alignment(*cells, log_stds)
        return loss

    def __call__(self) -> None:
        loss = self.loss()
        self.m.optimizer.zero_grad()
        loss.backward()
        self.net.heads.decay(1e-4)
        self.m.optimizer.step()


def same_numbers(device: str, small: bool) -> None:
    "Loss and gradients of one step, without dropout, at the same noise."
    N = 64 if small else 512
    adata = cells(N, 100 if small else 300)
    plain = dict(dtype="float32", dropout=0.0, input_dropout=0.0)
    for preset in PRESETS_TRIED[: 2 if small else None]:
        for dtype, most in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
            found = []
            for where in ("cpu", device):
                step = Step(model(adata, where, preset, **plain), N, dtype)
                loss = step.loss()
                loss.backward()
                weights = step.net.named_parameters()
                grads = {n: w.grad.double().cpu() for n, w in weights if w.grad is not None}
                found.append((loss.item(), grads))
            (loss, grads), (loss_, grads_) = found
            what = f"{preset}, {str(dtype)[6:]}"
            apart = abs(loss_ / loss - 1)
            note("same numbers", f"{what}, loss", apart, "relative", apart < most)
            length = {n: g.abs().max().clamp_min(1e-12) for n, g in grads.items()}
            worst = max(((grads_[n] - g).abs().max() / length[n]).item() for n, g in grads.items())
            note("same numbers", f"{what}, worst gradient", worst, "relative", worst < most)


def one_seed_one_result(device: str, small: bool) -> None:
    "Trained twice, and stopped and gone on with; then read on the processor."
    adata = cells(*((400, 60) if small else (3000, 500)), seed=1)
    for preset, epochs in [("recommended", 7), ("blog", 3)][: 1 if small else 2]:
        with tempfile.TemporaryDirectory() as folder:
            runs = {name: Path(folder) / name for name in ("one", "two", "stopped")}
            for name in ("one", "two"):
                m = model(adata, device, preset).train(epochs, out=runs[name], progress=False)
            stopped = model(adata, device, preset)
            epoch_of = stopped._train_epoch

            def stop(epoch: int, max_epochs: int, epoch_of=epoch_of) -> dict:
                if epoch == 2:
                    raise KeyboardInterrupt
                return epoch_of(epoch, max_epochs)

            stopped._train_epoch = stop
            try:
                stopped.train(epochs, out=runs["stopped"], progress=False)
            except KeyboardInterrupt:
                pass
            model(adata, device, preset).train(epochs, out=runs["stopped"], progress=False)
            bits = [(run / "model.safetensors").read_bytes() for run in runs.values()]
            part = "one seed, one result"
            note(
                part, f"{preset}, the same bytes twice", bits[0] == bits[1], "", bits[0] == bits[1]
            )
            same = bits[0] == bits[2]
            note(part, f"{preset}, the same bytes stopped and gone on with", same, "", same)
            here = GMVAE.load(runs["two"], adata, device="cpu")
            for what, ask, most in (
                ("embedding", GMVAE.get_latent_representation, 1e-3),
                ("probabilities", GMVAE.predict_proba, 1e-2),
                ("ELBO", GMVAE.get_elbo, 1.0),
                ("IWAE", GMVAE.get_iwae, 1.0),
            ):
                apart = float(np.abs(ask(here) - ask(m)).max())
                kept = apart < most
                note(part, f"{preset}, {what}, processor against device", apart, "", kept)
            alike = float((np.asarray(here.predict()) == np.asarray(m.predict())).mean())
            note(part, f"{preset}, cells with the same cluster", alike, "", alike > 0.999)


def kernels_and_waits(device: str, small: bool) -> None:
    if not device.startswith("cuda"):
        return  # the page gpu counts them without a card
    adata = cells(4096, 500)
    for preset in ("recommended", "blog"):
        for N in (128, 4096):
            step = Step(model(adata, device, preset, batch_size=N), N)
            step()
            for what, n in kernels_of(step).items():
                kept = n <= 2 if what == "waits" else None
                note("a step", f"{preset}, {N} cells, {what}", n, "", kept)
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                step()
            torch.cuda.set_sync_debug_mode("default")
            lines = pd.Series([f"{Path(w.filename).name}:{w.lineno}" for w in told], dtype=str)
            print("   waits by line:", lines.value_counts().to_dict())


def kernels_of(work: Callable[[], None]) -> dict[str, int]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.current_stream().query()
    torch.cuda.synchronize()
    names = dict(
        kernels=("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"),
        waits=("cudaStreamSynchronize", "cudaEventSynchronize"),
    )
    events = profile.key_averages()
    return {name: sum(e.count for e in events if e.key in of) for name, of in names.items()}


def busy_share(work: Callable[[], None]) -> float:
    "Of the time, with a kernel on the card."
    start = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        start[0].record()
        work()
        start[1].record()
        torch.cuda.synchronize()
    of_kernels = sum(e.self_device_time_total for e in profile.key_averages())
    return of_kernels / (1e3 * start[0].elapsed_time(start[1]))


def speed(device: str, small: bool) -> None:
    "Cells per second of the step alone, in the middle of three rounds."
    cuda = device.startswith("cuda")
    for G in (100,) if small else (2000, 13431):
        adata = cells(128 if small else 4096, G, seed=1)
        for preset in ("recommended", "blog"):
            for N in (128,) if small else (128, 1024, 4096):
                step = Step(model(adata, device, preset, batch_size=N), N)
                n = 2 if small else 10
                seconds = []
                for _ in range(4):
                    start = time.perf_counter()
                    for _step in range(n):
                        step()
                    if cuda:
                        torch.cuda.synchronize()
                    seconds.append((time.perf_counter() - start) / n)
                rate = N / float(np.median(seconds[1:]))
                note("speed of a step", f"{preset}, {G} genes, {N} cells", rate, "cells/s")
        if cuda:
            peak = torch.cuda.max_memory_allocated() / 1e9
            note("speed of a step", f"{G} genes, peak memory", peak, "GB")


def many(N: int, G: int) -> AnnData:
    "The same few thousand cells over and over: quickly made."
    few = cells(min(N, 5000), G, seed=2)
    again = few[np.arange(N) % few.n_obs].copy()
    again.obs_names = [f"c{i}" for i in range(N)]
    return again


def epoch(device: str, small: bool) -> None:
    "As users get it: the last of two epochs, with its held-out cells."
    tried = [("recommended", 100_000, 2000), ("blog", 58_861, 13_431)]
    for preset, n_cells, G in [("recommended", 300, 60)] if small else tried:
        adata = many(n_cells, G)
        for N in (128,) if small else (128, 1024, 4096):
            m = model(adata, device, preset, batch_size=N)
            m.train(2, progress=False)
            what = f"{preset}, {n_cells:,} x {G}, {N} cells"
            note("an epoch", what, m.history["seconds"].iloc[-1], "s")
            if small or N == 128:
                continue
            source, step = counts_for(m.device, m.counts, m.batch), Step(m, N)
            batches = source(np.arange(min(n_cells // N, 20) * N), N)

            def some(batches=batches, step=step) -> None:
                for step.y, step.b, _ in batches:
                    step()

            note("an epoch", f"{what}, card busy", busy_share(some), "of the time")


def picked_rows(device: str, small: bool) -> None:
    "Counts in the memory of the device: right, and how quickly they are picked."
    adata = cells(3000, 500, seed=3)
    batch = np.zeros(adata.n_obs)
    source = CountsOnCard(adata.X, batch, torch.device(device))
    for y, _, here in source(np.arange(3000), 1024, np.random.default_rng(0)):
        right = torch.equal(y.to_dense().cpu(), torch.from_numpy(adata.X[here].toarray()))
        note("picked rows", f"{len(here)} cells are those asked for", right, "", right)


def process_group(device: str, small: bool) -> None:
    "DistributedDataParallel takes the network as it is."
    import torch.distributed as dist

    backend = "nccl" if device.startswith("cuda") else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        step = Step(model(cells(512, 300), device), 512)
        step.net = torch.nn.parallel.DistributedDataParallel(step.net)
        terms = step.net(step.y, step.b, *step.noise, reduction="mean")
        training_loss(terms, step.p).backward()
        dist.destroy_process_group()
    note("a process group", "a step", 1, "", True)


PARTS = (
    same_numbers,
    one_seed_one_result,
    picked_rows,
    kernels_and_waits,
    speed,
    epoch,
    process_group,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("device", help="cuda, cuda:1 or cpu")
    parser.add_argument("csv", type=Path, nargs="?", help="gets the findings")
    parser.add_argument("--parts", nargs="*", default=[part.__name__ for part in PARTS])
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
    warnings.filterwarnings("ignore", "the mixture has collapsed", UserWarning)
    small, failed = options.device == "cpu", []
    name = "the processor" if small else torch.cuda.get_device_name(options.device)
    print(f"torch {torch.__version__}, {name}")
    for part in PARTS:
        if part.__name__ not in options.parts:
            continue
        try:
            part(options.device, small)
        except Exception:
            failed.append(part.__name__)
            traceback.print_exc()
    found = pd.DataFrame(rows).assign(device=name)
    if options.csv:
        found.to_csv(options.csv, index=False, float_format="%.4g")
    broken = found["what"][found["kept"] == False].tolist()  # noqa: E712, None is no answer
    print(f"{len(found)} findings; not kept: {broken or 'none'}; failed parts: {failed or 'none'}")
    return int(bool(broken or failed))


if __name__ == "__main__":
    sys.exit(main())
