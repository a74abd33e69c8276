"""Hints for chapter 4's exercises, each in three steps: a question, a hint, a line of code.

python -m common.grade 04 --hint 3             the question of exercise 3
python -m common.grade 04 --hint 3 --step 2    the hint; --step 3 the line
"""

TIERS: dict[str, int] = {
    "kl": 1,
    "reparameterise": 1,
    "scaling_factor": 1,
    "noisy_latent": 1,
    "latent_key": 1,
    "img2img_start": 1,
    "decode_picture": 1,
    "sample_latent": 1,
    "kl_of_gaussians": 1,
    "best_posterior": 1,
    "channels_needed": 1,
    "anagram_eps": 1,
    "hybrid_eps": 1,
    "fix_vae_loss": 2,
    "fix_latent_batch": 2,
    "fix_reconstruct": 2,
    "fix_text_to_image": 2,
    "fix_decode": 2,
    "sample_prior": 3,
}

DIFFICULTY: dict[str, str] = {
    "kl": "easy",
    "reparameterise": "easy",
    "scaling_factor": "middle",
    "noisy_latent": "middle",
    "latent_key": "middle",
    "img2img_start": "easy",
    "decode_picture": "easy",
    "sample_latent": "hard",
    "kl_of_gaussians": "middle",
    "best_posterior": "hard",
    "channels_needed": "middle",
    "anagram_eps": "middle",
    "hybrid_eps": "easy",
    "fix_vae_loss": "middle",
    "fix_latent_batch": "easy",
    "fix_reconstruct": "easy",
    "fix_text_to_image": "middle",
    "fix_decode": "easy",
    "sample_prior": "hard",
}

