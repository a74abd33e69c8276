"""The demonstrations of lesson 5 show what the text says: the counts that the executed notebook prints have the
direction that is claimed, with room for another set of weights.
"""

import json
import re
from functools import cache

import pytest

from helpers.programs import ROOT

NUMBER = r"(-?\d+(?:\.\d+)?)"


@cache
def printed() -> str:
    """All that the cells print."""
    notebook = json.loads((ROOT / "05_finetune_diffusers/lesson.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return "\n".join("".join(output.get("text", [])) for output in outputs)


def line(start: str) -> str:
    """The printed line that begins like this."""
    found = [text for text in printed().splitlines() if text.startswith(start)]
    assert found, f"no line begins with '{start}'"
    return found[0]


def share(text: str, what: str) -> float:
    """'... bat wings 2 of 16 (3% to 36%)', 'bat wings' -> 2 / 16"""
    found = re.search(rf"{re.escape(what)}:? (\d+) of (\d+) \(", text)
    assert found, f"'{text}' has no count of '{what}'"
    return int(found[1]) / int(found[2])


def value(text: str) -> float:
    """The last mean of 'name 0.13 ± 0.02'."""
    found = re.findall(rf"{NUMBER} ± {NUMBER}", text)
    assert found, f"'{text}' has no mean with its interval"
    return float(found[-1][0])


def test_lines_are_read():
    assert share("weight 0.5: bat wings 2 of 16 (3% to 36%), red 16 of 16 (81% to 100%)", "bat wings") == 1 / 8
    assert value("LoRA scale 1: distance from the two inks 0.13 ± 0.02") == 0.13


def test_a_prompt_weight_raises_the_number_of_wings():
    counts = [share(line(f"weight {w}: "), "bat wings") for w in ("0", "0.5", "1", "1.5")]
    assert counts == sorted(counts) and counts[0] < 0.3 and counts[2] > 0.8
    assert min(share(line(f"weight {w}: "), "red") for w in ("0.5", "1", "1.5")) > 0.7, (
        "the other word is not weighted"
    )


@pytest.mark.parametrize(("negative", "kept"), [("purple", "fire"), ("fire", "purple")])
def test_a_negative_prompt_removes_what_it_names(negative, kept):
    plain, without = (line(f"prompt 'a creature', negative prompt '{word}': ") for word in ("", negative))
    assert share(without, negative) < share(plain, negative)
    assert share(without, kept) > 0


def test_a_negative_prompt_does_not_remove_what_the_prompt_asks_for():
    text = line("prompt 'a red creature with bat wings', negative prompt 'bat wings': ")
    assert share(text, "bat wings") > 0.5


def test_strength_trades_the_image_against_the_prompt():
    lines = [line(f"strength {s}: ") for s in ("0.2", "0.4", "0.6", "0.8", "1")]
    blue, old = ([share(text, what) for text in lines] for what in ("blue", "still in the old colour"))
    assert blue[0] < 0.3 < 0.7 < blue[-1] and old[0] > 0.7 > 0.3 > old[-1]
    assert all(a <= b + 0.15 for a, b in zip(blue, blue[1:], strict=False))
    assert all(a >= b - 0.15 for a, b in zip(old, old[1:], strict=False))


def test_the_table_of_strengths_rounds_down():
    rows = [text.split() for text in printed().splitlines() if re.match(r" +\d+ +[\d.]+ +[\d.]+ +\d+", text)]
    assert ["50", "0.58", "29", "28"] in [row[:4] for row in rows] and ["10", "0.09", "0.9", "0"] in rows


def test_the_grown_mask_redraws_more_and_repairs_better():
    plain, grown, scratched = (value(line(name)) for name in ("mask as it is", "mask grown", "scratched "))
    assert grown > plain > scratched


def test_a_lora_moves_colours_to_its_style_with_its_scale():
    distances = [value(line(f"LoRA scale {s:g}: ")) for s in (0, 0.5, 1)]
    assert distances[0] > 1.5 * distances[2] and distances[0] > distances[1] > distances[2]
    assert re.search(r"at scale 0, the largest difference from the model without it is 0$", printed(), re.MULTILINE)
    assert re.search(r"new adapters change nothing: largest difference 0$", printed(), re.MULTILINE)


def test_a_lora_survives_kohyas_layout():
    assert re.search(r"read back by diffusers, \d+ layers: largest difference 0$", printed(), re.MULTILINE)


def test_dreambooth_teaches_the_subject_and_keeps_the_class():
    def attributes(text: str) -> int:
        return int(re.search(r"attributes (\d+)%", text)[1])

    before, after = (line(f"{stage} 'a sks creature': ") for stage in ("before", "after "))
    assert share(after, "scarf") > share(before, "scarf") and attributes(after) >= attributes(before) + 15
    assert attributes(after) > attributes(line("after  'a creature': "))
    assert share(line("after  'a sks creature with bat wings': "), "bat wings") > 0.5


def test_a_controlnet_begins_without_effect_and_follows_the_lines_after_its_training():
    untrained = line("untrained, it changes nothing: largest difference ").rpartition(" ")[2]
    assert float(untrained) < 1e-4, "up to rounding: the images were drawn in batches of other sizes"
    rows = ("without", "scale 0.5", "scale 1", "the source through")
    counted = [re.findall(rf"{NUMBER} ± {NUMBER}", line(f"ControlNet, {name} ")) for name in rows]
    f1, gain, attributes = ([float(row[k][0]) for row in counted] for k in range(3))
    assert f1[0] < f1[2] < f1[3] and f1[1] <= f1[2]
    assert gain[0] == 0 and gain[2] > float(counted[2][1][1]) > 0, "the gain's interval lies above 0"
    assert attributes[2] > attributes[0] + 0.1 and attributes[3] > 0.9


def test_lines_lower_the_error_where_the_layout_is_undecided():
    errors = re.findall(rf"^t = (\d+): squared error {NUMBER} without the lines, {NUMBER} with them$", printed(), re.M)
    gained = {int(t): 1 - float(with_lines) / float(without) for t, without, with_lines in errors}
    assert len(gained) == 5 and gained[max(gained)] > 0.05 and gained[max(gained)] > gained[min(gained)] + 0.05


def test_the_memory_table_falls_from_row_to_row():
    rows = [
        text
        for text in printed().splitlines()
        if re.match(r"(all weights|no average|AdamW|LoRA of|LoRA, ).*\d\.\d\d$", text)
    ]
    totals = [[float(number) for number in text.split()[-2:]] for text in rows]
    assert len(totals) == 5
    assert all(
        a > b for above, below in zip(totals, totals[1:], strict=False) for a, b in zip(above, below, strict=True)
    )
