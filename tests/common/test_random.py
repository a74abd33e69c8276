"""Random numbers depend on their place alone."""

import torch

from common.random import SAMPLING, BatchRandom, Noise, generator


def test_places_are_told_apart_even_where_they_differ_by_a_zero():
    places = [(0,), (0, 0), (0, 0, 0), (1,), (1, 0), (0, 1), (SAMPLING, 7), (SAMPLING, 7, 0)]
    first = [int(torch.randint(2**62, (1,), generator=generator(*place))) for place in places]
    assert len(set(first)) == len(places)


def test_noise_of_a_step_does_not_depend_on_what_was_drawn_before():
    x = torch.zeros(2, 3)
    noise = Noise(5)
    a = noise(3, x)
    noise(1, x)
    torch.randn(10)
    assert torch.equal(noise(3, x), a)
    assert not torch.equal(noise(4, x), a)
    assert not torch.equal(Noise(5, 1)(3, x), a)


def test_stratified_draws_have_one_number_in_each_interval_whatever_the_number_of_processes():
    whole = BatchRandom(0, 9).stratified(8)
    assert torch.equal((whole * 8).long(), torch.arange(8))
    parts = [BatchRandom(0, 9, rank=rank, world=2).stratified(4) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)
