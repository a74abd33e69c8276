"""What the page shows of a moment, as HTML. Pictures are PNGs inside of it, at their own size; the browser enlarges them
by a whole factor without blurring. Texts are in both languages, of which the page shows one.
"""

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from common.demo.page.texts import both, in_both, value_name
from common.demo.pictures.creatures import CreatureMoment, Reading
from common.demo.pictures.digits import DigitMoment
from common.demo.pictures.film import FilmMoment
from common.demo.pictures.own_picture import PictureMoment
from common.demo.pictures.plane import REACH, PlaneMoment
from common.diffusion.sampler_spec import Sampler
from common.io.pixels import to_bytes

FIELD_REACH, VECTOR_REACH = 0.17, 0.5  # longest arrow of each panel, in units of the plane
FIELD_SHARE, VECTOR_SHARE = 0.3, 0.32  # of the vectors' real length
COLOURS = {"uncond": "#8a8a8a", "cond": "#2f6f8f", "guided": "#c2410c"}

# --------------------------------------------------------------------------------------------------------------- status


def status(content: str, share: float | None = None, error: bool = False) -> str:
    bar = "" if share is None else f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'
    return f'<div class="demo-status{" error" * error}" role="status">{bar}<span>{content}</span></div>'


def progress(done: int, total: int) -> str:
    return status(both("progress", done=done, total=total), done / total)


# ------------------------------------------------------------------------------------------------------------- pictures


def png(image: Tensor) -> str:
    """(C, H, W) in [-1, 1] as a data URL."""
    pixels = to_bytes(image.cpu()).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return data_url(buffer.getvalue(), "image/png")


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(image: Tensor, scale: int, kind: str = "") -> str:
    """An <img> that is `scale` times as large as its pixels."""
    height, width = image.shape[-2:]
    size = f'width="{width * scale}" height="{height * scale}"'
    return f'<img class="pixels {kind}" src="{png(image)}" {size} style="width:{width * scale}px;height:{height * scale}px" alt="">'


def figure(caption: str, content: str, kind: str = "") -> str:
    return f'<figure class="{kind}"><figcaption>{caption}</figcaption>{content}</figure>'


def row(*figures: str) -> str:
    return f'<div class="demo-row">{"".join(figures)}</div>'


def in_rows(images: Tensor, columns: int = 8) -> Tensor:
    """Images (N, C, H, W) in rows on white, a pixel apart. (C, H', W')"""
    columns = min(columns, len(images))
    return make_grid(images, nrow=columns, padding=1, pad_value=1.0)[:, 1:-1, 1:-1]


# --------------------------------------------------------------------------------------------------------------- digits


def digits(moment: DigitMoment) -> str:
    blocks = []
    for name in moment.x:
        evaluations = Sampler(name, moment.total).evaluations
        rows = [
            figure(both(key), picture(in_rows(images), 3))
            for key, images in (("digits.x", moment.x[name]), ("digits.x0", moment.x0[name]))
        ]
        title = f"<p><b>{name}</b> · {both('digits.cost', evaluations=evaluations)}</p>"
        blocks.append(f'<div class="demo-block">{title}<div class="demo-scroll">{"".join(rows)}</div></div>')
    return "".join(blocks)


# ---------------------------------------------------------------------------------------------------------------- plane


def plane(moment: PlaneMoment) -> str:
    known = dots(moment.data[~moment.wanted], "#d9d9d6", 0.026) + dots(moment.data[moment.wanted], "#9cc7dc", 0.026)
    field = arrows(moment.places, [moment.field], ["#b9a58f"], FIELD_SHARE, FIELD_REACH, 0.009)
    cloud = dots(moment.x, "#26323a", 0.022)
    panel = arrows(
        moment.corners, list(moment.vectors.values()), list(COLOURS.values()), VECTOR_SHARE, VECTOR_REACH, 0.016
    )
    key = "".join(
        f'<span class="line" style="border-color:{COLOURS[name]}"></span>{both(f"plane.{name}")}'
        for name in moment.vectors
    )
    return row(
        figure(both("plane.field", sigma=f"{moment.sigma:.2f}"), svg(known + field + cloud), "demo-panel"),
        figure(f'{both("plane.vectors")}<br><span class="demo-key">{key}</span>', svg(known + panel), "demo-panel"),
    )


def svg(content: str) -> str:
    edge = REACH + 0.15
    return f'<svg class="demo-plane" viewBox="{-edge} {-edge} {2 * edge} {2 * edge}" role="img">{content}</svg>'


def dots(points: Tensor, colour: str, size: float) -> str:
    """Points as one path of strokes without length, whose round ends are the dots. The y axis points up."""
    path = "".join(f"M{x:.3f} {-y:.3f}h0" for x, y in points.tolist())
    return f'<path d="{path}" stroke="{colour}" stroke-width="{2 * size}" stroke-linecap="round" fill="none"/>'


