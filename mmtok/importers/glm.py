"""GLM-4-Voice's speech tokenizer (arXiv 2412.02612): `model.safetensors` of zai-org/glm-4-voice-tokenizer."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from mmtok.importers.keymap import Config, Converted, Drop, Rule, apply
from mmtok.importers.seanet import add_usage

SYSTEMS = ("glm_tokenizer",)
PREFIX = r"(?:model\.encoder\.)?"


def facts(published: Config, state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes read off the weights; what they cannot tell from the config, or as released."""
    bare = {re.sub(f"^{PREFIX}", "", key): value for key, value in state.items()}
    dim, n_mels, _ = bare["conv1.weight"].shape
    released = {
        "encoder_attention_heads": 20, "quantize_causal_block_size": 200, "pooling_kernel_size": 4,
        "quantize_position": 16, "pooling_type": "avg", "encoder_causal_convolution": True,
        "encoder_causal_attention": False, "quantize_ema_decay": 0.99,
    }
    found = released | {name: published[name] for name in released if name in published}
    told = (found["pooling_type"], found["encoder_causal_convolution"], found["encoder_causal_attention"])
    if told != ("avg", True, False) or published.get("pooling_position", found["quantize_position"]) != (
        found["quantize_position"]
    ):
        raise ValueError("importer: only mean pooling right before the codes, causal convolutions and attention in"
                         " blocks were released")  # fmt: skip
    codes, width = bare["codebook.weight"].shape
    return {
        "encoder": {
            "n_mels": n_mels, "dim": dim, "layers": found["quantize_position"],
            "heads": found["encoder_attention_heads"], "hidden": len(bare["layers.0.fc1.bias"]),
            "positions": len(bare["embed_positions.weight"]), "block": found["quantize_causal_block_size"],
            "pool": found["pooling_kernel_size"],
        },
        "codebook_size": codes, "codebook_dim": width, "ema_decay": found["quantize_ema_decay"],
    }


def convert(state: dict[str, Tensor], facts: dict[str, Any]) -> Converted:
    """Our config and state dict."""
    mapped = apply(state, rules(facts["encoder"]["layers"]))
    book = mapped.state["quantizer.codebook"]
    if "quantizer.ema_sums" not in mapped.state:  # some copies hold only what encoding reads
        mapped.state.update({"quantizer.ema_sums": book.clone(), "quantizer.ema_counts": book.new_ones(len(book))})
    add_usage(mapped.state)
    quantizer = {
        "dim": facts["codebook_dim"], "codebook_size": facts["codebook_size"], "ema_decay": facts["ema_decay"],
        "ema_smoothing": 1e-5,
    }
    config: Config = {
        "class_path": "mmtok.models.audio.glm.GLMTokenizer",
        "init_args": {
            "encoder": {"class_path": "mmtok.models.audio.glm.GLMEncoder", "init_args": facts["encoder"]},
            "quantizer": {"class_path": "mmtok.quantizers.vq.VQ", "init_args": quantizer},
        },
    }
    return Converted(config, mapped.state, mapped.source, mapped.dropped)


def rules(layers: int) -> list[Rule | Drop]:
    """layers: how many lie before the codes; of the whole model, those behind are not read."""
    ours = r"encoder.trunk.layers.\g<n>."
    leaf = r"\.(?P<leaf>weight|bias)"
    before = "|".join(str(i) for i in range(layers))
    here = PREFIX + rf"layers\.(?P<n>{before})\."
    return [
        Drop(PREFIX + r"embed_positions2\.weight", "read by the layers behind the codes"),
        Drop(PREFIX + r"layer_norm\.(?:weight|bias)", "behind the last layer, which lies behind the codes"),
        Drop(r"(?:model\.decoder|proj_out)\..+", "spells what is said"),
        Rule(PREFIX + r"(?P<name>conv1|conv2)" + leaf, r"encoder.trunk.\g<name>.\g<leaf>"),
        Rule(PREFIX + r"embed_positions\.weight", "encoder.trunk.positions"),
        Rule(PREFIX + r"codebook\.weight", "quantizer.codebook"),
        Rule(PREFIX + r"ema_count", "quantizer.ema_counts"),
        Rule(PREFIX + r"ema_weight", "quantizer.ema_sums"),
        Rule(here + r"self_attn\.(?P<part>q|k|v|out)_proj" + leaf, ours + r"\g<part>.\g<leaf>"),
        Rule(here + r"self_attn_layer_norm" + leaf, ours + r"norm1.\g<leaf>"),
        Rule(here + r"final_layer_norm" + leaf, ours + r"norm2.\g<leaf>"),
        Rule(here + r"fc1" + leaf, ours + r"up.\g<leaf>"),
        Rule(here + r"fc2" + leaf, ours + r"down.\g<leaf>"),
        Drop(PREFIX + rf"layers\.(?!(?:{before})\.)\d+\..+", "behind the codes"),
    ]
