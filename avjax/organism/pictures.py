"""The things of the tiny world as pictures: a shape in its typical colours, with place, size, hue and motion drawn.

A thing stands in a square of side 2 round (0, 0), y downwards; `Pen` puts it on the canvas.
"""

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

SIDE = 84  # pixels: 3 x 3 merged patches of 28
SHARPER = 2  # drawn larger, then reduced
Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


class Pen:
    """Draws in a thing's own coordinates."""

    def __init__(self, image: Image.Image, centre: tuple[float, float], scale: float, hue: float, light: float):
        self.draw, self.centre, self.scale, self.hue, self.light = ImageDraw.Draw(image), centre, scale, hue, light

    def at(self, points: Points) -> list[tuple[float, float]]:
        return [(self.centre[0] + self.scale * x, self.centre[1] + self.scale * y) for x, y in points]

    def colour(self, red: int, green: int, blue: int) -> Colour:
        """The colour, shifted by the drawing's own hue and lightness."""
        h, s, v = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        rgb = colorsys.hsv_to_rgb((h + self.hue) % 1, s, min(1.0, max(0.0, v * self.light)))
        return tuple(round(255 * c) for c in rgb)  # pyright: ignore[reportReturnType]

    def shape(self, points: Points, colour: Colour) -> None:
        self.draw.polygon(self.at(points), fill=colour)

    def round(self, x: float, y: float, radius: float, colour: Colour, height: float | None = None) -> None:
        tall = radius if height is None else height
        (left, top), (right, bottom) = self.at([(x - radius, y - tall), (x + radius, y + tall)])
        self.draw.ellipse([left, top, right, bottom], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        (x0, y0), (x1, y1) = self.at([(left, top), (right, bottom)])
        self.draw.rectangle([x0, y0, x1, y1], fill=colour)

    def line(self, points: Points, colour: Colour, width: float = 0.1) -> None:
        self.draw.line(self.at(points), fill=colour, width=max(1, round(width * self.scale)), joint="curve")


# `t` runs from 0 to 1 over the clip; each thing moves a little in its own way.


def dog(pen: Pen, t: float) -> None:
    brown, dark = pen.colour(170, 110, 50), pen.colour(90, 55, 25)
    pen.box(-0.7, -0.1, 0.45, 0.4, brown)
    for x in (-0.65, -0.35, 0.1, 0.3):
        pen.box(x, 0.35, x + 0.15, 0.9, brown)
    pen.round(0.6, -0.35, 0.38, brown)
    pen.shape([(0.35, -0.55), (0.5, -1.0), (0.65, -0.6)], dark)
    pen.box(0.75, -0.35, 1.0, -0.1, dark)
    pen.line([(-0.7, -0.05), (-0.95, -0.55 + 0.3 * np.sin(12 * t))], brown, 0.14)


def bell(pen: Pen, t: float) -> None:
    gold, dark = pen.colour(235, 190, 40), pen.colour(140, 105, 20)
    tilt = 0.18 * np.sin(9 * t)
    pen.shape([(-0.3 + tilt, -0.7), (0.3 + tilt, -0.7), (0.5, 0.35), (0.85, 0.6), (-0.85, 0.6), (-0.5, 0.35)], gold)
    pen.round(tilt, -0.75, 0.18, dark)
    pen.round(-tilt, 0.72, 0.18, dark)


def car(pen: Pen, t: float) -> None:
    red, glass, tyre = pen.colour(205, 40, 40), pen.colour(180, 215, 235), pen.colour(30, 30, 35)
    pen.box(-0.95, -0.05, 0.95, 0.45, red)
    pen.shape([(-0.55, -0.05), (-0.35, -0.5), (0.35, -0.5), (0.6, -0.05)], red)
    pen.shape([(-0.42, -0.08), (-0.28, -0.4), (0.28, -0.4), (0.45, -0.08)], glass)
    for x in (-0.55, 0.55):
        pen.round(x, 0.5, 0.25, tyre)


def ambulance(pen: Pen, t: float) -> None:
    white, cross = pen.colour(240, 240, 240), pen.colour(220, 30, 30)
    pen.box(-0.95, -0.5, 0.5, 0.5, white)
    pen.shape([(0.5, -0.25), (0.75, -0.25), (0.95, 0.1), (0.95, 0.5), (0.5, 0.5)], white)
    pen.box(-0.35, -0.4, -0.15, 0.25, cross)
    pen.box(-0.58, -0.17, 0.08, 0.03, cross)
    pen.box(-0.1, -0.72, 0.2, -0.5, pen.colour(40, 80, 255) if int(8 * t) % 2 else pen.colour(255, 60, 60))
    for x in (-0.55, 0.55):
        pen.round(x, 0.55, 0.22, pen.colour(30, 30, 35))


def drum(pen: Pen, t: float) -> None:
    side, skin, stick = pen.colour(60, 60, 190), pen.colour(245, 235, 215), pen.colour(150, 100, 60)
    pen.box(-0.75, -0.1, 0.75, 0.65, side)
    pen.round(0, 0.65, 0.75, side, 0.25)
    pen.round(0, -0.1, 0.75, skin, 0.28)
    lift = 0.3 * abs(np.sin(10 * t))
    pen.line([(-0.9, -0.8 - lift), (-0.15, -0.2)], stick, 0.12)
    pen.line([(0.9, -0.8 - 0.3 + lift), (0.2, -0.15)], stick, 0.12)


def kettle(pen: Pen, t: float) -> None:
    steel, dark, steam = pen.colour(150, 160, 170), pen.colour(40, 40, 45), pen.colour(225, 230, 235)
    pen.round(0, 0.25, 0.65, steel, 0.55)
    pen.shape([(0.5, 0.1), (0.95, -0.35), (1.0, -0.2), (0.6, 0.45)], steel)
    pen.line([(-0.45, -0.2), (-0.3, -0.7), (0.3, -0.7), (0.45, -0.2)], dark, 0.12)
    for i in range(3):
        pen.round(0.95 - 0.1 * i, -0.55 - 0.2 * i - 0.1 * np.sin(6 * t + i), 0.1 + 0.04 * i, steam)


def cloud(pen: Pen, t: float) -> None:
    grey, drop = pen.colour(120, 130, 150), pen.colour(60, 120, 230)
    for x, y, r in ((-0.5, -0.3, 0.35), (0, -0.5, 0.45), (0.5, -0.3, 0.38), (0, -0.2, 0.4)):
        pen.round(x, y, r, grey)
    for i, x in enumerate((-0.6, -0.3, 0.0, 0.3, 0.6)):
        y = 0.15 + 0.7 * ((2 * t + 0.37 * i) % 1)
        pen.line([(x, y), (x - 0.08, y + 0.22)], drop, 0.09)


def clock(pen: Pen, t: float) -> None:
    rim, face, hand = pen.colour(110, 70, 40), pen.colour(250, 248, 235), pen.colour(20, 20, 20)
    pen.round(0, 0, 0.9, rim)
    pen.round(0, 0, 0.74, face)
    for turn, length in ((t * 2, 0.6), (0.6 + 0.2 * t, 0.4)):
        pen.line([(0, 0), (length * np.sin(2 * np.pi * turn), -length * np.cos(2 * np.pi * turn))], hand, 0.09)


def piano(pen: Pen, t: float) -> None:
    white, black = pen.colour(250, 250, 250), pen.colour(25, 25, 25)
    pen.box(-0.98, -0.55, 0.98, 0.55, black)
    for i in range(7):
        down = 0.08 if int(6 * t) % 7 == i else 0
        pen.box(-0.94 + 0.27 * i, -0.35 + down, -0.71 + 0.27 * i, 0.48 + down, white)
    for i in (0, 1, 3, 4, 5):
        pen.box(-0.78 + 0.27 * i, -0.35, -0.62 + 0.27 * i, 0.1, black)


def phone(pen: Pen, t: float) -> None:
    case, screen, icon = pen.colour(30, 35, 45), pen.colour(70, 200, 120), pen.colour(240, 255, 245)
    shake = 0.05 * np.sin(40 * t)
    pen.box(-0.45 + shake, -0.95, 0.45 + shake, 0.95, case)
    pen.box(-0.35 + shake, -0.75, 0.35 + shake, 0.65, screen)
    pen.round(shake, -0.05, 0.22, icon)
    pen.round(shake, 0.8, 0.08, icon)


def fridge(pen: Pen, t: float) -> None:
    body, seam, handle = pen.colour(200, 225, 230), pen.colour(120, 145, 150), pen.colour(90, 90, 95)
    pen.box(-0.5, -0.98, 0.5, 0.98, body)
    pen.line([(-0.5, -0.3), (0.5, -0.3)], seam, 0.08)
    pen.line([(0.3, -0.75), (0.3, -0.45)], handle, 0.1)
    pen.line([(0.3, -0.15), (0.3, 0.35)], handle, 0.1)


def bird(pen: Pen, t: float) -> None:
    blue, beak, eye = pen.colour(70, 140, 230), pen.colour(250, 160, 30), pen.colour(15, 15, 20)
    pen.round(-0.05, 0.15, 0.55, blue, 0.42)
    pen.round(0.5, -0.3, 0.3, blue)
    pen.shape([(0.75, -0.4), (1.05, -0.25), (0.75, -0.15)], beak)
    pen.round(0.57, -0.37, 0.07, eye)
    flap = 0.5 * np.sin(12 * t)
    pen.shape([(-0.35, 0.1), (0.2, 0.1), (-0.25, -0.5 - flap)], pen.colour(40, 95, 180))
    pen.shape([(-0.5, 0.1), (-1.0, -0.1), (-0.95, 0.35)], blue)


def man(pen: Pen, t: float) -> None:
    skin, shirt, hair = pen.colour(235, 190, 150), pen.colour(60, 150, 75), pen.colour(60, 40, 25)
    pen.shape([(-0.8, 1.0), (-0.6, 0.4), (0.6, 0.4), (0.8, 1.0)], shirt)
    pen.round(0, -0.2, 0.5, skin, 0.62)
    pen.shape([(-0.5, -0.35), (-0.42, -0.82), (0.42, -0.82), (0.5, -0.35)], hair)
    for x in (-0.2, 0.2):
        pen.round(x, -0.2, 0.07, hair)
    pen.round(0, 0.15, 0.18, pen.colour(150, 40, 40), 0.04 + 0.1 * abs(np.sin(11 * t)))


def fountain(pen: Pen, t: float) -> None:
    stone, water = pen.colour(150, 145, 135), pen.colour(90, 190, 240)
    pen.shape([(-0.95, 0.4), (0.95, 0.4), (0.7, 0.8), (-0.7, 0.8)], stone)
    pen.box(-0.12, -0.2, 0.12, 0.5, stone)
    for x in (-0.7, -0.45, -0.2, 0.2, 0.45, 0.7):
        top = -0.75 + 0.5 * x * x + 0.12 * np.sin(9 * t + 7 * x)
        pen.line([(0, -0.2), (0.5 * x, top), (x, 0.35)], water, 0.1)


def bee(pen: Pen, t: float) -> None:
    yellow, black, wing = pen.colour(250, 205, 30), pen.colour(30, 25, 20), pen.colour(215, 230, 245)
    beat = 0.25 * np.sin(30 * t)
    pen.round(-0.25, -0.5 - beat, 0.3, wing, 0.4)
    pen.round(0.2, -0.5 + beat, 0.3, wing, 0.4)
    pen.round(0, 0.1, 0.75, yellow, 0.45)
    for x in (-0.35, 0.0, 0.35):
        pen.box(x - 0.08, -0.3, x + 0.08, 0.5, black)
    pen.round(0.75, 0.05, 0.22, black)


def cat(pen: Pen, t: float) -> None:
    orange, pink, eye = pen.colour(240, 140, 60), pen.colour(245, 150, 160), pen.colour(40, 140, 60)
    pen.round(0, 0.15, 0.75, orange, 0.65)
    for side in (-1, 1):
        pen.shape([(side * 0.7, 0.0), (side * 0.68, -0.85), (side * 0.15, -0.4)], orange)
        pen.round(side * 0.3, 0.05, 0.13, eye)
        pen.line([(side * 0.25, 0.4), (side * 1.0, 0.3 + 0.05 * np.sin(8 * t))], pen.colour(90, 60, 40), 0.04)
    pen.shape([(-0.12, 0.28), (0.12, 0.28), (0, 0.42)], pink)


Thing = Callable[[Pen, float], None]


def scene(thing: Thing, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """uint8 [num_frames, SIDE, SIDE, 3]: the thing before a drawn background with distractors and camera noise."""
    side = SIDE * SHARPER
    back = _background(rng, side)
    scale = side * rng.uniform(0.26, 0.42)
    start, drift = rng.uniform(scale, side - scale, 2), rng.uniform(-0.12, 0.12, 2) * side
    hue, light, noise = rng.uniform(-0.03, 0.03), rng.uniform(0.8, 1.15), rng.uniform(0, 8)
    frames = []
    for t in np.linspace(0, 1, num_frames):
        canvas = back.copy()
        x, y = np.clip(start + drift * t, 0.8 * scale, side - 0.8 * scale)
        thing(Pen(canvas, (x, y), scale, hue, light), float(t))
        small = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
        frames.append(np.clip(small + noise * rng.standard_normal(small.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)


def _background(rng: np.random.Generator, side: int) -> Image.Image:
    """A ramp between two dull colours, with up to three small discs and squares."""
    top, bottom = rng.uniform(40, 200) + rng.uniform(-25, 25, (2, 3))
    ramp = np.linspace(0, 1, side)[:, None, None]
    image = Image.fromarray(np.broadcast_to((1 - ramp) * top + ramp * bottom, (side, side, 3)).astype(np.uint8))
    for _ in range(rng.integers(0, 4)):
        pen = Pen(image, (rng.uniform(0, side), rng.uniform(0, side)), rng.uniform(4, 14), 0, 1)
        red, green, blue = rng.integers(30, 226, 3).tolist()
        if rng.random() < 0.5:
            pen.round(0, 0, 1, (red, green, blue))
        else:
            pen.box(-1, -1, 1, 1, (red, green, blue))
    return image
