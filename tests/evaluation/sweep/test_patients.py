"""Tables of patients: what is read, and one line for every mistake in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pie_engine.errors import InputError
from pie_engine.evaluation.sweep.patients import read_patients
from pie_engine.imaging import Region


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "roi"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "patients.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_paths_are_the_tables_and_ids_the_items(folder: Path) -> None:
    path = write(
        folder,
        "\ufeffmask,item_id, image,prompt\r\n"
        'pictures/roi.png,p-1,pictures/a.png,"enlarged, ""markedly""\nheart"\r\n'
        "\r\n"
        f"pictures/roi.png:0.5,2,{folder / 'pictures' / 'b.png'},x\r\n"
        ",3,pictures/b.png,ö\r\n",
    )
    first, second, third = read_patients(path)
    assert (first.item_id, first.image, first.prompt) == (
        "p-1", folder / "pictures" / "a.png", 'enlarged, "markedly"\nheart'
    )  # fmt: skip
    assert first.mask == [Region(str(folder / "pictures" / "roi.png"))]
    assert second.mask == [Region(str(folder / "pictures" / "roi.png"), 0.5)]
    assert second.image == folder / "pictures" / "b.png"
    assert (third.mask, third.prompt) == (None, "ö")


REFUSED = {
    "": "is not a table",
    "item_id,image\n": "lacks the column prompt; its first line is item_id,image,prompt or item_id,image,prompt,mask",
    "item_id,image,prompt,age\n1,pictures/a.png,x,80\n": "has the column 'age'",
    "item_id,item_id,image,prompt\n": "names a column twice",
    "item_id,image,prompt\n\n": "has no patient",
    "item_id,image,prompt\n1,pictures/a.png,x,y\n": "line 2 of {} has 4 values for 3 columns; put quotes",
    "item_id,image,prompt\n1,pictures/a.png,\n": "line 2 of {} has no prompt; write one",
    "item_id,image,prompt\n1,pictures/a.png,x\n1,pictures/b.png,x\n": "line 3 of {} has the id '1' of an earlier line",
    "item_id,image,prompt\n../up,pictures/a.png,x\n": "line 2 of {}: the id '../up' cannot name a folder",
    "item_id,image,prompt\n.a,pictures/a.png,x\n": "the id '.a' cannot name a folder",
    "item_id,image,prompt\n1,none.png,x\n": "names the image {folder}/none.png, which does not exist",
    "item_id,image,prompt,mask\n1,pictures/a.png,x,no.png:0.5\n": "names the mask {folder}/no.png, which does not",
    'item_id,image,prompt\n1,pictures/a.png,"x\n': "is not a table (unexpected end of data)",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals(folder: Path, text: str) -> None:
    path = write(folder, text)
    with pytest.raises(InputError) as caught:
        read_patients(path)
    assert REFUSED[text].replace("{}", str(path)).replace("{folder}", str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(InputError, match=r"patients file .*none\.csv cannot be read \(No such file"):
        read_patients(folder / "none.csv")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_patients(write(folder, "item_id,image,prompt\n1,pictures/a.png,é\n".encode("latin-1")))
