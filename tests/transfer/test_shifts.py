import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from layersim.commands.transfer import STRENGTHS
from layersim.errors import UserError
from layersim.transfer import blur, check_strengths, noise, rotate, shifted_accuracies
from tests import tiny

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([5, 3, 900, 2, 0, 7])


def test_a_quarter_turn_is_exact_and_counter_clockwise() -> None:
    torch.testing.assert_close(rotate(IMAGES, 90.0, INDEX), IMAGES.rot90(1, dims=(2, 3)), rtol=0, atol=1e-5)


def test_corners_that_turn_in_have_the_mean_colour() -> None:
    turned = rotate(torch.ones(1, 1, 8, 8), 45.0, INDEX[:1])
    assert turned[0, 0, 0, 0] == 0
    assert turned[0, 0, 4, 4] == 1


def test_noise_has_its_deviation_and_belongs_to_the_sample() -> None:
    black = torch.zeros(6, 3, 40, 40)
    drawn = noise(black, 0.5, INDEX)
    assert math.isclose(drawn.std().item(), 0.5, rel_tol=0.01)
    torch.testing.assert_close(noise(black[:2], 1.5, INDEX[[4, 1]]), 3 * drawn[[4, 1]], rtol=0, atol=1e-6)
    assert not torch.equal(noise(black, 0.5, INDEX, seed=1), drawn)
    assert len({row.sum().item() for row in drawn}) == 6, "no two samples have the same"


def test_noise_leaves_the_random_generator_where_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    noise(IMAGES, 0.5, INDEX)
    assert torch.equal(torch.rand(1), expected)


def test_blur_against_scipy() -> None:
    sigma = 0.12 * 8
    expected = ndimage.gaussian_filter(
        IMAGES.double().numpy(), sigma, axes=(2, 3), mode="mirror", radius=math.ceil(3 * sigma)
    )
    np.testing.assert_allclose(blur(IMAGES, 0.12, INDEX).numpy(), expected, atol=1e-5)


def test_every_shift_has_five_strengths_that_fit_small_and_large_images() -> None:
    assert {kind: len(strengths) for kind, strengths in STRENGTHS.items()} == {"rotation": 5, "noise": 5, "blur": 5}
    for width in (8, 224):
        assert blur(torch.zeros(1, 1, width, width), max(STRENGTHS["blur"]), INDEX[:1]).shape[-1] == width


@pytest.mark.parametrize("strengths", [30, None])
def test_a_strength_that_is_no_list_is_refused(strengths: Any) -> None:
    with pytest.raises(UserError, match=rf"--strengths\.rotation: expected a list of numbers, got {strengths}\."):
        check_strengths({"rotation": strengths}, (1, 8, 8))
    check_strengths({"rotation": np.array([30.0])}, (1, 8, 8))


def test_accuracies_are_those_of_images_shifted_by_hand() -> None:
    """At all batch sizes, and a shift of strength 0 changes nothing."""
    module, data = tiny.module().eval(), tiny.digits(eval_batch_size=50)
    torch.nn.init.normal_(module.backbone.classifier.weight)  # fresh ones say the same of every image
    data.check(module.backbone)
    strengths = {"rotation": (0.0, 90.0), "noise": (0.75,)}
    plain, shifts = shifted_accuracies(module, data, "val", strengths)
    split = data.splits["val"]
    batch = data.collate([split[place] for place in range(len(split))])
    by_hand = {
        ("rotation", 1): batch["image"].rot90(1, dims=(2, 3)),
        ("noise", 0): noise(batch["image"], 0.75, batch["index"]),
        ("rotation", 0): batch["image"],
    }
    with torch.no_grad():
        for (kind, place), images in by_hand.items():
            predictions = module({**batch, "image": images}).readout.predictions
            expected = (predictions == batch["label"]).double().mean(dim=1)
            assert shifts[kind][place]["accuracy"] == expected.tolist()
    assert shifts["rotation"][0]["accuracy"] == plain
    assert shifts["rotation"][1]["accuracy"] != plain
