"""Evaluates seven clips with a toy; run plainly or by torchrun. Arguments: folder of the toys, output."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, sys.argv[1])

from fvd_toys import TinyClipFeatures, clips, model  # noqa: E402

from mmtok.metrics.evaluation import Plan  # noqa: E402
from mmtok.metrics.video import fvd  # noqa: E402
from mmtok.metrics.video.evaluation import VideoEvaluation  # noqa: E402

if __name__ == "__main__":
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    fvd.NETWORKS["rfvd_tiny"] = lambda weights, device: TinyClipFeatures()
    run = VideoEvaluation(model(), (9, 64, 64), Plan((1, 3), ("psnr", "rfvd_tiny"), samples=1), fps=12.0)
    batch = clips(7)
    for i in range(rank, 7, world):  # four clips here, three there
        one = slice(i, i + 1)
        run.update(replace(batch, x=batch.x[one], keys=batch.keys[one], size=batch.size[one], rate=batch.rate[one]))
    Path(f"{sys.argv[2]}.{rank}").write_text(json.dumps(run.finish().to_json()))
    if world > 1:
        dist.destroy_process_group()
