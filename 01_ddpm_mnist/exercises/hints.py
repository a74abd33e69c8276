"""Hints to chapter 1's exercises in three steps, shown by `python -m common.grade 01 --hint 2 --step 1`:
a question, a hint, a line of code.
"""

HINTS: dict[str, tuple[str, str, str]] = {
    "alpha_bars": (
        "The result has one entry more than betas. What is alpha_bar_0, before any noise was added?",
        "Nothing is lost at step 0, so the list begins with 1. A cumulative product gives all other entries at once.",
        "(1 - betas).cumprod(0)",
    ),
    "add_noise": (
        "alpha_bar[t] has shape (B,). With which axis of the images does PyTorch line it up?",
        "With the last axis, the columns of pixels; where B equals W there is no error. Give it the shape (B, 1, 1, 1).",
        "a = alpha_bar[t].view(-1, 1, 1, 1)",
    ),
    "guess_x0": (
        "Equation 4 makes x_t of x_0. Which of its terms do you know?",
        "You know all but x_0: subtract the noise with its weight, then divide by the weight of the image.",
        "x_t - (1 - a).sqrt() * eps",
    ),
    "score_of": (
        "The density of eq. 4 for one image is normal, with mean sqrt(alpha_bar_t) x_0 and variance 1 - alpha_bar_t. "
        "What is the gradient of its logarithm?",
        "It is -(x_t - mean) / variance, and x_t - mean is sqrt(1 - alpha_bar_t) eps. One square root cancels.",
        "(1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1)",
    ),
    "time_embedding": (
        "How many angles are there for one t, and which shape has the table of all angles of the batch?",
        "The table is (B, half): a column of times divided by a row of dim / 2 powers of 10000.",
        "angle = t.float()[:, None] / 10_000 ** (torch.arange(half) / half)",
    ),
    "add_class_embedding": (
        "Which row of the table belongs to the third image of the batch?",
        "The row number label[2]. Indexing a tensor with a tensor of integers picks a row for each of them.",
        "table[label]",
    ),
    "training_loss": (
        "Which level does the network expect for t = 1, and which values does it expect for a black pixel?",
        "The network counts from 0, so it is given t - 1. Black is -1 and white is 1, because the noise has mean 0 too.",
        "x0 = pixels.float() / 127.5 - 1",
    ),
    "training_step": (
        "What does loss.backward() do with the gradients that are already stored in the parameters?",
        "It adds to them, so clear them first. The average comes last, and it is no part of the graph of gradients: "
        "wrap it in torch.no_grad().",
        "mean.copy_(decay * mean + (1 - decay) * weight)",
    ),
    "langevin_step": (
        "The noise has variance delta. By what do you multiply z?",
        "By the standard deviation, the square root of delta. The score is multiplied by half of delta.",
        "delta**0.5 * z",
    ),
    "reverse_step": (
        "How do you get beta_t from alpha_bar_t and alpha_bar_{t-1}? And what is the variance at t = 1?",
        "alpha_bar_t / alpha_bar_{t-1} is 1 - beta_t. At t = 1 the factor 1 - alpha_bar_0 is 0, so no `if` is needed. "
        "z is multiplied by the square root of the variance.",
        "beta = 1 - alpha_bar[t] / alpha_bar[t - 1]",
    ),
    "sample": (
        "Which alpha_bar comes after that of level 40 if the next level to visit is 20?",
        "The entries of alpha_bar at 0 and at `times` are the alpha_bar of a shorter chain. Walk that chain back with "
        "reverse_step, and give the network the level of the long chain, less 1.",
        "chain = alpha_bar[[0, *times]]",
    ),
    "frechet_distance": (
        "The formula holds the trace of a matrix square root, (A B)^(1/2). How does it follow from the eigenvalues of A B?",
        "A square root of a matrix has the square roots of its eigenvalues, and a trace is the sum of the eigenvalues. "
        "Rounding makes some a little negative or complex: take the real part, at least 0.",
        "root = torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()",
    ),
    "posterior_variance": (
        "Among pairs with the same x_t, x_{t-1} still varies. How do you remove from x_{t-1} what x_t explains?",
        "Both numbers are jointly normal, so the mean of x_{t-1} given x_t is a straight line. Fit it to the pairs by "
        "least squares; the variance of the residuals is the answer. (Pairs with x_t in a narrow window work too.)",
        "slope = (a * b).mean() / b.square().mean()",
    ),
    "tweedie_mean": (
        "What is the gradient of log N(x_t; sqrt(alpha_bar) x_0, 1 - alpha_bar) with respect to x_t?",
        "It is (sqrt(alpha_bar) x_0 - x_t) / (1 - alpha_bar), and the gradient of log p_t is its average over the x_0 that "
        "x_t may come from. Solve for the average. Points are independent, so one gradient of the sum serves all of them.",
        "(score,) = torch.autograd.grad(log_density(x).sum(), x)",
    ),
    "fix_last_step": (
        "What is added to the image after the last evaluation of the network, and what removes it again?",
        "Nothing removes it. Print beta at t = 1, and compare algorithm 2, line 3, of the paper.",
        "if t > 1",
    ),
    "fix_range": (
        "Print the smallest and the largest value of x0, and of what the last line expects. Are they the same?",
        "The last line maps -1 to 0 and 1 to 255. The first line must be its inverse.",
        "pixels / 127.5 - 1",
    ),
    "fix_levels": (
        "Print, for one level k that the network is given, the alpha_bar of its images in training and in sampling.",
        "In sampling the network is given level - 1 with the noise of alpha_bar[level]. Do the same in training. Which "
        "level does training never see, and what does it learn from alpha_bar[0]?",
        "torch.randint(1, T + 1, (len(x0),), generator=generator)",
    ),
    "fix_training_log": (
        "Print log[-1] after a few steps. What does it hold besides a number?",
        "It has a grad_fn. A tensor that was computed from the loss keeps the graph of this loss, and through the "
        "previous value the graphs of all losses before it.",
        "loss.item()",
    ),
    "fifteen_evaluations": (
        "In which part of the way does the predicted noise change most from step to step: at high or at low noise levels?",
        "At low ones, where it is decided which blob a point belongs to and how narrow the blobs are. Visit more levels "
        "there. And you may keep the predicted noise instead of drawing new noise.",
        "times = [round(T * (k / 15) ** 2) for k in range(15, -1, -1)]",
    ),
}

