"""`make soak`: faults at random moments, many of them, and a summary as JSON. Not collected by pytest.

    python tests/soak.py --json benchmarks/results/soak.json [--kills 25] [--seconds 120] [--only NAME ...]

Every part says what was injected, how often, what came out, what was lost and how long recovery took.
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
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "training"), str(Path(__file__).parent / "contract")]

import torch  # noqa: E402
from fault_toys import Job, run_rank, save, write_rank  # noqa: E402
from training_toys import keys, same, write_shards  # noqa: E402

from mmtok.training.checkpoint_io import damage, latest, read_manifest  # noqa: E402

FAST = {"trainer__limit_val_batches": 0, "checkpoint__every": 5, "data__init_args__num_workers": 2}


class Soak:
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

    # ---- training -----------------------------------------------------------------------------------------------

    def random_kills(self) -> dict:
        """SIGKILL at random moments of a run with workers; the finished run is compared with an undisturbed one."""
        folder, steps = self.root / "kills", 12 * self.kills
        folder.mkdir()
        job = Job(self.start, folder, self.shards)
        options = FAST | {"trainer__max_steps": steps, "model__generator_schedule__init_args__total": steps}
        assert job.run("whole", 1, timeout=900, **options) == [0]
        path = write_rank(folder, self.shards, "run", 0, 1, None, **options)
        record, recovered, lost, damaged, kills = folder / "run.0.keys", [], [], 0, 0
        while True:
            begun, seen = time.monotonic(), len(record.read_text().splitlines()) if record.is_file() else 0
            process = self.start(run_rank, 0, 1, 0, path, "--ckpt_path", "last")
            wait = self.rng.uniform(0.0, 1.5) if kills < self.kills else 1e9
            first = None
            while process.is_alive() and (first is None or time.monotonic() - first < wait):
                if first is None and record.is_file() and len(record.read_text().splitlines()) > seen:
                    first = time.monotonic()
                    recovered.append(first - begun)
                time.sleep(0.01)
            if not process.is_alive():
                break
            process.kill()
            process.join()
            kills += 1
            newest = latest(folder / "run/checkpoints")
            at = read_manifest(folder / "run/checkpoints")
            damaged += bool(at) and (newest is None or damage(newest) is not None)
            reached = json.loads(record.read_text().splitlines()[-1])[0]
            lost.append(reached - (at[0]["step"] if at else 0))
        process.join()
        a, b = job.checkpoint("whole"), job.checkpoint("run")
        parts = ("state_dict", "ema", "optimizer_states", "batches", "global_step")
        differ = [where for part in parts for where in same(a[part], b[part], part)]
        equal = keys(folder / "whole.0.keys") == keys(record)
        return {
            "injected": kills, "checkpoints_damaged": damaged, "exit_code": process.exitcode,
            "bits_that_differ": differ, "same_samples": equal, "steps_repeated_at_most": max(lost), "interval": 5,
            "data_lost": 0 if equal else 1,
            **_times(recovered),
        }  # fmt: skip

    def signals(self) -> dict:
        """SIGTERM or SIGUSR1 to one of two ranks, then on again."""
        folder = self.root / "signals"
        folder.mkdir()
        job, codes, steps, times = Job(self.start, folder, self.shards), [], [], []
        for i in range(max(2, self.kills // 5)):
            what, hurt = self.rng.choice(["SIGTERM", "SIGUSR1"]), self.rng.randrange(2)
            at = 3 * (i + 1)
            begun = time.monotonic()
            code = job.run("run", 2, "--ckpt_path", "last", fault={"what": what, "at": at}, hurt=hurt,
                           trainer__max_steps=1000, trainer__limit_val_batches=0)  # fmt: skip
            times.append(time.monotonic() - begun)
            # who was told ends with its own signal's code, the other with that of SIGTERM
            codes.append(code == [128 + getattr(signal, what) if rank == hurt else 143 for rank in range(2)])
            steps.append(job.checkpoint("run")["global_step"] - at)
        return {"injected": len(codes), "codes_right": all(codes), "steps_after_signal": max(steps), "data_lost": 0,
                "seconds_start_to_stop_median": statistics.median(times)}  # fmt: skip

    def stops(self) -> dict:
        """SIGSTOP to one of two ranks: the job ends and names it."""
        folder = self.root / "stops"
        folder.mkdir()
        job, rows = Job(self.start, folder, self.shards), []
        for i in range(2):
            begun = time.monotonic()
            codes = job.run(f"run{i}", 2, fault={"what": "SIGSTOP", "at": 4}, hurt=i, watch__timeout=5.0,
                            trainer__limit_val_batches=0)  # fmt: skip
            rows.append((codes, f"stopped rank {i} on" in job.said[1 - i], time.monotonic() - begun))
        return {"injected": len(rows), "timeout": 5, "codes": [r[0] for r in rows], "named": all(r[1] for r in rows),
                "seconds_at_most": max(r[2] for r in rows)}  # fmt: skip

    def truncation(self) -> dict:
        """last.ckpt cut or flipped anywhere: always noticed, the one before is used."""
        folder, found = self.root / "cut", 0
        for i in range(40):
            save(folder, 2 * i)
            path = save(folder, 2 * i + 1)
            data = bytearray(path.read_bytes())
            at = self.rng.randrange(len(data))
            if i % 2:
                data[at] ^= 1 << self.rng.randrange(8)
            path.write_bytes(bytes(data if i % 2 else data[:at]))
            newest = latest(folder, mend=False)
            found += newest is not None and newest.name == "previous.ckpt"
        return {"injected": 40, "noticed": found}

    def leaks(self) -> dict:
        """A run with workers for a while: memory, open files, zombies."""
        folder = self.root / "leaks"
        folder.mkdir()
        path = write_rank(folder, self.shards, "run", 0, 1, None, **FAST | {
            "trainer__max_steps": 10**7, "trainer__val_check_interval": 50, "checkpoint__every": 50})  # fmt: skip
        process = self.start(run_rank, 0, 1, 0, path)
        rows, begun = [], time.monotonic()
        while process.is_alive() and time.monotonic() - begun < self.seconds:
            time.sleep(1)
            rows.append(_state(process.pid))
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        late = rows[len(rows) // 3 :]  # after caches are warm
        hours = max(len(late) - 1, 1) / 3600
        growth = (late[-1][0] / late[0][0] - 1) / hours
        return {
            "seconds": len(rows), "exit_code": process.exitcode,
            "steps": len((folder / "run.0.keys").read_text().splitlines()),
            "rss_mb_first": late[0][0] / 1e6, "rss_mb_last": late[-1][0] / 1e6,
            "rss_growth_percent_an_hour": 100 * growth,
            "open_files_first": late[0][1], "open_files_last": late[-1][1], "zombies": max(r[2] for r in rows),
        }  # fmt: skip

    # ---- data ---------------------------------------------------------------------------------------------------

    def order(self) -> dict:
        """One epoch for every world, number of workers and start method: each key once."""
        from mmtok.data import ShardData

        wrong, tried, reference = [], 0, None
        for world in (1, 2, 4):
            for workers, method in ((0, None), (1, "fork"), (3, "fork"), (1, "spawn"), (3, "forkserver")):
                if method == "spawn" and world == 4:
                    continue  # the same code as world 2, at the price of twelve interpreters
                found = []
                for rank in range(world):
                    module = ShardData(str(self.shards), batch_size=4 // world, image_size=16, num_workers=workers,
                                       start_method=method)  # fmt: skip
                    loader = module.train_loader(rank, world)
                    batches = iter(loader)
                    found.append([next(batches).keys for _ in range(6)])
                    loader.close()
                line = [key for step in zip(*found, strict=True) for part in step for key in part]
                tried += 1
                if len(set(line)) != 24 or line != (reference or line):
                    wrong.append([world, workers, method])
                reference = line
        return {"settings": tried, "wrong": wrong}

    def corpus(self) -> dict:
        """Tokenization killed at random moments; and its speed beside one plain loop."""
        from mmtok.cli import main
        from mmtok.corpus import Job as Corpus
        from mmtok.corpus import tokenize
        from mmtok.data import ShardData
        from mmtok.hub import build, load
        from mmtok.hub import save as save_tokenizer

        sys.path.insert(0, str(Path(__file__).parent))
        from conftest import SMALL_MODEL

        torch.manual_seed(0)
        model = save_tokenizer(build(SMALL_MODEL), self.root / "model")
        shards = self.shards
        wanted = tokenize(str(shards), Corpus(str(self.root / "tokens"), str(model), batch_size=2), 0, progress=False)
        command = ["tokenize", str(shards), str(self.root / "hurt"), "--model", str(model), "--batch-size", "2",
                   "--workers", "0"]  # fmt: skip
        kills = 0
        while kills < max(3, self.kills // 3):
            process = self.start(main, command)
            time.sleep(self.rng.uniform(0.05, 0.6))
            if not process.is_alive():
                break
            process.kill()
            process.join()
            kills += 1
        assert main(command) == 0
        equal = all(
            (self.root / "hurt" / path.name).read_bytes() == path.read_bytes()
            for path in (self.root / "tokens").glob("*.bin")
        )
        tokenizer, codes, begun = load(model), 0, time.perf_counter()
        module = ShardData(str(shards), image_size=64, batch_size=2, num_workers=0)
        for batch in module.eval_loader("x", str(shards), 0, 1):
            codes += int(tokenizer.encode(batch).num_sent.sum())
        plain = codes / (time.perf_counter() - begun)
        speed = wanted["codes_per_worker_second"]
        return {"injected": kills, "data_lost": 0 if equal else 1, "codes": wanted["codes"], "codes_per_second": speed,
                "plain_loop_codes_per_second": plain, "ratio": speed / plain}  # fmt: skip

    # ---- hostile bytes --------------------------------------------------------------------------------------------

    def fuzz(self) -> dict:
        """Mutated token files, indexes and configs until the time is over: errors of one line, nothing else."""
        from mmtok import load
        from mmtok.bitstream import pack, unpack
        from mmtok.data.index import parse_index
        from mmtok.folder import read_config

        model = load(self.root / "model")
        token = pack(model.encode(torch.rand(1, 3, 64, 64) * 2 - 1))
        index, config = (self.shards / "index.json").read_bytes(), (self.root / "model/config.yaml").read_bytes()
        file, counts, other, slowest = self.root / "config.yaml", {"tried": 0, "refused": 0, "accepted": 0}, [], 0.0

        def read(data: bytes) -> None:
            file.write_bytes(data)
            read_config(file)

        targets = [(token, lambda d: unpack(d, model).validate()), (index, lambda d: parse_index(d, "index.json")),
                   (config, read)]  # fmt: skip
        end = time.monotonic() + self.seconds / 2
        while time.monotonic() < end:
            whole, reader = self.rng.choice(targets)
            data = self._mutate(bytearray(whole))
            counts["tried"] += 1
            begun = time.perf_counter()
            try:
                reader(data)
                counts["accepted"] += 1
            except ValueError:
                counts["refused"] += 1
            except BaseException as error:
                other.append(f"{type(error).__name__}: {error}"[:200])
            slowest = max(slowest, time.perf_counter() - begun)
        return counts | {"other_errors": other[:20], "slowest_seconds": slowest}

    def _mutate(self, data: bytearray) -> bytes:
        for _ in range(self.rng.randint(1, 6)):
            at, kind = self.rng.randrange(len(data)), self.rng.randrange(4)
            if kind == 0:
                data[at] = self.rng.randrange(256)
            elif kind == 1:
                del data[at : at + self.rng.randint(1, 20)]
            elif kind == 2:
                data[at:at] = bytes(self.rng.randrange(256) for _ in range(self.rng.randint(1, 8)))
            else:
                data[at:at] = self.rng.choice([b"9" * 25, b"[[[[", b'{"', b"-1", b"null", b"1e999", b"\\ud800", b"\0"])
            if not data:
                return b""
        return bytes(data)


def _state(pid: int) -> tuple[int, int, int]:
    """Resident bytes and open files of a process, zombies among its children."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        zombies = sum(Path(f"/proc/{c}/stat").read_text().rpartition(")")[2].split()[0] == "Z" for c in children)
    except OSError:
        return 1, 0, 0
    return pages * os.sysconf("SC_PAGE_SIZE"), files, zombies


def _times(seconds: list[float]) -> dict:
    rounded = sorted(round(s, 2) for s in seconds)
    return {"seconds_to_recover_median": statistics.median(rounded), "seconds_to_recover_worst": rounded[-1]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=120, help="of the leak check; fuzzing takes half as long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    found: dict = {"kills": options.kills, "seconds": options.seconds, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), options.kills, options.seconds, options.seed)
        for part in (soak.random_kills, soak.signals, soak.stops, soak.truncation, soak.order, soak.corpus, soak.fuzz,
                     soak.leaks):  # fmt: skip
            name = part.__name__
            if options.only and name not in options.only:
                continue
            begun = time.monotonic()
            found[name] = part() | {"took_seconds": round(time.monotonic() - begun, 1)}
            print(name, json.dumps(found[name]), flush=True)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
