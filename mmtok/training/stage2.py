"""From stage 1 to stage 2 of TiTok: `python -m mmtok.training.stage2 STAGE1 PROXY OUT`.

Joins a saved stage 1 tokenizer with the codebook and the decoder of its proxy tokenizer (MaskGIT-VQGAN). The folder OUT
is what `init_from` of the stage 2 recipe names.
"""

from __future__ import annotations

import argparse
import copy

from mmtok import hub
from mmtok.models.image.conv import ConvTokenizer
from mmtok.models.image.titok_proxy import ProxyTiTok
from mmtok.tokenizer import Tokenizer


def join(stage1: Tokenizer, proxy: Tokenizer) -> ProxyTiTok:
    """A stage 2 tokenizer in eval mode with the weights of both; ValueError when they do not fit."""
    if not isinstance(stage1, ProxyTiTok) or stage1.config is None:
        raise ValueError("stage 2: the first argument must be a saved stage 1 TiTok (ProxyTiTok)")
    if not isinstance(proxy, ConvTokenizer) or proxy.config is None:
        raise ValueError("stage 2: the second argument must be a saved convolutional tokenizer (ConvTokenizer)")
    codebook = getattr(proxy.quantizer, "codebook", None)
    if codebook is None or "post_quant_conv.weight" in proxy.state_dict():
        raise ValueError("stage 2: the proxy must decode its codebook entries directly (VQ, quant_conv: false)")
    config = copy.deepcopy(stage1.config)
    decoder = copy.deepcopy(proxy.config["init_args"]["decoder"])
    config["init_args"]["pixels"] = {
        "class_path": "mmtok.models.image.titok_proxy.SoftPixels",
        "init_args": {"codebook_size": codebook.shape[0], "decoder": decoder},
    }
    joined = hub.build(config)
    state = {key: value for key, value in stage1.state_dict().items() if not key.startswith("pixels.")}
    state |= {f"pixels.decoder.{key}": value for key, value in proxy.decoder.state_dict().items()}
    joined.load_state_dict(state | {"pixels.codebook": codebook.detach()})
    return joined.eval()  # type: ignore[return-value]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mmtok.training.stage2", description=__doc__.splitlines()[0])
    parser.add_argument("stage1", help="saved stage 1 tokenizer: folder or name")
    parser.add_argument("proxy", help="saved proxy tokenizer: folder or name")
    parser.add_argument("out", help="folder to write")
    options = parser.parse_args(arguments)
    try:
        hub.save(join(hub.load(options.stage1), hub.load(options.proxy)), options.out)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
