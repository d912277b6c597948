"""What TA-TiTok is known for: captions come from the shard, their bits count, and the decoder learns to read them."""

import io
import tarfile

import numpy as np
import torch
from PIL import Image

from mmtok.bitstream import pack, unpack
from mmtok.data import ShardData
from mmtok.data.check import check_shards
from mmtok.models.image.captions import ByteText
from mmtok.models.image.tatitok import TextTiTok, TextTiTokDecoder
from mmtok.models.image.titok import TiTokEncoder
from mmtok.quantizers.vq import VQ

COLOURS = {"red": (220, 30, 30), "grün": (30, 200, 60), "deep blue": (20, 30, 210), "": (128, 128, 128)}
NET = {"dim": 4, "num_latents": 2, "image_size": 16, "patch": 8, "width": 32, "layers": 1, "heads": 2}


def shards(folder):
    """One colour an image, and its name beside it; none for grey."""
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name, colour in COLOURS.items():
            stream = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), colour, np.uint8)).save(stream, "PNG")
            key = name.replace(" ", "-").encode("ascii", "replace").decode().replace("?", "u") or "grey"
            for ending, content in (("png", stream.getvalue()), ("txt", name.encode())):
                if content:
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    check_shards(folder, progress=False)
    return folder


def test_captions_of_a_shard_are_sent_counted_and_read(tmp_path):
    data = ShardData(str(shards(tmp_path)), batch_size=4, image_size=16, num_workers=0, text=True)
    (batch,) = data.train_loader(0, 1)
    assert set(batch.text) == set(COLOURS)
    torch.manual_seed(0)
    # a codebook of one code: whatever is known of the colour was read in the caption
    decoder = TextTiTokDecoder(text_tokens=12, text_dim=8, **NET)
    tokenizer = TextTiTok(TiTokEncoder(**NET), VQ(4, 1), decoder, ByteText(12, 8)).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=5e-3)
    for step in range(500):
        out = tokenizer(batch)
        loss = (out.x - batch.x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert all(bool(p.grad.any()) for p in (tokenizer.text.embedding.weight, decoder.text_embed.weight))
        optimizer.step()
    tokenizer.eval()
    tokens = tokenizer.encode(batch)
    assert tokens.bits.tolist() == [16 + 8 * len(caption.encode()) for caption in batch.text]  # with its length
    errors = (tokenizer.decode(tokens) - batch.x).square().mean((1, 2, 3))
    assert float(errors.max()) < 0.05
    # what travels in the file is enough, and another caption gives another colour
    for index, caption in enumerate(batch.text):
        back = unpack(pack(tokens[index]), tokenizer)
        assert back.side["caption"].values == (caption.encode(),)
        torch.testing.assert_close(tokenizer.decode(back), tokenizer.decode(tokens[index]), atol=1e-5, rtol=0)
    tokens.side["caption"] = type(tokens.side["caption"])(tuple(reversed(tokens.side["caption"].values)))
    swapped = (tokenizer.decode(tokens) - batch.x).square().mean((1, 2, 3))
    assert float(swapped.min()) > 4 * float(errors.max())
