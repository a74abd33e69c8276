"""Chapter 6 with your own hands: eight functions, from a hole that a camera leaves open to the colours of a GIF.

Work from top to bottom. exercises.py is for you to fill in; solutions.py shows one way to do it. None needs another.

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
from collections.abc import Callable

import torch  # noqa: F401
import torch.nn.functional as F  # noqa: F401
from scipy.ndimage import distance_transform_edt  # noqa: F401
from torch import Tensor

Encode = Callable[[Tensor], Tensor]  # (B, 3, H, W) images -> (B, c, h, w) latents
Step = Callable[[Tensor, int], Tensor]  # x at level k, k -> x at level k + 1


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

    The outermost pixels of the hole have depth 1;
    from there the new picture fades in, and it is alone from depth radius + 1 on.

    original  (C, H, W)
    painted   (C, H, W) what a network gave back; where the picture is known, it may hold anything, even NaN
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
    """Exercise 3. What teaches CLIP: each image finds its name, and each name its image,
    among all others of the batch.

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

    Watch out: a cosine has nothing to do with how long the vectors are.
    Which axis does the softmax run along, each time?
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
    z             (B, C, h, w) the clean picture; what it is in the hole does not matter
    mask          (B, 1, h, w)
    alpha, sigma  (N + 1,) the levels, noisiest first; alpha_N = 1, sigma_N = 0
    eps_known     (U, B, C, h, w) noise, each time another
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
    """Exercise 6. A zoom without a jerk: it starts and ends gently, and between the two it always looks equally fast.

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
