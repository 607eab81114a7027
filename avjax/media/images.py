"""Pictures: from files, Pillow images and arrays to 8-bit RGB, as a viewer shows them.

Colour profiles and PNG's gamma are left alone: the models were trained on pictures whose profiles nobody applied.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avjax.media.container import require_file
from avjax.media.errors import MediaError
from avjax.media.stills import CONCATENATED, refuse_unreadable_still

if TYPE_CHECKING:
    from PIL.Image import Image

# Still formats that begin with a mark of their own. Pillow also takes MPEG streams and weather maps for pictures, and
# reads some others wrongly: Sun rasters of odd width, textures in DDS.
STILLS = frozenset("AVIF BMP GIF HEIF ICNS ICO JPEG JPEG2000 MPO MSP PNG PPM PSD QOI SGI TIFF WEBP XBM".split())
UNMARKED = {"PCX": ".pcx", "TGA": ".tga"}  # only their names tell these from other bytes
ANIMATIONS = frozenset({"AVIF", "GIF", "PNG", "WEBP"})  # of which one file may be a picture or a film
UNPLAYABLE = ("AVIF", "WEBP")  # as films, by libav
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SUBFILE = 258, 262, 254


def is_image(path: str | Path) -> bool:
    """Whether a file is a still picture, by its contents; a damaged one too.

    Animations are films: GIF, APNG, and those that libav cannot play, which `refuse_picture` names.
    """
    from PIL import Image

    if Path(path).suffix.lower() in CONCATENATED:
        return False
    if _is_heif(path):
        return True
    try:
        with _opened(path) as image:
            return _is_still_format(image, path) and not _is_animation(image)
    except Image.DecompressionBombError:
        return True
    except Exception:  # noqa: BLE001 - damaged ones raise whatever their parser does
        return False


def refuse_picture(path: str | Path) -> None:
    """Raises MediaError when a file that is to be a video is a picture, or an animation that libav does not play.

    That is a still picture of any format that libav knows, also where Pillow cannot read it.
    """
    if is_image(path):
        raise MediaError(f"{path}: expected a video, got a still picture; pass it as image=")
    unplayable = None
    with contextlib.suppress(Exception), _opened(path, formats=UNPLAYABLE) as image:
        unplayable = _unplayable(path, image)
    if unplayable is not None:
        raise unplayable
    refuse_unreadable_still(path)


def read_image(path: str | Path, *, as_viewers_show: bool = True) -> np.ndarray:
    """A file's picture as uint8 [height, width, 3].

    Args:
      as_viewers_show: upright, white behind what is transparent, 16 bits scaled to 8. Else as Pillow converts it,
        which is what `qwen-omni-utils` does: the camera's rotation and all transparency but RGBA's are dropped.

    Raises:
      MediaError: it is no picture, several, or one whose values have no range.
    """
    from PIL import UnidentifiedImageError

    require_file(path)
    if _is_heif(path):
        _register_heif(path)
    try:
        with _opened(path) as image:
            _select_page(image, path)
            return picture_array(image, str(path)) if as_viewers_show else pillow_array(image)
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        refuse_unreadable_still(path)
        raise MediaError(
            f"{path}: expected an image, got a file that Pillow does not know; convert it to PNG or JPEG"
        ) from error
    except Exception as error:  # damaged ones raise whatever their parser does
        raise MediaError(f"{path}: expected an image, got {error}; convert it to PNG or JPEG") from error


def picture_array(image: "Image", source: str) -> np.ndarray:
    """A Pillow image as uint8 [height, width, 3], upright; transparency becomes white.

    Raises:
      MediaError: its values have no range.
    """
    from PIL import Image, ImageOps

    _load_unmapped(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = Image.fromarray(_grey_of_integers(image, source))
        grey.getexif().update(image.getexif())
        image = grey
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise _without_range(source, "a picture of floating-point values")
    if image.mode == "LAB":
        image = _from_lab(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def array_picture(values: np.ndarray, source: str) -> np.ndarray:
    """An array as uint8 [height, width, 3].

    Args:
      values: uint8 or uint16, [height, width], or with 1, 3 or 4 channels last; a fourth is opacity.

    Raises:
      MediaError: another shape or type came.
    """
    from PIL import Image

    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype == np.uint16:
        values = _scaled(values, 2**16 - 1)
    if values.dtype != np.uint8:
        raise MediaError(
            f"{source}: expected uint8 or uint16 values, got {values.dtype}, whose range is unknown; scale them to "
            "0..255 and convert: np.round(x).astype(np.uint8)"
        )
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or not values.size:
        raise MediaError(
            f"{source}: expected [height, width], or [height, width, channels] with 3 or 4 channels, got "
            f"{list(values.shape)}; move the channels last"
        )
    return picture_array(Image.fromarray(np.ascontiguousarray(values)), source)


@contextlib.contextmanager
def _opened(path: str | Path, formats: tuple[str, ...] | None = None) -> "Iterator[Image]":
    """A file as a Pillow image whose file stays open.

    Pillow gets no path: by path it maps an uncompressed TIFF into memory with the sides that it has after its turn.
    """
    from PIL import Image

    with Path(path).open("rb") as file, Image.open(file, formats=formats) as image:
        yield image


def _load_unmapped(image: "Image") -> None:
    """Decodes an image of the caller's that may be open by its path; see `_opened`."""
    path = getattr(image, "filename", "")
    if path:
        image.filename = ""  # pyright: ignore[reportAttributeAccessIssue]
    try:
        image.load()
    finally:
        if path:
            image.filename = path  # pyright: ignore[reportAttributeAccessIssue]


