"""Two processes (gloo) that are signalled, stopped, hung, killed or fed NaN: nothing lost, the culprit named."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fault_toys import Job, free_port, write_rank
from training_toys import keys, same

ROOT = Path(__file__).parents[2]
EXACT = ("state_dict", "ema", "optimizer_states", "batches", "skipped", "global_step")
SMALL = {"data__init_args__batch_size": 2, "trainer__limit_val_batches": 0}


@pytest.fixture
def job(processes, tmp_path, shards):
    return Job(processes.start, tmp_path, shards)


def trained_on(folder, name, world):
    """Step -> keys of the global batch."""
    parts = [keys(folder / f"{name}.{rank}.keys") for rank in range(world)]
    return {step: [key for part in parts for key in part[step]] for step in parts[0] if step in parts[-1]}


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory, shards):
    """An undisturbed run of two ranks, 20 steps, on this folder."""
    folder = tmp_path_factory.mktemp("whole")
    job = Job(processes.start, folder, shards)
    assert job.run("whole", 2, **SMALL) == [0, 0]
    return folder, job.checkpoint("whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_rank_ends_the_job_and_the_rest_is_bit_exact(job, whole, tmp_path, workers):
    """`whole` ran without workers: their number changes nothing either."""
    folder, expected = whole
    options = SMALL | {"data__init_args__num_workers": workers}
    codes = job.run("run", 2, fault={"what": "SIGKILL", "at": 13}, hurt=1, **options)
    assert codes[1] == -9 and codes[0] not in (0, None)  # the other one ends by itself
    assert job.checkpoint("run")["global_step"] == 10
    assert job.run("run", 2, "--ckpt_path", "last", **options) == [0, 0]
    found = job.checkpoint("run")
    for part in EXACT:
        assert same(expected[part], found[part], part) == []
    assert trained_on(tmp_path, "run", 2) == trained_on(folder, "whole", 2)
    for rank in range(2):
        drawn = [torch.load(at / f"{name}.{rank}.rng", weights_only=True)
                 for at, name in ((folder, "whole"), (tmp_path, "run"))]  # fmt: skip
        assert same(*drawn) == []


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_both_launchers_start_the_same_run_and_torchrun_starts_it_again(whole, tmp_path, shards, launcher):
    """As a user starts it. In torchrun.sh rank 1 is told to stop at step 7: both ranks stop and say so, though torchrun
    sends SIGTERM to all processes of the later one, and go on from step 8. Then rank 1 is killed at step 13, and both
    go on from step 10.
    """
    fault = None
    if launcher == "torchrun":
        fault = [{"what": "SIGTERM", "at": 7, "rank": 1}, {"what": "SIGKILL", "at": 13, "rank": 1, "start": 1}]
    path = write_rank(tmp_path, shards, "run", 0, 2, fault, **SMALL)
    command = [sys.executable, "train.py", "fit", "-c", path]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": "tests/training"}
    if launcher == "torchrun":  # it lays configs/base/slurm.yaml on the configuration
        command = ["bash", "docs/cluster/torchrun.sh", "--trainer.accelerator=cpu", "--checkpoint.every=10",
                   "--data.init_args.num_workers=1", "--data.init_args.pin_memory=false"]  # fmt: skip
        env |= {"GPUS": "2", "CONFIG": path, "PORT": str(free_port())}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run([*command, "--name=run"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    if launcher == "torchrun":
        assert re.findall(r"exitcode: (-?\d+)\) local_rank", done.stderr) == ["143", "-9"]
        assert done.stderr.count("stopped by signal 15: go on with --ckpt_path last") == 2
        assert "exited unexpectedly" not in done.stderr
    expected, found = whole[1], torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    for part in EXACT:
        assert same(expected[part], found[part], part) == []


def test_a_signal_to_one_rank_stops_all_and_another_world_goes_on_with_the_next_sample(job, whole, tmp_path):
    folder, _ = whole
    started = time.monotonic()
    codes = job.run("run", 2, fault={"what": "SIGTERM", "at": 7}, hurt=1, **SMALL)
    assert codes == [143, 143] and time.monotonic() - started < 60
    saved = job.checkpoint("run")
    assert saved["global_step"] == 8  # told before the eighth step: it ended, and nothing after it
    assert all("stopped by signal 15: go on with --ckpt_path last" in text for text in job.said)
    # one process with the same global batch: the same weights, the same line of samples
    assert job.run(
        "run", 1, "--ckpt_path", "last", trainer__max_steps=12, trainer__limit_val_batches=0,
        fault={"what": "look", "at": 0}, data__init_args__batch_size=4,
    ) == [0]  # fmt: skip
    begun = torch.load(tmp_path / "run/start.pt", weights_only=True)
    assert same(begun["state_dict"], saved["state_dict"]) == [] and same(begun["ema"], saved["ema"]) == []
    alone, together = keys(tmp_path / "run.0.keys"), trained_on(folder, "whole", 2)
    assert {step: alone[step] for step in range(9, 13)} == {step: together[step] for step in range(9, 13)}
    # another global batch: the line goes on at the very next sample
    assert job.checkpoint("run")["global_step"] == 12
    line = [key for step in sorted(together) for key in together[step]]
    assert job.run("run", 2, "--ckpt_path", "last", trainer__max_steps=14, trainer__limit_val_batches=0,
                   data__init_args__batch_size=3) == [0, 0]  # fmt: skip
    wider = trained_on(tmp_path, "run", 2)
    assert wider[13] + wider[14] == line[48:60]


@pytest.mark.parametrize(
    ("what", "hurt", "says"), [("SIGSTOP", 1, "stopped rank 1"), ("SIGSTOP", 0, "stopped rank 0"),
                               ("hang", 1, "held up by rank 1")],
)  # fmt: skip
def test_a_rank_that_stands_still_ends_the_job_in_time_and_is_named(job, what, hurt, says):
    timeout = 4.0
    started = time.monotonic()
    codes = job.run("run", 2, fault={"what": what, "at": 3}, hurt=hurt, watch__timeout=timeout, **SMALL)
    assert time.monotonic() - started < timeout + 30
    assert codes[1 - hurt] == 124 and codes[hurt] == (124 if what == "hang" else -9)
    assert f"no step ended in 4 s; {says} on" in job.said[1 - hurt]
    if what == "hang":
        assert "fault_toys.py" in job.said[0]  # where it hangs


def test_nan_on_one_rank_is_skipped_on_both_and_the_rank_is_named(job):
    codes = job.run("run", 2, fault={"what": "nan", "at": 4, "times": 2}, hurt=1, trainer__max_steps=6, **SMALL)
    assert codes == [0, 0]
    saved = job.checkpoint("run")
    assert saved["skipped"] == 4  # two batches, generator and discriminator
    tensors = [value for value in saved["state_dict"].values() if value.is_floating_point()]
    assert tensors and all(bool(torch.isfinite(value).all()) for value in tensors)
    assert "(rank 1 on " in job.said[0] and "(rank 0 on " not in job.said[0]
    codes = job.run(
        "more", 2, fault={"what": "nan", "at": 2, "times": 9}, hurt=0, model__max_bad_steps=3, **SMALL
    )
    assert codes == [2, 2]
    assert "max_bad_steps: 3 generator updates in a row" in job.said[1] and "(rank 0 on " in job.said[1]
