"""A corpus of media shards into token shards, by many processes, and token shards as a Dataset.

`tokenize(...)` is what `mmtok tokenize` calls; `TokenShards(folder)` is what a language model's trainer reads.
"""

from mmtok.corpus.dataset import TokenItem, TokenShards
from mmtok.corpus.drivers import tokenize
from mmtok.corpus.job import Job

__all__ = ["Job", "TokenItem", "TokenShards", "tokenize"]
