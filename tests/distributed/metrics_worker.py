"""Evaluates shards with the DCT toy; run plainly or by torchrun. Arguments: tests folder, shards, output."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1]) / "contract"))

from dct_toy import DctTokenizer  # noqa: E402

from mmtok.evaluate import main  # noqa: E402

if __name__ == "__main__":
    result = main(
        DctTokenizer(), sys.argv[2], lengths=(3, 64), metrics=("psnr", "ssim", "lpips_alex", "fd_vgg16"),
        codecs=("webp",), batch_size=1, samples=3, num_workers=0, command="", quiet=True,
    )
    pictures = {sample.key: [int(p.image.sum()) for p in sample.lengths] for sample in result.samples}
    rank = os.environ.get("RANK", "0")
    Path(f"{sys.argv[3]}.{rank}").write_text(json.dumps({**result.to_json(), "pictures": pictures}))
