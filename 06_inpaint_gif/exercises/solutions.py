"""Chapter 6 with your own hands: sixteen functions, from the hole that a camera leaves to a camera move of your own.

Tier 1 (exercises 1 to 10) asks for a formula; the last two of them for a derivation, which a test checks. Tier 2 (11 to
14) gives you a short program with one bug; find and repair it. Tier 3 (15 and 16) sets goals with numbers. exercises.py
is for you to fill in; solutions.py shows one way to do it. No exercise needs another but 11, which uses 1. Hints on
request: python -m common.grade 06 --hint 3

The conventions are those of camera.py, compositing.py, loss.py, repaint.py, timing.py and writers.py:
  image    (C, H, W) or (B, C, H, W) float32 in [-1, 1]; 0 is mid-grey. Row 0 is at the top, so y points down
  a mask   1 (white) in the hole, where the picture is to be painted; 0 (black) where it is known, and stays as it is
  z        (B, C, h, w) a clean latent, scaled
  x        a noisy latent, x = alpha z + sigma eps, with alpha^2 + sigma^2 = 1
  scale    how much of the plane one pixel covers: at 2 the camera sees twice the width, and things look half as large
  frames   (N, C, H, W) the pictures of a film, in order
No function changes the tensors it is given.
"""

import math  # noqa: F401 - for your answers, as the others are
from collections.abc import Callable, Sequence
from itertools import pairwise  # noqa: F401
from typing import NamedTuple

import numpy as np  # noqa: F401
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt  # noqa: F401
from torch import Tensor


class Level(NamedTuple):
    """One noise level. Write level.alpha and level.sigma."""

    alpha: float
    sigma: float


Encode = Callable[[Tensor], Tensor]  # (B, 3, H, W) images -> (B, c, h, w) latents
Step = Callable[[Tensor, int], Tensor]  # x at level k, k -> x at level k + 1
Denoise = Callable[[Tensor, Level], tuple[Tensor, Tensor]]  # x and its level -> predicted (x0, eps)


# ------------------------------------------------------------------------------------- tier 1: write the formula


def camera_move(image: Tensor, dx: int, dy: int) -> tuple[Tensor, Tensor]:
    """Exercise 1. The camera moves: what is still seen, and what has to be painted.

    moved(y, x) = image(y + dy, x + dx),  mask(y, x) = 0                      where the picture has such a pixel
    moved(y, x) = 0,                      mask(y, x) = 1                      where it has none

    Right is dx > 0: the camera goes right, so things go left,
    and something new comes in at the right edge. Down is dy > 0.

    image    (C, H, W)
    dx, dy   whole pixels, of any sign and size: a camera that goes far enough sees nothing of the picture
    returns  moved (C, H, W) and mask (1, H, W) float32

    Watch out: torch.roll brings in at one edge what has left at the other. And the picture may have pixels of mid-grey
    itself: the mask says where you look, not what you see there.
    """
    # --- solution
    _, H, W = image.shape
    y, x = torch.arange(H)[:, None] + dy, torch.arange(W) + dx  # where each pixel looks: (H, 1) and (W,)
    seen = (y >= 0) & (y < H) & (x >= 0) & (x < W)  # (H, W)
    moved = image[:, y.clamp(0, H - 1), x.clamp(0, W - 1)]
    return moved * seen, (~seen).float()[None]
    # --- end


def composite(original: Tensor, painted: Tensor, mask: Tensor, radius: float) -> Tensor:
    """Exercise 2. Put the known pixels back, with a soft edge that lies inside the hole only.

    soft   = min(1, depth / (radius + 1))                                     depth: how far a pixel is from the
           nearest known one
    result = original + soft (painted - original)                             in the hole
    result = original                                                         where the mask is 0, bit for bit

    The outermost pixels of the hole have depth 1; from there the new picture fades in, and it is alone from depth
    radius + 1 on. Depth is the straight-line distance between the centres of pixels, and a hole may have any shape.

    original  (C, H, W)
    painted   (C, H, W) what a network returned; where the picture is known, it may hold anything, even NaN
    mask      (1, H, W) float32, only 0 and 1; not 1 everywhere
    radius    in pixels, 0 or more; at 0 the edge is hard
    returns   (C, H, W)

    Watch out: a blurred mask is no longer 0 on the known side of the edge. What measures depth is
    distance_transform_edt(array): for each entry that is not 0 the distance to the nearest one that is. And what is to
    be the same to the last bit is not computed but chosen:
    painted + (original - painted) is not original, and 0 times NaN is NaN.
    """
    # --- solution
    depth = torch.from_numpy(distance_transform_edt(mask[0].numpy())).float()
    soft = (depth / (radius + 1)).clamp(max=1)
    return torch.where(mask > 0, original + soft * (painted - original), original)
    # --- end


