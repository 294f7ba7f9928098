from __future__ import annotations

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from auralign.algorithms.training import (
    Averager,
    BatchNormMean,
    TrainState,
    cosine_rate,
    decay_groups,
    equalise,
    load_corpus,
    validate,
    validation_improvements,
    write_samples,
)
from auralign.data.mixer import MixConfig
from auralign.errors import DataError
from auralign.models.mask_network import MaskAnswer
from auralign.models.separator import SeparatorModel
from auralign.runtime.distributed import World
from auralign.runtime.run import Run
from auralign.runtime.tracker import Tracker

OPTIONS = {"query_dim": 8, "levels": 2, "width": 2}
MIX = MixConfig(samples=4096)


def _model(seed: int = 0) -> SeparatorModel:
    torch.manual_seed(seed)
    return SeparatorModel("omnisep", OPTIONS)


# the schedule


def test_rate_warms_up_linearly_and_falls_along_half_a_cosine():
    rates = [cosine_rate(step, 1000, 100, 2.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[49] == pytest.approx(1.0)
    assert rates[99] == rates[100] == pytest.approx(2.0)
    assert rates[550] == pytest.approx(2 * (0.01 + 0.99 / 2))
    assert rates[325] == pytest.approx(2 * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi / 4))))
    assert rates[-1] == pytest.approx(0.02, rel=0.01)
    assert (np.diff(rates[100:]) < 0).all()


def test_rate_without_warm_up_and_of_a_single_step_is_the_peak():
    assert cosine_rate(0, 10, 0, 3.0) == 3.0
    assert cosine_rate(0, 1, 1, 3.0) == 3.0


# averages


def test_average_is_the_exponential_mean_with_its_early_decay():
    model = _model()
    average = Averager(model, 0.7)
    name = "heads.heads.text.linear.weight"
    expected = model.state_dict()[name].double()
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        average.update(model)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.state_dict()[name].double()
        found = average.model.state_dict()[name].double()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(found, model.state_dict()[name].double())


def test_average_copies_buffers_follows_nothing_else_and_has_no_gradient():
    model = _model().train()
    average = Averager(model, 0.999)
    before = copy.deepcopy(average.model.state_dict())
    with torch.no_grad():
        model.net.sound_net.norm.running_mean.fill_(7.0)
        model.net.bias.fill_(1.0)
    assert all(torch.equal(v, before[k]) for k, v in average.model.state_dict().items()), "no shared memory"
    average.update(model)
    assert float(average.model.net.sound_net.norm.running_mean) == 7.0
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())


def test_average_of_a_constant_model_is_that_model():
    model = _model()
    average = Averager(model, 0.99)
    for _ in range(5):
        average.update(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(average.model.state_dict()[name], value)


def test_average_goes_on_from_its_state():
    first, second = Averager(_model(), 0.99), Averager(_model(1), 0.99)
    first.update(_model(2))
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update(_model(3))
    assert first.count == second.count == 2
    assert all(torch.equal(v, second.model.state_dict()[k]) for k, v in first.model.state_dict().items())


def test_running_statistics_are_the_mean_over_micro_batches_from_one_start():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).train()
    nn.init.constant_(net[0].running_mean, 0.3)
    batches = torch.randn(4, 2, 3, 5, 5) * 2 + 1
    ends = []
    for one in batches:
        alone = copy.deepcopy(net)
        alone(one)
        ends.append(torch.stack([alone[0].running_mean, alone[0].running_var, alone[1].running_var]))
    norms = BatchNormMean(net)
    for one in batches:
        with norms:
            net(one)
    norms.finish(4, World())
    found = torch.stack([net[0].running_mean, net[0].running_var, net[1].running_var])
    torch.testing.assert_close(found, torch.stack(ends).mean(dim=0))


def test_running_statistics_of_one_micro_batch_are_those_of_plain_training():
    net = nn.BatchNorm2d(2).train()
    plain, x = copy.deepcopy(net), torch.randn(4, 2, 3, 3)
    norms = BatchNormMean(net)
    with norms:
        net(x)
    norms.finish(1, World())
    plain(x)
    assert torch.equal(net.running_mean, plain.running_mean)
    assert torch.equal(net.running_var, plain.running_var)


def test_only_matrices_and_kernels_decay():
    model = _model()
    decayed, free = decay_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
    assert min(p.ndim for p in decayed["params"]) == 2
    assert max(p.ndim for p in free["params"]) == 1


