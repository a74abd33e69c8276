"""Hints for chapter 2's exercises, each in three steps: a question, a hint, a line of code.

python -m common.grade 02 --hint 3             the question of exercise 3
python -m common.grade 02 --hint 3 --step 2    the hint; --step 3 the line
"""

TIERS: dict[str, int] = {
    "caption_dropout": 1,
    "negative_prompt": 1,
    "guided": 1,
    "dynamic_threshold": 1,
    "rescale": 1,
    "attribute_accuracy": 1,
    "loss_guided_step": 1,
    "cross_attention": 1,
    "tilted_gaussian": 1,
    "fix_training_batch": 2,
    "fix_guided_sampling": 2,
    "fix_masked_attention": 2,
    "guidance_scale": 3,
}

DIFFICULTY: dict[str, str] = {  # easy: 1 or 2 points; middle: 2 or 3; hard: 3 to 5
    "caption_dropout": "easy",
    "negative_prompt": "easy",
    "guided": "easy",
    "dynamic_threshold": "middle",
    "rescale": "middle",
    "attribute_accuracy": "hard",
    "loss_guided_step": "hard",
    "cross_attention": "hard",
    "tilted_gaussian": "hard",
    "fix_training_batch": "middle",
    "fix_guided_sampling": "middle",
    "fix_masked_attention": "middle",
    "guidance_scale": "hard",
}

HINTS: dict[str, tuple[str, str, str]] = {
    "caption_dropout": (
        "u has the shape (B,) and text the shape (B, M, D). With which axis of text does PyTorch align u < p?",
        "It aligns the last axes, and reports no error where B happens to equal D. Give the condition the shape "
        "(B, 1, 1). The batch keeps all its images, so there are still B captions.",
        "torch.where((u < p)[:, None, None], empty, text)",
    ),
    "negative_prompt": (
        "Which caption does guidance lead away from where there is no negative prompt?",
        "The empty one, ''. Make one list of 2B strings, negative captions first, and call encode once.",
        'encode([negative or "" for negative in negatives] + prompts)',
    ),
    "guided": (
        "context holds all empty captions first and then all prompts. In which order must the images come?",
        "In the same order: 0 1 2 0 1 2, which torch.cat makes, and not 0 0 1 1 2 2. The times t are doubled in the same "
        "way. The first half of the network's output is uncond.",
        "uncond, cond = model(torch.cat([x, x]), torch.cat([t, t]), context).chunk(2)",
    ),
    "dynamic_threshold": (
        "How many different values of s has a batch of B images, and what is s for an image within [-1, 1]?",
        "B values, and 1. Flatten each image, take the quantile of its absolute values along dim=1, and bring s to the "
        "shape (B, 1, 1, 1).",
        "s = x0.abs().flatten(1).quantile(share, dim=1).clamp(min=1).view(-1, 1, 1, 1)",
    ),
    "rescale": (
        "Over which axes do you take the standard deviation, and what is its shape then?",
        "Over channels and pixels, for each image alone: (B, 1, 1, 1). A factor for each channel would change the colours.",
        "std_cond, std_guided = (y.flatten(1).std(1).view(-1, 1, 1, 1) for y in (cond, guided))",
    ),
    "attribute_accuracy": (
        "A caption that says nothing of wings was drawn with wings. Is that right, wrong, or neither?",
        "Neither: only entries with asked >= 0 count, in n and in k. Count over all images together, not image by image. "
        "The last division of Wilson's formula is for the whole bracket.",
        "n, k = int((asked >= 0).sum()), int(((asked >= 0) & (found == asked)).sum())",
    ),
    "loss_guided_step": (
        "The gradient is with respect to x_t. Through which two places does x_t enter x0_hat?",
        "Directly, and through the network. So call predict_eps with an x that requires a gradient, within "
        "torch.enable_grad(). Sum the loss over the batch before you differentiate: each image then gets its own gradient. "
        "Detach what you return.",
        "(gradient,) = torch.autograd.grad(loss((x - sigma_t * eps) / math.sqrt(alpha_bar_t)).sum(), x)",
    ),
    "cross_attention": (
        "Each pixel distributes 100 % of its attention over something. Over what, and so over which axis is the softmax?",
        "Over the M tokens, the last axis of the scores (B, heads, N, M). To get the heads, split the last axis first, "
        "(B, N, heads, d), and then move axes; .view(B, heads, N, d) alone mixes pixels up. d is the width of one head.",
        "q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))",
    ),
    "tilted_gaussian": (
        "What is the exponent of p(x)^(1 - w) p(x | c)^w, as a polynomial in x?",
        "-(1 - w) x^2 / 2 - w (x - m)^2 / (2 s^2). The factor of -x^2 / 2 is the precision, 1 / variance. Complete the "
        "square to find the mean.",
        "precision = 1 - w + w / s**2",
    ),
    "fix_training_batch": (
        "How many random numbers decide about the captions of one batch, and how many should?",
        "One decides for all captions. Draw B numbers, and compare each with p. Exercise 1 has the rest.",
        "dropped = torch.rand(B, generator=rng) < p",
    ),
    "fix_guided_sampling": (
        "Follow one prompt: at which place does it enter context, and which half of the output belongs to it?",
        "context holds the empty captions first. So the first half of the output is the unconditional prediction.",
        "uncond, cond = both.chunk(2)",
    ),
    "fix_masked_attention": (
        "Set all scores to 0 by hand. What share of the attention does each token get from the softmax?",
        "Equal shares, because exp(0) = 1. Which score makes exp(score) zero? The mask must act before the softmax, so "
        "that the remaining shares sum to 1.",
        "scores = scores.masked_fill(~mask[:, None, None], -math.inf)",
    ),
    "guidance_scale": (
        "At which noise levels is it decided to which blob a sample goes, and at which only where in the blob it lies?",
        "At much noise the blobs cannot be told apart and the points only drift; at little noise the blob is decided. Try a "
        "large scale within an interval, and a scale near 1 outside of it. Then move the two ends.",
        "return 8.0 if low < noise <= high else 1.5",
    ),
}
