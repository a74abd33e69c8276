"""Is it the subject? What DreamBooth's evaluation measures on pictures of the drawn creature, and on any others."""

import torch
from torch import Tensor

from common.data.creatures.attributes import NAMES, VALUES
from common.data.creatures.draw import GROUND, SCALE
from common.evaluate.creature_classifier import load_creature_classifier, read_attributes
from finetune_diffusers.data.subject import FRINGE, SUBJECT, VIEWS, upright

NECK, BESIDE = (0.225, 0.145), 0.16  # upper and lower end of the scarf's band above the ground, and half its width
NEAR = 0.3  # root mean square distance of a colour from the scarf's


def subject_attributes(images: Tensor) -> Tensor:
    """Share of the drawn subject's attributes that the classifier of creatures sees in each
    picture. (N, 3, S, S) -> (N,)

    The classifier knows creatures that stand upright. So each picture is turned upright from every view of the
    training pictures in turn, and the view with the largest share counts, for any creature.
    """
    places = [NAMES.index(name) for name in SUBJECT]
    wanted = torch.tensor([VALUES[place].index(SUBJECT[NAMES[place]]) for place in places])
    classifier = load_creature_classifier()
    read = [read_attributes(classifier, upright(images, view))[0][:, places] for view in VIEWS]
    return torch.stack([(found == wanted).cpu().double().mean(1) for found in read]).amax(0)


def scarf_share(images: Tensor) -> Tensor:
    """Share of the neck that has the colour of the scarf, in the view where that is largest. (N, 3, S, S) -> (N,)"""
    wool = 2 * torch.tensor(FRINGE).view(1, 3, 1, 1) - 1
    size = images.shape[-1]
    rows = slice(*(round(size * (1 - GROUND - SCALE * height)) for height in NECK))
    columns = slice(*(round(size * (0.5 + x)) for x in (-BESIDE, BESIDE)))
    necks = [upright(images, view)[..., rows, columns] for view in VIEWS]
    shares = [((neck - wool).square().mean(1).sqrt() < NEAR).cpu().double().mean((1, 2)) for neck in necks]
    return torch.stack(shares).amax(0)


def variety(images: Tensor) -> Tensor:
    """How far each picture is from the others: root mean square over pixels, mean over the others. (N,)"""
    flat = images.flatten(1).cpu().double()
    distance = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    return distance.sum(1) / max(1, len(images) - 1)
