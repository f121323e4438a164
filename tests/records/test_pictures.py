import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from sdbench.distill.captions import image_folder
from sdbench.records.files import read_image

ORIENTATION = 0x0112
WIDE = np.array([[0, 257 * 7, 257 * 128], [65280, 65535, 257 * 200]], np.uint16)
CORNER = np.zeros((20, 30, 3), np.uint8)  # wider than high, one corner of it red
CORNER[:10, :15] = (255, 0, 0)


def opened(image, path, **options):
    """A picture from a file: its pixels as whole numbers, which do not wrap."""
    image.save(path, **options)
    read = read_image(path)
    assert read.mode == "RGB"
    return np.asarray(read).astype(int)


def tagged(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def hidden_red(alpha, mode="RGBA"):
    """Red pixels behind an alpha."""
    image = Image.new("RGBA", (4, 3), (255, 0, 0, 255))
    image.putalpha(alpha)
    return image.convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_picture_is_turned_by_its_tag_once(tmp_path, orientation, suffix):
    image = Image.fromarray(CORNER)
    found = opened(image, tmp_path / f"a.{suffix}", exif=tagged(orientation), quality=95)
    image.getexif()[ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 10  # some of the files lose a little


def test_a_tag_in_xmp_turns_a_picture(tmp_path):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert opened(Image.fromarray(CORNER), tmp_path / "a.jpg", xmp=xmp).shape == (30, 20, 3)


def test_a_picture_is_turned_before_it_is_cut_for_training(tmp_path):
    Image.fromarray(CORNER).save(tmp_path / "a.png", exif=tagged(6))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "red"}\n')
    _, images = image_folder(tmp_path, side=20)(np.random.default_rng(0), 1)
    assert images[0, 2, -3].tolist() == [255, 0, 0]  # top right
    assert images[0, -3, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_keeps_its_upper_8(tmp_path, suffix):
    found = opened(Image.fromarray(WIDE), tmp_path / f"a.{suffix}")
    assert np.array_equal(found, np.repeat(WIDE[..., None] >> 8, 3, axis=2))


@pytest.mark.parametrize("mode", ["I;16B", "I"])
def test_grey_of_16_bits_in_other_types_is_the_same(tmp_path, mode):
    kind = {"I;16B": ">u2", "I": np.int32}[mode]
    image = Image.fromarray(WIDE.astype(kind))
    assert image.mode == mode
    assert np.array_equal(opened(image, tmp_path / "a.tif")[..., 0], WIDE >> 8)


def test_grey_of_16_bits_is_turned(tmp_path):
    found = opened(Image.fromarray(WIDE), tmp_path / "a.png", exif=tagged(3))
    assert np.array_equal(found[..., 0], WIDE[::-1, ::-1] >> 8)


def test_a_transparent_grey_of_16_bits_is_white(tmp_path):
    found = opened(Image.fromarray(WIDE), tmp_path / "a.png", transparency=257 * 7)
    assert found[0].tolist() == [[0] * 3, [255] * 3, [128] * 3]


@pytest.mark.parametrize("highest", [-1, 200, 255, 65536, 2**31 - 1])
def test_whole_numbers_of_32_bits_without_a_known_white_are_refused(tmp_path, highest):
    Image.fromarray(np.array([[5, highest]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif' cannot be read: .*of an unknown range"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("highest", [1.0, 255.0])
def test_floats_are_refused(tmp_path, highest):
    Image.fromarray(np.array([[0.0, highest]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif' cannot be read: its pixels are floats"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_what_is_transparent_is_white(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    found = opened(hidden_red(0), tmp_path / f"a.{suffix}", **options)
    assert (found == 255).all()


def test_what_is_half_transparent_is_mixed_with_white(tmp_path):
    assert opened(hidden_red(102), tmp_path / "a.png")[0, 0].tolist() == [255, 153, 153]


def test_transparent_grey_is_white(tmp_path):
    assert (opened(hidden_red(0, "LA"), tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_a_transparent_entry_of_a_palette_is_white(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    found = opened(image, tmp_path / "a.png", transparency=transparency)
    assert found[0].tolist() == [[255] * 3, [0, 0, 255]]


@pytest.mark.parametrize(
    ("mode", "colour", "transparency"),
    [("1", 0, 0), ("L", 9, 9), ("RGB", (9, 8, 7), (9, 8, 7))],
)
def test_a_transparent_colour_is_white(tmp_path, mode, colour, transparency):
    image = Image.new(mode, (2, 1), "white")
    image.putpixel((0, 0), colour)
    assert (opened(image, tmp_path / "a.png", transparency=transparency) == 255).all()


def raw_png(path, *, bits, kind, row, transparent):
    """A PNG of one row as Pillow does not write it."""
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        pixels = len(row) * 8 // bits // {0: 1, 2: 3}[kind]
        header = pixels.to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([bits, kind, 0, 0, 0])
        PngImagePlugin.putchunk(file, b"IHDR", header)
        PngImagePlugin.putchunk(file, b"tRNS", transparent)
        PngImagePlugin.putchunk(file, b"IDAT", PngImagePlugin.zlib.compress(b"\0" + row))
        PngImagePlugin.putchunk(file, b"IEND", b"")


def test_a_transparent_colour_of_16_bits_is_white(tmp_path):
    red, blue = bytes([200, 200, 0, 0, 0, 0]), bytes([0, 0, 0, 0, 100, 100])
    raw_png(tmp_path / "a.png", bits=16, kind=2, row=red + blue, transparent=red)
    found = np.asarray(read_image(tmp_path / "a.png"))
    assert found[0].tolist() == [[255] * 3, [0, 0, 100]]


@pytest.mark.parametrize("bits", [2, 4])
def test_a_transparent_grey_of_few_bits_is_white(tmp_path, bits):
    row = bytes([0b0100_0000 if bits == 2 else 0b0001_0000])  # one, then zeros
    raw_png(tmp_path / "a.png", bits=bits, kind=0, row=row, transparent=bytes([0, 1]))
    found = np.asarray(read_image(tmp_path / "a.png"))
    assert found[0, :2].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa"])
def test_rare_kinds_of_alpha_are_over_white(mode):
    from sdbench.records.pictures import as_rgb

    image = Image.new(mode, (2, 1))  # nothing in it, not even alpha
    assert (np.asarray(as_rgb(image)) == 255).all()


def test_ink_becomes_light(tmp_path):
    found = opened(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "a.tif")
    assert found[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    found = opened(
        frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options
    )
    assert (found == [255, 0, 0]).all()


def test_one_bit_is_black_and_white(tmp_path):
    image = Image.fromarray(np.array([[True, False]]))
    assert opened(image, tmp_path / "a.png")[0].tolist() == [[255] * 3, [0] * 3]


def test_plain_colours_stay_as_they_are(tmp_path):
    assert np.array_equal(opened(Image.fromarray(CORNER), tmp_path / "a.png"), CORNER)


def test_opaque_pixels_keep_their_colour(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.putalpha(255)
    assert np.array_equal(opened(image, tmp_path / "a.png"), pixels)
