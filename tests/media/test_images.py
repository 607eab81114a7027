"""Pictures of every kind: shown as a viewer shows them, or refused as what they are."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from avjax.media.decode import media_kind
from avjax.media.errors import MediaError
from avjax.media.images import array_picture, is_image, picture_array, read_image, refuse_picture

RAMP = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)  # 0 to 65,520
EXPECTED_RAMP = np.rint(RAMP / 257).astype(int)


def noise(seed: int = 0, size: tuple[int, ...] = (24, 36, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def save_frames(path: Path, **options: Any) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def assert_grey(pixels: np.ndarray, expected: np.ndarray) -> None:
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_grey_of_16_bits_is_scaled(tmp_path: Path, name: str):
    Image.fromarray(RAMP).save(tmp_path / name)
    assert_grey(read_image(tmp_path / name), EXPECTED_RAMP)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / name, exif=turned)
    assert_grey(read_image(tmp_path / name), np.rot90(EXPECTED_RAMP, -1))


UPRIGHT = {  # what a viewer does to the stored picture
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: np.rot90(a[:, ::-1]),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a[:, ::-1], -1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_turned_tiffs(tmp_path: Path, mode: str, compression: str | None):
    stored = Image.fromarray(RAMP[:40]) if mode == "I;16" else Image.fromarray(noise()).convert(mode)
    upright = picture_array(stored, "stored")
    path = tmp_path / "turned.tif"
    for orientation, turned in UPRIGHT.items():
        stored.save(path, compression=compression, tiffinfo={274: orientation})
        np.testing.assert_array_equal(read_image(path), turned(upright))
        with Image.open(path) as image:
            np.testing.assert_array_equal(picture_array(image, "image"), turned(upright))
        if mode != "I;16":
            np.testing.assert_array_equal(read_image(path, as_viewers_show=False), turned(upright))


@pytest.mark.parametrize("largest", [65_535, 4095])
def test_grey_of_a_pgm_is_scaled_by_its_header(tmp_path: Path, largest: int):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    (tmp_path / "grey.pgm").write_bytes(b"P5 64 64 %d\n" % largest + values.astype(">u2").tobytes())
    pixels = read_image(tmp_path / "grey.pgm").astype(int)
    assert np.abs(pixels[..., 0] - values / largest * 255).max() <= 0.51


def tiff(values: np.ndarray, *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A little-endian TIFF of one strip of grey, by hand."""
    height, width = values.shape
    bits = values.dtype.itemsize * 8
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 4, height), (279, 4, values.nbytes), (339, 3, sample_format),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def test_grey_whose_white_is_zero(tmp_path: Path):
    (tmp_path / "negative.tif").write_bytes(tiff(RAMP, photometric=0))
    try:
        pixels = read_image(tmp_path / "negative.tif")
    except MediaError:  # Pillow may not know it; wrong it must not be
        return
    assert_grey(pixels, 255 - EXPECTED_RAMP)


@pytest.mark.parametrize(
    ("values", "sample_format"),
    [(np.linspace(0, 1, 64, dtype=np.float32), 3), (np.arange(64, dtype=np.int32) * 1000, 2),
     (np.arange(64, dtype=np.int16) * 100, 2)],
    ids=["float", "int32", "int16"],
)  # fmt: skip
def test_values_without_a_range_are_refused(tmp_path: Path, values: np.ndarray, sample_format: int):
    (tmp_path / "depth.tif").write_bytes(tiff(values.reshape(8, 8), sample_format=sample_format))
    assert media_kind(tmp_path / "depth.tif") == "image"
    with pytest.raises(MediaError, match=r"depth\.tif: a picture of .*scale it to 0\.\.255"):
        read_image(tmp_path / "depth.tif")


