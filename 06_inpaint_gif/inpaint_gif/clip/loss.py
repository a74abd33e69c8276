"""The contrastive loss of CLIP for batches in which several pairs show the same dish.

CLIP (Radford et al. 2021) compares B images with B texts; text i is the only positive for image i, and the B - 1
others are negatives. Here a batch of 128 pairs holds two or three plates of each of 80 dishes. If the caption of one
were a negative for the other, the network would learn to separate images that are the same.

So text j is a positive for image i if both are of the same dish, and the target is a uniform distribution over all
positives (Khosla et al. 2020, Supervised Contrastive Learning, L_out):

    p_ij = exp(s x_i.y_j) / sum_k exp(s x_i.y_k)                s = exp(logit_scale) = 1 / temperature
    loss_i = - 1/|P_i| sum_{j in P_i} log p_ij - log |P_i|      P_i = {j: dish_j = dish_i}, never empty because i is in
    it

The last term is the entropy of the target, so the smallest loss is 0 for any number of positives. If all dishes differ
it is 0, and the loss is CLIP's.
"""

import math

import torch
from torch import Tensor

MAX_LOGIT_SCALE = math.log(100)  # CLIP's limit: a sharper softmax makes training unstable


def contrastive_loss(images: Tensor, texts: Tensor, dish: Tensor, scale: Tensor) -> Tensor:
    """Loss of each pair, the mean of both directions (image to text, text to image). (B,)

    images, texts  (B, D) unit vectors
    dish           (B,) index of the dish of each pair
    scale          () 1 / temperature
    """
    logits = scale * images @ texts.T  # (B, B): row i compares image i with every text
    same = dish[:, None] == dish  # (B, B) bool, symmetric
    return (divergence(logits, same) + divergence(logits.T, same)) / 2


def divergence(logits: Tensor, positive: Tensor) -> Tensor:
    """Kullback-Leibler divergence, in nats, of each row's softmax from the uniform distribution
    over its positives. (B,)
    """
    number = positive.sum(1)
    return -(logits.float().log_softmax(1) * positive).sum(1) / number - number.log()


def inverse_temperature(logit_scale: Tensor) -> Tensor:
    """s = exp(logit_scale), at most 100."""
    return torch.clamp(logit_scale, max=MAX_LOGIT_SCALE).exp()
