"""A recipe with pretrained transformers in it: `python -m mmtok.training.pretrained_trunk RECIPE WEIGHTS OUT PART...`.

RECIPE is a .yaml or a saved tokenizer, WEIGHTS a vision transformer under timm's key names (DINOv2) or CLIP's image
side as transformers publishes it, PART the names of the `ViTTrunk`s it goes into ("encoder.trunk"). The folder OUT is
what `init_from` of the recipe names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from mmtok import hub
from mmtok.nn.clip_vision import read_clip
from mmtok.nn.pretrained import fit, read_trunk
from mmtok.nn.vit_trunk import ViTTrunk
from mmtok.tokenizer import Tokenizer
from mmtok.training.prepare import load_or_build
from mmtok.weights import load_state


def fill(tokenizer: Tokenizer, weights: str, parts: list[str]) -> Tokenizer:
    """The tokenizer with these weights in the trunks called `parts`; ValueError when something does not fit."""
    state = read_any(weights)
    modules = dict(tokenizer.named_modules())
    for part in parts:
        trunk = modules.get(part)
        if not isinstance(trunk, ViTTrunk):
            found = [name for name, module in modules.items() if isinstance(module, ViTTrunk)]
            raise ValueError(f"pretrained_trunk: the tokenizer has no trunk {part!r}, only {', '.join(found)}")
        fitted, wanted = fit(state, trunk.grid, trunk.patch), trunk.state_dict()
        # an inner trunk may stop before the last norm or the last blocks
        extra = [key for key in fitted if key not in wanted and not key.startswith(("norm_post", "blocks."))]
        missing = [key for key in wanted if key not in fitted]
        shapes = [key for key in wanted if key in fitted and fitted[key].shape != wanted[key].shape]
        if extra or missing or shapes:
            raise ValueError(
                f"pretrained_trunk: {weights} does not fit {part}: missing {missing[:3]}, unknown {extra[:3]}, other"
                f" sizes {shapes[:3]}"
            )
        trunk.load_state_dict({key: fitted[key] for key in wanted})
    return tokenizer


def read_any(path: str) -> dict[str, Tensor]:
    """State of a trunk from a file of either layout."""
    file = Path(path).expanduser()
    if file.is_file() and any(key.startswith("vision_model.") for key in load_state(file)):
        return read_clip(file)
    return read_trunk(file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmtok.training.pretrained_trunk", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", help="recipe (.yaml) or saved tokenizer")
    parser.add_argument("weights", help="file with a pretrained vision transformer")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("parts", nargs="+", help="names of the trunks, e.g. encoder.trunk decoder.trunk")
    options = parser.parse_args(arguments)
    try:
        hub.save(fill(load_or_build(options.source), options.weights, options.parts), options.out)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
