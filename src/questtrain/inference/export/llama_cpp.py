"""llama.cpp on the CPU, through the C interface that the wheel ``xllamacpp`` exports.

Its Python face gives probabilities of generated tokens only; a certificate needs the logits of
every position. Keys and values are kept in F32 and attention is computed without the flash kernel,
so that nothing but the file decides what comes out.

The parameters' structs gain fields from release to release. They are taken as llama.cpp fills them
in, the few that must differ are found by their neighbours' values, and llama.cpp is asked
afterwards whether it understood: what is not as asked is an error, never another number.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

F32, DISABLED = 0, 0
ROOM = 1024
"""Bytes for a struct of parameters: more than it has, so that new fields at its end fit."""


class _Parameters(ctypes.Structure):
    """A struct that is passed by value, its fields unknown."""

    _fields_ = (("raw", ctypes.c_ubyte * ROOM),)


class _Batch(ctypes.Structure):
    """llama_batch: token ids, and at which of them logits are wanted. What is null llama.cpp counts
    itself: positions from where the sequence ends, sequence 0."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

_RESULTS: dict[str, Any] = {
    "llama_model_default_params": _Parameters,
    "llama_context_default_params": _Parameters,
    "llama_get_logits_ith": ctypes.POINTER(ctypes.c_float),
    **dict.fromkeys(
        (
            "llama_model_load_from_file",
            "llama_init_from_model",
            "llama_model_get_vocab",
            "llama_get_memory",
        ),
        ctypes.c_void_p,
    ),
}
"""What the functions give that give no int."""


def library() -> ctypes.CDLL:
    """llama.cpp as the wheel has it; ImportError where that is not installed."""
    import xllamacpp

    file = next(Path(xllamacpp.__path__[0]).glob("xllamacpp*.so"))
    lib = ctypes.CDLL(str(file))
    for name, result in _RESULTS.items():
        getattr(lib, name).restype = result
    return lib


class LlamaCpp:
    """A GGUF file, ready to be asked; RuntimeError with llama.cpp's words where it refuses it."""

    def __init__(self, file: Path, context: int) -> None:
        """``context``: tokens of the longest prompt."""
        self._lib, self._said = library(), []  # type: ignore[var-annotated]
        self._log = _Log(lambda _, text, __: self._said.append(text.decode(errors="replace")))
        self._lib.llama_log_set(self._log, None)
        self._lib.llama_backend_init()
        parameters = self._lib.llama_model_default_params()
        self._model = self._lib.llama_model_load_from_file(str(file).encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {file.name}: {self._last_words()}")
        self._vocabulary = ctypes.c_void_p(
            self._lib.llama_model_get_vocab(ctypes.c_void_p(self._model))
        )
        self._context = ctypes.c_void_p(self._open_context(-(-context // 256) * 256))
        self.vocab_size: int = self._lib.llama_vocab_n_tokens(self._vocabulary)

    def _open_context(self, size: int) -> int:
        parameters = _context_parameters(self._lib, size)
        self._said.clear()
        context = self._lib.llama_init_from_model(ctypes.c_void_p(self._model), parameters)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context: {self._last_words()}")
        asked = ("llama_n_ctx", "llama_n_batch", "llama_n_ubatch")
        found = [getattr(self._lib, name)(ctypes.c_void_p(context)) for name in asked]
        words = "".join(self._said)
        if found != [size] * 3 or "K (f32)" not in words or "V (f32)" not in words:
            raise RuntimeError(f"llama.cpp took other parameters than it was given:\n{words}")
        return int(context)

    def _last_words(self) -> str:
        return " ".join("".join(self._said[-6:]).split())

    def logits(self, tokens: Tensor) -> Tensor:
        """fp32 ``[T, V]`` of a prompt, int64 ``[T]``."""
        length = len(tokens)
        batch = _Batch(
            n_tokens=length,
            token=(ctypes.c_int32 * length)(*tokens.tolist()),
            logits=(ctypes.c_int8 * length)(*[1] * length),
        )
        memory = ctypes.c_void_p(self._lib.llama_get_memory(self._context))
        self._lib.llama_memory_clear(memory, ctypes.c_bool(True))
        if (code := self._lib.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama.cpp's decode gave {code}: {self._last_words()}")
        rows = torch.empty(length, self.vocab_size)
        for place in range(length):
            row = self._lib.llama_get_logits_ith(self._context, place)
            ctypes.memmove(rows[place].data_ptr(), row, self.vocab_size * 4)
        return rows

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt by the file's own tokenizer, with what it puts before it; a special
        token's spelling is text."""
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        begins, parses = ctypes.c_bool(True), ctypes.c_bool(False)
        count = self._lib.llama_tokenize(
            self._vocabulary, data, len(data), ids, room, begins, parses
        )
        if count < 0:
            raise RuntimeError(f"llama.cpp makes {-count} tokens of {len(data)} bytes")
        return list(ids[:count])


def _context_parameters(lib: ctypes.CDLL, size: int) -> _Parameters:
    """The defaults with a context and batches of ``size`` tokens, F32 keys and values, and no flash
    attention.

    Three sizes begin the struct. Four enums stand together at their default, -1 (not set): scaling
    of the rotary positions, pooling, attention, flash attention. The types of keys and values, both
    F16 (1), are the one such pair after these that begins at a multiple of 8.
    """
    parameters: _Parameters = lib.llama_context_default_params()
    words = list(struct.unpack(f"<{ROOM // 4}i", bytes(parameters.raw)))
    enums = next(i for i in range(len(words)) if words[i : i + 4] == [-1] * 4)
    types = next(i for i in range(enums + 4, len(words), 2) if words[i : i + 2] == [1, 1])
    words[:3] = [size] * 3
    words[enums + 3] = DISABLED
    words[types : types + 2] = [F32, F32]
    return _Parameters.from_buffer_copy(struct.pack(f"<{ROOM // 4}i", *words))


def dequantize(kind: str, blocks: Sequence[int] | bytes, count: int) -> Tensor:
    """What llama.cpp makes of the bytes of ``count`` weights in a block format, such as ``q4_K``:
    fp32 ``[count]``."""
    values = torch.empty(count)
    data = bytes(blocks)
    function = getattr(library(), f"dequantize_row_{kind}")
    function(data, ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(count))
    return values
