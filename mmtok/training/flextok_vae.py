"""A fresh or imported FlexTok on a published VAE: `python -m mmtok.training.flextok_vae SOURCE VAE OUT`.

SOURCE is a recipe (.yaml) or a saved FlexTok without a VAE, VAE a folder with an AutoencoderKL as diffusers publishes
it. The folder OUT is what `init_from` of the recipe names, or a complete tokenizer.
"""

from __future__ import annotations

import argparse
import copy
import os

from mmtok import hub
from mmtok.importers.autoencoder_kl import read_vae
from mmtok.models.image.flextok import FlexTok
from mmtok.tokenizer import Tokenizer
from mmtok.training.prepare import load_or_build


def join(source: Tokenizer, vae: str | os.PathLike[str]) -> FlexTok:
    """FlexTok in eval mode with the VAE inside; ValueError when they do not fit."""
    if not isinstance(source, FlexTok) or source.config is None:
        raise ValueError("flextok_vae: the first argument must be a FlexTok recipe or a saved FlexTok")
    config = copy.deepcopy(source.config)
    config["init_args"]["vae"], weights = read_vae(vae)
    channels = config["init_args"]["vae"]["init_args"]["decoder"]["init_args"]["z_channels"]
    if channels != source.encoder.channels:
        raise ValueError(f"flextok_vae: the VAE has {channels} channels, encoder.channels is {source.encoder.channels}")
    joined = hub.build(config)
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("vae.")}
    joined.load_state_dict(state | {f"vae.{key}": value for key, value in weights.items()})
    return joined.eval()  # type: ignore[return-value]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mmtok.training.flextok_vae", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="recipe (.yaml) or saved FlexTok")
    parser.add_argument("vae", help="folder with config.json and weights of an AutoencoderKL")
    parser.add_argument("out", help="folder to write")
    options = parser.parse_args(arguments)
    try:
        hub.save(join(load_or_build(options.source), options.vae), options.out)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
