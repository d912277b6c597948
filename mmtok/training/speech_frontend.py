"""A recipe with its frozen speech model in it: `python -m mmtok.training.speech_frontend RECIPE FOLDER OUT`.

RECIPE is a .yaml or a saved tokenizer of `SemanticCodec`, FOLDER holds HuBERT base or w2v-BERT 2.0 as transformers
publishes it (model.safetensors or pytorch_model.bin). The folder OUT is what `init_from` of the recipe names.
"""

from __future__ import annotations

import argparse

from mmtok import hub
from mmtok.importers.containers import read
from mmtok.models.audio.semantic import SemanticCodec
from mmtok.nn.speech_features import HubertFeatures, hubert_state
from mmtok.nn.w2v_bert import W2vBertFeatures
from mmtok.tokenizer import Tokenizer
from mmtok.training.prepare import load_or_build

OUTER = ("hubert.", "wav2vec2.", "wav2vec2_bert.")  # names of the trunk in models that were fine-tuned


def fill(tokenizer: Tokenizer, folder: str) -> Tokenizer:
    """The tokenizer with these weights in its frontend; ValueError when they do not fit."""
    frontend = tokenizer.frontend if isinstance(tokenizer, SemanticCodec) else None
    _, state = read(folder)
    for prefix in OUTER:
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = inner or state
    if isinstance(frontend, HubertFeatures):
        fitted = hubert_state(state)
    elif isinstance(frontend, W2vBertFeatures):
        fitted = {key: value.float() for key, value in state.items() if key != "masked_spec_embed"}
    else:
        raise ValueError("speech_frontend: the tokenizer has no frontend that listens with HuBERT or w2v-BERT 2.0")
    wanted = frontend.trunk.state_dict()
    wrong = [key for key in wanted if key not in fitted or fitted[key].shape != wanted[key].shape]
    # layers behind the one that is heard may be there
    extra = [key for key in fitted if key not in wanted and not key.startswith("encoder.layers.")]
    if wrong or extra:
        raise ValueError(
            f"speech_frontend: {folder} does not fit: missing or of other sizes {wrong[:3]}, unknown {extra[:3]}"
        )
    frontend.trunk.load_state_dict({key: fitted[key] for key in wanted})
    return tokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmtok.training.speech_frontend", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", help="recipe (.yaml) or saved tokenizer")
    parser.add_argument("folder", help="folder of the speech model")
    parser.add_argument("out", help="folder to write")
    options = parser.parse_args(arguments)
    try:
        hub.save(fill(load_or_build(options.source), options.folder), options.out)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
