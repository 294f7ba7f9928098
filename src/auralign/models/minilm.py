r"""all-MiniLM-L6-v2 as plain PyTorch: sentences to unit vectors of 384 numbers.

Reimers, Gurevych 2019 (arXiv:1908.10084); Wang et al. 2020 (arXiv:2002.10957). A BERT of 6 post-norm layers,
12 heads, GELU; the sentence vector is the mean of the token vectors, scaled to length one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from auralign.runtime import weights

WIDTH, HEADS, LAYERS, HIDDEN = 384, 12, 6, 1536
VOCABULARY, POSITIONS, MAX_TOKENS = 30_522, 512, 256
NORM_EPS = 1e-12


class _Layer(nn.Module):
    """Attention and feed-forward, each added to its input and then normalised (post-norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mixed = nn.Linear(WIDTH, WIDTH)
        self.mixed_norm = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.down_norm = nn.LayerNorm(WIDTH, eps=NORM_EPS)

    def forward(
        self, x: Float[Tensor, "batch token dim"], mask: Bool[Tensor, "batch 1 1 token"]
    ) -> Float[Tensor, "batch token dim"]:
        query, key, value = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.mixed_norm(x + self.mixed(heads.transpose(1, 2).flatten(2)))
        x = self.down_norm(x + self.down(F.gelu(self.up(x))))
        return x


class MiniLM(nn.Module):
    """Frozen sentence encoder with its tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.kinds = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))

    def forward(
        self, tokens: Int[Tensor, "batch token"], mask: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token 384"]:
        """Token vectors of the last layer; where the mask is False, tokens are not attended to."""
        x: Tensor = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.kinds.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return x

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Float[Tensor, "batch 384"]:
        """Unit vectors of the texts; each is cut after 256 tokens. The empty text has a vector too.

        Args:
            texts: Any strings, in the model's language (English).
        """
        device = self.words.weight.device
        if not texts:
            return torch.zeros(0, WIDTH, device=device)
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        encoded = self.tokenizer.encode_batch(clean)
        tokens = torch.tensor([item.ids for item in encoded], device=device)
        mask = torch.tensor([item.attention_mask for item in encoded], device=device).bool()
        weight = mask.unsqueeze(-1).float()
        mean = (self(tokens, mask) * weight).sum(1) / weight.sum(1)
        return F.normalize(mean, dim=-1)


_NAMES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "mixed",
    "attention.output.LayerNorm": "mixed_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "down_norm",
}
_EMBEDDINGS = {
    "word_embeddings": "words",
    "position_embeddings": "positions",
    "token_type_embeddings": "kinds",
    "LayerNorm": "norm",
}


def from_bert_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published BERT checkpoint to the names of :class:`MiniLM`."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if stem.startswith("embeddings."):
            renamed[f"{_EMBEDDINGS[stem.removeprefix('embeddings.')]}.{kind}"] = tensor
        elif stem.startswith("encoder.layer."):
            index, _, part = stem.removeprefix("encoder.layer.").partition(".")
            renamed[f"layers.{index}.{_NAMES[part]}.{kind}"] = tensor
    return renamed


def read_tokenizer(file: Path) -> Tokenizer:
    """The word-piece tokenizer, cut at 256 tokens and padded to the longest text of a batch."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def load_minilm(*, offline: bool | None = None) -> MiniLM:
    """MiniLM with its pretrained weights, frozen, in evaluation mode, on the CPU."""
    folder = weights.path("minilm", offline=offline)
    model = MiniLM(read_tokenizer(folder / "tokenizer.json"))
    state = weights.tensors("minilm", offline=offline)
    model.load_state_dict(from_bert_names({k: v for k, v in state.items() if not k.endswith("position_ids")}))
    return model.eval().requires_grad_(False)
