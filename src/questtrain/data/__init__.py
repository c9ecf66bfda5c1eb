"""Token data: sources of documents → token shards → deterministic batches.

`prepare` turns a source into a folder of token shards (once), `open_dataset` opens such a folder,
`Loader` and `validation_batches` read it. docs/data.md tells the whole story.
"""

from questtrain.data.loader import Loader, passes, validation_batches
from questtrain.data.prepare import prepare
from questtrain.data.shards import TokenDataset, TokenSplit, open_dataset
from questtrain.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Loader",
    "TokenDataset",
    "TokenSplit",
    "Tokenizer",
    "load_tokenizer",
    "open_dataset",
    "passes",
    "prepare",
    "validation_batches",
]
