"""The model card (README.md) of a folder that goes to the Hub."""

from __future__ import annotations

from pathlib import Path

import yaml

from mmtok.keep import Prefix
from mmtok.tokenizer import Tokenizer

TASK = {"image": "image-feature-extraction", "video": "feature-extraction", "audio": "feature-extraction"}
# the Hub's names of licences; any other is "other" with its own name beside it
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "bsd-3-clause")


def write_card(folder: Path, tokenizer: Tokenizer, name: str, licence: str | None = None) -> Path:
    """README.md with what the tokenizer codes, how to load it, its size and its licence.

    licence  "other" when not given, and named beside that when the Hub does not know it
    """
    spec = tokenizer.spec
    rate = f"{spec.kbps:.3g} kbps" if spec.modality == "audio" else f"{spec.bpp:.4g} bits per pixel"
    at = "a second" if spec.modality == "audio" else f"at {' x '.join(map(str, spec.size))}"
    books = ", ".join(f"{len(sizes)} x {max(sizes)}" for sizes in spec.codebook_sizes)
    millions = sum(p.numel() for p in tokenizer.parameters()) / 1e6
    axis = "num_quantizers" if tokenizer.coding == Prefix(1) else "num_tokens"
    tail = "" if tokenizer.tail is None else f" Any prefix decodes: pass `{axis}` to `encode`."
    known = (licence or "other").lower()
    named = {"license": known} if known in (*LICENCES, "other") else {"license": "other", "license_name": licence}
    head = yaml.safe_dump(
        {"library_name": "mmtok"} | named
        | {"tags": ["tokenizer", spec.modality], "pipeline_tag": TASK[spec.modality]},
        sort_keys=False,
    )  # fmt: skip
    text = f"""---
{head}---
# {name}

A discrete {spec.modality} tokenizer (`{type(tokenizer).__name__}`, {millions:.1f} M parameters):
{spec.tokens:g} codes {at}, codebooks {books}, {rate}.{tail}

```python
import mmtok

tokenizer = mmtok.load("hf:OWNER/{name}")  # the repository this folder is uploaded to
tokens = tokenizer.encode(x)  # float, channel first, in [-1, 1]
again = tokenizer.decode(tokens)
```

Tokenizer id {tokenizer.tokenizer_id}. `config.yaml` holds every setting, `model.safetensors` the weights; nothing is
pickled.
"""
    path = folder / "README.md"
    path.write_text(text)
    return path