TIERS: dict[str, int] = {
    "alpha_bars": 1,
    "add_noise": 1,
    "guess_x0": 1,
    "score_of": 1,
    "time_embedding": 1,
    "add_class_embedding": 1,
    "training_loss": 1,
    "training_step": 1,
    "langevin_step": 1,
    "reverse_step": 1,
    "sample": 1,
    "frechet_distance": 1,
    "posterior_variance": 1,
    "tweedie_mean": 1,
    "fix_last_step": 2,
    "fix_range": 2,
    "fix_levels": 2,
    "fix_training_log": 2,
    "fifteen_evaluations": 3,
}

DIFFICULTY: dict[str, str] = {  # easy: 1 or 2 points; middle: 2 or 3; hard: 3 to 5
    "alpha_bars": "easy",
    "add_noise": "middle",
    "guess_x0": "easy",
    "score_of": "easy",
    "time_embedding": "easy",
    "add_class_embedding": "easy",
    "training_loss": "middle",
    "training_step": "middle",
    "langevin_step": "easy",
    "reverse_step": "middle",
    "sample": "hard",
    "frechet_distance": "middle",
    "posterior_variance": "hard",
    "tweedie_mean": "hard",
    "fix_last_step": "middle",
    "fix_range": "easy",
    "fix_levels": "middle",
    "fix_training_log": "middle",
    "fifteen_evaluations": "hard",
}
