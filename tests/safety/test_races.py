"""Four processes write the same folder and the same file at once: none fails, and both are whole at every moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dying import tree

from pie_engine.files import find_leftovers

LONG = bool(os.environ.get("PIE_TESTS_LONG"))
# A light process: what is tested needs no torch.
WRITER = """
import json, sys
from pathlib import Path
from pie_engine.files import check_folder, find_leftovers, folders, locked, new_folder, write_file

top, text, count, exchanges = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "exchange"
if not exchanges:
    folders.exchange = lambda *_: False
sys.stdin.readline()
for number in range(count):
    check_folder(top / "out", replaceable="marker.json")
    with new_folder(top / "out", replaceable="marker.json") as partial:
        (partial / "frames").mkdir()
        for name in ("a", "frames/b"):
            (partial / name).write_text(text)
        (partial / "marker.json").write_text(json.dumps({"files": ["a", "frames/b"], "text": text}))
    write_file(top / "table.json", json.dumps([text] * 1000))
    with locked(top / "counter"):
        counter = top / "counter"
        counter.write_text(str(int(counter.read_text()) + 1))
    if number % 10 == 0:
        find_leftovers(top, remove=True)
"""


@pytest.mark.parametrize("way", ["exchange", "two steps"])
def test_four_writers(tmp_path: Path, way: str) -> None:
    count, processes = (150 if LONG else 30), []
    (tmp_path / "counter").write_text("0")
    for text in ("one", "two", "three", "four"):
        command = [sys.executable, "-c", WRITER, str(tmp_path), text, str(count), way]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    done, seen, missing, mixed = threading.Event(), 0, 0, 0

    def look() -> None:
        nonlocal seen, missing, mixed
        out, table = tmp_path / "out", tmp_path / "table.json"
        while not (out.exists() and table.exists()):
            done.wait(0.01)
        while not done.wait(0.0005):
            seen += 1
            missing += not out.is_dir()
            mixed += len(set(json.loads(table.read_text()))) != 1

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        done.set()
        reader.join(10)
    assert errors == [""] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert int((tmp_path / "counter").read_text()) == 4 * count  # nobody was in the block beside another
    assert seen > 10
    assert not mixed
    assert not missing or way == "two steps"
    text = json.loads((tmp_path / "out" / "marker.json").read_text())["text"]
    assert (tmp_path / "out" / "a").read_text() == (tmp_path / "out" / "frames" / "b").read_text() == text
    assert {path.split("/")[0] for path in tree(tmp_path)} == {"out", "table.json", "counter"}
    assert find_leftovers(tmp_path) == []
