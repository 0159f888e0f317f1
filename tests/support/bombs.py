"""Small files that claim, or become, far more than they are; and what reading one of them costs a fresh process."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

_MEASURE = """
import json, resource, sys, time
import nibabel, PIL.Image, pydicom.pixels
from pie_engine.errors import PieError
from pie_engine.imaging import Reading, read_image
PIL.Image.init()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for path, reading in json.loads(sys.argv[1]):
    before, start = peak(), time.perf_counter()
    try:
        said = str(read_image(path, reading=Reading(**reading))[1]["size"])
    except PieError as error:
        said = str(error)
    print(json.dumps([said, peak() - before, time.perf_counter() - start]), flush=True)
"""


def measure(*files: tuple[Path, dict[str, int]]) -> list[tuple[str, float, float]]:
    """Read files one after another in a process of their own: what was said, MB above the peak before, seconds."""
    words = json.dumps([(str(path), reading) for path, reading in files])
    done = subprocess.run([sys.executable, "-c", _MEASURE, words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]  # type: ignore[misc]


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(path: Path, width: int, height: int, *, extra: bytes = b"") -> Path:
    """A grey PNG file, its first row brighter than the others, with chunks before its pixels."""
    packer = zlib.compressobj(1)
    parts = [packer.compress(b"\0" + b"\x7f" * width)]
    parts += [packer.compress(bytes(1 + width)) for _ in range(height - 1)]
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", b"".join([*parts, packer.flush()]))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + pixels + png_chunk(b"IEND", b""))
    return path


def deflated_dicom(path: Path, source: Path, zeros: int) -> Path:
    """A DICOM file as `source` (Explicit VR Little Endian), deflated, with so many bytes of padding behind it."""
    import pydicom

    ds = pydicom.dcmread(source)
    whole = source.read_bytes()
    begin = 144 + struct.unpack("<I", whole[140:144])[0]
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    meta = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(meta, ds.file_meta)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    padding = struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, zeros)
    parts = [packer.compress(whole[begin:] + padding)]
    parts += [packer.compress(bytes(2**20)) for _ in range(zeros // 2**20)]
    path.write_bytes(bytes(128) + b"DICM" + meta.getvalue() + b"".join([*parts, packer.flush()]))
    return path


def encapsulated_dicom(path: Path, source: Path, frame: bytes, syntax: str, **tags: object) -> Path:
    """A DICOM file as `source`, with this compressed frame in place of its pixels."""
    import pydicom

    ds = pydicom.dcmread(source)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    ds.PixelData = pydicom.encaps.encapsulate([frame])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.save_as(path)
    return path


def jpeg2000(side: int) -> bytes:
    """A codestream of a black square: some hundred bytes for any side."""
    data = io.BytesIO()
    Image.new("L", (side, side)).save(data, "JPEG2000", no_jp2=True)
    return data.getvalue()


def nifti(path: Path, shape: tuple[int, ...], *, offset: int = 352, extension: int = 0, voxels: bytes = b"") -> Path:
    """A gzipped NIfTI file of 16-bit voxels, of which `voxels` are written; all before the offset is zeros."""
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<ff", header, 108, float(offset), 1.0)
    struct.pack_into("<hh", header, 252, 0, 1)
    for row in range(3):
        struct.pack_into("<4f", header, 280 + 16 * row, *np.eye(4)[row])
    header[344:348] = b"n+1\0"
    with gzip.open(path, "wb", 1) as file:
        file.write(bytes(header) + (b"\1\0\0\0" + struct.pack("<ii", extension, 0) if extension else bytes(4)))
        for _ in range((offset - 352) // 2**20):
            file.write(bytes(2**20))
        file.write(voxels)
    return path


def many_scans(path: Path, count: int) -> Path:
    """A progressive JPEG file whose last scan stands in it so many times."""
    data = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(data, "JPEG", progressive=True)
    whole = data.getvalue()
    last = whole.rindex(b"\xff\xda")
    path.write_bytes(whole[:last] + whole[last:-2] * count + whole[-2:])
    return path


def large_tile(path: Path, side: int) -> Path:
    """A TIFF file of 64 x 64 pixels in one deflated tile of side x side."""
    tile = zlib.compressobj(1)
    data = b"".join([*(tile.compress(bytes(side)) for _ in range(side)), tile.flush()])
    tags = [
        (256, 4, 64), (257, 4, 64), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), (322, 4, side), (323, 4, side),
        (324, 4, 8), (325, 4, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in tags)
    place = 8 + len(data) + len(data) % 2
    path.write_bytes(b"II*\0" + struct.pack("<I", place) + data + bytes(len(data) % 2) + directory + bytes(4))
    return path
