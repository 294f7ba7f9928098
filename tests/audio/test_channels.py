from __future__ import annotations

import torch

from auralign.audio.channels import representative


def test_channels_are_heard_as_their_mean():
    wave = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert representative(wave).tolist() == [2.0, 2.0, 2.0]


def test_where_they_cancel_the_strongest_is_heard():
    wave = torch.tensor([[0.5, -0.5], [-1.0, 1.0], [0.5, -0.5]])
    assert representative(wave).tolist() == [-1.0, 1.0]


def test_silence_and_nothing():
    assert representative(torch.zeros(2, 3)).tolist() == [0.0, 0.0, 0.0]
    assert representative(torch.zeros(2, 0)).shape == (0,)
