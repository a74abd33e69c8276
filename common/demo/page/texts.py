"""Every text of the page, in English and Chinese, and the errors that a visitor can cause."""

import html
from pathlib import Path
from typing import Any, Literal

from common.data.creatures.captions import CHINESE
from common.errors import UserError
from common.grade.marking.messages import Catalogue, read

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, Language] = ("en", "zh")
CATALOGUE = Catalogue(read(Path(__file__).with_name("messages.zh.toml")), few=0)  # messages of the course in Chinese

TEXTS: dict[str, tuple[str, str]] = {
    # ------------------------------------------------------------------------------------------------------- the page
    "title": ("Diffusion, hands on", "动手玩扩散模型"),
    "intro": (
        "All pictures are made on this computer, by the weights that come with the course.",
        "所有图片都在这台电脑上生成，使用课程自带的权重。",
    ),
    "run": ("Generate", "生成"),
    "stop": ("Stop", "停止"),
    "seed": ("Seed", "随机种子"),
    "seed.info": ("Equal seeds begin with equal noise.", "相同的种子从相同的噪声开始。"),
    "steps": ("Steps", "步数"),
    "guidance": ("Guidance scale w", "引导系数 w"),
    "guidance.info": ("1 is off; 3 to 7 is usual.", "1 表示不引导，常用 3 到 7。"),
    "prompt": ("Prompt", "提示词"),
    "moment": ("Look back: step", "回看：第几步"),
    # -------------------------------------------------------------------------------------------------------- status
    "ready": ("Ready.", "就绪。"),
    "waiting": ("Waiting: one visitor computes at a time.", "等待中：同一时间只处理一个请求。"),
    "progress": ("Step {done} of {total}", "第 {done} 步，共 {total} 步"),
    "finished": ("Done in {seconds} s.", "完成，用时 {seconds} 秒。"),
    "stopped": ("Stopped.", "已停止。"),
    # -------------------------------------------------------------------------------------------------------- errors
    "error.prompt": ("Write a prompt first.", "请先写提示词。"),
    "error.long": ("The text is too long: at most {most} characters.", "文字太长：最多 {most} 个字符。"),
    "error.range": ("{name} must be from {low} to {high}.", "{name}须在 {low} 到 {high} 之间。"),
    "error.choice": ("There is no such choice: {value}.", "没有这个选项：{value}。"),
    "error.picture": (
        "Choose a picture first: open a file, or draw a creature or a dish.",
        "请先选一张图片：打开文件，或者画一只小怪兽、一道菜。",
    ),
    "error.odd": ("This is no picture that can be read.", "无法读取这张图片。"),
    "error.hole": ("Brush over the part to repaint.", "请用画笔涂出要重画的部分。"),
    "error.dish": ("Write the name of a dish first, such as 番茄炒蛋.", "请先写菜名，例如番茄炒蛋。"),
    "error.user": ("This did not work: {problem}.", "没有成功：{problem}。"),
    "error.foreign": ("This did not work: {problem}.", "没有成功，程序的英文说明是：{problem}。"),
    "error.fault": ("A fault of the program; its report is in the terminal.", "程序出错，详情见运行演示的终端。"),
    # ------------------------------------------------------------------------------------------------------- digits
    "digits": ("Digits", "数字"),
    "digits.intro": (
        "Two samplers begin with the same noise. The upper row is the noisy image, the lower row the prediction "
        "of the clean image in it.",
        "两种采样器从相同的噪声出发。上一行是带噪声的图像，下一行是模型从中预测的干净图像。",
    ),
    "digits.first": ("First sampler", "第一种采样器"),
    "digits.second": ("Second sampler", "第二种采样器"),
    "digits.count": ("Digits", "数字个数"),
    "digits.x": ("noisy image", "带噪声的图像"),
    "digits.x0": ("predicted clean image", "预测的干净图像"),
    "digits.cost": ("{evaluations} network evaluations", "网络求值 {evaluations} 次"),
    # -------------------------------------------------------------------------------------------------------- plane
    "plane": ("The plane", "平面"),
    "plane.intro": (
        "Points instead of images, and the best possible denoiser instead of a network. "
        "So you can see what every step does, and how guidance adds vectors.",
        "用点代替图像，用理论上最优的去噪器代替网络，这样就能看清每一步做了什么，以及引导怎样把向量相加。",
    ),
    "plane.shape": ("Data", "数据"),
    "plane.class": ("Class", "类别"),
    "plane.sampler": ("Sampler", "采样器"),
    "plane.field": (
        "Noise level σ = {sigma}: the cloud (dark), the data (colour: the class), and arrows to the guided prediction",
        "噪声水平 σ = {sigma}：点云（深色）、数据（彩色为所选类别），箭头指向引导后的预测",
    ),
    "plane.vectors": ("Guidance as vectors: prediction minus position", "引导就是向量相加：预测减去当前位置"),
    "plane.uncond": ("without class", "无类别"),
    "plane.cond": ("with class", "有类别"),
    "plane.guided": ("guided = without + w (with − without)", "引导 = 无类别 + w（有类别 − 无类别）"),
    "shape.moons": ("two moons", "双月"),
    "shape.spirals": ("two arms", "两条旋臂"),
    "shape.rings": ("two rings", "双环"),
    "class.all": ("all, no guidance", "全部，不引导"),
    "class.number": ("class {number}", "类别 {number}"),
    # ---------------------------------------------------------------------------------------------------- creatures
    "creatures": ("Creatures", "小怪兽"),
    "creatures.intro": (
        "A small Stable Diffusion reads English and Chinese. Beside each picture is what a classifier sees in it; "
        "what you asked for comes first, with ✓ or ✗.",
        "小型 Stable Diffusion 懂英文和中文。每张图片旁边是分类器读出的内容；你要求的排在最前，并标出 ✓ 或 ✗。",
    ),
    "creatures.example": ("a red fire creature with bat wings", "一只红色的火属性小怪兽，长着蝙蝠翅膀"),
    "creatures.negative": ("Negative prompt", "反向提示词"),
    "creatures.negative.info": ("What the pictures should not show.", "图片中不要出现的内容。"),
    "creatures.count": ("Pictures", "图片数"),
    "creatures.right": ("{right} of {asked} as asked", "{asked} 项要求中看到 {right} 项"),
    "creatures.free": (
        "The classifier knows creatures only, and the prompt names none of its attributes.",
        "分类器只认识小怪兽，提示词里没有它认识的属性。",
    ),
    "creatures.unknown": ("Words that the model has never read: {words}.", "模型没有学过的词：{words}。"),
    # --------------------------------------------------------------------------------------------------- own picture
    "own": ("Your picture", "自己的图片"),
    "own.intro": (
        "The models work at 128 × 128 pixels and know drawn creatures and dishes. A photograph becomes one of them.",
        "模型处理 128 × 128 像素的图片，只见过画出来的小怪兽和菜肴；照片会被改成这样的画。",
    ),
    "own.task": ("Task", "任务"),
    "own.file": ("Open a picture", "打开图片"),
    "own.creature": ("Draw a creature", "画一只小怪兽"),
    "own.dish": ("Draw a dish", "画一道菜"),
    "own.clear": ("Clear", "清除涂抹"),
    "own.brush": ("Brush", "画笔粗细"),
    "own.empty": ("No picture yet", "还没有图片"),
    "own.large": ("This file is larger than 20 MB.", "文件大于 20 MB。"),
    "own.unreadable": ("The browser cannot read this file as a picture.", "浏览器无法把这个文件当作图片打开。"),
    "own.prompt.info": ("What the result should show; it may be empty.", "希望结果中出现的内容，可以不写。"),
    "own.strength": ("Strength", "强度"),
    "own.strength.info": (
        "0.1 changes hardly anything, 1 keeps nearly nothing.",
        "0.1 几乎不变，1 几乎什么都不保留。",
    ),
    "own.block": ("Mosaic: pixels of a block", "马赛克：方块的像素数"),
    "task.img2img": ("Change it (img2img)", "改画（图生图）"),
    "task.mosaic": ("Repair a mosaic", "修复马赛克"),
    "task.inpaint": ("Repaint the brushed part (inpainting)", "重画涂抹的部分（局部重绘）"),
    "picture.given": ("given", "原图"),
    "picture.mosaic": ("mosaic", "马赛克"),
    "picture.bicubic": ("without a model (bicubic)", "不用模型（双三次插值）"),
    "picture.hole": ("with the hole", "挖去的部分"),
    "picture.result": ("result", "结果"),
    # --------------------------------------------------------------------------------------------------------- film
    "film": ("A film", "动画"),
    "film.intro": (
        "Four pictures of the dish are drawn, a CLIP chooses one, and a camera leaves it. What comes into view is painted.",
        "先画出四张菜的图片，由 CLIP 选出一张；镜头随后移开，新进入画面的部分由模型补画。",
    ),
    "film.dish": ("Dish", "菜名"),
    "film.dish.info": ("Choose from the menu, or write any Chinese name.", "从菜单中选，或者写任意中文菜名。"),
    "film.example": ("tomato and scrambled eggs", "番茄炒蛋"),
    "film.camera": ("Camera", "镜头"),
    "film.frames": ("Frames", "帧数"),
    "film.draw": ("Four pictures of the dish", "这道菜的四张图片"),
    "film.chosen": ("Four pictures; the chosen one is framed", "四张图片，带框的被选中"),
    "film.paint": ("Keyframe: what is known, and what was painted", "关键帧：已知的部分与补画的结果"),
    "film.film": ("The film", "动画"),
    "film.first": ("The chosen picture", "选中的图片"),
    "film.save": ("Save the film (WebP)", "保存动画（WebP）"),
    "film.nearest": (
        "This name is not on the menu. Nearest to it: {names}.",
        "菜单里没有这个名字，最接近的是：{names}。",
    ),
    "camera.zoom-out": ("zoom out", "拉远"),
    "camera.zoom-in": ("zoom in", "推近"),
    "camera.right": ("right", "向右"),
    "camera.left": ("left", "向左"),
    "camera.up": ("up", "向上"),
    "camera.down": ("down", "向下"),
    "camera.up-right": ("up and right", "向右上"),
    "camera.down-left": ("down and left", "向左下"),
    "camera.ring": ("in a ring", "环绕"),
    # --------------------------------------------------------------------------------------------------- attributes
    "attribute.colour": ("colour", "颜色"),
    "attribute.body": ("body", "体形"),
    "attribute.element": ("element", "属性"),
    "attribute.tail": ("tail", "尾巴"),
    "attribute.ears": ("ears", "耳朵"),
    "attribute.wings": ("wings", "翅膀"),
    "attribute.horns": ("horns", "角"),
    "attribute.pattern": ("pattern", "花纹"),
    "attribute.eyes": ("eyes", "眼睛"),
    "attribute.mood": ("mood", "心情"),
    "attribute.background": ("background", "背景"),
}


