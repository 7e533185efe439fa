"""The sweep on a Ray cluster: two nodes on the loopback range, whose workers, node and driver are killed. The numbers are those of `in_turn`."""

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
import torch
from threadpoolctl import threadpool_limits

from hazards import ROOT, SMALL, cells

if not importlib.util.find_spec("ray"):
    pytest.skip("needs ray: pip install 'gmvae_nb[ray]'", allow_module_level=True)
if sys.platform != "linux":
    pytest.skip(
        "the nodes are 127.0.0.2 and 127.0.0.3, which Linux alone has", allow_module_level=True
    )
# Ray's ports are open to the network: without the token, no answer. Its workers are nice, and on a busy machine never come to their turn.
# It looks at these when it is imported
for name, value in dict(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_worker_niceness="0",
).items():
    os.environ.setdefault(name, value)

from gmvae_nb.results import collect_runs
from gmvae_nb.runs import (
    LOCK,
    find_cluster,
    hold,
    in_turn,
    on_ray,
    read_input,
    read_json,
    sees_lock,
    train_grid,
)
from gmvae_nb.verify import verify

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
def given(tmp_path_factory):
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


def one_thread():
    torch.set_num_threads(1)
    return threadpool_limits(1)


@pytest.fixture(scope="module")
def serial(given, tmp_path_factory):
    "The folder of the runs, done in turn."
    folder = tmp_path_factory.mktemp("serial")
    with one_thread():
        assert train_grid(grid(folder), partial(in_turn, given=given), lambda _: None) == []
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
        return read_json(run / "config.json")["epochs"]
    except (ValueError, KeyError):
        return 0


def writer(run: Path) -> int:
    "The process that trains in the folder, as it says itself."
    return int((run / LOCK).read_text().split()[1])


def in_the_middle(folder: Path, chosen=lambda pid: True, seconds=60) -> Path:
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
import sys; from functools import partial; from pathlib import Path
import torch; torch.set_num_threads(1)
from test_ray import grid, on_ray, read_input, train_grid
data, folder, address = sys.argv[1:]
train_grid(grid(Path(folder)), partial(on_ray, given=read_input(data, batch_key="batch"), address=address, grid=Path(folder)), print)
"""


def test_a_killed_driver_leaves_what_the_next_call_goes_on_from(nodes, given, serial, tmp_path):
    address = nodes.two()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(given.path), str(tmp_path), address],
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
    with one_thread():
        assert (
            train_grid(
                grid(tmp_path),
                partial(on_ray, given=given, address=address, grid=tmp_path),
                lambda _: None,
            )
            == []
        )
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
    same(tmp_path, serial)


def harmed(nodes, given, folder: Path, runs: list[dict]) -> tuple[list[str], list]:
    "The runs on two nodes; a worker of the first is killed, then the second node. What failed; runs that were hit, their process, their history then."
    address, raylet, hit = nodes.two(), nodes.raylet(), []

    def harm():
        for do, chosen in (
            (kill, lambda pid: psutil.Process(pid).ppid() != raylet),
            (nodes.remove, lambda pid: psutil.Process(pid).ppid() == raylet),
        ):
            run = in_the_middle(folder, chosen)
            pid = writer(run)
            do(pid)
            wait_for_end(pid)
            hit.append((run, pid, pd.read_csv(run / "history.csv", dtype=str)))

    thread = meanwhile(harm)
    with one_thread():
        failed = train_grid(
            runs, partial(on_ray, given=given, address=address, grid=folder), lambda _: None
        )
    thread.join()
    return failed, hit


def went_on(run: Path, pid: int, before: pd.DataFrame) -> bool:
    "Whether another process has ended the run, and did not train again the epochs that there were."
    after = pd.read_csv(run / "history.csv", dtype=str).head(len(before))
    return (
        writer(run) != pid
        and 3 <= len(before) < EPOCHS
        and list(after["seconds"]) == list(before["seconds"])
    )


def test_a_worker_is_killed_and_a_node_is_lost_and_the_numbers_are_those_in_turn(
    nodes, given, serial, tmp_path
):
    "And a loss that is not finite is noted, while the others go on."
    bad = dict(grid(tmp_path)[0], out=tmp_path / "bad", preset=replace(SMALL, lr=1e30))
    failed, hit = harmed(nodes, given, tmp_path, [*grid(tmp_path), bad])
    assert len(failed) == 1 and failed[0].startswith("bad (the loss is "), failed
    same(tmp_path, serial)
    assert len(hit) == 2 and all(went_on(*h) for h in hit)


def test_a_node_that_does_not_see_the_folder_is_named_before_anything_starts(
    nodes, given, tmp_path
):
    "A node with a file system of its own over the folder, as if it were another machine's."
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    ):
        pytest.skip("unshare is not permitted here")
    words = f"mount -t tmpfs tmpfs {tmp_path} && exec {Path(sys.executable).parent}/ray start --address={nodes.address} --node-ip-address=127.0.0.4 --num-cpus=1 --block"
    other = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 40
        while (
            not any(
                n["NodeManagerAddress"] == "127.0.0.4" and n["Alive"]
                for n in nodes.cluster.global_state.node_table()
            )
            and time.monotonic() < end
        ):
            time.sleep(0.2)
        with (
            one_thread(),
            pytest.raises(
                ValueError,
                match=r"node .* \(127\.0\.0\.4\) does not see .* share the folder with all nodes",
            ) as error,
        ):
            train_grid(
                grid(tmp_path / "sweep"),
                partial(on_ray, given=given, address=nodes.address, grid=tmp_path / "sweep"),
                lambda _: None,
            )
        assert "\n" not in str(error.value) and not list(tmp_path.glob("sweep/K*"))
    finally:
        os.killpg(other.pid, signal.SIGTERM)
        other.wait()


def test_more_threads_than_any_node_has_cores_is_a_sentence(nodes, given, tmp_path):
    torch.set_num_threads(64)
    try:
        with pytest.raises(
            ValueError,
            match="a run has 64 threads here, and no node has more than 1 cores: set OMP_NUM_THREADS to 1",
        ):
            list(on_ray(grid(tmp_path, 1), given, nodes.address, tmp_path))
    finally:
        torch.set_num_threads(1)


def test_a_folder_whose_lock_is_not_seen_is_told_from_one_that_is_not_there(tmp_path):
    assert "does not see" in sees_lock(tmp_path)
    with hold(tmp_path):
        assert sees_lock(tmp_path) == ""
    assert "but not the locks" in sees_lock(tmp_path)  # the file is there and nobody holds it


@pytest.mark.parametrize("address", ["127.0.0.1:9", "auto"])
def test_where_nothing_listens_is_a_sentence_and_soon(monkeypatch, address):
    if address == "auto":
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(
        OSError,
        match="no Ray cluster at .*: start one with ray start --head, or name its address as host:port",
    ) as error:
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