HINTS: dict[str, tuple[str, str, str]] = {
    "kl": (
        "A batch that is twice as large has twice as many results. Over which axes does the sum run?",
        "Over channels and positions, but not over the batch. logvar is a logarithm already: var is exp(logvar), and "
        "log var is logvar. Do not convert to Python numbers, which have no gradient.",
        "return (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2",
    ),
    "reparameterise": (
        "logvar is the logarithm of the variance. What is the logarithm of the standard deviation?",
        "Half of it, because the standard deviation is the root of the variance. eps comes from outside, so that the "
        "result is an ordinary function of mean and logvar.",
        "return mean + (logvar / 2).exp() * eps",
    ),
    "scaling_factor": (
        "Two batches have the same standard deviation but different means. Is that the standard deviation of both together?",
        "No: the means count, too. Add up the number of components, their sum and the sum of their squares, all in double "
        "precision, and compute the variance at the end.",
        "return 1 / math.sqrt(squares / n - (total / n) ** 2)",
    ),
    "noisy_latent": (
        "Which three tensors of the formulas have the shape (B,), and which axis of the latents do they belong to?",
        "alpha and sigma belong to the first axis; give them the shape (B, 1, 1, 1). Scale the latents before the noise is "
        "added. v needs no division: use the formula as it stands.",
        "z = scale * (mean + std * eps_z)",
    ),
    "latent_key": (
        "Two tensors have the same bytes. In which ways can they still differ?",
        "In name, shape and dtype: hash these as text together with the bytes. Sort all entries by name. "
        "json.dumps(settings, sort_keys=True) makes a text of the settings, names and values.",
        'digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())',
    ),
    "img2img_start": (
        "There are N + 1 levels. How many steps are between them?",
        "N. The last round(strength * N) of them are walked. The noise is that of the level at which the first step begins.",
        "first = N - round(strength * N)",
    ),
    "decode_picture": (
        "Why would a pixel of 1.01 become black without clipping, and one of 254.9 become 254 without rounding?",
        "A byte holds 0 to 255, and .to(torch.uint8) cuts off the fraction. Clip the decoded image, not the latents.",
        "return ((image + 1) * 127.5).round().to(torch.uint8)",
    ),
    "sample_latent": (
        "context holds the unconditional captions first. In which order must the latents come, and which half is uncond?",
        "All latents, then all again: torch.cat([x, x]). The first half of the output is uncond. Step k starts at level k "
        "and is given times[k].",
        "uncond, cond = network(torch.cat([x, x]), times[k].expand(2 * len(x)), context).chunk(2)",
    ),
    "kl_of_gaussians": (
        "log q(z) = -(z - mean_q)^2 / (2 std_q^2) - log std_q + constant. What is the mean of (z - mean_q)^2 under q, and of "
        "(z - mean_p)^2?",
        "std_q^2, and std_q^2 + (mean_q - mean_p)^2. The constants of the two densities cancel.",
        "math.log(std_p / std_q) + (std_q**2 + (mean_q - mean_p) ** 2) / (2 * std_p**2) - 0.5",
    ),
    "best_posterior": (
        "What is E[(x - slope (mean + std eps))^2] if eps has mean 0 and variance 1?",
        "(x - slope mean)^2 + slope^2 std^2. The derivative with respect to mean is linear in mean; the one with respect to "
        "std is slope^2 std / r^2 + beta std - beta / std.",
        "std = math.sqrt(beta / (slope**2 / r**2 + beta))",
    ),
    "channels_needed": (
        "Which mean squared error of a pixel value has a PSNR of 20 dB? And what is it if all directions are dropped?",
        "0.04, and the sum of all eigenvalues divided by D. Sort the eigenvalues, largest first, and drop as many of the "
        "smallest as the error allows.",
        "error = float(largest_first[c:].sum()) / len(largest_first)",
    ),
    "anagram_eps": (
        "The network predicts the noise of the turned latents. Which part of the original does a position of it belong to?",
        "To a turned position. Turn each prediction back with its inverse before you take the mean; the mean of the K predictions is "
        "one tensor (B, C, h, w).",
        "eps = [inverse(predict(view(x), text)) for text, view, inverse in zip(texts, views, inverses, strict=True)]",
    ),
    "hybrid_eps": (
        "What remains of a picture if you subtract its blurred version?",
        "Its high frequencies. Take the low frequencies of one prediction and the high ones of the other. If both prompts are equal, the "
        "result must be the plain prediction.",
        "return blur(eps_far) + eps_near - blur(eps_near)",
    ),
    "fix_vae_loss": (
        "Take an image with 12,288 pixel values and 1,024 latents. Over how many terms does each part of the loss run, and is it a "
        "sum or a mean?",
        "The bound has a sum over pixels and a sum over latents. A mean over the latents divides beta by their number.",
        "divergence = (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)) / 2",
    ),
    "fix_latent_batch": (
        "Compute the standard deviation of x at alpha = 1, 0.7 and 0. What should it be?",
        "1 at all levels, if the latents have unit variance. One argument of the function is never used.",
        "z = scale * latents",
    ),
    "fix_reconstruct": (
        "Which latents does training need to be random, and which latents describe an image best?",
        "Training draws latents so that the decoder learns the neighbourhood of each code. A reconstruction uses the mode of "
        "the posterior, which is its mean.",
        "y = decode(mean).clamp(-1, 1)",
    ),
    "fix_text_to_image": (
        "Which half of the network's output is called uncond, and which captions does this half get?",
        "The first half. So the first B captions must be those that guidance leads away from.",
        "text = encode_text([negative] * B + prompts)",
    ),
    "fix_decode": (
        "What is multiplied by scale during training: images or latents?",
        "Latents, before the diffusion model sees them. So undo it before the decoder; the decoder is not linear, and its "
        "images need no factor.",
        "return decode(z / scale).clamp(-1, 1)",
    ),
    "sample_prior": (
        "Which of the two numbers does torch.randn(n, 2) miss, and which one codes[torch.randint(len(codes), (n,))]?",
        "The first misses the distance, the second makes copies. Something in between: an old code plus a little noise. How much "
        "noise can the distance bear?",
        "codes[torch.randint(len(codes), (n,), generator=rng)] + width * torch.randn(n, 2, generator=rng)",
    ),
}