def _is_still_format(image: Any, path: str | Path) -> bool:
    return image.format in STILLS or UNMARKED.get(image.format) == Path(path).suffix.lower()


def _is_animation(image: "Image") -> bool:
    return image.format in ANIMATIONS and getattr(image, "n_frames", 1) > 1


def _select_page(image: Any, path: str | Path) -> None:
    """Leaves an opened file at its picture.

    Raises:
      MediaError: it is no picture, or has several.
    """
    if not _is_still_format(image, path):
        refuse_unreadable_still(path)
        raise MediaError(f"{path}: expected an image, got {image.format}; convert it to PNG or JPEG")
    if _is_animation(image):
        if image.format in UNPLAYABLE:
            raise _unplayable(path, image)
        raise MediaError(f"{path}: expected an image, got an animation of {image.n_frames} frames; pass it as video=")
    if image.format != "TIFF":
        return  # the first of an MPO is the photo, and Pillow opens the largest icon
    pages = []
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        if not image.tag_v2.get(TIFF_SUBFILE, 0) & 1:  # others are thumbnails
            pages.append(page)
    if len(pages) > 1:
        raise MediaError(
            f"{path}: expected one image, got a TIFF of {len(pages)} pages; save the pages that you want as "
            "separate files and pass those"
        )
    image.seek(pages[0] if pages else 0)


def _unplayable(path: str | Path, image: Any) -> MediaError:
    return MediaError(
        f"{path}: an animated {image.format} of {getattr(image, 'n_frames', 1)} frames, which libav does not play; "
        "convert it to GIF or MP4 and pass that as video=, or save one frame and pass it as image="
    )


def _without_range(source: str, kind: str) -> MediaError:
    return MediaError(f"{source}: {kind}, whose value range is unknown; scale it to 0..255 and save it as an 8-bit PNG")


def _grey_of_integers(image: Any, source: str) -> np.ndarray:
    """uint8 [height, width] of up to 16 bits: scaled by what the format can hold, not by what the picture uses."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # which hold 16 bits at most
        raise _without_range(source, "a picture of 32-bit or signed integers")
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    grey = _scaled(values, 2 ** tags.get(TIFF_BITS, (16,))[0] - 1)
    if tags.get(TIFF_PHOTOMETRIC) == 0:  # white is zero; Pillow inverts 8 bits alone
        grey = 255 - grey
    clear = image.info.get("transparency")
    return np.where(values == clear, np.uint8(255), grey) if isinstance(clear, int) else grey


def _scaled(values: np.ndarray, largest: int) -> np.ndarray:
    return np.rint(values.astype(np.float64) * (255 / largest)).clip(0, 255).astype(np.uint8)


def _from_lab(image: "Image") -> "Image":
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only a conversion in place gives none
    return converted


def pillow_array(image: "Image") -> np.ndarray:
    """As `to_rgb` of `qwen-omni-utils` has it."""
    from PIL import Image

    _load_unmapped(image)
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.asarray(image.convert("RGB"))


def _is_heif(path: str | Path) -> bool:
    """By the brands in its first box; AVIF, which Pillow reads, has the same form."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
    except OSError:
        return False
    if head[4:8] != b"ftyp":
        return False
    box = head[8 : int.from_bytes(head[:4], "big")]
    brands = {box[:4], *(box[i : i + 4] for i in range(8, len(box), 4))}
    return box[:4] in HEIF_BRANDS and not brands & AVIF_BRANDS


def _register_heif(path: str | Path) -> None:
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MediaError(
            f"{path}: a HEIC (HEIF) photo, which Pillow alone does not read; convert it to JPEG or PNG, or install "
            "pillow-heif"
        ) from error
    register_heif_opener()
