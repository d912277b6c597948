"""ShardData: exactly-once accounting, exact resume, substitutes, buckets, under every start method."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mmtok.data import ShardData, Source
from mmtok.data.check import check_shards
from mmtok.data.transforms import ResizeRandomCrop
from mmtok.types import Batch

COUNT = 22


def data(shards: Path | str, **options: object) -> ShardData:
    return ShardData(str(shards), **{"batch_size": 3, "image_size": 16, "num_workers": 0, "window": 2, **options})


def take(loader: object, count: int) -> list[Batch]:
    return list(itertools.islice(itertools.chain.from_iterable(iter(loader) for _ in range(count)), count))


def same(one: list[Batch], two: list[Batch]) -> bool:
    pairs = list(zip(one, two, strict=True))
    return all(a.keys == b.keys and torch.equal(a.x, b.x) and torch.equal(a.size, b.size) for a, b in pairs)


@pytest.fixture(scope="module")
def reference(shards: Path) -> list[Batch]:
    """22 batches of 6 = 6 epochs of 22, by one rank without workers."""
    return take(data(shards, batch_size=6).train_loader(0, 1), 22)


def test_batches_are_images_and_every_key_comes_once_an_epoch(reference: list[Batch]) -> None:
    assert all(b.x.shape == (6, 3, 16, 16) and b.x.dtype == torch.float32 for b in reference)
    assert all(-1 <= float(b.x.min()) < -0.1 and 0.1 < float(b.x.max()) <= 1 for b in reference)
    keys = [key for batch in reference for key in batch.keys]
    for epoch in range(6):
        assert sorted(keys[epoch * COUNT : (epoch + 1) * COUNT]) == [f"i{n:02d}" for n in range(COUNT)]
    first, second = reference[0], reference[3]
    shared = set(first.keys) & set(keys[COUNT : 2 * COUNT])
    assert shared and not any(torch.equal(a, b) for a in first.x for b in second.x), "each epoch has its own crops"


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")])
def test_order_does_not_depend_on_ranks_workers_or_start_method(
    shards: Path, reference: list[Batch], world: int, workers: int, method: str | None
) -> None:
    loaders = [
        data(shards, batch_size=6 // world, num_workers=workers, start_method=method).train_loader(rank, world)
        for rank in range(world)
    ]
    parts = [take(loader, 8) for loader in loaders]
    for loader in loaders:
        loader.close()
    for step in range(8):
        assert sum((part[step].keys for part in parts), ()) == reference[step].keys
        assert torch.equal(torch.cat([part[step].x for part in parts]), reference[step].x)


def test_forkserver(shards: Path, reference: list[Batch]) -> None:
    loader = data(shards, batch_size=6, num_workers=1, start_method="forkserver").train_loader(0, 1)
    assert same(take(loader, 2), reference[:2])
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch(shards: Path, reference: list[Batch], workers: int) -> None:
    run = data(shards, batch_size=6, num_workers=workers)
    assert same(take(run.train_dataloader(), 5), reference[:5])
    state = run.state_dict()
    assert state["step"] == 5 and state["items"] == [30], "what was prefetched is not counted"
    again = data(shards, batch_size=6, num_workers=2 - workers)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert same(take(again.train_dataloader(), 10), reference[5:15])
    run.teardown("fit")
    again.teardown("fit")


def test_resume_with_other_ranks(shards: Path, reference: list[Batch]) -> None:
    state = {"step": 5, "items": [30], "lengths": [COUNT], "seed": 0, "bad": {"seen": 0, "reasons": {}}}
    parts = []
    for rank in range(2):
        loader = data(shards).train_loader(rank, 2)
        loader.load_state_dict(state)
        parts.append(take(loader, 4))
    assert [a.keys + b.keys for a, b in zip(*parts, strict=True)] == [b.keys for b in reference[5:9]]


class Recorder(LightningModule):
    """Remembers the batches it trained on."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.weight, self.fail_at = torch.nn.Parameter(torch.zeros(())), fail_at
        self.batches: list[Batch] = []
        self.evaluated: list[str] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(batch)
        return (self.weight - 1) ** 2

    def validation_step(self, batch: Batch, index: int) -> None:
        self.evaluated += batch.keys

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(model: Recorder, module: ShardData, root: Path, steps: int, ckpt: Path | None = None, every: int = 4) -> None:
    saver = ModelCheckpoint(root, "{step}", every_n_train_steps=every, save_top_k=-1, save_on_exception=True)
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[saver], default_root_dir=root, num_sanity_val_steps=1,
    )
    trainer.fit(model, module, ckpt_path=ckpt, weights_only=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_exactly(shards: Path, tmp_path: Path, workers: int) -> None:
    """Seven batches an epoch: checkpoints at 4, 8, 12 and, at the end of an epoch, 7 and 14."""
    whole = Recorder()
    fit(whole, data(shards, val=str(shards), num_workers=workers), tmp_path / "a", 17)
    assert sorted(whole.evaluated[-COUNT:]) == [f"i{n:02d}" for n in range(COUNT)]
    fit(Recorder(), data(shards, num_workers=workers), tmp_path / "b", 14, every=7)
    for ckpt in ("a/step=4.ckpt", "a/step=12.ckpt", "b/step=7.ckpt", "b/step=14.ckpt"):
        resumed, step = Recorder(), int(ckpt[7:-5])
        fit(resumed, data(shards, val=str(shards), num_workers=workers), tmp_path / "c", 17, tmp_path / ckpt)
        assert same(resumed.batches, whole.batches[step:]), ckpt


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_was_not_trained_on_is_not_consumed(shards: Path, tmp_path: Path) -> None:
    whole = Recorder()
    fit(whole, data(shards), tmp_path / "a", 9)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Recorder(fail_at=5), data(shards), tmp_path / "b", 9, every=100)
    (ckpt,) = (tmp_path / "b").glob("*.ckpt")
    state = torch.load(ckpt, weights_only=True)["ShardData"]
    assert state["step"] == 5
    resumed = Recorder()
    fit(resumed, data(shards), tmp_path / "c", 9, ckpt)
    assert same(resumed.batches, whole.batches[5:])


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (3, 0), (2, 2), (30, 0)])
def test_evaluation_reads_every_key_once(shards: Path, world: int, workers: int) -> None:
    module = data(shards, eval_batch_size=4, num_workers=workers)
    loaders = [module.eval_loader("data.val", str(shards), rank, world) for rank in range(world)]
    keys = [key for loader in loaders for batch in loader for key in batch.keys]
    assert sorted(keys) == [f"i{n:02d}" for n in range(COUNT)]
    assert sum(len(loader) for loader in loaders) == sum(-(-len(range(r, COUNT, world)) // 4) for r in range(world))


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """The shards with three images overwritten by zeros; the index is written anew."""
    root = tmp_path / "damaged"
    shutil.copytree(shards, root)
    (root / "index.json").unlink()
    check = check_shards(root, progress=False)
    from mmtok.data.index import parse_index

    for name, rows in (("000000.tar", (1, 4)), ("000002.tar", (0,))):
        shard = parse_index((root / "index.json").read_bytes(), "")[name]
        with open(root / name, "r+b") as file:
            for row in rows:
                offset, size = shard.members["jpg"][row]
                file.seek(offset)
                file.write(bytes(int(size)))
    assert not check.bad
    return root


def test_bad_samples_are_replaced_the_same_way_and_counted(damaged: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = data(damaged, batch_size=6, max_bad_fraction=1.0)
    loader = module.train_dataloader()
    batches = take(loader, 11)  # three epochs
    assert loader.counter.reasons == {"unsupported": 9}
    keys = Counter(key for batch in batches for key in batch.keys)
    assert len(keys) == 19 and sum(keys.values()) == 66
    assert sum("skipped i" in record.message for record in caplog.records) == 3, "each key is logged once"
    spread = data(damaged, batch_size=6, max_bad_fraction=1.0, num_workers=2).train_loader(0, 1)
    assert same(take(spread, 11), batches)
    spread.close()
    again = data(damaged, batch_size=6, max_bad_fraction=1.0)
    again.load_state_dict(module.state_dict())
    more = take(again.train_dataloader(), 3)
    assert same(more, take(loader, 3)) and again.state_dict()["bad"]["seen"] == 84


def test_too_many_bad_samples_stop_the_run(damaged: Path) -> None:
    with pytest.raises(ValueError, match=r"data.train: 2 of .*unsupported 2.*data.max_bad_fraction=0.01"):
        take(data(damaged).train_loader(0, 1), 30)
    module = data(damaged, max_bad_fraction=0.01)
    with pytest.raises(ValueError, match="data.val"):
        list(module.eval_loader("data.val", str(damaged), 0, 1))
    module = data(damaged, max_bad_fraction=0.2)
    loader = module.eval_loader("data.val", str(damaged), 0, 1)
    assert sum(len(batch.keys) for batch in loader) == 19 and loader.bad == {"unsupported": 3}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_shard_is_one_line_from_any_worker(shards: Path, tmp_path: Path, workers: int) -> None:
    root = tmp_path / "cut"
    shutil.copytree(shards, root)
    for path in root.glob("*.tar"):
        path.write_bytes(path.read_bytes()[:4000])
    loader = data(root, num_workers=workers).train_loader(0, 1)
    with pytest.raises(ValueError, match="4000 bytes, but index.json says") as caught:
        take(loader, 1)
    assert "\n" not in str(caught.value)


def test_aspect_buckets_and_several_resolutions(shards: Path) -> None:
    module = data(shards, image_size=[64, 96], aspects=[0.66, 2.0], transform=ResizeRandomCrop(), window=4)
    loader = module.train_loader(0, 1)
    batches = take(loader, 40)
    shapes = Counter(tuple(batch.x.shape[2:]) for batch in batches)
    assert set(shapes) == {(80, 48), (48, 96), (112, 80), (64, 128)}
    for batch in batches:
        portrait = batch.x.shape[2] > batch.x.shape[3]
        assert all((int(key[1:]) % 3 != 0) == portrait for key in batch.keys)
    other = data(shards, image_size=[64, 96], aspects=[0.66, 2.0], transform=ResizeRandomCrop(), window=4)
    other.load_state_dict(loader.plan.state(17) | {"bad": {"seen": 0, "reasons": {}}})
    assert same(take(other.train_dataloader(), 5), batches[17:22])


def test_weighted_sources(shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    module = data(shards)
    module.train = [Source(str(shards), 3.0), Source(str(other), 1.0)]
    slots = itertools.islice(module.train_loader(0, 1).plan.slots(0), 2000)
    assert abs(sum(slot.stream for slot in slots) / 2000 - 0.25) < 0.04


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size"), ({"num_workers": -1}, "data.num_workers"),
        ({"image_size": 0}, "data.image_size"), ({"start_method": "thread"}, "data.start_method"),
        ({"max_bad_fraction": 2.0}, "data.max_bad_fraction"), ({"window": 0}, "data.window"),
        ({"batches_per_epoch": 0}, "data.batches_per_epoch"), ({"aspects": [99.0]}, "data.aspects"),
    ],
)
def test_mistakes_name_the_key(shards: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(shards, **options).train_loader(0, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "steps"),
    [({"limit_train_batches": 3}, range(8)), ({"overfit_batches": 2}, [0, 1] * 4),
     ({"reload_dataloaders_every_n_epochs": 1}, range(8)), ({"val_check_interval": 2}, range(8))],
)
def test_trainer_limits_do_not_lose_or_repeat_batches(
    shards: Path, tmp_path: Path, options: dict[str, int], steps: list[int]
) -> None:
    model, module = Recorder(), data(shards, val=str(shards))
    trainer = Trainer(
        max_steps=8, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, num_sanity_val_steps=0, **options,
    )
    trainer.fit(model, module)
    reference = take(data(shards).train_loader(0, 1), 8)
    assert [batch.keys for batch in model.batches] == [reference[step].keys for step in steps]
