"""Hints for chapter 5's exercises, each in three steps: a question, a hint, a line of code.

python -m common.grade 05 --hint 3             the question of exercise 3
python -m common.grade 05 --hint 3 --step 2    the hint; --step 3 the line
"""

TIERS: dict[str, int] = {
    "new_adapter": 1,
    "merge_adapters": 1,
    "accumulate": 1,
    "averaged": 1,
    "prior_loss": 1,
    "weigh_word": 1,
    "controlled": 1,
    "inpaint": 1,
    "img2img_start": 1,
    "from_kohya": 1,
    "first_update": 1,
    "merged_std": 1,
    "ema_half_life": 1,
    "fix_training_loop": 2,
    "fix_img2img": 2,
    "fix_min_snr": 2,
    "merge_to_rank": 3,
}

DIFFICULTY: dict[str, str] = {  # easy: 1 or 2 points; middle: 2 or 3; hard: 3 to 5
    "new_adapter": "easy",
    "merge_adapters": "easy",
    "accumulate": "middle",
    "averaged": "middle",
    "prior_loss": "easy",
    "weigh_word": "middle",
    "controlled": "easy",
    "inpaint": "hard",
    "img2img_start": "easy",
    "from_kohya": "middle",
    "first_update": "hard",
    "merged_std": "middle",
    "ema_half_life": "easy",
    "fix_training_loop": "middle",
    "fix_img2img": "middle",
    "fix_min_snr": "middle",
    "merge_to_rank": "hard",
}

HINTS: dict[str, tuple[str, str, str]] = {
    "new_adapter": (
        "An optimizer takes leaf tensors. Is torch.randn(..., requires_grad=True) / rank a leaf?",
        "No, it is the result of a division. Compute the numbers first, and require the gradient last. Give rng to "
        "torch.randn, and do not seed anything.",
        "A = (torch.randn(rank, W.shape[1], generator=rng) / rank).requires_grad_()",
    ),
    "merge_adapters": (
        "Which of the products A B and B A has the shape (out, in)? And where do you see the rank of an adapter?",
        "B A. The rank is the number of rows of A. Start from a copy of W, so that the result is a new matrix even "
        "without adapters.",
        "merged = merged + scale * alpha / len(A) * B @ A",
    ),
    "accumulate": (
        "Three images in one part and one in another: what is the weight of each in the mean over all four?",
        "A quarter. So divide the sum of a part's errors by the number of all images, not by that of the part. Gradients "
        "add up in weights.grad by themselves; empty it once, before the first part.",
        "(error(weights, part).sum() / N).backward()",
    ),
    "averaged": (
        "What does kept = list(weights) keep: the numbers, or the tensors that you are about to overwrite?",
        "The tensors. Keep clones. Then write the averages, and call draw in a `try` whose `finally` writes the clones "
        "back; `return draw()` works inside `try`.",
        "kept = [weight.detach().clone() for weight in weights]",
    ),
    "prior_loss": (
        "With 2 images of the subject and 6 class images, which weight does a single class image have in the loss?",
        "prior / 6. Take a mean over each group. A mean over no elements is NaN, and 0 * NaN is NaN as well, so leave an "
        "empty group out.",
        "each[~is_class].mean() + prior * each[is_class].mean()  # where both groups have images",
    ),
    "weigh_word": (
        "Which shape must the weights have, so that each token's vector is multiplied by one number?",
        "(M, 1); (M,) would run along the D components. For w < 1 move z and hidden by the same s, and mix them as 1 : r.",
        "s = torch.where(word, w, 1.0)[:, None]",
    ),
    "controlled": (
        "At scale 0 the U-Net must be unchanged. So which terms does the scale multiply?",
        "The whole output of the convolution, kernel and bias, and not the features. Detach nothing: residuals and kernels "
        "must both get a gradient.",
        "f + scale * F.conv2d(r, K, b)",
    ),
    "inpaint": (
        "step(x, k) leads to level k + 1. Which noise level must the known part have when you put it back?",
        "That of k + 1, also at the end, where it is clean. Shrink the mask once, so that any masked pixel counts: "
        "F.max_pool2d does that.",
        "x = m * step(x, k) + (1 - m) * (alpha[k + 1] * z + sigma[k + 1] * eps)",
    ),
    "img2img_start": (
        "What is times[-n:] if n is 0?",
        "The whole list. Slice from the front, times[len(times) - n:]. The level is that of the first timestep that "
        "remains; alpha and sigma are roots.",
        "n = min(int(strength * len(times)), len(times))",
    ),
    "from_kohya": (
        "Which way is unambiguous: from the model's name of a layer to the file's name, or back?",
        "The first. Build a dict from the file's name to the model's name for all layers, and look the names of the file "
        "up in it. The part before the first '.' is the layer.",
        'known = {"lora_unet_" + layer.replace(".", "_"): layer for layer in layers}',
    ),
    "first_update": (
        "B is 0. What is then dL/dA, and so how far does A move in the first step?",
        "dL/dA = alpha / r B^T G = 0, so A stays. dL/dB = alpha / r G A^T. Put the new B into alpha / r B A.",
        "B = -lr * alpha / len(A) * G @ A.T",
    ),
    "merged_std": (
        "An entry of B A is a sum of how many products, and what is the variance of one product of independent numbers with mean 0?",
        "A sum of r products with the variance a^2 b^2 each. Factors multiply the variance by their square, and variances of "
        "independent terms add up.",
        "variance = (scale * alpha / r) ** 2 * r * (a * b) ** 2",
    ),
    "ema_half_life": (
        "Which share does the initial value have after 1, 2, 3 steps?",
        "decay, decay^2, decay^3. Solve decay^n = 1/2 for n by taking logarithms.",
        "math.log(0.5) / math.log(decay)",
    ),
    "fix_training_loop": (
        "Four batches of a quarter of the size: how does the sum of their mean gradients compare with the gradient of the large batch?",
        "It is four times as large. The large batch's gradient is their mean. The average is fine as it is.",
        "total = total + gradient(weights, k) / accumulation",
    ),
    "fix_img2img": (
        "Write down the noise level of x before the loop, and the timestep with which the loop begins. Do they agree?",
        "Only for n = N. The level must be taken after the list of timesteps was cut.",
        "times = times[len(times) - n :]  # before a = alpha_bar[times[0]]",
    ),
    "fix_min_snr": (
        "x0 = alpha x - sigma v. If v is wrong by e, by how much is x0 wrong?",
        "By sigma e, so its squared error is sigma^2 e^2, and sigma^2 = 1 / (SNR + 1). Multiply min(SNR, gamma) by that.",
        "return snr.clamp(max=gamma) / (snr + 1)",
    ),
    "merge_to_rank": (
        "Which matrix of rank r is nearest to D in the sum of squares?",
        "The one of the r largest singular values (Eckart & Young). Give the root of each singular value to A and to B, so "
        "that both have the same size.",
        "U, S, V = torch.linalg.svd(D, full_matrices=False)",
    ),
}
