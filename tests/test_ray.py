"""The sweep on a Ray cluster: two nodes on the loopback range.

Workers, node and driver are killed. The numbers are those of `train_serially`."""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
from threadpoolctl import threadpool_limits

from hazards import ROOT, SMALL, cells

if not importlib.util.find_spec("ray"):
    pytest.skip("needs ray: pip install 'gmvae_nb[ray]'", allow_module_level=True)
if sys.platform != "linux":
    pytest.skip(
        "the nodes are 127.0.0.2 and 127.0.0.3, which Linux alone has", allow_module_level=True
    )
# Ray's ports are open to the network: without the token, no answer. Its workers are nice, and on
# a busy machine never come to their turn. It looks at these when it is imported
for name, value in dict(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_worker_niceness="0",
).items():
    os.environ.setdefault(name, value)

from gmvae_nb.files import LOCK_FILE, locked_folder  # noqa: E402
from gmvae_nb.model_folder import verify  # noqa: E402
from gmvae_nb.reading import read_input  # noqa: E402
from gmvae_nb.results import collect_runs  # noqa: E402
from gmvae_nb.runs import read_run_json  # noqa: E402
from gmvae_nb.sweep import find_cluster, sees_lock, train_grid, train_on_ray, train_serially  # noqa: E402

EPOCHS = 24
SOON = {
    "health_check_period_ms": 500,
    "health_check_initial_delay_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    "A head of one core at 127.0.0.2 and, when asked for, a second node of one core."

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        self.cluster.add_node(
            num_cpus=1, node_ip_address="127.0.0.2", include_dashboard=False, _system_config=SOON
        )
        self.address, self.second = self.cluster.address, None

    def two(self):
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=1, node_ip_address="127.0.0.3")
        return self.address

    def raylet(self) -> int:
        return self.second.all_processes["raylet"][0].process.pid

    def alive(self, address: str) -> bool:
        table = self.cluster.global_state.node_table()
        return any(n["NodeManagerAddress"] == address and n["Alive"] for n in table)

    def remove(self, _=None):
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@pytest.fixture(scope="module")
def nodes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        patch.delenv("RAY_ADDRESS", raising=False)
        started = Nodes()
        try:
            yield started
        finally:
            started.cluster.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    cells().write_h5ad(path)
    return read_input(path, batch_key="batch")


