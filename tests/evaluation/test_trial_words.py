"""Trials with a model that reads words: the same queries as the ordinary evaluation, from features computed once."""

from __future__ import annotations

import pytest
import torch

from auralign.errors import UsageError
from auralign.evaluation.items import Asked, SoundboxItems
from auralign.evaluation.run import Answerer
from auralign.evaluation.trial_queries import Queries
from auralign.models.separator import SeparatorModel

TOY = {"levels": 4, "width": 2, "channels": 4, "heads": 2, "pooled_dim": 384, "token_dim": 384, "tokens": 24}


@pytest.fixture(scope="module")
def model() -> SeparatorModel:
    torch.manual_seed(0)
    return SeparatorModel("bisep", dict(TOY), unit_queries=False, encoder="tokens").eval()


def test_words_are_asked_for_as_by_the_ordinary_evaluation(trial_corpus, model, monkeypatch):
    items = SoundboxItems(trial_corpus)
    queries, answer = Queries(items, {}), Answerer(model, items)
    for texts in (("a bell",), ("a bell", "something that rings")):
        asked = Asked("text", "bell", texts=texts)
        torch.testing.assert_close(queries.vector(model, asked), answer.vector(asked).vector)
    monkeypatch.setattr(model.backbones, "texts", lambda _: pytest.fail("computed again"))
    again = Asked("text", "bell", texts=("something that rings", "a bell"))
    assert queries.vector(model, again).shape == (model.token_heads.dim,)


@pytest.mark.parametrize("kind", ["image", "audio", "combined"])
def test_pictures_and_recordings_are_refused(trial_corpus, model, kind):
    items = SoundboxItems(trial_corpus)
    spec = items.read(str(trial_corpus / "tiny.jsonl"))[0]
    with pytest.raises(UsageError, match="takes words only") as error:
        Queries(items, {}).vector(model, items.ask(spec, "bell", kind))
    assert "--query text" in str(error.value)
