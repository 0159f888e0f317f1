"""A bundle's files are hashed once for each of their states, and whatever is written to one is another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pie_engine.errors import BundleError
from pie_engine.files import cache_root, records, verified
from pie_engine.machine.inspection import inspect_bundle
from pie_engine.model.bundle import MANIFEST, Bundle, open_bundle


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that are hashed from here on; the cache is the test's own."""
    monkeypatch.setenv("PIE_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(records, "GRAIN_NS", 0)
    files: list[Path] = []
    real = verified.sha256_file

    def hash_file(path: Path) -> str:
        files.append(path)
        return real(path)

    monkeypatch.setattr(verified, "sha256_file", hash_file)
    return files


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy.pie"))


def test_the_second_time_nothing_is_hashed(copied: Path, hashed: list[Path]) -> None:
    first = open_bundle(copied)
    assert len(hashed) == len(first.manifest["files"]) > 4
    hashed.clear()
    again = open_bundle(copied)
    again.check_unchanged("unet")
    assert hashed == [] and again.manifest == first.manifest


def test_unless_it_is_asked_for(copied: Path, hashed: list[Path]) -> None:
    count = len(open_bundle(copied).manifest["files"])
    hashed.clear()
    open_bundle(copied, remembered=False).check_unchanged("unet")
    assert len(hashed) == count + 1
    hashed.clear()
    inspect_bundle(copied)
    assert len(hashed) == count


def test_one_component_s_check_leaves_the_others_known(copied: Path, hashed: list[Path]) -> None:
    opened = open_bundle(copied)
    (copied / "unet" / "model.onnx").touch()
    opened.check_unchanged("unet")
    hashed.clear()
    open_bundle(copied)
    assert hashed == []


def overwrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def with_its_old_time(path: Path) -> None:
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_file(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    shutil.copyfile(path, other)
    with_its_old_time(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [overwrite, with_its_old_time, replace_file])
def test_a_changed_file_is_seen(copied: Path, hashed: list[Path], change: Callable[[Path], None]) -> None:
    opened = open_bundle(copied)
    change(opened.graph("unet"))
    hashed.clear()
    with pytest.raises(BundleError, match=r"unet/model.onnx does not match its manifest \(SHA-256"):
        open_bundle(copied)
    assert hashed == [copied / "unet" / "model.onnx"]
    with pytest.raises(BundleError, match=r"model\.onnx was changed while its model ran"):
        opened.check_unchanged("unet")


def test_a_file_of_this_moment_is_not_remembered(
    copied: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written again within one grain of the clock it would look the same."""
    monkeypatch.setattr(records, "GRAIN_NS", 3_600_000_000_000)
    count = len(open_bundle(copied).manifest["files"])
    open_bundle(copied)
    assert len(hashed) == 2 * count
    assert not (cache_root() / "verified").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"unet/model.onnx": 3}', '{"unet/model.onnx": ["0", 1]}', "[" * 100_000]
)
def test_a_damaged_record_counts_for_nothing(copied: Path, hashed: list[Path], content: str) -> None:
    count = len(open_bundle(copied).manifest["files"])
    (record,) = (cache_root() / "verified").iterdir()
    record.write_text(content)
    hashed.clear()
    open_bundle(copied)
    assert len(hashed) == count


def test_another_bundle_at_the_same_place(copied: Path, bundle: Bundle, hashed: list[Path], tmp_path: Path) -> None:
    open_bundle(copied)
    shutil.rmtree(copied)
    shutil.copytree(bundle.path, copied)
    hashed.clear()
    assert len(hashed) == 0
    open_bundle(copied)
    assert len(hashed) == len(bundle.manifest["files"])
    assert (copied / MANIFEST).is_file()


def test_records_of_old_bundles_go(copied: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MOST_RECORDS", 1)
    other = Path(shutil.copytree(copied, copied.with_name("other.pie")))
    open_bundle(copied)
    open_bundle(other)
    assert len(list((cache_root() / "verified").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_time_alone(
    copied: Path, hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIE_ENGINE_CACHE", str(tmp_path / "file"))
    count = len(open_bundle(copied).manifest["files"])
    open_bundle(copied)
    assert len(hashed) == 2 * count