@pytest.mark.parametrize("name", ["colour.png", "colour.tif", "colour.ppm"])
def test_colour_of_16_bits(tmp_path: Path, name: str):
    colour = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
    codec, pixel_format = {"png": ("png", "rgb48be"), "tif": ("tiff", "rgb48le"), "ppm": ("ppm", "rgb48be")}[name[7:]]
    with av.open(str(tmp_path / name), "w", format="image2") as container:
        stream: Any = container.add_stream(codec, rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = pixel_format
        container.mux(stream.encode(av.VideoFrame.from_ndarray(colour, format=pixel_format)))
        container.mux(stream.encode(None))
    assert np.abs(read_image(tmp_path / name) - colour / 257).max() <= 1


def test_modes(tmp_path: Path):
    image = Image.fromarray(noise())
    black_and_white = np.asarray(image.convert("1"))
    image.convert("1").save(tmp_path / "bits.png")
    assert_grey(read_image(tmp_path / "bits.png"), np.where(black_and_white, 255, 0))

    image.convert("CMYK").save(tmp_path / "print.tif")
    assert np.abs(read_image(tmp_path / "print.tif").astype(int) - noise()).max() <= 1
    flat = Image.new("RGB", (32, 32), (200, 120, 40))
    flat.convert("CMYK").save(tmp_path / "print.jpg", quality=100)  # whose ink is stored inverted
    assert np.abs(read_image(tmp_path / "print.jpg").astype(int) - (200, 120, 40)).max() <= 3

    flat.convert("LAB").save(tmp_path / "lab.tif")
    assert np.abs(read_image(tmp_path / "lab.tif").astype(int) - (200, 120, 40)).max() <= 3

    palette = image.quantize(8)
    palette.save(tmp_path / "palette.png", transparency=0)
    expected = np.where(np.asarray(palette)[..., None] == 0, 255, np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), expected)

    grey = Image.fromarray(noise(1)[..., 0])
    grey.save(tmp_path / "key.png", transparency=int(noise(1)[0, 0, 0]))
    assert (read_image(tmp_path / "key.png")[0, 0] == 255).all()
    Image.fromarray(RAMP).save(tmp_path / "key16.png", transparency=0)
    assert (read_image(tmp_path / "key16.png")[0, 0] == 255).all()
    half = Image.merge("LA", [Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 128)])
    half.save(tmp_path / "half.png")
    assert np.abs(read_image(tmp_path / "half.png").astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    "extension", ["bmp", "gif", "ico", "jp2", "jpg", "pcx", "png", "ppm", "sgi", "tga", "tif", "webp"]
)
def test_still_formats(tmp_path: Path, extension: str):
    path = tmp_path / f"still.{extension}"
    Image.new("RGB", (32, 32), (255, 0, 0)).save(path)
    assert media_kind(path) == "image" and is_image(path)
    assert np.abs(read_image(path).astype(int) - (255, 0, 0)).max() <= 4
    with pytest.raises(MediaError, match="still picture; pass it as image="):
        refuse_picture(path)


@pytest.mark.parametrize("extension", ["xbm", "msp"])
def test_still_formats_of_single_bits(tmp_path: Path, extension: str):
    bits = Image.fromarray(noise()).convert("1")
    bits.save(tmp_path / f"still.{extension}")
    assert media_kind(tmp_path / f"still.{extension}") == "image"
    assert_grey(read_image(tmp_path / f"still.{extension}"), np.where(np.asarray(bits), 255, 0))


JPEG_XL = bytes.fromhex("ff0afaff0d10105818000001002098040020") + bytes(64)
IFF_PICTURE = b"".join([
    b"FORM", struct.pack(">I", 4 + 28 + 8 + 32), b"ILBM",
    b"BMHD", struct.pack(">IHHhhBBBBHBBhh", 20, 16, 16, 0, 0, 1, 0, 0, 0, 0, 1, 1, 16, 16),
    b"BODY", struct.pack(">I", 32), bytes(range(32)),
])  # fmt: skip


def write_foreign_still(path: Path) -> None:
    codec, pixel_format = {
        ".dpx": ("dpx", "rgb24"), ".exr": ("exr", "gbrpf32le"), ".hdr": ("hdr", "gbrpf32le"),
        ".jls": ("jpegls", "rgb24"), ".pam": ("pam", "rgb24"), ".ras": ("sunrast", "bgr24"), ".xwd": ("xwd", "rgb24"),
    }[path.suffix]  # fmt: skip
    with av.open(str(path), "w", format="image2") as container:
        stream: Any = container.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = 36, 24, pixel_format
        container.mux(stream.encode(av.VideoFrame.from_ndarray(noise(), format="rgb24").reformat(format=pixel_format)))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("extension", "words"),
    [
        ("dds", "a DDS"), ("dpx", "a DPX"), ("exr", "an EXR"), ("hdr", "a Radiance HDR"), ("iff", "an IFF"),
        ("jls", "a JPEG-LS"), ("jxl", "a JPEG XL"), ("pam", "a PAM"), ("ras", "a Sun raster"), ("xwd", "an XWD"),
    ],
)  # fmt: skip
def test_stills_that_are_not_read_are_named(tmp_path: Path, extension: str, words: str):
    path = tmp_path / f"still.{extension}"
    if extension == "dds":
        Image.fromarray(noise()).save(path)
    elif extension in ("iff", "jxl"):
        path.write_bytes(IFF_PICTURE if extension == "iff" else JPEG_XL)
    else:
        write_foreign_still(path)
    for read in (media_kind, read_image, refuse_picture):
        message = rf"still\.{extension}: expected a JPEG or PNG.*, got {words} picture; convert it to PNG"
        with pytest.raises(MediaError, match=message):
            read(path)


def test_a_picture_that_pillow_cannot_open_is_no_video(tmp_path: Path):
    path = tmp_path / "broken.png"
    Image.fromarray(noise()).save(path)
    data = bytearray(path.read_bytes())
    data[24] = 7  # bits that no PNG has
    path.write_bytes(data)
    for read in (media_kind, read_image, refuse_picture):
        with pytest.raises(MediaError, match=r"broken\.png: "):
            read(path)