def clip_loss(images: Tensor, texts: Tensor, dish: Tensor, logit_scale: Tensor) -> Tensor:
    """Exercise 3. The contrastive loss of CLIP: each image finds its name, and each name its image, among all others of
    the batch.

    L_ij   = exp(logit_scale) cos(image_i, text_j)                            (Radford et al. 2021, figure 3)
    p_ij   = exp(L_ij) / sum_k exp(L_ik)                                      how much image i looks like text j
    loss_i = -1/|P_i| sum_{j in P_i} log p_ij - log |P_i|                     P_i: all j with dish_j = dish_i, also i
    itself

    The answer is the mean of loss_i over the batch; the same with the two sides swapped (p down the columns of L); and
    of these two the mean. Where all dishes differ, P_i is i alone, and this is CLIP's own loss. In a batch with two
    plates of the same dish either name is right for either plate (Khosla et al.
    2020, L_out); with - log |P_i|, 0 is perfect all the same.

    images, texts  (B, D) as the networks give them, of any length (norm)
    dish           (B,) whole numbers: which dish a pair is of
    logit_scale    () one number that is learned, too: the logarithm of 1 / temperature
    returns        () one number

    Watch out: a cosine does not depend on the norms of the vectors. Which axis does the softmax run along, each time?
    exp(logit_scale) grows to 100 in training, and exp(100) is infinite in float32: torch has a log_softmax.
    """
    # --- solution
    L = logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T  # (B, B)
    same = (dish[:, None] == dish).float()  # (B, B), symmetric
    share = same / same.sum(1, keepdim=True)
    both = (F.cross_entropy(L, share) + F.cross_entropy(L.T, share)) / 2
    return both - same.sum(1).log().mean()
    # --- end


def nine_channels(weight: Tensor, x: Tensor, image: Tensor, mask: Tensor, encode: Encode) -> tuple[Tensor, Tensor]:
    """Exercise 4. Show a latent U-Net the hole: c channels become 2c + 1, 4 become 9, and at first nothing changes.

    input  = [x | mask | encode(image with mid-grey in the hole)]             (Rombach et al. 2022, section 4.5)
    weight = [weight | 0 ... 0]                                               so that conv(input) is what conv(x) was

    This is the order of channels that Stable Diffusion's inpainting networks and diffusers have.

    weight   (width, c, 3, 3) of the U-Net's first convolution
    x        (B, c, h, w) noisy latents
    image    (B, 3, H, W) the picture, the one that is learned from included: what is in the hole is the answer
    mask     (B, 1, H, W) only 0 and 1
    encode   the autoencoder's encoder, called once, as encode(images)
    returns  the new weight (width, 2c + 1, 3, 3), of the same dtype, and the input (B, 2c + 1, h, w)

    Watch out: the answer must not be seen: is the hole empty before the encoder looks? For latents the mask is shrunk
    to (h, w) by F.interpolate as it is by default, which takes one pixel for each latent,
    so that it stays a mask of 0 and 1.
    """
    # --- solution
    known = encode(image * (mask < 0.5))  # (B, c, h, w)
    small = F.interpolate(mask, size=x.shape[2:])  # (B, 1, h, w)
    new = weight.new_zeros(len(weight), 1 + known.shape[1], *weight.shape[2:])
    return torch.cat([weight, new], dim=1), torch.cat([x, small, known], dim=1)
    # --- end


