"""What bounds memory: sizes, and how many tokens fit."""

from __future__ import annotations

# fp32 elements of one chunk of logits: 64 MB, whatever the vocabulary and the number of tokens.
CHUNK_ELEMENTS = 2**24
SLICE = 2**20  # logits that a CPU works on at a time: as many as stay in its cache
BUCKET = 2**24  # elements of gradients that are summed over processes at a time: 64 MB
DECODE_BUDGET = 8  # tokens in a batch per token of a micro-batch: decoding keeps no activations
ON_CPU_DECODED = 16  # there, where micro-batches are small: 96 rows and then 32 took a fifth longer than 128 at once
FEWEST_WORDS = 16  # that there is room for behind a prompt that responses share; it doubles, by no more than the next
MORE_WORDS = 64
ON_CPU = 2048  # tokens of a micro-batch: more make short responses no faster there
LARGEST = 2**16
SHARE = 0.7  # of the free memory: what fragments, and what samples, need the rest
OPTIMISER_BYTES = 24  # a trained parameter: fp32 master, two moments, sum of gradients, and two while a step is made


def fitting(free: int, few: int, many: int, row: int) -> int:
    """The largest power of two that fits, of what one row and four rows of `row` tokens each took; at least one row's.
    Bytes grow by the token."""
    each = max(many - few, 1) / (3 * row)
    most = (SHARE * free - max(few - each * row, 0)) / each
    tokens = 1
    while 2 * tokens <= min(most, LARGEST):
        tokens *= 2
    return max(tokens, row)


def decoded_tokens(tokens: int, *, cpu: bool) -> int:
    """Of a batch that is decoded, where micro-batches have `tokens`."""
    return (ON_CPU_DECODED if cpu else DECODE_BUDGET) * tokens
