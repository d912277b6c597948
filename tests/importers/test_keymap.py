import pytest
import torch

from mmtok.importers.keymap import Drop, Rule, apply, check_complete, linear

RULES = [
    Drop(r"loss\..*", "training only"),
    Rule(r"a\.(\d+)\.w", r"b.\1.weight", linear),
    Rule(r"steps", "steps"),
]


def test_every_key_is_mapped_or_dropped_with_its_reason_in_float32():
    state = {"a.3.w": torch.ones(2, 5, 1, 1, dtype=torch.float16), "loss.d": torch.ones(1), "steps": torch.tensor(7)}
    mapped = apply(state, RULES)
    assert mapped.state["b.3.weight"].shape == (2, 5)
    assert mapped.state["b.3.weight"].dtype == torch.float32
    assert mapped.state["steps"].dtype == torch.int64
    assert mapped.source == {"b.3.weight": "a.3.w", "steps": "steps"}
    assert mapped.dropped == {"loss.d": "training only"}


def test_unknown_and_colliding_keys_are_errors():
    with pytest.raises(ValueError, match="2 unknown keys.*a.x.w"):
        apply({"a.x.w": torch.ones(1), "a.3.w.more": torch.ones(1)}, RULES)
    with pytest.raises(ValueError, match="both map to one"):
        apply({"p": torch.ones(1), "q": torch.ones(1)}, [Rule("[pq]", "one")])


def test_incomplete_states_are_errors_that_name_the_key():
    weight = torch.ones(2)
    with pytest.raises(ValueError, match=r"missing \['b'\]"):
        check_complete({"a": weight}, {"a": weight, "b": weight})
    with pytest.raises(ValueError, match=r"too many \['b'\]"):
        check_complete({"a": weight, "b": weight}, {"a": weight})
    with pytest.raises(ValueError, match=r"a is \[2\], the model asks for \[3\]"):
        check_complete({"a": weight}, {"a": torch.ones(3)})
