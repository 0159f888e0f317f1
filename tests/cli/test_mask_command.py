"""`pie-engine mask`, and the options of regions on `pie-engine run`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine.imaging import Box, Ellipse


@pytest.fixture
def mask_of(pie: Any, image: Path, tmp_path: Path) -> Any:
    """`pie-engine mask` on the golden image (300 x 260), as JSON."""

    def run(*words: object) -> dict[str, Any]:
        outcome = pie("mask", "--image", image, "--output", tmp_path / "overlay.png", "--json", *words)
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    return run


def test_size_and_share(mask_of: Any) -> None:
    found = mask_of("--mask-box", "100,80,200,180", "--mask-ellipse", "40.5,130,20,30", "--resolution", "128")
    expected = Box(100, 80, 200, 180).draw((300, 260)) | Ellipse(40.5, 130, 20, 30).draw((300, 260))
    assert found["image"] == {"width": 300, "height": 260, "spacing_mm": None}
    assert found["roi"]["pixels"] == expected.sum()
    assert found["roi"]["share"] == pytest.approx(expected.mean())
    assert found["roi"]["component_pixels"] == [10_000, int(expected.sum()) - 10_000]
    # The crop takes 260 of 300 columns, from 20 on; the box is 100 * 128 / 260 = 49 pixels wide at 128.
    assert found["roi"]["cut_off_pixels"] == 0
    assert found["roi"]["output_pixels"] == pytest.approx(expected.sum() * (128 / 260) ** 2, rel=0.02)
    assert found["latent"]["size"] == [16, 16]
    assert found["latent"]["touched"] >= found["latent"]["inside"] > 30
    assert 0 < found["feather"]["full"] < 0.7
    assert mask_of("--mask-box", "100,80,200,180", "--feather", "0")["feather"]["full"] == 1


def test_scores(mask_of: Any, tmp_path: Path) -> None:
    """Two boxes, one of them moved by 13 columns: 87 of 113 in common, and 13 from edge to edge."""
    truth = Box(113, 80, 213, 180).draw((300, 260))
    Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / "truth.png")
    found = mask_of("--mask-box", "100,80,200,180", "--truth", tmp_path / "truth.png", "--resolution", "128")["truth"]
    assert found["source"] == {
        "iou": pytest.approx(87 / 113), "dice": pytest.approx(87 / 100), "hd95_pixels": 13.0, "hd95_mm": None,
    }  # fmt: skip
    assert found["output"]["iou"] == pytest.approx(87 / 113, abs=0.03)
    assert found["output"]["hd95_pixels"] == pytest.approx(13 * 128 / 260, abs=1)
    assert set(found["latent"]) == {"iou", "dice"}
    same = mask_of("--mask", tmp_path / "truth.png", "--truth", tmp_path / "truth.png")["truth"]
    assert same["source"]["iou"] == same["output"]["dice"] == same["latent"]["iou"] == 1
    assert same["source"]["hd95_pixels"] == 0


def test_spacing_in_mm(mask_of: Any, pie: Any, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    scan, region, truth = (
        np.zeros((40, 30, 1), np.int16),
        np.zeros((40, 30, 1), np.uint8),
        np.zeros((40, 30, 1), np.uint8),
    )
    scan[0, 0] = 1
    region[10:20, 10:20], truth[14:24, 10:20] = 1, 3
    for name, values in (("scan", scan), ("region", region), ("truth", truth)):
        nibabel.Nifti1Image(values, np.diag([0.5, 0.5, 2, 1])).to_filename(tmp_path / f"{name}.nii")
    words = (
        "--window-center",
        1,
        "--window-width",
        2,
        "--mask",
        tmp_path / "region.nii",
        "--truth",
        tmp_path / "truth.nii",
    )
    found = mask_of("--image", tmp_path / "scan.nii", *words, "--truth-label", 3)
    assert found["image"]["spacing_mm"] == [0.5, 0.5]
    assert (found["truth"]["source"]["hd95_pixels"], found["truth"]["source"]["hd95_mm"]) == (4.0, 2.0)
    outcome = pie("mask", "--image", tmp_path / "scan.nii", *words, "--output", tmp_path / "b.png")
    assert "HD95 4.0 pixels (2.00 mm)" in outcome.out
    outcome = pie("mask", "--image", tmp_path / "scan.nii", *words, "--truth-label", 2)
    assert outcome.code == 2
    assert "has no value 2 in slice 1 (it has 0, 3)" in outcome.err


def test_the_picture(mask_of: Any, pie: Any, image: Path, tmp_path: Path) -> None:
    Image.new("L", (300, 260), 128).save(tmp_path / "grey.png")
    mask_of(
        "--image", tmp_path / "grey.png", "--mask-box", "60,60,160,200", "--keep-box", "120,60,220,120", "--truth",
        image.with_name("mask.png"), "--resolution", "256", "--fit", "stretch",
    )  # fmt: skip
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.text["Synthetic"] == "false"
        drawn = np.asarray(overlay.convert("RGB")).astype(int)
    # Zoomed twice below a line of text: the middle of the region, of what is kept, and of what is neither.
    height, width = 260, 300

    def at(x: int, y: int) -> list[int]:
        return drawn[30 + round(2 * y * 256 / height), 8 + round(2 * x * 256 / width)].tolist()

    assert at(90, 150) == [166, 148, 90]  # 0.7 * 128 + 0.3 * (255, 196, 0)
    assert at(190, 90) == [111, 138, 166]
    assert at(250, 240) == [128, 128, 128]
    outcome = pie("mask", "--image", image, "--mask-box", "60,60,160,200", "--output", tmp_path / "c.png")
    assert outcome.code == 0
    assert "components   1 of 14000 pixels" in outcome.out
    assert f"look at {tmp_path / 'c.png'}" in outcome.out


def test_it_imports_no_torch(image: Path, tmp_path: Path) -> None:
    words = ["mask", "--image", str(image), "--mask-box", "29,29,99,99", "--output", str(tmp_path / "a.png")]
    program = (
        f"import sys\nfrom pie_engine.cli.main import main\ncode = main({words!r})\n"
        "sys.exit(code or ', '.join({'torch', 'diffusers', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


REFUSED: list[tuple[tuple[str, ...], str]] = [
    ((), "no region is given; pass --mask FILE, --mask-box"),
    (("--mask-box", "1,2,3"), "box '1,2,3' has 3 numbers, not 4; write x0,y0,x1,y1"),
    (("--mask-box", "400,0,500,9"), "box 400,0,500,9 lies outside the image of 300 x 260"),
    (("--mask-box", "9,9,99,99:2"), "mask's beta 2.0 is outside [0, 1]; write FILE:0.75"),
    (("--mask-polygon", "1,2,3,4"), "has 2 points (at least 3 needed)"),
    (("--mask-label", "1", "--mask-box", "9,9,99,99"), "mask-label 1 follows no --mask FILE of its own"),
    (("--mask-box", "9,9,99,99", "--mask-label", "1"), "mask-label 1 follows no --mask FILE"),
    (("--mask", "roi.png", "--mask-label", "x"), "mask-label 'x' is not a whole number"),
    (("--mask", "nowhere.png:0.5"), "mask nowhere.png does not exist"),
    (("--keep", "nowhere.png"), "no region is given"),
    (("--mask-box", "9,9,99,99", "--keep", "nowhere.png"), "keep mask nowhere.png does not exist"),
    (("--mask-box", "9,9,99,99", "--keep-box", "9,9,99,99:0.5"), "keep '9,9,99,99:0.5' has a beta"),
    (("--mask-box", "9,9,99,99", "--keep-box", "0,0,300,260"), "keep mask covers all 8100 pixels"),
    (("--mask-box", "9,9,99,99", "--dilate", "-50"), "empty after 50 pixels are taken off its edge (it had 8100"),
    (("--mask-box", "9,9,99,99", "--shift", "-100,0"), "mask leaves the image by --shift -100,0 (all 8100 pixels)"),
    (("--mask-box", "9,9,99,99", "--shift", "3"), "shift '3' is not two whole numbers; pass --shift 5,0"),
    (("--mask-box", "9,9,99,99", "--feather", "300"), "feather 300 is outside [0, 256]; pass --feather 8"),
    (("--mask-box", "9,9,19,19", "--mask-box", "59,59,99,99", "--mask-components", "1"), "2 components of 1600, 100"),
    (("--mask-box", "9,9,99,99", "--resolution", "100"), "(multiple of 8 expected); pass --resolution 96"),
    (("--mask-box", "9,9,99,99", "--output", "overlay.jpg"), "does not end in .png"),
    (("--mask-box", "9,9,99,99", "--truth", "nowhere.png"), "truth nowhere.png does not exist"),
]


@pytest.mark.parametrize(("words", "line"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_refusals(pie: Any, image: Path, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    outcome = pie("mask", "--image", image, "--output", tmp_path / "overlay.png", *words)
    assert outcome.code == 2
    *_, said = outcome.err.splitlines()
    assert line in said
    assert not outcome.out
    assert not list(tmp_path.iterdir())


def test_regions_of_a_run(simulate: Any, tmp_path: Path, mask: Path) -> None:
    outcome = simulate(
        "--mask-box", "40,40,140,220:0.9", "--mask-polygon", "160,40,260,130,160,220", "--mask-box=-5,0,60,60:0.2",
        "--keep-box", "40,100,140,120", "--dilate", "2", "--feather", "1", "--mask-components", "3",
    )  # fmt: skip
    assert outcome.code == 0
    assert "box -5,0,60,60 reaches beyond the image of 300 x 260 and is clipped" in outcome.err
    assert "cuts off" in outcome.err
    provenance = json.loads((tmp_path / "result" / "provenance.json").read_text())
    roi = provenance["input"]["roi"]
    assert [(part["kind"], part.get("beta")) for part in roi["regions"]] == [
        ("box", 0.9), ("polygon", None), ("box", 0.2),
    ]  # fmt: skip
    assert roi["keep"][0]["numbers"] == [40, 100, 140, 120]
    assert (roi["dilate"], provenance["settings"]["feather"]) == (2, 1)
    assert roi["output_share"] == pytest.approx(provenance["simulated"]["roi_share"])
    assert provenance["input"]["mask_sha256"] is None
    drawn = np.asarray(Image.open(tmp_path / "result" / "mask.png")) > 0
    assert drawn.sum() == roi["output_pixels"]
    before, after = (np.asarray(Image.open(tmp_path / "result" / "frames" / f"00{i}.png")) for i in (0, 1))
    assert (before[~drawn] == after[~drawn]).all()
    assert (before[drawn] != after[drawn]).any()


def test_a_region_is_moved(pie: Any, simulate: Any, image: Path, tmp_path: Path) -> None:
    """Moved by hand and by the option, negative numbers as a word of their own: the same region."""
    boxes = ("--mask-box", "35,52,135,232"), ("--mask-box", "40,40,140,220", "--shift", "-5,12")
    for index, words in enumerate(boxes):
        output = tmp_path / f"{index}.png"
        assert pie("mask", "--image", image, "--output", output, *words).code == 0
        assert simulate(*words, "--output", tmp_path / f"run-{index}").code == 0
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    for name in ("mask.png", "frames/001.png"):
        assert (tmp_path / "run-0" / name).read_bytes() == (tmp_path / "run-1" / name).read_bytes()
    provenance = json.loads((tmp_path / "run-1" / "provenance.json").read_text())
    assert provenance["input"]["roi"]["shift"] == [-5, 12]


def test_official_semantics_take_one_plain_mask(refuse: Any, mask: Path) -> None:
    for words, line in (
        (("--mask", mask, "--mask-box", "1,2,30,40"), "a mask of 2 regions is not what the published code computes"),
        (("--mask", f"{mask}:0.5"), "a region with its own beta is not what the published code computes"),
        (("--mask", mask, "--keep-box", "1,2,30,40"), "keep is not what the published code computes"),
        (("--mask", mask, "--dilate", "3"), "dilate is not what the published code computes"),
        (("--mask", mask, "--shift", "3,0"), "shift is not what the published code computes"),
        (("--mask", mask, "--feather", "3"), "feather 3 is not what the published code computes (0)"),
        (("--dilate", "3"), "dilate belongs to a mask, and none is given"),
    ):
        assert line in refuse(*words, "--semantics", "official")


def test_names_that_lead_elsewhere(simulate: Any, refuse: Any, tmp_path: Path) -> None:
    assert "mask ../../../../etc/passwd" in refuse("--mask", "../../../../etc/passwd")
    assert simulate("--mask-box", "40,40,140,220", "--item-id", "../../up").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result"]
