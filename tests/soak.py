"""`make soak`: faults at random moments, many of them, and a summary as JSON. Not collected by pytest.

    python tests/soak.py --json benchmarks/results/soak.json [--kills 25] [--seconds 90] [--only NAME ...]

Every part says what was injected, how often, what came out, what was lost and how long recovery took, and whether that
is as promised (`ok`). Exit code 1 when a part is not.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / name) for name in (".", "training", "contract")]

import torch  # noqa: E402
from fault_toys import Job, run_rank, save, write_rank  # noqa: E402
from soak_data import DataSoak  # noqa: E402
from training_toys import keys, same, write_shards  # noqa: E402

from mmtok.data import ShardData  # noqa: E402
from mmtok.training.checkpoint_io import damage, latest, read_manifest  # noqa: E402

EVERY = 5  # steps between checkpoints
FAST = {"trainer__limit_val_batches": 0, "checkpoint__every": EVERY, "data__init_args__num_workers": 2}
NAMES = (
    "random_kills", "signals", "stops", "truncation", "order", "corpus", "round_trips", "crowd", "fuzz", "leaks",
)  # fmt: skip


class Soak(DataSoak):
    """Training under faults; the parts about data are in soak_data.py."""

    def __init__(self, root: Path, kills: int, seconds: float, seed: int) -> None:
        self.root, self.kills, self.seconds, self.rng = root, kills, seconds, random.Random(seed)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mmtok.training.cli", "mmtok.data.module", "mmtok.corpus.shard", "fault_toys"])
        self.context = context
        self.shards = write_shards(root / "shards")

    def start(self, function, *args):
        process = self.context.Process(target=function, args=args)
        process.start()
        return process

    def folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        return folder

    def random_kills(self) -> dict:
        """SIGKILL at random moments of a run with workers, every fifth while a checkpoint is being written; the
        finished run is compared with an undisturbed one."""
        folder, steps = self.folder("kills"), 12 * self.kills
        job = Job(self.start, folder, self.shards)
        options = FAST | {"trainer__max_steps": steps, "model__generator_schedule__init_args__total": steps}
        assert job.run("whole", 1, timeout=900, **options) == [0]
        path = write_rank(folder, self.shards, "run", 0, 1, None, **options)
        record, checkpoints = folder / "run.0.keys", folder / "run/checkpoints"
        recovered, lost, damaged, kills, writing = [], [], 0, 0, 0
        while True:
            begun, seen = time.monotonic(), _lines(record)
            process = self.start(run_rank, 0, 1, 0, path, "--ckpt_path", "last")
            while process.is_alive() and _lines(record) == seen:
                time.sleep(0.01)
            recovered.append(time.monotonic() - begun)
            if kills < self.kills:
                enough = _lines(record) + self.rng.randint(0, 9)
                while process.is_alive() and _lines(record) < enough:
                    time.sleep(0.005)
                time.sleep(self.rng.uniform(0, 0.1))
                while process.is_alive() and kills % 5 == 4 and not any(checkpoints.glob(".last.ckpt.*")):
                    time.sleep(0.0005)
            else:
                process.join()
            if not process.is_alive():
                break
            process.kill()
            process.join()
            kills += 1
            writing += any(checkpoints.glob(".last.ckpt.*"))
            newest, rows = latest(checkpoints), read_manifest(checkpoints)
            damaged += bool(rows) and (newest is None or damage(newest) is not None)
            saved = 0 if newest is None else torch.load(newest, weights_only=True)["global_step"]
            lost.append(json.loads(record.read_text().splitlines()[-1])[0] - saved)
        a, b = job.checkpoint("whole"), job.checkpoint("run")
        parts = ("state_dict", "ema", "optimizer_states", "batches", "global_step")
        differ = [where for part in parts for where in same(a[part], b[part], part)]
        whole, run = keys(folder / "whole.0.keys"), keys(record)
        wrong = sum(run.get(step) != names for step, names in whole.items())
        return {
            "injected": kills, "while_writing": writing, "checkpoints_damaged": damaged, "steps": steps,
            "exit_code": process.exitcode, "bits_that_differ": differ, "steps_with_other_samples": wrong,
            "interval": EVERY, "steps_repeated_at_most": max(lost), **_times("seconds_to_recover", recovered[1:]),
            "ok": kills == self.kills and not (damaged or differ or wrong) and process.exitcode == 0
            and len(run) == steps and max(lost) <= EVERY,
        }  # fmt: skip

    def signals(self) -> dict:
        """SIGTERM or SIGUSR1 to one of two ranks, then on again."""
        folder = self.folder("signals")
        job, right, late, recovered, leaving = Job(self.start, folder, self.shards), 0, [], [], []
        for i in range(max(2, self.kills * 2 // 5)):
            what, hurt, at = self.rng.choice(["SIGTERM", "SIGUSR1"]), self.rng.randrange(2), 3 * (i + 1)
            record, begun = folder / "run.0.keys", time.time()
            seen = _lines(record)
            code = job.run("run", 2, "--ckpt_path", "last", fault={"what": what, "at": at}, hurt=hurt,
                           trainer__max_steps=1000, trainer__limit_val_batches=0)  # fmt: skip
            times = [json.loads(line)[2] for line in record.read_text().splitlines()[seen:]]
            recovered.append(times[0] - begun)
            leaving.append(time.time() - times[-1])
            # who was told ends with its own signal's code, the other with that of SIGTERM
            right += code == [128 + getattr(signal, what) if rank == hurt else 143 for rank in range(2)]
            late.append(job.checkpoint("run")["global_step"] - at)
        ranks = [keys(folder / f"run.{rank}.keys") for rank in range(2)]
        wanted = ShardData(str(self.shards / "s-*.tar"), batch_size=8, image_size=32, num_workers=0,
                           batches_per_epoch=10**6)  # fmt: skip
        line = islice(wanted.train_loader(0, 1), max(ranks[0]))
        wrong = sum(ranks[0].get(n + 1, []) + ranks[1].get(n + 1, []) != list(b.keys) for n, b in enumerate(line))
        return {"injected": len(late), "codes_right": right, "steps_after_signal": max(late),
                "steps_with_other_samples": wrong, **_times("seconds_to_recover", recovered),
                **_times("seconds_from_last_step_to_exit", leaving),
                "ok": right == len(late) and max(late) <= 1 and not wrong}  # fmt: skip

    def stops(self) -> dict:
        """SIGSTOP to one of two ranks: the job ends and names it."""
        folder, timeout = self.folder("stops"), 5.0
        job, codes, named, waited = Job(self.start, folder, self.shards), [], 0, []
        for i in range(max(2, self.kills // 6)):
            hurt = i % 2
            codes.append(job.run(f"run{i}", 2, fault={"what": "SIGSTOP", "at": 4}, hurt=hurt, watch__timeout=timeout,
                                 trainer__limit_val_batches=0))  # fmt: skip
            last = json.loads((folder / f"run{i}.{1 - hurt}.keys").read_text().splitlines()[-1])[2]
            waited.append(time.time() - last)
            named += f"stopped rank {hurt} on" in job.said[1 - hurt]
        right = sum(code == ([-9, 124] if n % 2 == 0 else [124, -9]) for n, code in enumerate(codes))
        return {"injected": len(codes), "timeout": timeout, "codes_right": right, "named": named,
                "seconds_to_end_worst": round(max(waited), 2),
                "ok": right == named == len(codes) and max(waited) < timeout + 30}  # fmt: skip

    def truncation(self) -> dict:
        """last.ckpt cut or flipped anywhere: always noticed, the one before is used."""
        folder, found, times = self.folder("cut"), 0, 40
        for i in range(times):
            save(folder, 2 * i)
            path = save(folder, 2 * i + 1)
            data = bytearray(path.read_bytes())
            at = self.rng.randrange(len(data))
            if i % 2:
                data[at] ^= 1 << self.rng.randrange(8)
            path.write_bytes(bytes(data if i % 2 else data[:at]))
            newest = latest(folder, mend=False)
            found += newest is not None and newest.name == "previous.ckpt"
        return {"injected": times, "noticed": found, "ok": found == times}

    def leaks(self) -> dict:
        """A run with workers and validations for a while: memory, open files, zombies, once the first third is over."""
        folder = self.folder("leaks")
        path = write_rank(folder, self.shards, "run", 0, 1, None, **FAST | {
            "trainer__max_steps": 10**7, "trainer__val_check_interval": 50, "trainer__limit_val_batches": 1,
            "checkpoint__every": 50, "trainer__log_every_n_steps": 50})  # fmt: skip
        process, rows, record = self.start(run_rank, 0, 1, 0, path), [], folder / "run.0.keys"
        begun = time.monotonic()
        while process.is_alive() and time.monotonic() - begun < self.seconds:
            time.sleep(1)
            rows.append((_lines(record), *_state(process.pid)))
        os.kill(process.pid, signal.SIGTERM)
        process.join(120)
        middle, late = rows[len(rows) // 3 : 2 * len(rows) // 3], rows[2 * len(rows) // 3 :]
        # medians: a validation has workers and files of its own, and they are zombies for the moment in which they end
        (steps, memory, files), (later, more, left) = (
            [statistics.median(row[k] for row in part) for k in (0, 1, 2)] for part in (middle, late)
        )
        zombies = max(len(a[3] & b[3]) for a, b in zip(rows, rows[5:], strict=False))
        growth = 100 * (more / memory - 1)
        return {
            "seconds": len(rows), "exit_code": process.exitcode, "steps": _lines(record),
            "rss_mb_middle_third": round(memory / 1e6, 1), "rss_mb_last_third": round(more / 1e6, 1),
            "rss_growth_percent": round(growth, 3), "steps_between": later - steps,
            "open_files": [files, left], "zombies_that_stay": zombies,
            "ok": process.exitcode == 143 and growth < 1 and left <= files and not zombies,
        }  # fmt: skip


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _state(pid: int) -> tuple[int, int, set[str]]:
    """Resident bytes and open files of a process, zombies among its children."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = len(os.listdir(f"/proc/{pid}/fd"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    zombies = set()
    for child in children:
        try:
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                zombies.add(child)
        except OSError:  # it ended meanwhile, and its parent knows
            continue
    return pages * os.sysconf("SC_PAGE_SIZE"), files, zombies


def _times(name: str, seconds: list[float]) -> dict:
    return {f"{name}_median": round(statistics.median(seconds), 2), f"{name}_worst": round(max(seconds), 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=90, help="of the leak check; fuzzing takes half as long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, help="these again; others stay in the file")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # parts that are run alone join those that are in the file
    found: dict = json.loads(options.json.read_text()) if options.only != NAMES and options.json.is_file() else {}
    settings = {"kills": options.kills, "seconds": options.seconds, "seed": options.seed, "torch": torch.__version__}
    found = {**settings, **{name: found[name] for name in NAMES if name in found}}
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), options.kills, options.seconds, options.seed)
        for name in NAMES:
            if name not in options.only:
                continue
            started = time.monotonic()
            found[name] = getattr(soak, name)() | {"took_seconds": round(time.monotonic() - started, 1)}
            print(name, json.dumps(found[name]), flush=True)
            found["ok"] = all(part["ok"] for part in found.values() if isinstance(part, dict))
            took = sum(part["took_seconds"] for part in found.values() if isinstance(part, dict))
            found["took_minutes"] = round(took / 60, 1)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
