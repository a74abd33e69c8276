"""The loss of CLIP, where several pairs of a batch may belong together.

CLIP (Radford et al. 2021) sees B images and B texts, and image i belongs to text i alone: each of the B - 1 others is a wrong
answer. With 80 dishes and 128 pairs that is not true. A batch holds two or three plates of 番茄炒蛋, and to call the caption of one
wrong for the other would teach the network to tell apart what is the same.

So text j is right for image i if both are of the same dish, and the answer wanted is not one text but equal shares of all that
are right (Khosla et al. 2020, Supervised Contrastive Learning, L_out):

    p_ij = exp(s x_i.y_j) / sum_k exp(s x_i.y_k)                s = exp(logit_scale), one over the temperature
    loss_i = - 1/|P_i| sum_{j in P_i} log p_ij - log |P_i|      P_i = {j: dish_j = dish_i}, never empty: i is in it

The last term no network can avoid, so 0 is perfect however many are right; where all are different it is 0, and the loss is CLIP's.
"""

import math

import torch
from torch import Tensor

MOST = math.log(100)  # logit_scale goes no higher, as in CLIP: a sharper softmax only makes training unstable


def contrast(images: Tensor, texts: Tensor, dish: Tensor, scale: Tensor) -> Tensor:
    """The loss of each pair: the mean of naming the image and of finding it. (B,)

    images, texts  (B, D), unit vectors
    dish           (B,) which dish each pair is of
    scale          () one over the temperature
    """
    logits = scale * images @ texts.T     # (B, B): row i compares image i with every text
    same = dish[:, None] == dish          # (B, B) bool, symmetric
    return (shared(logits, same) + shared(logits.T, same)) / 2


def shared(logits: Tensor, right: Tensor) -> Tensor:
    """How far the softmax of each row is from equal shares of what is right, in nats: the Kullback-Leibler divergence. (B,)"""
    number = right.sum(1)
    return -(logits.float().log_softmax(1) * right).sum(1) / number - number.log()


def sharpness(logit_scale: Tensor) -> Tensor:
    """s = exp(logit_scale), at most 100."""
    return torch.clamp(logit_scale, max=MOST).exp()
