"""Interprets the opcodes of a pickle without Python's unpickler.

A name in the file stays a name: nothing is imported or looked up, and only the few functions of
:data:`MAKERS` are called. Any other call becomes a :class:`LeftOut`, an object without any
behavior.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from .numpy_pickle import Array, DType, NotPlainError
from .plain_values import MAKERS, LeftOut, Name, checked_key, make_set

__all__ = ["Interpreter"]

_MARK = object()
# Opcodes that push the value that follows them in the file.
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}


class Interpreter:
    """Interprets one pickle."""

    def __init__(self, file: Any, load_storage: Callable[[Any], Any]) -> None:
        self._opcodes: Iterator = pickletools.genops(file)
        self._budget = 16 * file.size + 2**20
        self._load_storage = load_storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Returns the content of the pickle."""
        for opcode, argument, _ in self._opcodes:
            name = opcode.name
            if name in _LITERALS:
                self._push(argument)
            elif name in _NEW:
                self._push(_NEW[name]())
            elif name == "STOP":
                return self._pop()
            elif name not in ("PROTO", "FRAME"):
                handler = getattr(self, f"_op_{name.lower()}", None)
                if handler is None:
                    raise pickle.UnpicklingError(f"the opcode {name}")
                handler(argument)
        raise EOFError("the pickle has no end")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise pickle.UnpicklingError("a mark in place of a value")
        return value

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            raise pickle.UnpicklingError("a mark in place of a value")
        return value

    def _since_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    # The stack and the memo

    def _op_pop(self, _: Any) -> None:
        self._stack.pop()

    def _op_pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _op_dup(self, _: Any) -> None:
        self._push(self._top())

    def _op_put(self, index: int) -> None:
        self._memo[index] = self._top()

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def _op_get(self, index: int) -> None:
        self._push(self._memo[index])

    _op_binget = _op_long_binget = _op_get

    # Containers

    def _op_tuple(self, _: Any) -> None:
        self._push(tuple(self._since_mark()))

    def _op_tuple1(self, _: Any) -> None:
        self._push((self._pop(),))

    def _op_tuple2(self, _: Any) -> None:
        second, first = self._pop(), self._pop()
        self._push((first, second))

    def _op_tuple3(self, _: Any) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._push((first, second, third))

    def _op_list(self, _: Any) -> None:
        self._push(self._since_mark())

    def _op_dict(self, _: Any) -> None:
        items = self._since_mark()
        self._push({})
        self._set_items(items)

    def _op_frozenset(self, _: Any) -> None:
        self._push(make_set(self._since_mark()))

    def _op_append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _op_appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, LeftOut):
            raise pickle.UnpicklingError(f"a {type(target).__name__} that is appended to")

    def _op_setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _op_setitems(self, _: Any) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) in (dict, OrderedDict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[checked_key(key)] = value
        elif not isinstance(target, LeftOut):
            raise pickle.UnpicklingError(f"a {type(target).__name__} whose items are set")

    def _op_additems(self, _: Any) -> None:
        items, target = self._since_mark(), self._top()
        if type(target) is set:
            target.update(map(checked_key, items))
        elif not isinstance(target, LeftOut):
            raise pickle.UnpicklingError(f"a {type(target).__name__} that is added to")

    # Names and calls

    def _op_global(self, argument: str) -> None:
        self._push(_name(*argument.split(" ", 1)))

    def _op_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise pickle.UnpicklingError("a name that is not text")
        self._push(_name(module, name))

    def _op_inst(self, argument: str) -> None:
        self._call(_name(*argument.split(" ", 1)), tuple(self._since_mark()))

    def _op_obj(self, _: Any) -> None:
        function, *arguments = self._since_mark()
        self._call(function, tuple(arguments))

    def _op_reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments)

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, _: Any) -> None:
        keywords, arguments, function = self._pop(), self._pop(), self._pop()
        if keywords and isinstance(function, Name):  # no maker takes keywords
            function = LeftOut(function.name)
        self._call(function, arguments)

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, LeftOut):
            raise pickle.UnpicklingError(f"a call of a {type(function).__name__}")
        maker = MAKERS.get(function.name) if isinstance(function, Name) else None
        if maker is None:
            self._push(LeftOut(function.name))
        elif type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"a call with a {type(arguments).__name__}")
        else:
            self._spend(arguments)
            try:
                self._push(maker(*arguments))
            except NotPlainError:  # an array of objects and the like
                self._push(LeftOut(function.name))

    def _spend(self, arguments: tuple) -> None:
        """Limits what makers copy: a file can give them the same long list again and again."""
        self._budget -= sum(len(x) for x in arguments if type(x) in (list, tuple, str, bytes, dict))
        if self._budget < 0:
            raise pickle.UnpicklingError("copies that are much larger than the file")

    def _op_build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, (Array, DType)):
            if type(state) is not tuple:
                raise pickle.UnpicklingError("an array whose state is not a tuple")
            self._spend(state)
            try:
                target.__setstate__(state)  # our own, which checks the state
            except NotPlainError:
                target.is_plain = False
        elif type(target) is OrderedDict:
            # Torch's module versions. Other attributes could shadow methods.
            metadata = state.get("_metadata") if type(state) is dict else None
            if type(metadata) in (dict, OrderedDict):
                target._metadata = metadata
        elif not isinstance(target, (LeftOut, Tensor)):
            raise pickle.UnpicklingError(f"a {type(target).__name__} whose state is set")

    def _op_binpersid(self, _: Any) -> None:
        self._push(self._load_storage(self._pop()))


def _name(module: str, name: str) -> Name:
    return Name(f"{module.replace('__builtin__', 'builtins')}.{name}")
