r"""Texts as one pooled vector and the states of their tokens, in one flat row.

A query of a text-conditioned separator is the unit sentence vector, then the last layer's token states row by row;
a row of zeros is padding. So a query stays one vector wherever queries are carried, cached or streamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.models.encoders import QueryBackbones
from auralign.models.query_encoder import Modality

if TYPE_CHECKING:
    from auralign.models.clap import ClapEncoder
    from auralign.models.minilm import MiniLM

TOKENS, TOKEN_DIM = 24, 384
"""Rows of the built-in query, and their length."""
TOKEN_DIMS: dict[Modality, int] = {"text": TOKEN_DIM + TOKENS * TOKEN_DIM}
CLAP_TOKENS = 77
"""Rows of a CLAP query, as published."""


def split_query(
    query: Float[Tensor, "batch query dim"], pooled_dim: int, token_dim: int
) -> tuple[
    Float[Tensor, "batch query pooled"],
    Float[Tensor, "batch query token width"],
    Bool[Tensor, "batch query token"],
]:
    """A flat query's sentence vector, its token states, and which of these are no padding.

    >>> pooled, tokens, valid = split_query(torch.tensor([[[1.0, 2.0, 3.0, 0.0, 0.0]]]), 1, 2)
    >>> valid.tolist()
    [[[True, False]]]
    """
    rest = query.shape[-1] - pooled_dim
    if rest <= 0 or rest % token_dim:
        raise UsageError(
            f"a query of {query.shape[-1]} numbers does not fit a network that hears words",
            why=f"it takes {pooled_dim} numbers for the sentence and {token_dim} for each token",
            hint="give the model the query encoder that it was trained with",
        )
    tokens = query[..., pooled_dim:].unflatten(-1, (-1, token_dim))
    return query[..., :pooled_dim], tokens, (tokens != 0).any(dim=-1)


def join_query(
    pooled: Float[Tensor, "batch pooled"], states: Float[Tensor, "batch token width"], tokens: int
) -> Float[Tensor, "batch dim"]:
    """The inverse of :func:`split_query` with exactly ``tokens`` rows: longer texts are cut, shorter ones padded."""
    states = F.pad(states[:, :tokens], (0, 0, 0, max(0, tokens - states.shape[1])))
    return torch.cat([pooled, states.flatten(1)], dim=1)


class WordsOnly(QueryBackbones):
    """The refusals of an encoder that knows words only."""

    @staticmethod
    def refuse_empty(texts: Sequence[str]) -> None:
        """A text without a word asks for nothing."""
        if any(not text.strip() for text in texts):
            raise UsageError("a text query is empty", hint="say what to listen for, for example 'violin'")

    def audio(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch features"]:
        """A sound has no words: always an error."""
        raise UsageError("this model takes no audio query", hint="use words")

    def images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """A picture has no words: always an error."""
        raise UsageError("this model takes no picture query", hint="use words")

    def read_picture(self, path: str | Path) -> Float[Tensor, "3 height width"]:
        """A picture has no words: always an error."""
        raise UsageError("this model takes no picture query", where=str(path), hint="use words")


class TokenBackbones(WordsOnly):
    """MiniLM's sentence vector and 24 token states, loaded on first use."""

    spec = "tokens"
    dims = TOKEN_DIMS

    def __init__(self) -> None:
        self._minilm: MiniLM | None = None

    @property
    def minilm(self) -> MiniLM:
        """The sentence encoder."""
        if self._minilm is None:
            from auralign.models.minilm import load_minilm

            self._minilm = load_minilm()
        return self._minilm

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Sentence vectors and token states."""
        self.refuse_empty(texts)
        model = self.minilm
        device = model.words.weight.device
        if not texts:
            return torch.zeros(0, self.dims["text"], device=device)
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        encoded = model.tokenizer.encode_batch(clean)
        ids = torch.tensor([item.ids for item in encoded], device=device)
        mask = torch.tensor([item.attention_mask for item in encoded], device=device).bool()
        states = model(ids, mask) * mask.unsqueeze(-1)
        pooled = F.normalize(states.sum(dim=1) / mask.sum(dim=1, keepdim=True), dim=-1)
        return join_query(pooled, states, TOKENS)


class ClapTokenBackbones(WordsOnly):
    """CLAP's text vector and the 77 last hidden states of its RoBERTa.

    Args:
        place: Folder or hub id of the checkpoint.
        keep_padding: Keep the states of padding tokens, which the released network attends to.
    """

    def __init__(self, place: str, keep_padding: bool = False) -> None:
        from auralign.models.clap import ClapEncoder

        self.keep_padding = keep_padding
        self.spec = f"{'clap-padded-tokens' if keep_padding else 'clap-tokens'}:{place}"
        self._encoder: ClapEncoder = ClapEncoder.from_path(place)
        self.token_dim = int(self._encoder.model.config.text_config.hidden_size)
        self.dims = {"text": self._encoder.dim + CLAP_TOKENS * self.token_dim}

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Text vectors and token states."""
        self.refuse_empty(texts)
        encoder = self._encoder
        device = encoder.window.device
        if not texts:
            return torch.zeros(0, self.dims["text"], device=device)
        words = encoder.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=CLAP_TOKENS,
            return_tensors="pt",
        ).to(device)
        mask = words["attention_mask"]
        out = encoder.model.text_model(input_ids=words["input_ids"], attention_mask=mask)
        states = out.last_hidden_state
        if not self.keep_padding:
            states = states * mask.unsqueeze(-1)
        pooled = F.normalize(encoder.model.text_projection(out.pooler_output), dim=-1)
        return join_query(pooled, states, CLAP_TOKENS)