def test_state_comes_back_from_the_newest_checkpoint(tmp_path):
    run = Run(tmp_path)

    def fresh(seed: int) -> TrainState:
        model = _model(seed)
        return TrainState(model, Averager(model, 0.9), torch.optim.AdamW(model.parameters()))

    state = fresh(0)
    state.restore(run)
    assert state.step == 0, "nothing to restore"
    sum(p.square().sum() for p in state.model.parameters()).backward()
    state.optimiser.step()
    state.average.update(state.model)
    state.step = 5
    state.save(run, None)
    assert run.checkpoints.best() is None, "without a score it is not the best"
    state.save(run, 1.5)
    assert run.checkpoints.best_score() == 1.5
    again = fresh(1)
    again.restore(run)
    assert again.step == 5
    for a, b in ((state.model, again.model), (state.average.model, again.average.model)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    mine, theirs = state.optimiser.state_dict()["state"], again.optimiser.state_dict()["state"]
    assert all(torch.equal(mine[n]["exp_avg_sq"], theirs[n]["exp_avg_sq"]) for n in mine)


# the equaliser


def test_equaliser_keeps_power_and_length_and_is_smooth_over_log_frequency():
    wave = torch.randn(3, 2, 4096, generator=torch.Generator().manual_seed(0))
    out = equalise(wave, np.random.default_rng(0), 6.0)
    assert out.shape == wave.shape
    torch.testing.assert_close(out.square().sum(-1), wave.square().sum(-1), rtol=1e-4, atol=0)
    gain_db = 20 * torch.log10((torch.fft.rfft(out).abs() / torch.fft.rfft(wave).abs())[..., 1:-1])
    assert gain_db.std() > 1.5
    assert gain_db.diff(dim=-1)[..., 100:].abs().max() < 0.5
    assert not torch.allclose(gain_db[0, 0], gain_db[0, 1], atol=0.5), "each sound has its own curve"


def test_equaliser_without_spread_changes_nothing_and_silence_stays_silent():
    wave = torch.randn(2, 1024)
    torch.testing.assert_close(equalise(wave, np.random.default_rng(0), 0.0), wave, atol=1e-5, rtol=1e-4)
    assert not equalise(torch.zeros(2, 1024), np.random.default_rng(0), 6.0).any()


# the corpus


def test_classes_are_those_of_training_and_validation_has_no_others(corpus_root):
    corpus = load_corpus(corpus_root, MIX)
    assert corpus.labels == ["bell", "flute", "harp", "hiss", "rumble", "saw"]
    assert corpus.texts[0] == ["bell", "the sound of a bell"]
    assert [len(group) for group in corpus.pictures] == [1, 1, 0, 0, 0, 0]
    assert all(path.exists() for group in corpus.pictures for path in group)
    assert {c.clip.split for c in corpus.mixer.bank.clips} == {"train"}
    assert {c.clip.split for c in corpus.validation.bank.clips} == {"val"}
    assert {c.label for c in corpus.validation.bank.clips} == set(corpus.labels)


def test_validation_mixtures_are_plain_pairs_at_equal_power(corpus_root):
    batch = load_corpus(corpus_root, MixConfig(samples=4096, distractor=1.0, single=1.0)).validation.batch(
        np.random.default_rng(0), 12
    )
    assert batch.sources.shape == (12, 2, 65_536)
    assert batch.audible.all()
    assert not batch.distractor.any()


def test_a_folder_without_a_corpus_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="auralign data build soundbox --out"):
        load_corpus(tmp_path, MIX)


# validation


class _Answer(SeparatorModel):
    """Answers with what it is told instead of separating."""

    def __init__(self, mode: str, corpus) -> None:
        super().__init__("omnisep", OPTIONS)
        self.mode, self.sources = mode, torch.zeros(0)
        original = corpus.validation.batch

        def batch(rng, size):
            made = original(rng, size)
            self.sources = torch.from_numpy(made.sources)
            return made

        corpus.validation.batch = batch

    def separate_wave(self, wave, query):
        assert query.shape == (len(wave), 3, 8)
        if self.mode == "oracle":
            estimate = torch.cat([self.sources, torch.zeros_like(self.sources[:, :1])], dim=1)
            return estimate, torch.tensor([0.9, 0.8, 0.1]).expand(len(wave), 3)
        if self.mode == "swapped":
            return self.sources[:, [1, 0, 0]], torch.tensor([0.1, 0.2, 0.9]).expand(len(wave), 3)
        return wave[:, None].expand(-1, 3, -1).clone(), torch.full((len(wave), 3), 0.5)

    def forward(self, wave, query) -> MaskAnswer:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("mode", "lowest", "highest", "wins", "auc"),
    [("oracle", 100, 200, 1.0, 1.0), ("mixture", -1e-6, 1e-6, 0.0, 0.5), ("swapped", -200, -5, 0.0, 0.0)],
)
def test_validation_scores_perfect_useless_and_wrong_answers(
    corpus_root, fake_backbones, mode, lowest, highest, wins, auc
):
    corpus = load_corpus(corpus_root, MIX)
    model = _Answer(mode, corpus)
    model.backbones = fake_backbones
    scores = validate(model, corpus, 0, batches=2, size=3)
    assert lowest <= scores["si_sdri"] <= highest
    assert lowest <= scores["si_sdri_median"] <= highest
    assert scores["win_rate"] == wins
    assert scores["presence_auc"] == auc
    gains = validation_improvements(model, corpus, 0, batches=2, size=3)
    assert gains.shape == (12,), "two sources of each of six mixtures"
    assert float(gains.mean()) == scores["si_sdri"]


def test_validation_leaves_the_model_in_the_mode_it_found(corpus_root, fake_backbones):
    corpus = load_corpus(corpus_root, MIX)
    model = _Answer("oracle", corpus)
    model.backbones = fake_backbones
    for training in (True, False):
        model.train(training)
        validate(model, corpus, 0, batches=1, size=2)
        assert model.training is training
        model.heads(torch.zeros(1, 384), "text").sum().backward()  # gradients are on again


def test_validation_is_the_same_every_time_and_another_seed_is_another_set(corpus_root, fake_backbones):
    corpus = load_corpus(corpus_root, MIX)
    model = _Answer("swapped", corpus)
    model.backbones = fake_backbones
    one, again, other = (validate(model, corpus, seed, batches=1, size=4) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_sounds_of_a_run_are_mixture_estimates_and_references(corpus_root, fake_backbones, tmp_path):
    corpus = load_corpus(corpus_root, MIX)
    model = _model()
    model.backbones = fake_backbones
    with contextlib.closing(Tracker(tmp_path)) as tracker:
        write_samples(model, corpus, 0, tracker, 7, count=1)
    names = sorted(path.stem for path in tmp_path.rglob("*.flac"))
    assert len(names) == 5
    assert names[0].startswith("0-")
    assert "0-mixture" in names
    assert sum(name.endswith("-reference") for name in names) == 2