def test_a_phone_photo_of_several_pictures_is_its_first(tmp_path: Path):
    turned = Image.Exif()
    turned[0x0112] = 6
    first = Image.new("RGB", (64, 32), (250, 0, 0))
    first.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (16, 8))], exif=turned)
    assert media_kind(tmp_path / "photo.jpg") == "image"
    pixels = read_image(tmp_path / "photo.jpg")
    assert pixels.shape == (64, 32, 3) and np.abs(pixels.astype(int) - (250, 0, 0)).max() <= 4


HEIC = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + b"\0" * 200
MOTION = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"msf1", 0, b"hevc", b"mif1") + b"\0" * 200


@pytest.mark.parametrize("data", [HEIC, MOTION], ids=["heic", "sequence"])
def test_heic_is_named(tmp_path: Path, data: bytes):
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(data)
    assert media_kind(path) == "image"
    try:
        import pillow_heif  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(MediaError, match=r"IMG_0001\.HEIC: a HEIC .*convert it to JPEG or PNG, or install pillow-"):
            read_image(path)
    with pytest.raises(MediaError, match="still picture"):
        refuse_picture(path)


@pytest.mark.parametrize("extension", ["gif", "png"])
def test_animations_that_libav_plays_are_videos(tmp_path: Path, extension: str):
    save_frames(tmp_path / f"moving.{extension}", duration=100)
    assert media_kind(tmp_path / f"moving.{extension}") == "video"
    refuse_picture(tmp_path / f"moving.{extension}")
    with pytest.raises(MediaError, match="animation of 3 frames; pass it as video="):
        read_image(tmp_path / f"moving.{extension}")


@pytest.mark.parametrize("extension", ["webp", "avif"])
def test_animations_that_libav_does_not_play_are_named(tmp_path: Path, extension: str):
    path = tmp_path / f"moving.{extension}"
    save_frames(path, duration=100)
    for read in (media_kind, read_image, refuse_picture):
        with pytest.raises(MediaError, match=rf"an animated {extension.upper()} of 3 frames.*convert it to GIF or MP4"):
            read(path)


def test_pages(tmp_path: Path):
    save_frames(tmp_path / "scan.tif")
    assert media_kind(tmp_path / "scan.tif") == "image"
    with pytest.raises(MediaError, match="a TIFF of 3 pages"):
        read_image(tmp_path / "scan.tif")
    thumbnail = Image.new("RGB", (8, 8))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    Image.new("RGB", (32, 32), "red").save(tmp_path / "thumb.tif", save_all=True, append_images=[thumbnail])
    assert read_image(tmp_path / "thumb.tif").shape == (32, 32, 3)


@pytest.mark.parametrize(("codec", "container"), [("mpeg1video", "mpeg1video"), ("mpeg1video", "mpeg")])
def test_mpeg_streams_are_videos(tmp_path: Path, codec: str, container: str):
    path = tmp_path / "film.mpg"
    with av.open(str(path), "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(noise(i, (48, 64, 3)), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert media_kind(path) == "video" and not is_image(path)
    with pytest.raises(MediaError, match=r"film\.mpg: expected an image, got"):
        read_image(path)


def test_bombs_and_damage_are_pictures_still(tmp_path: Path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    assert media_kind(tmp_path / "huge.png") == "image"
    Image.fromarray(noise()).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    assert media_kind(tmp_path / "cut.jpg") == "image"
    for name in ("huge.png", "cut.jpg"):
        with pytest.raises(MediaError, match=f"{name}: expected an image, got"):
            read_image(tmp_path / name)


def test_pillow_images_and_arrays():
    turned = Image.fromarray(noise())
    turned.getexif()[0x0112] = 6
    np.testing.assert_array_equal(picture_array(turned, "image"), np.asarray(ImageOps.exif_transpose(turned)))
    np.testing.assert_array_equal(array_picture(noise(), "image"), noise())
    assert_grey(array_picture(noise()[..., 0], "image"), noise()[..., 0])
    assert_grey(array_picture(noise()[..., :1], "image"), noise()[..., 0])
    assert_grey(array_picture(RAMP, "image"), EXPECTED_RAMP)
    clear = np.concatenate([noise(), np.zeros((24, 36, 1), np.uint8)], axis=2)
    assert (array_picture(clear, "image") == 255).all()
    for values, words in (
        (noise() / 255, "expected uint8 or uint16 values, got float64"),
        (noise().astype(np.int64), "got int64"),
        (noise().transpose(2, 0, 1), r"got \[3, 24, 36\]; move the channels last"),
        (noise()[None], r"got \[1, 24, 36, 3\]"),
        (noise()[:0], r"got \[0, 36, 3\]"),
    ):
        with pytest.raises(MediaError, match=words):
            array_picture(values, "image")
