"""The way into the attention of one model: what runs around transformers' attention functions.

Model code asks `config._attn_implementation` for more than a function to call: how to make masks,
whether to apply those of a sparse attention, whether queries may be dropped. So the name stays, and
the `forward` of an attention module finds other functions behind it. A module becomes one of a
subclass of its class, whose `forward` has the same code and other globals: nothing of transformers
changes, and the module can be copied, pickled, compiled and replicated as before.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ropex.errors import UnsupportedModel

ORDER = (
    "scaled queries", "un-rotated keys", "mapped positions", "shifted attention", "gathered keys",
    "trial",
)  # fmt: skip
"""Steps by name, in the order in which they run, whatever the order in which they were added."""


@dataclass(frozen=True)
class Step:
    """Something that happens to attention, in a function of a module so that it can be pickled.

    Attributes:
        name: One of `ORDER`.
        attribute: Of a module, which holds what the step works with; without it, the step is off.
        run: Called as `run(function, module, query, key, value, mask, ...)`; `function` goes on.
        without: Names of earlier steps that it does not go with.
        why: The reason, as the end of a sentence.
        trains: Whether it runs in training alone, so that evaluation may add what it does not go
            with; it checks that as it runs.
    """

    name: str
    attribute: str
    run: Callable[..., Any]
    without: tuple[str, ...] = ()
    why: str = ""
    trains: bool = False

    @property
    def rank(self) -> int:
        """Its place in the order."""
        return ORDER.index(self.name)


_TABLE = "ALL_ATTENTION_FUNCTIONS"
_EAGER = "eager_attention_forward"  # how the function of each modeling file ends
_FORWARDS = ("forward", "_old_forward")  # of an instance; the second under hooks of accelerate


def calls_interface(module: nn.Module) -> bool:
    """Whether a module calls transformers' attention interface."""
    forward = type(module).forward
    return isinstance(forward, types.FunctionType) and _rerouted(forward, ()) is not forward


def route(module: nn.Module, step: Step, undo: ExitStack) -> None:
    """Let `step` run around the attention function of a module, in its place among the others.

    Args:
        module: One that `calls_interface`.
        step: The step.
        undo: Where the way back is written.

    Raises:
        UnsupportedModel: The module has a `forward` of its own, which its class does not know, or
            the step does not go with one that is there.
    """
    functions = [vars(module)[name] for name in _FORWARDS if name in vars(module)]
    if functions and not any(_is_of_class(each, module) for each in functions):
        raise UnsupportedModel(
            f"the forward of {type(module).__name__} was replaced, so its attention cannot be "
            "reached; patch the model before that"
        )
    if step in _all_steps(type(module)):
        return  # it stayed below a class that someone made of the module since
    check(module, step)
    _become(module, (*_steps(module), step))

    def leave() -> None:
        if step in _steps(module):  # else someone made it one of a further class
            _become(module, tuple(each for each in _steps(module) if each != step))

    undo.callback(leave)


def check(module: nn.Module, step: Step) -> None:
    """Refuse a step on a module that has others.

    Raises:
        UnsupportedModel: It does not go with one of them.
    """
    for other in _all_steps(type(module)):
        off = getattr(module, other.attribute, None) is None  # it stayed below a class of others
        if off or (other.trains and not step.trains):
            continue
        first, last = sorted((step, other), key=lambda each: each.rank)
        if first.name in last.without:
            raise UnsupportedModel(
                f"{type(module).__name__} cannot have {last.name} with {first.name}: {last.why}"
            )


@dataclass(frozen=True)
class _Functions:
    """Stands in for transformers' table of attention functions."""

    table: Any
    steps: tuple[Step, ...]

    def __getitem__(self, name: str) -> Any:
        return _through(self.table[name], self.steps)

    def get_interface(self, name: str, default: Any) -> Any:
        found = self.table.get_interface(name, default)
        return found if found is default else _through(found, self.steps)


def _through(function: Any, steps: tuple[Step, ...]) -> Any:
    for step in sorted(steps, key=lambda each: -each.rank):
        function = partial(step.run, function)
    return function


def _steps(module: nn.Module) -> tuple[Step, ...]:
    """Those of the module's very class; a class that it was made from may have more."""
    steps: tuple[Step, ...] = vars(type(module)).get("ropex_steps", ())
    return steps


def _all_steps(cls: type) -> set[Step]:
    """Those of a class and of the classes that it was made from."""
    return {step for each in cls.__mro__ for step in vars(each).get("ropex_steps", ())}


def _become(module: nn.Module, steps: tuple[Step, ...]) -> None:
    """Make a module one of the class whose attention goes through `steps`."""
    before = type(module)
    base = before.__bases__[0] if "ropex_steps" in vars(before) else before
    after = _subclass(base, steps) if steps else base
    for name in _FORWARDS:
        if name in vars(module) and _is_of_class(vars(module)[name], module):
            vars(module)[name] = types.MethodType(vars(after)["forward"], module)
    module.__class__ = after


def _is_of_class(forward: Any, module: nn.Module) -> bool:
    return bool(getattr(forward, "__func__", None) is type(module).forward)


def _subclass(base: type, steps: tuple[Step, ...]) -> type:
    def reduce(self: Any, protocol: Any) -> Any:
        return _unpickled, (base, steps), vars(self)

    forward: Any = base.forward  # type: ignore[attr-defined]
    forward = vars(forward).get("ropex_original", forward)  # steps below it take their places
    own = {
        "forward": _rerouted(forward, tuple({*steps, *_all_steps(base)})),
        "ropex_steps": steps,
        "__reduce_ex__": reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
    }
    return type(base.__name__, (base,), own)


def _unpickled(base: type, steps: tuple[Step, ...]) -> Any:
    cls: Any = _subclass(base, steps)
    return cls.__new__(cls)


def _rerouted(function: types.FunctionType, steps: tuple[Step, ...]) -> types.FunctionType:
    """The same code, calling attention through steps; the very function if it calls none."""
    known = function.__globals__
    own: dict[str, Any] = {}
    for name in function.__code__.co_names:
        if name == _TABLE and name in known:
            own[name] = _Functions(known[name], steps)
        elif name.endswith(_EAGER) and name in known:
            own[name] = _through(known[name], steps)
    inner = getattr(function, "__wrapped__", None)  # of a decorator
    within = _rerouted(inner, steps) if isinstance(inner, types.FunctionType) else inner
    if not own and within is inner:
        return function
    cells = [_cell(cell, inner, within) for cell in function.__closure__ or ()]
    # torch.compile would look for globals with a name in the module of that name.
    known = {name: value for name, value in known.items() if name != "__name__"} | own
    made = types.FunctionType(
        function.__code__, known, function.__name__, function.__defaults__, tuple(cells) or None
    )
    made.__dict__.update(function.__dict__, ropex_original=function)
    made.__kwdefaults__, made.__doc__ = function.__kwdefaults__, function.__doc__
    made.__annotations__, made.__qualname__ = function.__annotations__, function.__qualname__
    made.__module__ = function.__module__
    if within is not inner:
        made.__wrapped__ = within  # type: ignore[attr-defined]
    return made


def _cell(cell: Any, inner: Any, within: Any) -> Any:
    """A cell of a closure, in which `within` takes the place of `inner`."""
    return types.CellType(within) if inner is not None and cell.cell_contents is inner else cell
