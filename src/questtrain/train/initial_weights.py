"""The weights that a run with ``init_from`` starts with: checked before anything is written, loaded
into the model. Learned scales are not among them: they start from the first batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from questtrain.config import ModelConfig, QuantConfig, TrainConfig
from questtrain.config.model_shape import shape_differences
from questtrain.data import TokenDataset, load_tokenizer
from questtrain.errors import UserError
from questtrain.model import Llama
from questtrain.model.meta import without_numbers
from questtrain.store.checkpoint_folders import checkpoint_folders
from questtrain.train.weight_source import FLOATS, WeightSource, tokenizer_of, weight_source

log = logging.getLogger(__name__)

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def initial_weights(config: TrainConfig, run: Path, dataset: TokenDataset) -> WeightSource | None:
    """`first_weights`; None, too, for a run that has a checkpoint already."""
    return None if checkpoint_folders(run) else first_weights(config, dataset)


def first_weights(config: TrainConfig, dataset: TokenDataset) -> WeightSource | None:
    """The source of the first weights, whole and of this model; None for a run without
    ``init_from``, which makes its own. UserError names what is wrong."""
    if config.init_from is None:
        return None
    source = weight_source(config.init_from)
    for key, asked, there in shape_differences(config.model, source.model):
        raise UserError(
            f"model.{key}={asked} asked for, and init_from={config.init_from} has {there}."
        )
    _check_vocabulary(config, dataset, source)
    _check_headers(source, config.model)
    _check_values(source, config.model)
    if source.max_length is not None and config.sequence_length > source.max_length:
        log.warning(
            "sequence_length=%d is beyond the %d positions that init_from=%s was made for",
            config.sequence_length,
            source.max_length,
            config.init_from,
        )
    return source


@torch.no_grad()
def load_initial_weights(model: Llama, source: WeightSource) -> None:
    """Overwrite the model's weights, in whatever dtype they are stored, in place."""
    parameters = dict(model.named_parameters())
    for name, tensor in source.tensors():
        if not _is_tied_head(name, source.model):
            parameters[name].copy_(tensor)


def _check_vocabulary(config: TrainConfig, dataset: TokenDataset, source: WeightSource) -> None:
    """UserError where an id means another token to the data than to the weights; their embedding
    may have more rows than the tokenizer has tokens."""
    file = tokenizer_of(source.folder)
    if file is None:
        log.warning(
            "init_from=%s holds no tokenizer: that the data's ids are its own is not checked",
            config.init_from,
        )
        return
    own = load_tokenizer(file, bos=dataset.tokenizer.bos_id).vocabulary()
    given = dataset.tokenizer.vocabulary()
    if own == given:
        return
    token = min(own.keys() ^ given.keys() or (t for t in own if own[t] != given[t]))
    raise UserError(
        f"the data's tokenizer {dataset.tokenizer.name} is not that of init_from="
        f"{config.init_from}: {token!r} is {_id_text(own, token)} there and"
        f" {_id_text(given, token)} here. Leave data.tokenizer out, and it is the folder's."
    )


def _id_text(vocabulary: Mapping[str, int], token: str) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "no token"


def _check_headers(source: WeightSource, model: ModelConfig) -> None:
    """UserError unless there is each weight of the model in its shape, and nothing else."""
    expected, seen = _shapes(model), set()
    for name, shape, dtype in source.headers():
        what = f"init_from: {source.folder}: {source.spelled(name)}"
        wanted = expected.get(EMBEDDING if _is_tied_head(name, model) else name)
        if dtype not in FLOATS:
            raise UserError(f"{what} is stored as {dtype}, and can be {', '.join(FLOATS)}.")
        if wanted is None:
            raise UserError(f"{what} is no weight of this model.")
        if shape != wanted:
            raise UserError(f"{what} is {_size(shape)}, and of this model {_size(wanted)}.")
        seen.add(name)
    if missing := sorted(expected.keys() - seen):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"init_from: {source.folder} lacks the weight {source.spelled(missing[0])}{more}."
        )


def _check_values(source: WeightSource, model: ModelConfig) -> None:
    """UserError for a weight that is not finite, and for a tied head that is none."""
    heads = []
    for name, tensor in source.tensors():
        if not tensor.isfinite().all():
            raise UserError(
                f"init_from: {source.folder}: {source.spelled(name)} holds NaN or infinite values."
            )
        if model.tie_embeddings and name in (EMBEDDING, HEAD):
            heads.append(tensor)
    if len(heads) == 2 and not torch.equal(*heads):
        raise UserError(
            f"init_from: {source.folder}: the head and the embedding differ, and its configuration"
            " says that they are one: set it to untied there."
        )


def _is_tied_head(name: str, model: ModelConfig) -> bool:
    """Whether this is the embedding again, under the head's name."""
    return model.tie_embeddings and name == HEAD


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of every weight, by its name."""
    with without_numbers():
        empty = Llama(model, "bf16", QuantConfig())
    return {name: tuple(weight.shape) for name, weight in empty.named_parameters()}


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