def arrows(
    places: Tensor, targets: Sequence[Tensor], colours: Sequence[str], share: float, reach: float, width: float
) -> str:
    """Arrows from the places towards several targets each, of `share` of their length. The arrows at one place are
    shortened by one factor, so that none is longer than `reach`."""
    vectors = torch.stack([share * (target - places) for target in targets])  # (K, P, 2)
    longest = vectors.norm(dim=2).amax(0)  # (P,)
    vectors = vectors * (reach / longest.clamp(min=reach))[:, None]
    parts = []
    for vector, colour in zip(vectors, colours, strict=True):
        ends = places + vector
        across = torch.stack([-vector[:, 1], vector[:, 0]], 1)
        norm = vector.norm(dim=1, keepdim=True).clamp(min=1e-6)
        head = (3.2 * width) * (vector / norm)
        side = (1.7 * width) * (across / norm)
        lines = zip(places, ends, ends - head + side, ends - head - side, strict=True)
        path = "".join(
            f"M{a[0]:.3f} {-a[1]:.3f}L{b[0]:.3f} {-b[1]:.3f}M{c[0]:.3f} {-c[1]:.3f}L{b[0]:.3f} {-b[1]:.3f}L{d[0]:.3f} {-d[1]:.3f}"
            for a, b, c, d in ([point.tolist() for point in line] for line in lines)
        )
        parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="{width}" stroke-linecap="round" fill="none"/>')
    return "".join(parts)


# ------------------------------------------------------------------------------------------------------------ creatures


def creatures(moment: CreatureMoment) -> str:
    notes = ""
    if moment.unknown:
        notes += note(both("creatures.unknown", words=", ".join(moment.unknown)))
    if moment.readings and not any(reading.asked for reading in moment.readings[0]):
        notes += note(both("creatures.free"))
    cards = []
    for k, image in enumerate(moment.images):
        readings = moment.readings[k] if moment.readings else []
        asked = [reading for reading in readings if reading.asked]
        right = sum(reading.value == reading.asked for reading in asked)
        caption = both("creatures.right", right=right, asked=len(asked)) if asked else "&nbsp;"
        card = f'<div class="demo-card">{picture(image, 2)}{table(readings)}</div>'
        cards.append(figure(caption, card))
    return f'{notes}<div class="demo-cards">{"".join(cards)}</div>'


def note(content: str) -> str:
    return f'<p class="demo-note">{content}</p>'


def table(readings: list[Reading]) -> str:
    rows = []
    for reading in readings:
        mark = ""
        if reading.asked:
            right = reading.value == reading.asked
            mark = f'<span class="{"yes" if right else "no"}">{"✓" if right else "✗"}</span>'
        name, value = both(f"attribute.{reading.attribute}"), in_both(*value_name(reading.attribute, reading.value))
        kind = ' class="asked"' if reading.asked else ""
        rows.append(f"<tr{kind}><td>{name}</td><td>{value} {mark}</td><td>{reading.probability:.0%}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


# ---------------------------------------------------------------------------------------------------------- own picture


def own_picture(moment: PictureMoment) -> str:
    return row(*(figure(both(f"picture.{name}"), picture(image, 2)) for name, image in moment.pictures.items()))


# ----------------------------------------------------------------------------------------------------------------- film


def film(moment: FilmMoment) -> str:
    notes = ""
    if moment.nearest:
        names = "、".join(name for name, _ in moment.nearest)
        notes = note(both("film.nearest", names=names))
    if moment.film is not None:
        url = data_url(moment.film, "image/webp")
        link = f'<p><a href="{url}" download="film.webp">{both("film.save")}</a></p>'
        return notes + row(
            figure(both("film.film"), f'<img class="film" src="{url}" alt="">{link}'),
            figure(both("film.first"), picture(moment.pictures[0], 3)),
        )
    if moment.stage == "paint":
        return notes + figure(both("film.paint"), row(*(picture(image, 4) for image in moment.pictures)))
    frames = [picture(image, 3, "chosen" if k == moment.chosen else "") for k, image in enumerate(moment.pictures)]
    return notes + figure(both("film.draw" if moment.chosen is None else "film.chosen"), row(*frames))


def heading() -> str:
    return f'<div class="demo-head"><h1>{both("title")}</h1><p>{both("intro")}</p></div>'


def introduction(key: str) -> str:
    return f'<p class="demo-intro">{both(key)}</p>'


def easel(size: int) -> str:
    """The HTML that easel.js brings to life."""
    messages = "".join(
        f'<span class="demo-note" data-message="{name}" style="display:none">{both(f"own.{name}")}</span>'
        for name in ("large", "unreadable")
    )
    return f"""<div class="demo-easel"><canvas class="picture" width="{size}" height="{size}"></canvas>
<span class="empty">{both("own.empty")}</span>
<canvas class="brush" width="{size}" height="{size}" style="opacity:.6;cursor:crosshair"></canvas></div>
<div class="demo-tools"><label class="button"><input type="file" accept="image/*">{both("own.file")}</label>
<label>{both("own.brush")} <input type="range" min="4" max="32" value="16"></label>
<button type="button" class="clear">{both("own.clear")}</button></div>{messages}"""
