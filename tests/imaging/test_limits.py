"""What a file may cost: each limit with a small bomb, the memory and time that it takes, and what is said of it."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import bombs
import numpy as np
import pytest
from clinical_files import write_dicom
from PIL import EpsImagePlugin, Image

from pie_engine.errors import InputError
from pie_engine.imaging import Reading, limits, read_image
from pie_engine.imaging.formats import dicom_limits, nifti_slice, raster

# Of a bomb that is refused; the largest of them would take 600 MB.
MEGABYTES, SECONDS = 100, 20
RAMP = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
TEXT = zlib.compress(bytes(2**26), 9)


@pytest.fixture
def hurry() -> Iterator[None]:
    """What waits for a writer that never comes fails instead."""

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield
    signal.alarm(0)


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    plain = write_dicom(tmp_path / "plain.dcm", RAMP)
    over = limits.MAX_INFLATED + 2**25
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 2**21
    made = [
        (bombs.deflated_dicom(tmp_path / "a.dcm", plain, over), "inflates to more than 268435456 bytes; convert"),
        (
            bombs.encapsulated_dicom(tmp_path / "b.dcm", plain, bombs.jpeg2000(9000), "1.2.840.10008.1.2.4.90"),
            "another size than its header says (9000 x 9000 of 1 samples, not 64 x 64 of 1); export it anew",
        ),
        (
            bombs.encapsulated_dicom(tmp_path / "c.dcm", plain, runs, "1.2.840.10008.1.2.5"),
            "bytes for a frame of 4096; export it anew",
        ),
        (
            bombs.nifti(tmp_path / "d.nii.gz", (64, 64), offset=2**25 + 352, extension=2**25),
            "first voxel at byte 33554784 (at most 16777216); save it anew without extensions",
        ),
        (
            bombs.nifti(tmp_path / "e.nii.gz", (1024, 1024, 1024)),
            "2147483648 bytes of voxels (at most 1073741824); unpack it with gunzip first",
        ),
        (bombs.png(tmp_path / "f.png", 9000, 9000), "has 9000 x 9000, more than 67108864 pixels; crop"),
        (bombs.large_tile(tmp_path / "g.tif", 9000), "has tiles of 9000 x 9000, more than 67108864 pixels; crop"),
        (bombs.many_scans(tmp_path / "h.jpg", 600), "scans (at most 500); save it anew"),
    ]
    for name, keyword in ((b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0")):
        text = bombs.png_chunk(name, keyword + TEXT)
        path = bombs.png(tmp_path / f"{name.decode()}.png", 64, 64, extra=text)
        made.append((path, "once unpacked; save it anew without them"))
    small = bombs.png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20), 9))
    made.append((bombs.png(tmp_path / "texts.png", 64, 64, extra=70 * small), "67108864 in all, once unpacked"))
    for (path, line), (said, megabytes, seconds) in zip(
        made, bombs.measure(*((path, {}) for path, _ in made)), strict=True
    ):
        assert line in said, path.name
        assert megabytes < MEGABYTES, (path.name, megabytes)
        assert seconds < SECONDS, (path.name, seconds)


def test_slices_across_a_volume_read_a_part_of_it_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nibabel reads all of a volume whose first side is small, for any slice across the others."""
    monkeypatch.setattr(nifti_slice, "_AT_ONCE", 2**20)
    voxels = np.zeros((8, 256, 2**14), "<i2", order="F")  # 64 MB
    voxels[2] = np.arange(256)[:, None]
    path = bombs.nifti(tmp_path / "a.nii.gz", voxels.shape, voxels=voxels.tobytes(order="F"))
    read_image(path, reading=Reading(axis=0, slice=1))  # nibabel is imported now
    tracemalloc.start()
    image, _ = read_image(path, reading=Reading(axis=0, slice=3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 56e6  # the slice of 8 MB twice, a block of it as float64 four times, and a few planes
    assert (np.asarray(image)[0, ::-1] == np.arange(256)).all()


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize("called", ["pipe", "socket", "device", "folder"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, called: str, kind: str) -> None:
    path = tmp_path / "x.png"
    if called == "pipe":
        os.mkfifo(path)
    elif called == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
    elif called == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(InputError, match=rf"{kind} {path} is a {called}; pass the path of a PNG, JPEG, TIFF"):
        read_image(path, kind)


@pytest.mark.usefixtures("hurry")
def test_no_other_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow takes an EPS file for a picture whatever it is called, and starts Ghostscript on it."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tmp_path / "x.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n{} loop\n%%EOF\n")
    with pytest.raises(InputError, match="is not an image in a known format; pass the path of a PNG, JPEG, TIFF, BMP"):
        read_image(path)


@pytest.mark.parametrize("name", raster.FORMATS)
def test_formats_that_are_read(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / "x", name, **({"lossless": True} if name == "WEBP" else {}))
    image, facts = read_image(tmp_path / "x")
    assert facts["format"] == name
    assert np.abs(np.asarray(image.convert("L")).astype(int) - RAMP).max() <= (30 if name == "JPEG" else 0)


@pytest.mark.parametrize(("name", "part"), [("TIFF", "page"), ("GIF", "frame"), ("WEBP", "frame"), ("PNG", "frame")])
def test_several_pictures_in_a_file_need_a_frame(tmp_path: Path, name: str, part: str) -> None:
    pictures = [Image.new("L", (40, 30), grey) for grey in (10, 120, 250)]
    pictures[0].save(tmp_path / "x", name, save_all=True, append_images=pictures[1:])
    with pytest.raises(InputError, match=f"has 3 {part}s; pass frame=1 to 3, or save one {part} alone"):
        read_image(tmp_path / "x")
    with pytest.raises(InputError, match=f"has 3 {part}s, none of them 4; pass frame=1 to 3"):
        read_image(tmp_path / "x", reading=Reading(frame=4))
    image, facts = read_image(tmp_path / "x", reading=Reading(frame=2))
    assert abs(int(np.asarray(image.convert("L"))[0, 0]) - 120) <= 3
    assert (facts["frame"], facts["frames"]) == (2, 3)


def test_pages_and_frames_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [Image.new("L", (40, 30), grey) for grey in (10, 120, 250)]
    pictures[0].save(tmp_path / "x.tif", save_all=True, append_images=pictures[1:])
    pictures[0].save(tmp_path / "x.gif", save_all=True, append_images=pictures[1:])
    monkeypatch.setattr(raster, "MAX_PAGES", 2)
    with pytest.raises(InputError, match="has more than 2 pages; save one page alone"):
        read_image(tmp_path / "x.tif", reading=Reading(frame=1))
    monkeypatch.setattr(raster, "MAX_ANIMATED_PIXELS", 2400)
    assert read_image(tmp_path / "x.gif", reading=Reading(frame=2))[1]["frame"] == 2
    with pytest.raises(InputError, match="has 3 frames of 40 x 30 up to the chosen one, more than 2400 pixels in all"):
        read_image(tmp_path / "x.gif", reading=Reading(frame=3))


def test_arrays_and_pictures_are_limited_too() -> None:
    huge = np.broadcast_to(np.uint8(3), (2**13, 2**13 + 1))  # a byte, seen many times
    with pytest.raises(InputError, match="image array has 8193 x 8192, more than 67108864 pixels; crop or shrink it"):
        read_image(huge)
    with pytest.raises(InputError, match="image has 8193 x 8192, more than 67108864 pixels"):
        read_image(Image.new("1", (2**13 + 1, 2**13)))


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        (
            {"NumberOfFrames": 2_000_000_000},
            "says that it has 2000000000 frames (at most 100000); save the frame alone",
        ),
        ({"BitsStored": 12}, "says 1 samples per pixel of 12 bits in 8, which no image has; export it anew"),
        ({"BitsAllocated": 65535}, "of 8 bits in 65535, which no image has"),
        ({"SamplesPerPixel": 60000}, "says 60000 samples per pixel"),
    ],
)
def test_numbers_that_no_dicom_image_has(tmp_path: Path, tags: dict[str, int], line: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert line in str(caught.value)


def test_a_dicom_file_that_is_too_large_to_be_read_whole(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    with path.open("r+b") as file:
        file.truncate(limits.MAX_DICOM_FILE + 1)  # sparse: it takes no room
    with pytest.raises(InputError, match=r"has 4294967297 bytes \(at most 4294967296\); save the frame alone"):
        read_image(path)


def test_ordinary_deflated_files_are_read(tmp_path: Path) -> None:
    plain = write_dicom(tmp_path / "plain.dcm", RAMP)
    deflated = bombs.deflated_dicom(tmp_path / "a.dcm", plain, 2**20)
    assert (np.asarray(read_image(deflated)[0]) == RAMP).all()


def test_sizes_that_streams_declare() -> None:
    for name, mode, samples in (("JPEG", "L", 1), ("JPEG", "RGB", 3), ("JPEG2000", "L", 1), ("JPEG2000", "RGB", 3)):
        data = io.BytesIO()
        Image.new(mode, (70, 50)).save(data, name)
        assert dicom_limits.codestream_size(data.getvalue()) == (70, 50, samples)
    assert dicom_limits.codestream_size(b"\xff\xd8\xff\xff\xff\xc0") is None
    assert dicom_limits.codestream_size(b"anything else") is None