def grid(folder: Path, n: int = 4, epochs: int = EPOCHS) -> list[dict]:
    "Runs of two and of three components."
    return [
        dict(
            out=folder / f"K{2 + i % 2}-seed{i // 2}",
            K=2 + i % 2,
            seed=i // 2,
            batch_key="batch",
            preset=SMALL,
            max_epochs=epochs,
            progress=False,
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def serial(data, tmp_path_factory):
    "The folder of the runs, done in turn."
    folder = tmp_path_factory.mktemp("serial")
    with threadpool_limits(1):
        assert train_grid(grid(folder), partial(train_serially, data=data), lambda _: None) == []
    return folder


def same(folder: Path, serial: Path) -> None:
    "Models, to the byte, and numbers; every folder whole."
    for run in serial.glob("K*"):
        assert (folder / run.name / "model.safetensors").read_bytes() == (
            run / "model.safetensors"
        ).read_bytes(), run.name
        assert verify(folder / run.name)["notes"] == []
    tables = [
        collect_runs(sorted(f.glob("K*"))).drop(columns="train_seconds") for f in (folder, serial)
    ]
    pd.testing.assert_frame_equal(*tables)


def epochs_of(run: Path) -> int:
    try:
        return read_run_json(run / "config.json")["epochs"]
    except (ValueError, KeyError):
        return 0


def writer(run: Path) -> int:
    "The process that trains in the folder, as it says itself."
    return int((run / LOCK_FILE).read_text().split()[1])


def in_the_middle(folder: Path, chosen=lambda pid: True, seconds=300) -> Path:
    "A run that is being trained, after its third epoch and well before its last."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for run in folder.glob("K*"):
            with contextlib.suppress(OSError, IndexError, psutil.Error):
                if 3 <= epochs_of(run) <= EPOCHS - 10 and chosen(writer(run)):
                    return run
        time.sleep(0.01)
    raise AssertionError("no run was met in the middle")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def wait_for_end(pid: int) -> None:
    "Until it is gone, a zombie at most: workers outlive their node by a moment."
    with contextlib.suppress(psutil.Error):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def meanwhile(do) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from test_ray import grid, read_input, train_grid, train_on_ray
file, folder, address = sys.argv[1:]
data = read_input(file, batch_key="batch")
trainer = partial(train_on_ray, data=data, address=address, grid=Path(folder))
train_grid(grid(Path(folder)), trainer, partial(print, flush=True))
"""


def on_cluster(data, address: str, folder: Path, runs: list[dict] | None = None) -> list[str]:
    "The runs of the folder on the cluster, one thread each; those that failed."
    trainer = partial(train_on_ray, data=data, address=address, grid=folder)
    with threadpool_limits(1):
        return train_grid(grid(folder) if runs is None else runs, trainer, lambda _: None)


def test_a_killed_driver_leaves_what_the_next_call_goes_on_from(nodes, data, serial, tmp_path):
    address = nodes.address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(data.path), str(tmp_path), address],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert any(line.endswith("is done\n") for line in driver.stdout)
        in_the_middle(tmp_path)
    finally:
        driver.kill(), driver.wait(), driver.stdout.close()
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.json")}
    assert 1 <= len(finished) < 4
    assert on_cluster(data, address, tmp_path) == []
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
    same(tmp_path, serial)


def harmed(nodes, data, folder: Path, runs: list[dict]) -> tuple[list[str], list]:
    """The runs on two nodes; a worker of the first is killed, then the second node.

    What failed; and of each run that was hit the folder, its process, its history then."""
    address, raylet, hit = nodes.two(), nodes.raylet(), []

    def on_first(pid: int) -> bool:
        return psutil.Process(pid).ppid() != raylet

    def on_second(pid: int) -> bool:
        return psutil.Process(pid).ppid() == raylet

    def harm():
        for do, chosen in ((kill, on_first), (nodes.remove, on_second)):
            run = in_the_middle(folder, chosen)
            pid = writer(run)
            do(pid)
            wait_for_end(pid)
            hit.append((run, pid, pd.read_csv(run / "history.csv", dtype=str)))

    thread = meanwhile(harm)
    failed = on_cluster(data, address, folder, runs)
    thread.join()
    return failed, hit


def went_on(run: Path, pid: int, before: pd.DataFrame) -> bool:
    "Whether another process has ended the run, and did not train again the epochs that there were."
    after = pd.read_csv(run / "history.csv", dtype=str).head(len(before))
    same_epochs = list(after["seconds"]) == list(before["seconds"])
    return writer(run) != pid and 3 <= len(before) < EPOCHS and same_epochs


def test_a_worker_is_killed_and_a_node_is_lost_and_the_numbers_are_those_in_turn(
    nodes, data, serial, tmp_path
):
    "And a loss that is not finite is noted, while the others go on."
    bad = dict(grid(tmp_path)[0], out=tmp_path / "bad", preset=replace(SMALL, lr=1e30))
    failed, hit = harmed(nodes, data, tmp_path, [*grid(tmp_path), bad])
    assert len(failed) == 1 and failed[0].startswith("bad (the loss is "), failed
    same(tmp_path, serial)
    assert len(hit) == 2 and all(went_on(*h) for h in hit)


def test_a_node_that_does_not_see_the_folder_is_named_before_anything_starts(nodes, data, tmp_path):
    "A node with a file system of its own over the folder, as if it were another machine's."
    permitted = shutil.which("unshare") and (
        subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )
    if not permitted:
        pytest.skip("unshare is not permitted here")
    ray = Path(sys.executable).parent / "ray"
    words = (
        f"mount -t tmpfs tmpfs {tmp_path} && exec {ray} start --address={nodes.address} "
        "--node-ip-address=127.0.0.4 --num-cpus=1 --block"
    )
    other = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 40
        while not nodes.alive("127.0.0.4") and time.monotonic() < end:
            time.sleep(0.2)
        words = r"node .* \(127\.0\.0\.4\) does not see .* share the folder with all nodes"
        with pytest.raises(ValueError, match=words) as error:
            on_cluster(data, nodes.address, tmp_path / "sweep")
        assert "\n" not in str(error.value) and not list(tmp_path.glob("sweep/K*"))
    finally:
        os.killpg(other.pid, signal.SIGTERM)
        other.wait()


def test_more_threads_than_any_node_has_cores_is_a_sentence(nodes, data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    words = "64 threads here, and no node has more than 1 cores: set OMP_NUM_THREADS to 1"
    with pytest.raises(ValueError, match=words):
        list(train_on_ray(grid(tmp_path, 1), data, nodes.address, tmp_path))


def test_a_folder_whose_lock_is_not_seen_is_told_from_one_that_is_not_there(tmp_path):
    assert "does not see" in sees_lock(tmp_path)
    with locked_folder(tmp_path):
        assert sees_lock(tmp_path) == ""
    assert "but not the locks" in sees_lock(tmp_path)  # the file is there and nobody holds it


@pytest.mark.parametrize("address", ["127.0.0.1:9", "auto"])
def test_where_nothing_listens_is_a_sentence_and_soon(monkeypatch, address):
    if address == "auto":
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    start = time.monotonic()
    words = (
        "no Ray cluster at .*: start one with ray start --head, or name its address as host:port"
    )
    with pytest.raises(OSError, match=words) as error:
        find_cluster(address)
    assert "\n" not in str(error.value) and time.monotonic() - start < 20


@pytest.mark.parametrize("address", ["nonsense", "a:b", "ray://127.0.0.1:10001", ""])
def test_what_is_no_address_is_a_sentence(address):
    with pytest.raises(
        (ValueError, OSError), match="expected auto, local, or host:port|no Ray cluster at"
    ) as error:
        find_cluster(address)
    assert "\n" not in str(error.value)


def test_without_ray_the_command_to_install_it_is_said(monkeypatch, tmp_path):
    from gmvae_nb.commands import gmvae_sweep

    for name in [n for n in sys.modules if n == "ray" or n.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=r"ray, which is not installed: pip install 'gmvae_nb\[ray\]'"
    ):
        gmvae_sweep(
            "no.h5ad", out=str(tmp_path), ray_address="auto", quiet=True
        )  # before the file is looked for
