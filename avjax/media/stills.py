"""Still pictures that Pillow does not read and libav would play as films of one frame."""

from pathlib import Path

from avjax.media.container import opened
from avjax.media.errors import MediaError

DEMUXERS = frozenset({"image2", "image2pipe", "ico", "msp", "fits", "txd", "frm"})  # beside all that end in "_pipe"
NAMES = {  # of formats whose demuxers have other names
    "gem": "GEM raster",
    "hdr": "Radiance HDR",
    "j2k": "JPEG 2000",
    "jpegls": "JPEG-LS",
    "jpegxl": "JPEG XL",
    "jpegxs": "JPEG XS",
    "photocd": "Photo CD",
    "pictor": "PICtor",
    "qdraw": "PICT",
    "sunrast": "Sun raster",
}
# Of these, what Pillow does not open is damaged.
READABLE = frozenset("bmp gif ico j2k jp2 jpeg jpg msp pbm pcx pgm png ppm psd qoi sgi tga tif tiff webp xbm".split())
CONCATENATED = frozenset({".mjpeg", ".mjpg"})  # JPEGs one after the other, each whole
IFF_FILM = b"ANIM"


def refuse_unreadable_still(path: str | Path) -> None:
    """Raises MediaError when libav knows a file as a still picture; to be asked where Pillow does not."""
    name = _demuxer_of_still(path)
    if name is None:
        return
    if name in READABLE:
        raise MediaError(
            f"{path}: expected an image, got {_with_article(name)} that Pillow cannot open; it may be damaged: copy it "
            "again or save it anew"
        )
    raise MediaError(
        f"{path}: expected a JPEG or PNG, or another picture that Pillow reads, got {_with_article(name)}; convert it "
        "to PNG"
    )


def _demuxer_of_still(path: str | Path) -> str | None:
    """The name of the format, as libav has it; None for films, sounds and what libav does not read."""
    suffix = Path(path).suffix.lower()
    try:
        with opened(path, by_name=True) as container:
            name, pictures = container.format.name, len(container.streams.video)
    except MediaError:
        return None
    if name == "iff" and pictures:
        with Path(path).open("rb") as file:
            return None if file.read(12)[8:] == IFF_FILM else "iff"
    if name in ("image2", "image2pipe"):
        return suffix[1:]
    if not name.endswith("_pipe") and name not in DEMUXERS:
        return None
    name = name.removesuffix("_pipe")
    return None if name == "jpeg" and suffix in CONCATENATED else name


def _with_article(demuxer: str) -> str:
    name = NAMES.get(demuxer, demuxer.upper())
    spelt_out = name[:2].isupper() and name[:4] not in ("JPEG", "PICT")
    return f"{'an' if spelt_out and name[0] in 'AEFHILMNORSX' else 'a'} {name} picture"
