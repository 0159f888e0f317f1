"""What a .ckpt or .bin file asks for, looked at before PyTorch unpickles it.

PyTorch's restricted unpickler runs no code from a file, but allocates whatever the file says: a pickle of a hundred
bytes can ask for gigabytes, and so can a zip archive whose records are packed or overlap.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from pie_engine.errors import CheckpointError

CONVERT = "convert it to .safetensors where you trust it, and pass that"
# Names and shapes of a few thousand tensors are some hundred kilobytes.
MAX_PICKLE = 64 << 20
_MAX_SPREAD = 100_000
# Stable Diffusion v1.x has about 1,150 tensors, and twice as many with an average of its weights.
MAX_TENSORS = 20_000
# All that named tensors are made of. What else PyTorch allows (bytearray, torch.Tensor, whole storages) allocates what
# it is told to.
_NEEDED = re.compile(
    r"collections OrderedDict|torch Size|torch device|torch\.nn\.parameter Parameter|(__builtin__|builtins) set"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|torch (Float|Double|Half|BFloat16|Byte|Char|Short|Int|Long|Bool)Storage"
    r"|torch (float|float64|double|float32|float16|half|bfloat16|int8|uint8|int16|int32|int64|bool|float8_\w+)"
    r"|torch\.serialization _get_layout"
)


def check_archive(path: Path) -> None:
    """Refuse a file of pickled tensors that asks for more than it holds, or for other objects.

    Raises:
        CheckpointError: it does, or is no such file.
        OSError: it cannot be read.
    """
    if not zipfile.is_zipfile(path):  # written before PyTorch 1.6
        with path.open("rb") as file:
            # Magic number, protocol, the system, the tensors' shapes, their storages' names; values follow.
            for _ in range(5):
                if file.peek(1):
                    _check_pickle(file, path)
        return
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise CheckpointError(
                    f"{path} is packed, which PyTorch never does: it may unpack to any size; {CONVERT}"
                )
            if sum(record.file_size for record in records) > size:
                raise CheckpointError(f"{path} holds records that overlap ({size} bytes in all); {CONVERT}")
            for record in records:
                if record.filename.endswith("data.pkl"):
                    if record.file_size > MAX_PICKLE:
                        raise CheckpointError(
                            f"{path} describes its tensors in {record.file_size} bytes, at most {MAX_PICKLE} are "
                            f"read; {CONVERT}"
                        )
                    with archive.open(record) as file:
                        _check_pickle(file, path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise CheckpointError(f"{path} is corrupt ({error}); copy or download it again") from None


def _check_pickle(file: IO[bytes], path: Path) -> None:
    """Read one pickle's operations without running them."""
    stack: list[int | None] = []  # of each value, how many a tuple holds once it is spread out; None for a mark
    memo: dict[Any, int] = {}
    try:
        for operation, argument, position in pickletools.genops(file):
            if operation.name == "GLOBAL" and not _NEEDED.fullmatch(str(argument)):
                raise CheckpointError(
                    f"{path} holds pickled objects that could run code or take any memory "
                    f"({str(argument).replace(' ', '.')[:80]}); only plain tensors are loaded (weights_only): {CONVERT}"
                )
            # A tuple of one tuple twice, and so on: some fifty would be hashed for years.
            if (position or 0) > MAX_PICKLE or _follow(operation, argument, stack, memo) > _MAX_SPREAD:
                raise CheckpointError(f"{path} describes its tensors in too many operations; {CONVERT}")
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path} is corrupt ({(str(error).splitlines() or ['no pickle'])[0][:160]}); copy or download it again"
        ) from None


def _follow(operation: pickletools.OpcodeInfo, argument: Any, stack: list[int | None], memo: dict[Any, int]) -> int:
    """What an operation does to the sizes of tuples on the stack. Returns the size that it leaves on top."""
    if operation.name == "MARK":
        stack.append(None)
        return 0
    if "PUT" in operation.name:
        memo[argument] = stack[-1] or 0
        return 0
    if "GET" in operation.name:
        stack.append(memo.get(argument, 1))
        return 0
    popped, before = [], operation.stack_before
    if pickletools.markobject in before:
        while (top := stack.pop()) is not None:
            popped.append(top)
        before = before[: before.index(pickletools.markobject)]
    popped += [stack.pop() or 0 for _ in before]
    size = 1 + sum(popped) if operation.name.startswith("TUPLE") else 1
    stack.extend(size for _ in operation.stack_after)
    return size


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are larger than what they are stored in, or no plain ones.

    Raises:
        CheckpointError: they are.
    """
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds {len(tensors)} tensors, at most {MAX_TENSORS} are loaded; {CONVERT}")
    for name, tensor in tensors.items():
        plain = str(tensor.layout) == "torch.strided" and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"tensor {name[:80]} of {path} is not stored as it is read (expanded, sparse or quantised); {CONVERT}"
            )
    total, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path.stat().st_size
    if total > 2 * size:  # once more for weights that are tied
        raise CheckpointError(f"{path} has {size} bytes and names {total} bytes of tensors; {CONVERT}")
