"""The model card (README.md) of a folder that goes to the Hub."""

from __future__ import annotations

from pathlib import Path

import yaml

from mmtok.tokenizer import Tokenizer

TASK = {"image": "image-feature-extraction", "video": "feature-extraction", "audio": "feature-extraction"}


def write_card(folder: Path, tokenizer: Tokenizer, name: str, licence: str | None = None) -> Path:
    """README.md with what the tokenizer codes, how to load it, its size and its licence ("other" when not given)."""
    spec = tokenizer.spec
    rate = f"{spec.kbps:.3g} kbps" if spec.modality == "audio" else f"{spec.bpp:.4g} bits per pixel"
    at = "a second" if spec.modality == "audio" else f"at {' x '.join(map(str, spec.size))}"
    books = ", ".join(f"{len(sizes)} x {max(sizes)}" for sizes in spec.codebook_sizes)
    millions = sum(p.numel() for p in tokenizer.parameters()) / 1e6
    tail = "" if tokenizer.tail is None else " Any prefix decodes: pass `num_tokens` (or `num_quantizers`) to `encode`."
    head = yaml.safe_dump(
        {
            "library_name": "mmtok", "license": (licence or "other").lower(), "tags": ["tokenizer", spec.modality],
            "pipeline_tag": TASK[spec.modality],
        },
        sort_keys=False,
    )  # fmt: skip
    text = f"""---
{head}---
# {name}

A discrete {spec.modality} tokenizer (`{type(tokenizer).__name__}`, {millions:.1f} M parameters): {spec.tokens:g} codes
{at}, codebooks {books}, {rate}.{tail}

```python
import mmtok

tokenizer = mmtok.load("hf:OWNER/{name}")     # the repository this folder is uploaded to
tokens = tokenizer.encode(x)                  # float, channel first, in [-1, 1]
again = tokenizer.decode(tokens)
```

Tokenizer id {tokenizer.tokenizer_id}. `config.yaml` holds every setting, `model.safetensors` the weights; nothing is
pickled.
"""
    path = folder / "README.md"
    path.write_text(text)
    return path
