"""What a policy said and how probable it found it, as columns of a table: some rows at a time, since all would be
as large again as the responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.responses import Responses, cut
from srlm.prompts.select import one_kind
from srlm.run.columns import column, numbered, padded, ragged
from srlm.run.tables import ROW_GROUP, Columns, Table
from srlm.types import Prompts

OF_ENGINE = "engine_log_prob"  # of single tokens, by who drew them
OURS = "token_log_prob"  # of single tokens, by the model itself


def prompt_columns(policy: TransformerPolicy, prompts: Prompts) -> Columns:
    """Prompts beside the token ids that the policy reads."""
    ids = pa.array(policy.ids(prompts), pa.list_(pa.int32()))
    return {"prompt": pa.array(one_kind(prompts.items)), "tokens": ids}


def said(
    policy: TransformerPolicy, prompts: Prompts, responses: Responses, numbers: Sequence[int] | None
) -> Iterator[Columns]:
    """What was sampled, a row group at a time. numbers: the prompts' in the run's set, where they are a part of it."""
    items, rows = pa.array(one_kind(prompts.items)), responses.rows()
    theirs = None if responses.log_prob is None else cut(responses.log_prob, responses.length)
    columns = numbered(*responses.length.shape) | {"finished": column(responses.finished)}
    for start in range(0, len(rows), ROW_GROUP):
        index, sample, finished = (values[start : start + ROW_GROUP] for values in columns.values())
        some = rows[start : start + ROW_GROUP]
        yield {
            "prompt_index": index if numbers is None else pa.array(numbers, pa.int32()).take(index),
            "sample_index": sample,
            "prompt": items.take(index),
            "response": pa.array([policy.text(ids.tolist()) for ids in some]),
            "tokens": ragged(some),
            "finished": finished,
        } | ({} if theirs is None else {OF_ENGINE: ragged(theirs[start : start + ROW_GROUP])})


def with_tokens(
    policy: TransformerPolicy, responses: Responses, columns: Columns, each: Tensor, *, for_readers: bool
) -> Iterator[Columns]:
    """`columns` beside the log-prob of each token [P, K, T] and, for readers, where it ends in the text, a row group at
    a time."""
    rows, log_probs = responses.rows(), cut(each, responses.length)
    for start in range(0, len(rows), ROW_GROUP):
        part = slice(start, start + ROW_GROUP)
        found = {name: values[part] for name, values in columns.items()} | {OURS: ragged(log_probs[part])}
        if for_readers:
            ends = [policy.token_ends(ids.tolist()) for ids in rows[part]]
            found["token_end"] = pa.array(ends, pa.list_(pa.int32()))
        yield found


def tokens_of(kept: Table, name: str, responses: Responses) -> Tensor:
    """A column of lists [P, K, T], 0 behind each response."""
    shape = responses.tokens.shape
    pieces = (chunk for piece in kept.pieces([name]) for chunk in piece[name].chunks)
    return padded(pieces, (shape[0], shape[1]), shape[2], torch.float32)[0]
