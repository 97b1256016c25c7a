"""Arrays out of a pickle that is never unpickled: its operations are carried out here, on plain values alone.

A checkpoint of JAX code is a pickle of mappings, tuples, numbers and NumPy arrays. Those need some forty of pickle's
operations and a dozen names, each of which stands below; no name is imported, and nothing but this module is called.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MOST_OPERATIONS = 1_000_000
"""Of a file: a ResNet-200 with its target and its optimizer takes some 100,000."""
MOST_DIMENSIONS = 8
TYPES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})
"""Of arrays, as NumPy writes them: numbers of a fixed size, and no objects."""


@dataclass(eq=False)
class Array:
    """A NumPy array as it stands in a pickle: first that there is one, then what it holds."""

    value: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Record:
    """What stands for a value of a class that is not known: its name, and what it was made from."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class _Name:
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:120]


@dataclass(eq=False)
class _Type:
    code: str
    order: str = "="


class _Refused(ValueError):
    pass


_MARK = object()
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_WHOLE = (
    *("jax._src.device_array.reconstruct_device_array", "jax._src.array._reconstruct_array"),
    *("dill._dill._create_array", "dill.dill._create_array"),
)
_MAPPINGS = tuple(f"haiku._src.data_structures.{name}" for name in ("FlatMapping", "FlatMap", "frozendict"))
_BYTES = ("builtins.bytes", "__builtin__.bytes")
_NAMED_TUPLE = ("dill._dill._create_namedtuple", "dill.dill._create_namedtuple")
_TYPE = ("dill._dill._load_type", "dill.dill._load_type")


def read(path: Path) -> Any:
    """What a pickle holds: dicts with text as keys, lists, tuples, numbers, text, bytes, `Array`s, and `Record`s for
    values of other classes. ValueError, in one line, where it is cut short or holds or does anything else."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of text that Python would not write
            machine = _Machine(len(data))
            for number, (operation, argument, _) in enumerate(pickletools.genops(_as_file(data))):
                if number == MOST_OPERATIONS:
                    raise _Refused(f"it has more than {MOST_OPERATIONS:,} operations")
                if operation.name == "STOP":
                    return machine.end()
                machine.do(operation.name, argument)
            raise _Refused("it has no end")
    except _Refused as error:
        raise ValueError(f"{path} is no checkpoint of arrays alone: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        reason = (str(error).splitlines() or [""])[0][:100]
        raise ValueError(f"{path} is damaged, or no checkpoint: {ascii(reason)[1:-1]}") from error


def _as_file(data: mmap.mmap) -> Any:
    """It is read as a file is, but asks for no memory for what a damaged length claims to follow."""
    return data


class _Machine:
    """size: of the file, bytes; what is copied out of it is not more."""

    def __init__(self, size: int) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._left = size

    def end(self) -> Any:
        value = self._pop()
        if self._stack:
            raise _Refused("it holds several values")
        return value

    def do(self, operation: str, argument: Any) -> None:
        match operation:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self._stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4":
                if abs(argument) >= 1 << 64:
                    raise _Refused("it holds a number of more than 64 bits")
                self._stack.append(argument)
            case (
                "BINFLOAT" | "BINSTRING" | "SHORT_BINSTRING" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8"
            ):  # fmt: skip
                self._stack.append(argument)
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                self._stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[operation]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [self._pop() for _ in range(int(operation[-1]))]
                self._stack.append(tuple(reversed(values)))
            case "TUPLE":
                self._stack.append(tuple(self._since_mark()))
            case "APPEND" | "APPENDS":
                values = self._since_mark() if operation == "APPENDS" else [self._pop()]
                self._top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self._since_mark() if operation == "SETITEMS" else [self._pop(), self._pop()][::-1]
                self._put(values)
            case "BINGET" | "LONG_BINGET":
                self._stack.append(self._memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top(object)
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top(object)
            case "GLOBAL":
                self._stack.append(_Name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = self._pop(), self._pop()
                self._stack.append(_Name(_kind(module, str), _kind(name, str)))
            case "NEWOBJ":
                values, name = _kind(self._pop(), tuple), _kind(self._pop(), _Name)
                self._stack.append(Record(str(name), values))
            case "REDUCE":
                values, name = _kind(self._pop(), tuple), self._pop()
                self._stack.append(self._made(_kind(name, _Name), values))
            case "BUILD":
                self._fill(self._pop())
            case _:
                raise _Refused(f"its operation {operation} is none of those that arrays need")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Refused("its operations do not fit together")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        value = self._pop()
        self._stack.append(value)
        return _kind(value, kind)

    def _since_mark(self) -> list[Any]:
        values = []
        while self._stack and self._stack[-1] is not _MARK:
            values.append(self._stack.pop())
        if not self._stack:
            raise _Refused("its operations do not fit together")
        self._stack.pop()
        return values[::-1]

    def _put(self, values: list[Any]) -> None:
        items = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            items[_kind(key, str)] = value

    def _made(self, name: _Name, values: tuple[Any, ...]) -> Any:
        """What the call of a known name gives."""
        match str(name), values:
            case known, (_Name(), tuple(), _) if known in _RECONSTRUCT:
                return Array()
            case known, (_Type() as kind, bytes() | str() as raw) if known in _SCALAR:
                return Array(_array((), kind, False, raw))
            case known, (_Name() as made, tuple() as given, state, dict() | None) if known in _WHOLE:
                array = _kind(self._made(made, given), Array)
                self._fill(state, array)
                return array
            case "numpy.dtype", (str() as code, _, _) if code in TYPES:
                return _Type(code)
            case "_codecs.encode", (str() as text, "latin1" | "latin-1"):
                self._left -= len(text)
                if self._left < 0:
                    raise _Refused("its arrays are larger than the file")
                return text.encode("latin-1")
            case known, () if known in _BYTES:
                return b""
            case "collections.OrderedDict", ():
                return {}
            case known, (dict() as mapping,) if known in _MAPPINGS:
                return mapping
            case known, (str() as given, _, str() as module, *_) if known in _NAMED_TUPLE:
                return _Name(module, given)
            case known, (str() as given,) if known in _TYPE:
                return _Name("builtins", given)
        raise _Refused(f"it calls {str(name)!a}, which arrays do not need")

    def _fill(self, state: Any, target: Any = None) -> None:
        """Give a value, by default the one on top, the state that follows it."""
        target = self._top(object) if target is None else target
        match target, state:
            case Array(value=None), (int(), tuple() as shape, _Type() as kind, bool() | int() as fortran, raw):
                target.value = _array(shape, kind, bool(fortran), raw)
            case _Type(), (int(), "<" | ">" | "|" | "=" as order, *_):
                target.order = order
            case Record(), _:  # what it holds beside its values
                pass
            case _:
                raise _Refused("it gives a state to what has none")


def _array(shape: tuple[Any, ...], kind: _Type, fortran: bool, raw: Any) -> np.ndarray:
    """raw: the values, as many as the shape says; text of the same numbers where Python 2 wrote it."""
    if len(shape) > MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise _Refused("an array has a shape that is none")
    data = _kind(raw, str).encode("latin-1") if isinstance(raw, str) else _kind(raw, bytes)
    dtype = np.dtype(f"{kind.order}{kind.code}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise _Refused(f"an array of shape {shape!s:.60} has {len(data):,} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _Refused("its operations do not fit together")
    return value
