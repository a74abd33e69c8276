"""Hints for chapter 3's exercises, each in three steps: a question, a hint, a line of code.

python -m common.grade 03 --hint 3             the question of exercise 3
python -m common.grade 03 --hint 3 --step 2    the hint; --step 3 the line
"""

TIERS: dict[str, int] = {
    "respace": 1,
    "zero_terminal_snr": 1,
    "v_prediction": 1,
    "snr_weight": 1,
    "flow_matching_loss": 1,
    "ddim_step": 1,
    "heun_step": 1,
    "slerp": 1,
    "reflow_pairs": 1,
    "marginal_velocity": 1,
    "matching_losses": 1,
    "dpmpp_2m_step": 1,
    "fix_respaced_ddpm": 2,
    "fix_heun_sampling": 2,
    "fix_flow_sampling": 2,
    "fix_consistency_loss": 2,
    "ten_evaluations": 3,
}

DIFFICULTY: dict[str, str] = {  # easy: 1 or 2 points; middle: 2 or 3; hard: 3 to 5
    "respace": "easy",
    "zero_terminal_snr": "middle",
    "v_prediction": "easy",
    "snr_weight": "easy",
    "flow_matching_loss": "easy",
    "ddim_step": "middle",
    "heun_step": "middle",
    "slerp": "middle",
    "reflow_pairs": "easy",
    "marginal_velocity": "hard",
    "matching_losses": "middle",
    "dpmpp_2m_step": "hard",
    "fix_respaced_ddpm": "middle",
    "fix_heun_sampling": "middle",
    "fix_flow_sampling": "middle",
    "fix_consistency_loss": "middle",
    "ten_evaluations": "hard",
}

HINTS: dict[str, tuple[str, str, str]] = {
    "respace": (
        "Which level comes before the first visited one, and what is its alpha_bar?",
        "The clean image, alpha_bar_0 = 1. Take alpha_bar at 0 and at all visited levels, then compare neighbours.",
        "visited = alpha_bar[[0, *times]]",
    ),
    "zero_terminal_snr": (
        "Which entry of alpha_bar is the paper's first, and which entry must stay 1?",
        "The paper's first entry is alpha_bar[1]; alpha_bar[0] is the clean image. Shift and stretch the square roots of "
        "the others, then square them.",
        "root = (root - root[-1]) * root[0] / (root[0] - root[-1])",
    ),
    "v_prediction": (
        "(x, v) is (x0, eps) turned by an angle. Which angle turns it back, and does that need a division?",
        "The opposite angle, with no division, so alpha = 0 does no harm. Give alpha and sigma the shape (B, 1, 1, 1) first.",
        "return alpha * x - sigma * v, sigma * x + alpha * v",
    ),
    "snr_weight": (
        "Of the two SNRs in min(SNR, gamma) / SNR, which one is limited by gamma?",
        "Only the one above. SNR is the ratio of the squares, alpha^2 / sigma^2.",
        "capped = ((alpha / sigma) ** 2).clamp(max=gamma)",
    ),
    "flow_matching_loss": (
        "x_t moves along a straight line as t goes from 0 to 1. What is its derivative with respect to t?",
        "eps - x0, at every t. For x_t, t needs the shape (B, 1, 1, 1); the network gets it as (B,).",
        "x_t = (1 - t.view(-1, 1, 1, 1)) * x0 + t.view(-1, 1, 1, 1) * eps",
    ),
    "ddim_step": (
        "All noise in x' together has the variance 1 - alpha_bar'. How much of it is left for eps if fresh z is added?",
        "Variances add, so 1 - alpha_bar' - fresh^2. At t_next = 0, alpha_bar' = 1: check that both factors are then 0.",
        "fresh = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()",
    ),
    "heun_step": (
        "Where is the second evaluation: at which x, and at which level?",
        "At `ahead`, where Euler's step leads, and at the level `then`. At then.sigma = 0 there is no second one. The "
        "averaged step starts from x again.",
        "x0_ahead, eps_ahead = denoise(ahead, then)",
    ),
    "slerp": (
        "What are the cosine of a noise with itself, with rounding, and the arccosine of 1.0000001?",
        "Clamp the cosine to [-1, 1]. Compute both results, arc and straight line, and let torch.where choose for each "
        "image. NaN in the result that is not chosen does no harm, but avoid dividing by 0.",
        "angle = (dot / (length_a * length_b).sqrt()).clamp(-1, 1).acos()",
    ),
    "reflow_pairs": (
        "At which t does sampling begin, and does t grow or fall?",
        "It begins with noise at t = 1 and falls to 0, so a step of length 1 / steps subtracts the velocity at its "
        "beginning. The pairs are data: generate them within torch.no_grad().",
        "x = x - velocity(x, torch.full((len(x),), 1 - k / steps)) / steps",
    ),
    "marginal_velocity": (
        "If x_t = x and x0 are given, what is eps, and what is its density?",
        "eps = (x - (1 - t) x0) / t, with the density exp(-|eps|^2 / 2) up to a factor. So the images have the shares "
        "softmax(-|eps|^2 / 2) over the data set, and eps - x0 = (x - x0) / t. Average that.",
        "share = (-(x[:, None] - (1 - time)[:, None] * points).square().sum(2) / (2 * time**2)).softmax(1)",
    ),
    "matching_losses": (
        "What do both losses have in common, and in what do they differ?",
        "The network is evaluated once, at the same x_t and t. The targets differ: eps - x0, and the marginal velocity. "
        "Detach nothing of the prediction.",
        "return (predicted - (eps - x0)).square().mean(), (predicted - average).square().mean()",
    ),
    "dpmpp_2m_step": (
        "In which two cases does the general formula not work?",
        "At the first step there is no x0_old, so D is x0. At the last one lambda' is infinite, so e^-h = 0 and x' is "
        "alpha' x0. math.expm1(-h) is e^-h - 1.",
        "return then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * D",
    ),
    "fix_respaced_ddpm": (
        "With all levels visited, t_next is t - 1. Which places of the program assume that this always holds?",
        "beta compares the level t with the one before it in the short chain. That is t_next, and not t - 1.",
        "now, before = alpha_bar[t], alpha_bar[t_next]",
    ),
    "fix_heun_sampling": (
        "How noisy is `ahead`?",
        "It has the noise of the level `then`. A denoiser that gets another level predicts too much noise.",
        "x0_ahead, eps_ahead = denoise(ahead, then)",
    ),
    "fix_flow_sampling": (
        "In the first step x is pure noise. Which t has pure noise in the training of exercise 5, and which t does the "
        "program use?",
        "t = 1, but the program uses 0. The direction of x is right, because it subtracts the velocity. So only t must be turned.",
        "t = torch.full((len(x),), 1 - k / steps)",
    ),
    "fix_consistency_loss": (
        "The loss is the distance between two predictions. In which two ways can gradient descent make it smaller?",
        "It can move the prediction to the target, or the target to the prediction. Only the first should happen, because "
        "the target is closer to the data.",
        "target = f(x_then, then).detach()",
    ),
    "ten_evaluations": (
        "How many evaluations do ten steps need with Euler's method, with Heun's, and with DPM-Solver++(2M)?",
        "10, 19 and 10. A method of second order with one evaluation a step, and levels evenly spaced in the logarithm of "
        "sigma. The last level above 0 matters: try values from 0.01 to 0.2.",
        "sigmas = [sigma_max * (low / sigma_max) ** (k / 9) for k in range(10)] + [0.0]",
    ),
}
