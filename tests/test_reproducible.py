"""The same bits whatever was imported or run before; numbers of threads; random streams."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from gmvae_nb.differential import differential_expression, split_markers
from gmvae_nb.network import PRESETS
from gmvae_nb.novelty import novelty_of_own
from gmvae_nb.placing import kmeans_components
from gmvae_nb.reproducible import (
    Stream,
    denormals_are_zero,
    initial_weights,
    n_threads,
    numpy_stream,
    own_settings,
    torch_stream,
)
from gmvae_nb.train import GMVAE
from threadpoolctl import threadpool_limits

from hazards import fork, outcome, stop_at_step
from test_train import TINY, simulated

ROOT = Path(__file__).parents[1]
# what scanpy's neighbours and UMAP are made of: a loop on all of numba's threads
NUMBA = """
import numba, numpy
def double(x):
    for i in numba.prange(len(x)):
        x[i] *= 2
numba.njit(double, parallel=True)(numpy.ones(1000))
"""
# in what state training may find the process
BEFORE = {
    "nothing": "",
    "numba first": NUMBA,
    "torch first, with threads and numbers of its own, and numba afterwards": (
        "import torch; torch.set_num_threads(3); torch.manual_seed(9); torch.rand(9)\n"
        "import gmvae_nb.train" + NUMBA
    ),
}
TRAIN = """
import hashlib, sys
import torch
threads = torch.get_num_threads()
sys.path.insert(0, "tests")
from dataclasses import replace
from test_train import GMVAE, PRESETS, simulated
# large enough for products to be cut into parts, one for each thread
preset = replace(PRESETS["recommended"], batch_size=256, min_steps=0, max_epochs=7)
model = GMVAE(simulated(400, G=400), K=10, batch_key="batch", preset=preset)
model.train(progress=False)
answers = [model.predict_proba(), model.get_latent_representation(), model.get_iwae()]
digest = hashlib.sha256()
for t in [*model._state().values(), *map(torch.from_numpy, answers)]:
    digest.update(t.contiguous().numpy().tobytes())
assert torch.get_num_threads() == threads  # as it was found
print(digest.hexdigest())
import numba
numba.njit(lambda x: x + 1)(1)  # it refuses to, if its threads were meddled with
"""


SAY = """
from gmvae_nb.reproducible import warn_if_threads_spin
warn_if_threads_spin()
warn_if_threads_spin()
"""
# torch, which takes longest, is imported once; gmvae_nb by a copy for each environment
AFTER_TORCH = """
import os, sys
import torch
for environment in ({}, {"OMP_WAIT_POLICY": "passive"}, {"OMP_NUM_THREADS": "1"}):
    print("copy", file=sys.stderr, flush=True)
    if not os.fork():
        os.environ.update(environment)
        exec(SAY)
        os._exit(0)
    assert os.wait()[1] == 0
