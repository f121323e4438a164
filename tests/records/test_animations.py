import numpy as np
import pytest
from PIL import Image

from sdbench.records import animations
from sdbench.records.animations import FRAME_MS, write_animation
from sdbench.records.files import read_image, read_pixels


def noise(frames, height=6, width=9):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("frames", [1, 2, 17, 40])
def test_a_video_comes_back_pixel_by_pixel(tmp_path, frames):
    video = noise(frames)
    write_animation(tmp_path / "video.webp", video)
    assert np.array_equal(read_pixels(tmp_path / "video.webp"), video)


@pytest.mark.parametrize("order", [[0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 1, 1], [1] * 40])
def test_frames_that_repeat_come_back_as_often(tmp_path, order):
    """An encoder of animations leaves out what does not change."""
    video = noise(2)[order]
    write_animation(tmp_path / "video.webp", video)
    assert np.array_equal(read_pixels(tmp_path / "video.webp"), video)


def test_frames_that_differ_by_one_level_in_one_value_are_two(tmp_path):
    video = noise(1).repeat(3, axis=0)
    video[1, 2, 3, 1] ^= 1
    write_animation(tmp_path / "video.webp", video)
    assert np.array_equal(read_pixels(tmp_path / "video.webp"), video)


def test_black_frames_and_large_areas_come_back(tmp_path):
    video = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    video[2, 8:24, 8:24] = (255, 0, 3)
    write_animation(tmp_path / "video.webp", video)
    assert np.array_equal(read_pixels(tmp_path / "video.webp"), video)


def test_a_viewer_shows_every_frame_as_long(tmp_path):
    write_animation(tmp_path / "video.webp", noise(3))
    with Image.open(tmp_path / "video.webp") as animation:
        assert animation.n_frames == 3
        for frame in range(3):
            animation.seek(frame)
            animation.load()
            assert animation.info["duration"] == FRAME_MS


def test_an_image_is_one_frame_less_a_dimension(tmp_path):
    pixels = noise(1)[0]
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert np.array_equal(read_pixels(tmp_path / "image.png"), pixels)


def test_what_is_no_video_is_said(tmp_path):
    file = tmp_path / "video.webp"
    with pytest.raises(ValueError, match="cannot be read"):
        read_pixels(file)
    file.write_bytes(b"RIFF1234WEBPVP8X")
    with pytest.raises(ValueError, match="cannot be read"):
        read_pixels(file)
    Image.fromarray(noise(1)[0]).save(file, "PNG")
    with pytest.raises(ValueError, match="it is PNG; a video is stored as WebP"):
        read_pixels(file)


def test_a_frame_that_stays_for_hours_does_not_fill_the_memory(tmp_path, monkeypatch):
    first, second = map(Image.fromarray, noise(2))
    file = tmp_path / "video.webp"
    first.save(file, "WEBP", save_all=True, append_images=[second], duration=10_000_000)
    monkeypatch.setattr(animations, "MOST_VALUES", 1_000_000)
    with pytest.raises(ValueError, match="more than 0 frames of 9 x 6 pixels"):
        read_pixels(file)


def test_of_a_video_an_image_is_the_first_frame(tmp_path):
    video = noise(3)
    write_animation(tmp_path / "video.webp", video)
    assert np.array_equal(np.asarray(read_image(tmp_path / "video.webp")), video[0])
