"""A fresh or imported KARL or ALIT on a trained base: `python -m mmtok.training.karl_base SOURCE BASE OUT`.

SOURCE is a recipe (.yaml) or a saved KARL or ALIT without a base, BASE a saved convolutional tokenizer with a plain
codebook (MaskGIT-VQGAN). The folder OUT is what `init_from` of the recipe names, or a complete tokenizer.
"""

from __future__ import annotations

import argparse
import copy

import torch

from mmtok import hub
from mmtok.models.image.conv import ConvTokenizer
from mmtok.models.image.on_base import OnBase
from mmtok.tokenizer import Tokenizer
from mmtok.training.prepare import load_or_build


def join(source: Tokenizer, base: Tokenizer, trained: bool = False) -> OnBase:
    """The tokenizer in eval mode with the base inside and its codebook in the decoder; ValueError when they do not fit.

    trained  the source has learned to predict a base's codes already: this base must have the same codebook
    """
    if not isinstance(source, OnBase) or source.config is None:
        raise ValueError("karl_base: the first argument must be a recipe of KARL or ALIT, or a saved one")
    codebook = getattr(base.quantizer, "codebook", None)
    if not isinstance(base, ConvTokenizer) or base.config is None or codebook is None:
        raise ValueError("karl_base: the second argument must be a saved convolutional tokenizer with a codebook")
    config = copy.deepcopy(source.config)
    config["init_args"]["base"] = copy.deepcopy(base.config)
    joined = hub.build(config)
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("base.")}
    state |= {f"base.{key}": value for key, value in base.state_dict().items()}
    if state["decoder.codebook"].shape != codebook.shape:
        raise ValueError(
            f"karl_base: decoder.base_codes and base_dim are {list(state['decoder.codebook'].shape)},"
            f" the base's codebook {list(codebook.shape)}"
        )
    if trained and not torch.allclose(state["decoder.codebook"], codebook, atol=1e-6):
        raise ValueError("karl_base: the source was trained on another base: its codebook differs from the one given")
    joined.load_state_dict(state | {"decoder.codebook": codebook.detach()})
    return joined.eval()  # type: ignore[return-value]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mmtok.training.karl_base", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="recipe (.yaml), saved KARL or saved ALIT")
    parser.add_argument("base", help="saved base tokenizer: folder or name")
    parser.add_argument("out", help="folder to write")
    options = parser.parse_args(arguments)
    try:
        trained = not options.source.endswith(".yaml")
        hub.save(join(load_or_build(options.source), hub.load(options.base), trained), options.out)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
