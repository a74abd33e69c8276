"""The glossary: its sections exist in the lessons, every row is complete, and no symbol of a paper is left open.
The claims: each has a source, a command and a finding, and no other text calls one by a number.
"""

import re

import pytest

from helpers.programs import ROOT
from helpers.source import label, own_files

CLAIMS = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS, PAPERS = GLOSSARY.split("## The symbols of five papers")
SECTIONS = {
    (folder.name[1:2], number)
    for folder in ROOT.glob("0[1-6]_*")
    for number in re.findall(r"^# ## (\d+) ·", (folder / "lesson.py").read_text(encoding="utf-8"), re.MULTILINE)
}
SYMBOLS = {  # of the method sections of the papers, as the glossary writes them, with a bar between
    "DDPM": r"q(x_0) | x_{1:T} | x_{0:T} | $T$ | \beta_t | $\alpha_t$ | \bar\alpha_t | q(x_t \mid x_{t-1}) | q(x_t \mid x_0) | p(x_T) | "
    r"p_\theta(x_{t-1} \mid x_t) | p_\theta(x_{0:T}) | p_\theta(x_0) | \mu_\theta(x_t, t) | \Sigma_\theta(x_t, t) | \sigma_t^2 | "
    r"\tilde\mu_t(x_t, x_0) | \tilde\beta_t | $L$ | L_T | L_{t-1} | L_0 | \mathbb{E}_q | D_{\mathrm{KL}} | \epsilon_\theta | $z$ | "
    r"x_t(x_0, \epsilon) | \nabla_\theta | L_{\text{simple}} | $C$ | $D$ | \mu_\theta^i | \delta_+ | \delta_-",
    "DDIM": r"$\alpha_t$ | L_\gamma | \gamma_t | q_\sigma(x_{1:T} \mid x_0) | q_\sigma(x_{t-1} \mid x_t, x_0) | q_\sigma(x_t \mid x_{t-1}, x_0) | "
    r"$\sigma_t$ | f_\theta^{(t)} | \epsilon_\theta^{(t)} | p_\theta^{(t)} | J_\sigma | \eta | \hat\sigma_t | \tau_i | $S$ | \dim(\tau) | \bar x | "
    r"\sigma(t) | \Delta t",
    "Classifier-free guidance": r"$x$ | z_\lambda | $z$ | p(x) | p(z_\lambda) | p(z_\lambda \mid c) | \lambda = | \alpha_\lambda | \sigma_\lambda | "
    r"\lambda_{\min} | \lambda_{\max} | p(\lambda) | $u$ | $a$ | $b$ | q(z_\lambda \mid x) | q(z_\lambda \mid z_{\lambda'}) | "
    r"\sigma^2_{\lambda \mid \lambda'} | \tilde\mu_{\lambda' \mid \lambda} | \tilde\sigma^2_{\lambda' \mid \lambda} | "
    r"p_\theta(z_{\lambda'} \mid z_\lambda) | $v$ | x_\theta | \epsilon_\theta(z_\lambda, c) | \epsilon^* | \tilde\epsilon_\theta | \tilde\epsilon_t | "
    r"p_\theta(c \mid z_\lambda) | \nabla_{z_\lambda} | \tilde p_\theta | p^i(c \mid z_\lambda) | $w$ | \varnothing | p_{\text{uncond}} | "
    r"\lambda_T | $z_t$ | \tilde x_t",
    "EDM": r"$y$ | $n$ | p_{\text{data}} | \sigma_{\text{data}} | p(x; \sigma) | \sigma(t) | \dot\sigma(t) | s(t) | \dot s(t) | \hat x = x/s(t) | "
    r"\nabla_x \log p(x; \sigma) | D(x; \sigma) | D_\theta | F_\theta | c_{\text{skip}} | c_{\text{out}} | c_{\text{in}} | c_{\text{noise}} | "
    r"\lambda(\sigma) | p_{\text{train}}(\sigma) | P_{\text{mean}} | P_{\text{std}} | \sigma_{\min} | \sigma_{\max} | \rho | t_i | $N$ | d_i | d_i' | "
    r"\gamma_i | \hat t_i | \hat x_i | \epsilon_i | S_{\text{churn}} | S_{\text{tmin}} | S_{\text{tmax}} | S_{\text{noise}} | \beta(t) | \omega_t | "
    r"\beta_d | \beta_{\min} | \epsilon_s | \epsilon_t | u_j | $M$ | j_0 | \bar\alpha_j | C_1 | C_2",
    "Flow matching": r"$t$ | \mathbb{R}^d | \mathcal{U} | x_1 \sim q | x_0 \sim p_0 | p_t | v_t(x; \theta) | \phi_t | [\phi_t]_*p_0 | \phi_t^{-1} | \det | u_t(x) | "
    r"p_t(x \mid x_1) | u_t(x \mid x_1) | \mu_t(x_1) | \sigma_t(x_1) | \mu_t' | \sigma_t' | \psi_t(x) | L_{\text{FM}} | L_{\text{CFM}} | \sigma_{\min} | "
    r"\alpha_t | \beta(s) | T(t)",
}


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, without headings. A bar within $...$ is \\mid or \\Vert, so it splits no cell."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "|---" not in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[-1] != "where"]


def test_tables_are_read():
    assert len(rows(TERMS)) > 100 and len(rows(PAPERS)) > 60 and len(SECTIONS) > 50


@pytest.mark.parametrize("row", rows(TERMS), ids=lambda row: row[0])
def test_a_term_has_chinese_and_a_section(row):
    term, _, chinese, where = row
    assert term and re.search(r"[\u4e00-\u9fff]|U-Net", chinese)
    assert tuple(where.split(" · ")) in SECTIONS, f"there is no section {where}"


@pytest.mark.parametrize("row", rows(PAPERS), ids=lambda row: row[0])
def test_a_papers_symbol_has_a_meaning(row):
    symbol, meaning, where = row
    assert symbol and meaning
    assert where == "–" or tuple(where.split(" · ")) in SECTIONS, f"there is no section {where}"


@pytest.mark.parametrize("paper", SYMBOLS)
def test_the_symbols_of_a_method_section_are_listed(paper):
    section = PAPERS.split(f"### {paper}")[1].split("### ")[0]
    listed = " ".join(row[0] for row in rows(section))
    assert [symbol for symbol in SYMBOLS[paper].split(" | ") if symbol not in listed] == []


def test_no_term_stands_twice():
    terms = [row[0] for row in rows(TERMS)]
    assert len(terms) == len(set(terms))


def test_every_claim_is_complete():
    """And the table at the top names it."""
    claims = re.split(r"^### ", CLAIMS, flags=re.MULTILINE)
    assert len(claims) == 14
    for claim in claims[1:]:
        title = claim.splitlines()[0]
        assert f"[{title}](#" in claims[0]
        parts = re.findall(r"^\*\*(\w+)\.\*\* \S", claim, re.MULTILINE)
        assert parts == ["Claim", "Source", "Command", "Found"], title


@pytest.mark.parametrize("path", [*own_files("*.md"), *own_files("*.py")], ids=label)
def test_claims_are_named_in_words(path):
    """A number says nothing to somebody who has not read the list."""
    found = re.findall(r"\b[Cc]laims? \d+\b.*", path.read_text(encoding="utf-8"))
    assert found == []
