"""The query side of a text-conditioned separator: nothing is learned there, words go to the network as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from auralign.errors import UsageError
from auralign.models.query_encoder import Modality
from auralign.models.text_tokens import join_query, split_query


class TokenHeads(nn.Module):
    """Stands where :class:`~auralign.models.query_encoder.QueryHeads` stands in a query-vector model.

    Args:
        pooled_dim: Length of the sentence vector.
        tokens: Token rows of a query; none for a network that reads the sentence vector alone.
        token_dim: Length of a token row.
    """

    def __init__(self, *, pooled_dim: int, tokens: int, token_dim: int) -> None:
        super().__init__()
        self.pooled_dim, self.tokens, self.token_dim = pooled_dim, tokens, token_dim

    @property
    def dim(self) -> int:
        """Length of a query."""
        return self.pooled_dim + self.tokens * self.token_dim

    def forward(self, raw: Float[Tensor, "*batch dim"], modality: Modality) -> Float[Tensor, "*batch dim"]:
        """Words as they are."""
        if modality != "text":
            raise UsageError(f"this model takes no {modality} query", hint="use words")
        return raw

    def merge(self, queries: Float[Tensor, "query dim"]) -> Float[Tensor, "dim"]:
        """Several texts as one: the words of each in turn as far as they fit, and the mean of the sentence vectors."""
        mean = F.normalize(queries[:, : self.pooled_dim].mean(dim=0), dim=-1)
        if not self.tokens:
            return mean
        _, tokens, valid = split_query(queries[None], self.pooled_dim, self.token_dim)
        return join_query(mean[None], tokens[0][valid[0]][None], self.tokens)[0]

    def nearest(self, query: Float[Tensor, "dim"], bank: Float[Tensor, "entry dim"]) -> Float[Tensor, "dim"]:
        """The bank's text whose sentence vector is nearest (Query-Aug)."""
        width = self.pooled_dim
        return bank[int(torch.argmax(bank[:, :width] @ query[:width]))]
