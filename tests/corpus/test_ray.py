"""The Ray driver on a local Ray: the same bytes as without it, and mistakes in one line."""

import pytest
import ray
from training_toys import write_shards

from mmtok.corpus import Job, TokenShards, tokenize


@pytest.fixture(scope="module")
def local_ray():
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_ray_writes_the_same_shards(local_ray, tmp_path, small_model):
    shards = write_shards(tmp_path / "shards", 8)
    here, there = (Job(str(tmp_path / name), str(small_model), batch_size=4) for name in ("here", "there"))
    tokenize(str(shards), here, workers=0, progress=False)
    summary = tokenize(str(shards), there, driver="ray", progress=False)
    assert summary["samples"] == len(TokenShards(there.folder)) == 8
    for path in here.folder.glob("*.bin"):
        assert (there.folder / path.name).read_bytes() == path.read_bytes()
    wrong = Job(str(tmp_path / "wrong"), str(small_model), batch_size=4, num_quantizers=1)
    with pytest.raises(ValueError, match="num_quantizers"):
        tokenize(str(shards), wrong, driver="ray", progress=False)
