"""Published video transformers from files: read, convert, use, save in our format, load again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtok import hub, importers
from mmtok.importers import elastictok, larp, vivit

GOLDEN = Path(__file__).parents[1] / "golden" / "video"
FAMILY = {
    "larp": "larp", "adaptok": "adaptok", "elastictok_fsq": "elastictok", "omnitokenizer_vq": "vivit",
    "phenaki_cvivit_lfq": "vivit", "phenaki_cvivit_vq": "vivit", "open_magvit2_video": "open_magvit2_video",
}  # fmt: skip


@pytest.mark.parametrize("system", FAMILY)
def test_files_to_codes_to_our_format_and_back(system, tmp_path):
    facts, io = json.loads((GOLDEN / system / "config.json").read_text()), load_file(GOLDEN / system / "io.safetensors")
    save_file(load_file(GOLDEN / system / "weights.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(facts))
    low, high = facts["value_range"]
    x = (io["x"] - low) / (high - low) * 2 - 1
    wanted = io["indices_full"] if "indices_full" in io else io["indices"]
    tokenizer = importers.load(FAMILY[system], tmp_path)
    tokens = tokenizer.encode(x)
    assert torch.equal(tokens.codes.flatten(), wanted.flatten())
    again = hub.load(hub.save(tokenizer, tmp_path / "ours"))
    theirs = again.encode(x)
    assert torch.equal(theirs.codes, tokens.codes) and torch.equal(again.decode(theirs), tokenizer.decode(tokens))


def test_sizes_that_the_weights_do_not_tell_are_those_of_the_release(tmp_path):
    state = load_file(GOLDEN / "larp" / "weights.safetensors")
    facts = larp.facts({}, state)
    assert (facts["image_size"], facts["frames"], facts["encoder_heads"], facts["prior"]["heads"]) == (128, 16, 12, 6)
    state = load_file(GOLDEN / "omnitokenizer_vq" / "weights.safetensors")
    facts = vivit.facts({}, state)
    assert facts["patch"] == [4, 4, 4] and facts["size"] == 256 and facts["kinds"] == {"enc": "tw", "dec": "t"}
    with pytest.raises(ValueError, match="not weights of this system"):
        vivit.facts({}, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="not weights of this system"):
        elastictok.facts({}, {"x": torch.zeros(1)})
