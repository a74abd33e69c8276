"""Hints for chapter 6's exercises, each in three steps: a question, a hint, a line of code.

python -m common.grade 06 --hint 3             the question of exercise 3
python -m common.grade 06 --hint 3 --step 2    the hint; --step 3 the line
"""

TIERS: dict[str, int] = {
    "camera_move": 1,
    "composite": 1,
    "clip_loss": 1,
    "nine_channels": 1,
    "repaint_step": 1,
    "zoom_scales": 1,
    "looped": 1,
    "one_palette": 1,
    "name_weight": 1,
    "ideal_inpainting": 1,
    "fix_outpainting": 2,
    "fix_candidates": 2,
    "fix_zoom": 2,
    "fix_regions": 2,
    "own_move": 3,
    "fill_the_hole": 3,
}

DIFFICULTY: dict[str, str] = {
    "camera_move": "easy",
    "composite": "middle",
    "clip_loss": "hard",
    "nine_channels": "middle",
    "repaint_step": "hard",
    "zoom_scales": "middle",
    "looped": "easy",
    "one_palette": "middle",
    "name_weight": "middle",
    "ideal_inpainting": "hard",
    "fix_outpainting": "easy",
    "fix_candidates": "easy",
    "fix_zoom": "middle",
    "fix_regions": "easy",
    "own_move": "hard",
    "fill_the_hole": "hard",
}

HINTS: dict[str, tuple[str, str, str]] = {
    "camera_move": (
        "Pixel (y, x) of the new view looks at which pixel of the picture, and does the picture have it?",
        "It looks at (y + dy, x + dx). Make both index vectors, compare them with 0 and with H and W for the mask, and clamp "
        "them before you index.",
        "seen = (y >= 0) & (y < H) & (x >= 0) & (x < W)",
    ),
    "composite": (
        "For which of the two arrays, the mask or 1 - mask, does distance_transform_edt give the depth in the hole?",
        "For the mask: of each entry that is not 0, it gives the distance to the nearest 0. Mix with "
        "soft = min(1, depth / (radius + 1)), and choose the original outside with torch.where.",
        "return torch.where(mask > 0, original + soft * (painted - original), original)",
    ),
    "clip_loss": (
        "What does F.cross_entropy accept as targets, besides class indices?",
        "A distribution for each row. Give it equal shares of all texts of the same dish, once for L and once for L.T. Then "
        "subtract the mean of log |P_i|.",
        "share = same / same.sum(1, keepdim=True)",
    ),
    "nine_channels": (
        "When does the hole have to be emptied, before the encoder or after it?",
        "Before: the encoder spreads what it sees over neighbouring latents. The order of the channels is x, mask, known.",
        "known = encode(image * (mask < 0.5))",
    ),
    "repaint_step": (
        "x at level k + 1 already has noise. How much has to be added to reach the noise of level k?",
        "sqrt(1 - beta) x + sqrt(beta) eps, with sqrt(1 - beta) = alpha_k / alpha_(k+1). Go back up before every pass but the "
        "first. Choose between hole and known part with torch.where, because z may be NaN in the hole.",
        "x = torch.where(mask > 0, step(x, k), alpha[k + 1] * z + sigma[k + 1] * eps_known[u])",
    ),
    "zoom_scales": (
        "Which formula of s belongs to t = 0.9, and can it be written with 1 - t?",
        "Compute s for min(t, 1 - t), with the two cases below 1/2, and return 1 - s where t > 1/2. The scale is a power of "
        "last / first.",
        "s = torch.where(near < part, v * near**2 / (2 * part), v * (near - part / 2))",
    ),
    "looped": (
        "Which frames must not appear twice in a row, at the turn and at the restart?",
        "On the way back, leave out both the last frame and the first. In the dissolve, both sides move: shot[n + k] and "
        "shot[k], with weights that are never 0 or 1.",
        "w = torch.arange(1, m + 1).view(-1, 1, 1, 1) / (m + 1)",
    ),
    "one_palette": (
        "How do you turn (N, 3, H, W) into a list of pixels, and what is the mean of no pixels?",
        "movedim(1, -1) before reshape(-1, 3). A colour without pixels stays as it is. The numbers belong to the palette "
        "after its last move.",
        "owner = torch.cdist(pixels, palette).argmin(1)",
    ),
    "name_weight": (
        "What is the product of any query with the key of a zero token, and what is e to that power?",
        "It is 0, and e^0 = 1 for each of the zero tokens. So w = e^a / (e^a + zeros). Divide by e^a and write zeros as "
        "e^(log zeros): this is a sigmoid.",
        "w = torch.sigmoid(a - math.log(zeros))",
    ),
    "ideal_inpainting": (
        "Which linear function of x_known makes the error x_hole - A x_known uncorrelated with x_known?",
        "A C_kk = C_hk, with the blocks of C for known (k) and hole (h) pixels. The covariance of the error is "
        "C_hh - A C_kh. Use torch.linalg.solve.",
        "gain = torch.linalg.solve(C[~hole][:, ~hole], C[~hole][:, hole])",
    ),
    "fix_outpainting": (
        "What does the next keyframe take over from this one?",
        "Everything that it still sees. A painter that works in latents changes that part a little each time, so it must "
        "not enter the film.",
        "film.append(torch.where(mask > 0, painted, moved))",
    ),
    "fix_candidates": (
        "Over what does images.norm() sum?",
        "Over the whole matrix, so all embeddings are divided by the same number and their norms stay different. A cosine "
        "needs the norm of each row.",
        "images = images / images.norm(dim=1, keepdim=True)",
    ),
    "fix_zoom": (
        "Which point of the picture should not move, and where does the program send it?",
        "The centre, at H / 2 and W / 2 if pixel k covers the range from k to k + 1. The centre of pixel k is k + 0.5, and "
        "that, too, must be scaled about the centre of the picture.",
        "y = (torch.arange(H) + 0.5 - H / 2) * scale + H / 2",
    ),
    "fix_regions": (
        "What is the sum of the weights of x0 at a pixel of two regions, and what is that of eps?",
        "x0 is averaged with weights whose sum is 1. The weights of eps have the sum `total`, so in an overlap the noise "
        "counts twice.",
        "eps = eps + weight / total * here_eps",
    ),
    "own_move": (
        "If you go round a curve with equal steps of its parameter, are the displacements equal?",
        "No. Compute the curve at many points, add up the displacements between them, and take the points at which the sum "
        "reaches k / frames of the whole (np.interp).",
        "equal = np.interp(np.arange(frames) / frames * passed[-1], passed, turn)",
    ),
    "fill_the_hole": (
        "Why does the inside not match the outside after a single pass, however many levels it has?",
        "Each step draws the inside before it has seen the outside of the next level. So use few levels, for instance ten "
        "with equal steps of log(alpha / sigma), and many passes at each, with new noise for the known part.",
        "levels = [Level((1 + math.exp(-2 * lam)) ** -0.5, (1 + math.exp(2 * lam)) ** -0.5) for lam in range(-4, 6)]",
    ),
}
