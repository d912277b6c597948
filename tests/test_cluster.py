"""The job files parse, the cluster configuration trains, and the figures on the page are those of the recipes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from training_toys import config, write_config

from mmtok.build import build
from mmtok.training.cli import main
from mmtok.training.config_file import read_config_file

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "docs" / "cluster"
PAGE = (ROOT / "docs" / "cluster.md").read_text()


@pytest.mark.parametrize("name", ["train.sbatch", "tokenize.sbatch", "torchrun.sh"])
def test_scripts_parse_and_name_files_that_exist(name) -> None:
    path = CLUSTER / name
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert text.startswith("#!/bin/bash\n")
    for target in re.findall(r"(?:configs/[\w/]+\.yaml|train\.py)", text):
        assert (ROOT / target).is_file(), target
    if name.endswith("sbatch"):
        options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", text, re.M))
        assert {"time", "requeue", "output", "cpus-per-task"} <= set(options)
        last = max(text.index(line) for line in text.splitlines() if line.startswith("#SBATCH"))
        assert not re.search(r"^[^#\n]", text[:last], re.M), "options after the first command are ignored"


def test_requeueing_follows_the_documented_exit_codes(tmp_path) -> None:
    """The script itself, with stand-ins for srun and scontrol."""
    (tmp_path / "srun").write_text("#!/bin/bash\nexit $FAKE_CODE\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\necho $* >> {tmp_path}/requeued\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    for code, wanted in ((0, False), (2, False), (1, False), (124, True), (137, True), (138, True), (143, True)):
        (tmp_path / "requeued").unlink(missing_ok=True)
        env = {
            "PATH": f"{tmp_path}:/usr/bin:/bin", "FAKE_CODE": str(code), "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8",
        }  # fmt: skip
        done = subprocess.run(["bash", str(CLUSTER / "train.sbatch")], env=env)
        assert done.returncode == code
        assert (tmp_path / "requeued").is_file() == wanted, code
    last = subprocess.run(["bash", str(CLUSTER / "train.sbatch")], env=env | {"SLURM_RESTART_COUNT": "100"})
    assert last.returncode == 143 and (tmp_path / "requeued").read_text().count("requeue 7") == 1


def test_the_kubernetes_job_is_consistent() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "job.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {row["name"]: row for row in container["env"]}
    assert service["kind"] == "Service" and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"] and spec["completions"] == spec["parallelism"]
    assert env["NODES"]["value"] == str(spec["completions"])
    assert env["HEAD"]["value"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(env["GPUS"]["value"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert (ROOT / container["command"][1]).is_file() and container["name"] == "train"
    assert "value" not in env["WANDB_API_KEY"], "a key comes from a secret"


def test_the_cluster_configuration_lies_on_a_recipe(tmp_path, shards) -> None:
    path = write_config(tmp_path / "mine.yaml", config(shards, runs=str(tmp_path), trainer__max_steps=1))
    arguments = ["fit", "-c", path, "-c", str(ROOT / "configs/base/slurm.yaml"), "--trainer.accelerator=cpu"]
    arguments += ["--trainer.devices=1", "--data.init_args.num_workers=0", "--data.init_args.pin_memory=false"]
    assert main(arguments).trainer.global_step == 1
    # the recipe's own `tiny`, not one of the base
    source = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    write_config(tmp_path / "mine.yaml", source | {"tiny": {"model.clip_norm": 0.25}})
    small = main([*arguments, "--apply_tiny", "--name=small"])
    assert small.model.clip_norm == 0.25 and small.trainer.global_step == 1
    cli = main([*arguments, "--trainer.max_steps=2"])  # as a requeued job would
    assert cli.trainer.global_step == 2 and cli.folder == tmp_path / "mine"


def test_the_script_of_the_job_files_runs_with_the_workers_they_ask_for(tmp_path, shards) -> None:
    """train.py with configs/base/slurm.yaml as it is: workers come from a forkserver, which imports train.py again."""
    path = write_config(tmp_path / "mine.yaml", config(shards, runs=str(tmp_path), trainer__max_steps=2))
    command = [sys.executable, "train.py", "fit", "-c", path, "-c", "configs/base/slurm.yaml"]
    command += ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    command += ["--data.init_args.num_workers=2", "--data.init_args.pin_memory=false"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert (tmp_path / "mine/checkpoints/last.ckpt").is_file()


def test_under_slurm_lightning_does_not_requeue_by_itself(tmp_path, shards, monkeypatch) -> None:
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODEID": "0",
                        "NTASKS_PER_NODE": "1"}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    path = write_config(tmp_path / "mine.yaml", config(shards, runs=str(tmp_path), trainer__max_steps=1))
    trainer = main(["fit", "-c", path]).trainer
    environment = trainer._accelerator_connector.cluster_environment
    assert type(environment).__name__ == "SLURMEnvironment" and not environment.auto_requeue


ROW = r"^\| image/(\w+)(?:, the largest)? \| (\d+) M \| ([\d.]+) GB \| ([\d.]+) GB \|$"


@pytest.mark.parametrize(("name", "parameters", "states", "ddp"), re.findall(ROW, PAGE, re.M))
def test_figures_of_the_table(name, parameters, states, ddp) -> None:
    """Parameters counted on meta tensors; 20 bytes each in training, 24 under DDP."""
    recipe = OmegaConf.create(read_config_file(ROOT / "configs" / "image" / f"{name}.yaml"))
    with torch.device("meta"):
        tokenizer = build(OmegaConf.to_container(recipe, resolve=True)["model"]["tokenizer"])
    count = sum(p.numel() for p in tokenizer.parameters() if p.requires_grad)
    assert round(count / 1e6) == int(parameters)
    assert float(states) == round(count * 20 / 1e9, 1) and float(ddp) == round(count * 24 / 1e9, 1)