""".replace("SAY", repr(SAY))


def run(code, **environment):
    "What a fresh process says, on stdout and on stderr."
    ours = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "NUMBA_NUM_THREADS")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_same_bits_whatever_was_imported_or_run_before():
    found = {name: run(code + TRAIN)[0] for name, code in BEFORE.items()}
    assert len(set(found.values())) == 1, found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_spinning_threads_are_named_once_with_the_cure():
    says = "torch was imported before gmvae_nb, so its threads spin"
    _, *copies = run(AFTER_TORCH, OMP_NUM_THREADS="2")[1].split("copy\n")
    # one thread waits for nobody
    assert [copy.count(says) for copy in copies] == [1, 0, 0]
    assert says not in run("import gmvae_nb" + SAY, OMP_NUM_THREADS="2")[1]


@pytest.mark.parametrize(
    "asked, threads", [("3", 3), ("2,4", 2), (" 5 ", 5), ("0", None), ("x", None), ("", None)]
)
def test_threads_are_as_many_as_the_environment_says(monkeypatch, asked, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    by_itself = n_threads()
    assert 1 <= by_itself <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert n_threads() == (threads or by_itself)


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), own_settings():
        raise KeyError
    assert torch.get_num_threads() == before


@contextmanager
def set_and_put_back(put, value, before):
    put(value)
    try:
        yield
    finally:
        put(before)


@contextmanager
def told_nothing():
    yield


@contextmanager
def told_of_numbers():
    "What other code in the process may have asked of torch."
    before = torch.get_default_dtype()
    with (
        set_and_put_back(torch.set_default_dtype, torch.float64, before),
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.no_grad(),
    ):
        yield


@contextmanager
def told_of_more():
    with (
        set_and_put_back(torch.set_default_device, "meta", None),
        torch.inference_mode(),
        np.errstate(all="raise"),
    ):
        yield


def bits_under(told) -> list[np.ndarray]:
    "Weights of a whole training, and the answers to every question."
    adata = simulated()
    groups = np.array(["a", "b"])[np.arange(adata.n_obs) % 2]
    preset = replace(PRESETS["recommended"], batch_size=40, min_steps=0, max_epochs=3)
    with told():
        model = GMVAE(adata, K=5, batch_key="batch", preset=preset).train(progress=False)
    state = [t.numpy() for t in model._state().values()]
    with told():
        answers = [
            model.get_latent_representation(),
            model.get_latent_representation(give_mean=False),
            model.predict_proba(),
            model.predict().codes,
            model.get_elbo(),
            model.get_iwae(),
            model.get_normalized_expression(),
            model.posterior_predictive()[0].toarray(),
            novelty_of_own(model)[0],
            split_markers(model, adata, assign=lambda half: np.arange(len(half.batch)) % 2),
            differential_expression(model, groupby=groups),
        ]
    frames = [t.to_numpy() if isinstance(t, pd.DataFrame) else np.asarray(t) for t in answers]
    return state + frames


@pytest.mark.filterwarnings("ignore:the mixture has collapsed", "ignore:all cells")
def test_the_bits_are_the_same_whatever_torch_was_told():
    expected = bits_under(told_nothing)
    for told in (told_of_numbers, told_of_more):
        for one, other in zip(bits_under(told), expected, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=told.__name__)
    assert torch.get_default_dtype() == torch.float32


def test_the_type_of_new_tensors_is_put_back_by_the_last_of_several_threads():
    torch.set_default_dtype(torch.float64)
    try:
        slow, quick = own_settings(), own_settings()
        with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
            first.submit(quick.__enter__).result()
            second.submit(slow.__enter__).result()
            first.submit(quick.__exit__, None, None, None).result()
            assert torch.get_default_dtype() == torch.float32  # one computes still
            second.submit(slow.__exit__, None, None, None).result()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_streams_of_neighbouring_seeds_uses_and_epochs_do_not_meet():
    numbers = []
    for seed in (0, 1, 2, 2**32 - 1):
        for use in Stream:
            for key in ((), (0,), (1,)):
                numbers += numpy_stream(seed, use, *key).integers(0, 2**63, 4).tolist()
                drawn = torch.empty(4, dtype=torch.int64)
                numbers += drawn.random_(generator=torch_stream(seed, use, *key)).tolist()
    assert len(set(numbers)) == len(numbers)


def test_weights_split_and_epochs_do_not_share_random_numbers():
    model = GMVAE(simulated(), K=3, preset=TINY, seed=7).train(1, progress=False)
    split = numpy_stream(7, Stream.SPLIT).permutation(120)
    held_out = np.sort(split[: len(model.test_idx)])
    assert not np.array_equal(held_out, np.sort(np.random.default_rng(7).permutation(120)[:18]))
    orders = [numpy_stream(7, Stream.ORDER, epoch).permutation(120) for epoch in (0, 1)]
    assert not any(np.array_equal(split, order) for order in orders)


def test_the_stream_of_dropout_ends_with_the_epoch():
    model = GMVAE(simulated(), K=3, preset=TINY)
    stop_at_step(model, 3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model.train(1, progress=False)
    model.train(1, progress=False)
    streams = [getattr(module, "generator", None) for module in model.network.modules()]
    assert streams == [None] * len(streams)


def test_networks_built_at_the_same_time_have_the_weights_of_their_seed():
    def first_weights(seed):
        with initial_weights(seed):
            return [torch.nn.Linear(20, 20).weight for _ in range(5)][-1]

    alone, state = [first_weights(0), first_weights(1)], torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(first_weights, [0, 1] * 200))
    assert all(w.equal(alone[i % 2]) for i, w in enumerate(together))
    assert torch.get_rng_state().equal(state)


def test_components_are_placed_alike_by_many_threads():
    "k-means adds up over its threads in the order in which they are done."
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2500, 10)).astype(np.float32))
    with threadpool_limits(16):
        found = [kmeans_components(x, torch.full_like(x, 0.3), 50, 3) for _ in range(3)]
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other))


# torch is imported once, before gmvae_nb as always, and has its threads in each copy
DENORMALS = """
import os, sys
import torch
def check(pool):
    torch.set_num_threads(pool)
    large = torch.ones(2000, 2000)
    (large @ large).sum()  # its threads are there, and keep denormals
    from gmvae_nb.reproducible import n_threads, own_settings
    assert n_threads() == 3
    denormals = torch.full((3_000_000,), 1e-39)
    for _ in range(2):
        with own_settings():
            with own_settings():
                pass
            product = denormals * 1.0
        assert not product.count_nonzero(), product.count_nonzero()
        kept = (denormals * 1.0).count_nonzero()
        assert kept == len(denormals), kept
    torch.set_flush_denormal(True)
    with own_settings():
        pass
    assert not (torch.full((1,), 1e-38) / 10).count_nonzero()  # as it was before
for pool in (1, 2, 3):
    print("pool", pool, file=sys.stderr, flush=True)
    if not os.fork():
        check(pool)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's library of threads is asked")
def test_denormals_are_zero_in_every_thread_while_a_model_computes():
    run(DENORMALS, OMP_NUM_THREADS="3", PYTHONPATH=str(ROOT))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_copy_of_the_process_no_thread_is_waited_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with own_settings():
        torch.ones(500, 500) @ torch.ones(500, 500)

    def work() -> None:
        os.environ["OMP_NUM_THREADS"] = "2"
        signal.alarm(30)
        with own_settings():
            assert denormals_are_zero()

    assert outcome(fork(work)) == 0
