"""The Ray driver on a local Ray: the same bytes as without it, killed workers or not, and mistakes in one line."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
from training_toys import write_shards

from mmtok.corpus import Job, TokenShards, tokenize


@pytest.fixture(scope="module")
def local_ray():
    # Ray's workers run at a low priority otherwise: beside other work on the machine they would wait for minutes
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def same_shards(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.glob("*.bin"))
    assert names == sorted(path.name for path in other.glob("*.bin")) and len(names) == 2
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_ray_writes_the_same_shards(local_ray, tmp_path, small_model):
    shards = write_shards(tmp_path / "shards", 8)
    here, there = (Job(str(tmp_path / name), str(small_model), batch_size=4) for name in ("here", "there"))
    tokenize(str(shards), here, workers=0, progress=False)
    summary = tokenize(str(shards), there, driver="ray", progress=False)
    assert summary["samples"] == len(TokenShards(there.folder)) == 8
    same_shards(here.folder, there.folder)
    wrong = Job(str(tmp_path / "wrong"), str(small_model), batch_size=4, num_quantizers=1)
    with pytest.raises(ValueError, match="num_quantizers"):
        tokenize(str(shards), wrong, driver="ray", progress=False)


def test_workers_of_ray_that_are_killed_lose_nothing(local_ray, tmp_path, small_model):
    """SIGKILL to the process that writes, in the middle of each of the two shards; Ray gives the shard to another."""
    shards = write_shards(tmp_path / "shards", 120)
    here, there = (Job(str(tmp_path / name), str(small_model), batch_size=1) for name in ("here", "there"))
    tokenize(str(shards), here, workers=0, progress=False)
    killed: dict[str, int] = {}
    done = threading.Event()

    def kill() -> None:
        while len(killed) < 2 and not done.is_set():
            for part in there.folder.glob(".*.bin.*.part"):  # .<shard>.bin.<host>.<pid>.part
                shard, pid = part.name.split(".")[1], int(part.name.split(".")[-2])
                if shard not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed[shard] = pid if part.exists() else 0  # what was half written stays behind
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = tokenize(str(shards), there, driver="ray", progress=False)
    done.set()
    killer.join()
    assert sorted(killed) == ["s-000000", "s-000001"] and all(killed.values())
    assert summary["samples"] == len(TokenShards(there.folder)) == 120
    same_shards(here.folder, there.folder)
    assert not list(there.folder.glob(".*.part"))