def repaint_step(
    step: Step,
    x: Tensor,
    z: Tensor,
    mask: Tensor,
    k: int,
    alpha: Tensor,
    sigma: Tensor,
    eps_known: Tensor,
    eps_back: Tensor,
) -> Tensor:
    """Exercise 5. RePaint: go down one level, put in what is known, go back up, and again,
    until both sides of the edge agree.

    For u = 0 ... U - 1:                                                      (Lugmayr et al. 2022, algorithm 1)
      known = alpha_(k+1) z + sigma_(k+1) eps_known[u]                        the picture, as noisy as level k + 1
      x     = step(x, k) in the hole, known around it
      if u < U - 1:                                                           back to level k, everywhere
        x   = sqrt(1 - beta) x + sqrt(beta) eps_back[u],   1 - beta = (alpha_k / alpha_(k+1))^2

    step          called as step(x, k), U times: leads from level k to level k + 1
    x             (B, C, h, w) at level k
    z             (B, C, h, w) the clean picture; in the hole it may hold anything, even NaN
    mask          (B, 1, h, w)
    alpha, sigma  (N + 1,) the levels, noisiest first; alpha_N = 1, sigma_N = 0
    eps_known     (U, B, C, h, w) noise for the known part, new for each u, as in the paper's algorithm
    eps_back      (U - 1, B, C, h, w) noise, too
    returns       (B, C, h, w) at level k + 1

    Watch out: in the paper, m = 1 is what is known; here 1 is the hole. And on the way up x is noisy already:
    alpha_k x + sigma_k eps would noise it as if it were clean.
    """
    # --- solution
    r = alpha[k] / alpha[k + 1]  # sqrt(1 - beta)
    for u in range(len(eps_known)):
        x = r * x + (1 - r**2).sqrt() * eps_back[u - 1] if u > 0 else x
        x = torch.where(mask > 0, step(x, k), alpha[k + 1] * z + sigma[k + 1] * eps_known[u])
    return x
    # --- end


def zoom_scales(frames: int, first: float, last: float, part: float) -> Tensor:
    """Exercise 6. A zoom without a jolt: it starts and ends gently, and between the two its apparent speed is constant.

    t        = k / (frames - 1)                                               from 0 for the first frame to 1 for the
             last
    s(t)     = v t^2 / (2 part)                    for t < part               faster and faster
    s(t)     = v (t - part / 2)                    for part <= t <= 1/2       at the constant speed v = 1 / (1 - part)
    s(t)     = 1 - s(1 - t)                        for t > 1/2                the same backwards
    scale(t) = first (last / first)^s(t)                                      in equal times by equal factors

    frames       2 or more
    first, last  the scales at both ends, above 0; last < first is a zoom in
    part         of the time in which it gets faster, above 0 and at most 1/2
    returns      (frames,) float32, one scale for each frame

    Watch out: from scale 1 to 2, things shrink to a half; from 2 to 3, only to two thirds. So a scale that grows by
    equal amounts looks slower and slower. And of n frames, the last has number n - 1.
    """
    # --- solution
    t = torch.linspace(0, 1, frames)
    near, v = torch.minimum(t, 1 - t), 1 / (1 - part)
    s = torch.where(near < part, v * near**2 / (2 * part), v * (near - part / 2))
    return first * (last / first) ** torch.where(t > 0.5, 1 - s, s)
    # --- end


def looped(shot: Tensor, loop: str, m: int = 0) -> Tensor:
    """Exercise 7. A film that repeats without a visible beginning.

    "pingpong"  there and back: 0 1 2 ... T - 1 ... 2 1, and after that comes 0 again
    "seamless"  the end dissolves into the beginning while the camera moves on. With n = T - m frames in the film:
                first  shot[m], shot[m + 1] ... shot[n - 1]                   as they are
                then   (1 - w_k) shot[n + k] + w_k shot[k]                    for k = 0 ... m - 1,  w_k = (k + 1) / (m
                       + 1)

    Both sides of the dissolve move: shot[n + k] goes out, shot[k] comes in.
    After the last of them comes the first frame, shot[m].

    shot     (T, C, H, W), T >= 2
    loop     "pingpong" or "seamless"
    m        frames of the dissolve, at least 1 and at most T / 2; of no interest to "pingpong"
    returns  "pingpong": (2 T - 2, C, H, W), "seamless": (T - m, C, H, W)

    Watch out: a frame that is shown twice in a row is seen as a stop. In 0 1 2 3 3 2 1 0 there are two such stops, for
    after the last frame comes the first. And if a w_k is 0 or 1, there is nothing to be seen of the other side.
    """
    # --- solution
    if loop == "pingpong":
        return torch.cat([shot, shot[1:-1].flip(0)])
    n, w = len(shot) - m, torch.arange(1, m + 1).view(-1, 1, 1, 1) / (m + 1)
    return torch.cat([shot[m:n], (1 - w) * shot[n:] + w * shot[:m]])
    # --- end


