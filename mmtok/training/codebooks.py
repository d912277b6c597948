"""Codebooks that fit the latents of an untrained encoder: `python -m mmtok.training.codebooks RECIPE OUT`.

For recipes whose encoder says something before it is trained (`mmtok.models.audio.harmonic`): k-means on the training
data of the recipe, depth after depth. The folder OUT is what `init_from` of the recipe names.

Legend: n latents, D dimensions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from mmtok import hub
from mmtok.data.shard_module import ShardModule
from mmtok.quantizers.base import to_vectors
from mmtok.quantizers.kmeans import kmeans_of_batch
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.split import Product
from mmtok.quantizers.vq import VQ
from mmtok.tokenizer import Tokenizer
from mmtok.training.config_file import read_config_file
from mmtok.training.prepare import load_or_build
from mmtok.types import Batch


@torch.no_grad()
def fit_codebooks(tokenizer: Tokenizer, batches: Iterable[Batch], steps: int = 10) -> list[float]:
    """Fits a `Residual` of `VQ`, alone or a member of a `Product`, to the latents of these batches, in place; returns
    the mean squared norm of its latents, then of what is left over after each depth.

    steps  of Lloyd's algorithm
    """
    quantizer = tokenizer.quantizer
    members = list(quantizer.members) if isinstance(quantizer, Product) else [quantizer]
    at = [index for index, member in enumerate(members) if isinstance(member, Residual)]
    chain = members[at[0]] if len(at) == 1 else None
    depths = [chain.at(q) for q in range(chain.num_quantizers)] if isinstance(chain, Residual) else []
    books = [depth for depth in depths if isinstance(depth, VQ)]
    if not books or len(set(map(id, books))) < len(depths):
        raise ValueError("codebooks: the recipe's quantizer holds no Residual of VQ with a codebook at every depth")
    tokenizer.eval()
    first = sum(member.dim for member in members[: at[0]])  # type: ignore[misc]
    rest = torch.cat([to_vectors(tokenizer.latents(batch.x))[:, first : first + books[0].dim] for batch in batches])
    left = [_mean_square(rest)]
    for book in books:
        codes = kmeans_of_batch(rest, book.codebook_sizes[0][0], steps)
        if codes is None:
            raise ValueError("codebooks: the batches hold no latent")
        book.codebook.copy_(codes)
        book.restart_training_state()
        rest = rest - to_vectors(book(rest.T[None]).z)
        left.append(_mean_square(rest))
    return left


def training_data(recipe: str) -> ShardModule:
    """The data module of a recipe (.yaml)."""
    from jsonargparse import ArgumentParser

    config: Any = OmegaConf.to_container(OmegaConf.create(read_config_file(recipe)), resolve=True)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=ShardModule, required=True)
    module: ShardModule = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    return module


def _mean_square(rows: Tensor) -> float:
    return float(rows.square().sum(1).mean())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mmtok.training.codebooks", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="recipe (.yaml)")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--batches", type=int, default=200, help="training batches whose latents are kept in memory")
    options = parser.parse_args(arguments)
    try:
        tokenizer = load_or_build(options.recipe)
        loader = training_data(options.recipe).train_loader(rank=0, world=1)
        left = fit_codebooks(tokenizer, islice(loader, options.batches))
        loader.close()
        hub.save(tokenizer, options.out)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print("mean square of the latents and after each depth:", " ".join(f"{value:.4g}" for value in left))


if __name__ == "__main__":
    main()
