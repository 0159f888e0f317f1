"""A CUDA graph on the processor: records a function's operations with the tensors they used, and replays those.

What would break a captured round shows here without a GPU: values that the host reads while recording (refused, as CUDA
does), tensors that are replaced instead of overwritten, and settings that were baked in but should have been copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pie_engine.rounds.capture import Capture
from pie_engine.rounds.timeline import Timeline

_ATEN = torch.ops.aten
_HOST_READS = {
    # Composite operations reach a mode as themselves in inference mode, and taken apart outside of it.
    *(_ATEN._local_scalar_dense.default, _ATEN.item.default, _ATEN.is_nonzero.default, _ATEN.equal.default),
    *(_ATEN.nonzero.default, _ATEN.allclose.default),
}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _HOST_READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._remember(value)
        for argument in func._schema.arguments:
            if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
                self._remember(kwargs[argument.name])
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        output = func(*args, **kwargs)
        # What shares memory with an input is a view or was written in place: replaying the call is enough for those.
        made = [
            t
            for t in tree_leaves(output)
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in given
        ]
        self._own.update(t.untyped_storage().data_ptr() for t in made)
        self.calls.append((func, args, kwargs, made))
        return output

    def restore(self) -> None:
        """Capturing records and computes nothing: undo what recording wrote outside its own tensors."""
        for tensor, before in self._before.values():
            tensor.copy_(before)

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            output = func(*args, **kwargs)
            if made:
                new = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
                for old, value in zip(made, new, strict=True):
                    old.copy_(value)

    def _remember(self, value: Any) -> None:
        for tensor in tree_leaves(value):
            if isinstance(tensor, torch.Tensor):
                key = tensor.data_ptr()
                if tensor.untyped_storage().data_ptr() not in self._own and key not in self._before:
                    self._before[key] = (tensor, tensor.clone())


def emulated_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Record `function` and return what replays it. The signature of `Capture`."""
    recorder = _Recorder()
    with recorder:
        function()
    recorder.restore()
    return recorder.replay


class EmulatedTimeline(Timeline):
    """A GPU's order of stages on the processor: one round is begun ahead, and stages are captured.

    Attributes:
        captures: how many stages were captured.
    """

    asynchronous = True

    def __init__(self, *, lag: int = 1, graph: Capture = emulated_graph):
        self.lag = lag
        self._graph = graph
        self.captures = 0

    def capture(self, *, decoding: bool = False) -> Capture | str:
        def counted(function: Callable[[], None]) -> Callable[[], None]:
            replay = self._graph(function)
            self.captures += 1
            return replay

        return counted