def one_palette(frames: Tensor, palette: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Exercise 8. A GIF has few colours. Choose them well, once for the whole film, and say which one each pixel gets.

    `rounds` times:  1. every pixel of every frame belongs to the nearest colour: the k with the least |pixel -
                     palette_k|^2, the
                        sum over red, green and blue
                     2. every colour becomes the mean of its pixels           (k-means: Lloyd 1982)
    Then, once more: every pixel gets the nearest colour of the palette as it is now.

    A colour that no pixel belongs to stays as it is.

    frames   (N, 3, H, W) uint8
    palette  (K, 3) float32, from 0 to 255: the colours to begin with
    rounds   0 or more
    returns  the palette (K, 3) float32, not rounded, and the numbers of the colours, (N, H, W) int64

    Watch out: with a palette of its own for each frame, the colours of things that stand still would flicker.
    frames.reshape(-1, 3) is not a list of pixels: red, green and blue are on axis 1 (movedim).
    And the mean of nothing is NaN.
    """
    # --- solution
    pixels = frames.movedim(1, -1).reshape(-1, 3).float()
    for _ in range(rounds):
        owner = torch.cdist(pixels, palette).argmin(1)
        palette = torch.stack(
            [pixels[owner == k].mean(0) if (owner == k).any() else palette[k] for k in range(len(palette))]
        )
    index = torch.cdist(pixels, palette).argmin(1)
    return palette, index.view(len(frames), *frames.shape[2:])
    # --- end


def name_weight(q: Tensor, k: Tensor, zeros: int) -> tuple[Tensor, Tensor]:
    """Exercise 9. Derive and check. How much attention does each position pay to the name, beside zero tokens?

    A position with query q attends to the name, whose key is k, and to `zeros` zero tokens. The layer that makes the
    keys has no bias, so the key of a zero token is zero. Attention is softmax(q . key / sqrt(d)) over the tokens
    (Vaswani et al. 2017, eq. 1). Derive two formulas in a = q . k / sqrt(d), without a softmax over tokens:

    w      the weight of the name
    dw/da  its derivative

    and write them with torch.sigmoid. The test compares them with a softmax and with autograd.

    q        (N, d) queries of N positions; their products with k may be large
    k        (d,) the key of the name
    zeros    number of zero tokens, 1 or more; the lesson has 1
    returns  w (N,) and dw/da (N,)
    """
    # --- solution
    a = q @ k / math.sqrt(len(k))
    w = torch.sigmoid(a - math.log(zeros))  # e^a / (e^a + zeros)
    return w, w * (1 - w)
    # --- end


def ideal_inpainting(known: Tensor, C: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """Exercise 10. Derive and check. The exact answer of inpainting, for pictures from a Gaussian.

    A picture of n pixels is a draw from N(0, C). Its pixels outside the hole are known. Derive the distribution of the
    pixels in the hole given the known ones, p(x_hole | x_known), which is a Gaussian, too. (Write log p(x_hole, x_known)
    with the inverse of C in blocks and complete the square; or find the linear function of x_known whose error is
    uncorrelated with x_known.) The test draws pictures and checks both properties.

    known    (B, m) the known pixels of B pictures, in their order in the picture
    C        (n, n) covariance, symmetric and invertible
    hole     (n,) bool, true in the hole; n = m + h
    returns  the mean (B, h), and the covariance (h, h), which is the same for all pictures
    """
    # --- solution
    across = C[hole][:, ~hole]  # (h, m)
    gain = torch.linalg.solve(C[~hole][:, ~hole], across.T)  # (m, h)
    return known @ gain, C[hole][:, hole] - across @ gain
    # --- end


# ------------------------------------------------------------------------------------------ tier 2: find the bug


def fix_outpainting(paint: Callable[[Tensor, Tensor], Tensor], picture: Tensor, dx: int, keyframes: int) -> Tensor:
    """Exercise 11. Find the bug. A camera moves right; each keyframe continues the one before.

    Symptom: with a painter that returns known pixels unchanged, the film is right. With a painter that
    works in latents, every keyframe looks fine by itself, but the plate becomes blurrier from keyframe to keyframe.

    paint      called as paint(moved, mask), returns a whole picture (C, H, W)
    picture    (C, H, W)
    dx         pixels from one keyframe to the next
    keyframes  number of keyframes to paint
    returns    (1 + keyframes, C, H, W), the picture first
    """
    film = [picture]
    for _ in range(keyframes):
        moved, mask = camera_move(film[-1], dx, 0)
        painted = paint(moved, mask)
        # --- solution
        film.append(torch.where(mask > 0, painted, moved))
        # --- given
        #| film.append(painted)
        # --- end
    return torch.stack(film)


def fix_candidates(
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[Sequence[str]], Tensor],
    candidates: Tensor,
    name: str,
) -> int:
    """Exercise 12. Find the bug. Which of the drawn candidates has the largest cosine with the name?

    Symptom: the choice is often the same picture, whatever the name is. The embedding of that picture is
    the longest of all.

    encode_image  (N, C, H, W) -> (N, D) embeddings of any norm
    encode_text   a list of B texts -> (B, D) embeddings of any norm
    candidates    (N, C, H, W)
    returns       the index of the best candidate, an int
    """
    images, text = encode_image(candidates), encode_text([name])[0]  # (N, D), (D,)
    # --- solution
    images = images / images.norm(dim=1, keepdim=True)
    # --- given
    #| images = images / images.norm()
    # --- end
    return int((images @ text).argmax())


def fix_zoom(image: Tensor, scales: Sequence[float]) -> Tensor:
    """Exercise 13. Find the bug. Frames of a zoom about the centre of the picture, with bilinear interpolation.

    Symptom: at scale 1 the frame is the picture. But while the camera comes nearer, the plate drifts. At
    scale 1/4 its centre is one and a half pixels away from the centre of the frame.

    image    (C, H, W)
    scales   of the frames: at 2 the camera sees twice the width, at 1/4 a quarter of it
    returns  (N, C, H, W); outside of the picture its border is continued
    """
    _, H, W = image.shape
    frames = []
    for scale in scales:
        # where each pixel of the frame looks, in pixels of the image; pixel k covers the range from k to k + 1
        # --- solution
        y = (torch.arange(H) + 0.5 - H / 2) * scale + H / 2
        x = (torch.arange(W) + 0.5 - W / 2) * scale + W / 2
        # --- given
        #| y = (torch.arange(H) - H / 2) * scale + H / 2 + 0.5
        #| x = (torch.arange(W) - W / 2) * scale + W / 2 + 0.5
        # --- end
        grid = torch.stack(torch.broadcast_tensors(2 * x / W - 1, (2 * y / H - 1)[:, None]), -1)  # (H, W, 2)
        frames.append(F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0])
    return torch.stack(frames)


def fix_regions(parts: Sequence[tuple[Denoise, Tensor]], x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Exercise 14. Find the bug. One prediction from several denoisers, each with the weight of its region.

    Symptom: with regions that do not overlap, the pictures are right. Where two regions overlap, the
    pictures remain noisy.

    parts    (denoise, weight) of each region, weight (1, 1, h, w) from 0 to 1. At each pixel the predictions are
             averaged with these weights, whose sum is above 0 and need not be 1
    x        (B, C, h, w) at this level
    returns  (x0, eps)                                                     (Bar-Tal et al. 2023, "MultiDiffusion")
    """
    total = sum(weight for _, weight in parts)
    x0, eps = torch.zeros_like(x), torch.zeros_like(x)
    for denoise, weight in parts:
        here_x0, here_eps = denoise(x, level)
        x0 = x0 + weight / total * here_x0
        # --- solution
        eps = eps + weight / total * here_eps
        # --- given
        #| eps = eps + weight * here_eps
        # --- end
    return x0, eps


# ------------------------------------------------------------------------------------------ tier 3: reach a goal


def own_move(frames: int) -> Tensor:
    """Exercise 15. Reach a goal: a camera move of your own, which none of the twelve of the lesson is.

    Return the window of each frame. The film is a loop, so frame 0 follows the last one. Your move must

      begin       with the picture itself: x = 0, y = 0, scale = 1
      explore     x and y each cover a range of 0.5 or more, and the scale one from below 1.05 to above 1.5
      stay back   the scale is never below 1, because nearer views need details that the picture does not have
      be uniform  the displacement from each frame to the next, also from the last to the first, is within 3 % of the
                  mean of all
      be smooth   the step changes by less than 0.35 of the mean displacement from one frame to the next

    From window a to window b, the root mean square displacement of the content, over all pixels, is

    sqrt((|c_a - c_b|^2 + (s_a - s_b)^2 / 6) / s_b^2)          c = (x, y), s = scale; 1/6 is the mean of |p|^2 in a square

    and the step that is to be smooth is ((x_b - x_a) / s_b, (y_b - y_a) / s_b, (s_b - s_a) / (sqrt(6) s_b)).

    frames   40 or more
    returns  (frames, 3): x, y (in sides of the picture; y points down) and scale
    """

    # --- solution
    def windows(turn: np.ndarray) -> np.ndarray:
        """A circle through the picture, on which the camera backs off and returns. (N, 3)"""
        return np.stack([0.3 * np.sin(turn), 0.3 * (1 - np.cos(turn)), np.exp(0.25 * (1 - np.cos(turn)))], 1)

    turn = np.linspace(0, 2 * math.pi, 20_001)
    fine = windows(turn)
    steps = np.diff(fine, axis=0) / fine[1:, 2:] * (1, 1, 6**-0.5)
    passed = np.concatenate([[0], np.linalg.norm(steps, axis=1).cumsum()])  # the length of the way up to each point
    equal = np.interp(np.arange(frames) / frames * passed[-1], passed, turn)  # the points at equal lengths
    return torch.from_numpy(windows(equal)).float()
    # --- end


def fill_the_hole(denoise: Denoise, z: Tensor, hole: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """Exercise 16. Reach a goal: inpainting with at most 200 evaluations of a denoiser that knows nothing of holes.

    The data are smooth closed curves from a Gaussian, and `denoise` is their ideal denoiser. So the exact distribution
    of the hole is known (exercise 10), and so is the distance of its samples from the mean. Choose the levels, the
    number of passes, and the noise of the known part. The root mean square distance of your samples from the exact mean
    must be within 15 % of that of exact samples, and the known part must be exactly z.

    A single pass of RePaint with 200 levels ends more than 30 % too far away. Write down first what helps more, more
    levels or more passes.

    denoise  called as denoise(x, level) with any Level with alpha^2 + sigma^2 = 1 and sigma > 0; returns (x0, eps)
    z        (B, n) the known curves, NaN in the hole
    hole     (n,) bool, true in the hole
    noise    called as noise(), returns fresh standard normal noise (B, n)
    returns  (B, n)
    """
    # --- solution
    lams = [-4 + k for k in range(10)]  # log(alpha / sigma)
    levels = [Level((1 + math.exp(-2 * lam)) ** -0.5, (1 + math.exp(2 * lam)) ** -0.5) for lam in lams]
    x = noise()
    for now, then in pairwise([*levels, Level(1.0, 0.0)]):
        r = now.alpha / then.alpha
        fresh = (then.sigma / now.sigma) ** 2 * (now.sigma**2 - (r * then.sigma) ** 2)
        for u in range(20):
            if u > 0:
                x = r * x + math.sqrt(1 - r**2) * noise()
            x0, eps = denoise(x, now)
            inside = then.alpha * x0 + math.sqrt(then.sigma**2 - fresh) * eps + math.sqrt(fresh) * noise()
            x = torch.where(hole, inside, then.alpha * z + then.sigma * noise())
    return x
    # --- end