class PageError(Exception):
    """What a visitor can set right, as a text of the page."""

    def __init__(self, key: str, **values: Any):
        super().__init__(key)
        self.key, self.values = key, values


def text(key: str, language: Language, **values: Any) -> str:
    """A text in one language. A value that is a pair is the same in both: (English, Chinese)."""
    k = LANGUAGES.index(language)
    return TEXTS[key][k].format(**{name: v[k] if isinstance(v, tuple) else v for name, v in values.items()})


def both(key: str, **values: Any) -> str:
    """HTML with the text in both languages, of which the page shows one. Values are escaped."""
    return in_both(*(text(key, language, **values) for language in LANGUAGES))


def in_both(english: str, chinese: str) -> str:
    """HTML of a text in both languages, escaped."""
    return f'<span class="en">{html.escape(english)}</span><span class="zh">{html.escape(chinese)}</span>'


def value_name(attribute: str, value: str) -> tuple[str, str]:
    """The value of a creature's attribute in English and, as captions say it, in Chinese."""
    if value == "none":
        return "none", "无"
    return value, CHINESE[attribute][value][0][1].removesuffix("的")


def user_message(problem: UserError) -> str:
    """A message of the course. One that the catalogue lacks is shown in English, and named so."""
    english = str(problem).rstrip(".")
    chinese = CATALOGUE.translate(english)
    return both("error.foreign" if chinese == english else "error.user", problem=(english, chinese))
