"""The structure of a torch checkpoint (a pickle), from its opcodes, without executing them. No torch.

Before torch 2.10 a crafted file can run code or write out of bounds even with `weights_only=True` (CVE-2025-32434,
CVE-2026-24747). So the opcodes are interpreted here first, with plain values: only the opcodes and names listed below,
and every tensor within its storage. The result is a tree of dicts, lists and numbers.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from unet.files import explain, require_regular
from unet.weight_files.safetensors_header import LEGACY

WIDTHS = {  # types of storages by the bytes of an element
    8: ("DoubleStorage", "LongStorage"),
    4: ("FloatStorage", "IntStorage"),
    2: ("HalfStorage", "BFloat16Storage", "ShortStorage"),
    1: ("CharStorage", "ByteStorage", "BoolStorage"),
}
STORAGES = {name: width for width, names in WIDTHS.items() for name in names}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
SCALARS = ("numpy._core.multiarray scalar", "numpy.core.multiarray scalar")  # of NumPy 2 and 1
NUMPY = (*SCALARS, "numpy dtype", "_codecs encode")
PLAIN = [3, None, None, None, None, -1, -1, 0]  # the state of a type of numbers, without its byte order
NAMES = {
    *NUMPY,
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}" for name in STORAGES),
}
NUMBER = re.compile(r"[fiu][1248]|b1")
MARK = object()


class UnsafePickle(Exception):
    """A pickle with an opcode, a name or a value that is not allowed."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A global of the pickle (it is not imported)."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A storage in the file: its `key`, `numel` elements of `size` bytes."""

    key: str
    numel: int
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor's shape; its values are not read."""

    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Number:
    """A NumPy type of numbers of `size` bytes."""

    size: int


class Reader:
    """Interprets one pickle. `stored_bytes(key)`: the size of a storage in the file; None if it is checked later."""

    def __init__(self, stored_bytes: Callable[[str], int | None]) -> None:
        self.stored_bytes, self.stack, self.memo = stored_bytes, list[Any](), dict[int, Any]()
        self.storages: dict[str, Storage] = {}

    def read(self, stream: BinaryIO) -> Any:
        """The tree. Raises UnsafePickle."""
        try:
            for opcode, value, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.execute(opcode.name, value)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise UnsafePickle(f"a pickle that is damaged ({str(error)[:60] or type(error).__name__})") from error
        raise UnsafePickle("a pickle without an end")

    def execute(self, name: str, value: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(value)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            stack.append(MARK)
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(self.pop_mark()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[value])
        elif name in ("APPEND", "APPENDS"):
            items = self.pop_mark() if name == "APPENDS" else [stack.pop()]
            self.require(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.pop_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            if len(items) % 2:
                raise UnsafePickle("a pickle with half an entry")
            self.require(stack[-1], dict).update(zip(map(self.require_key, items[::2]), items[1::2], strict=True))
        elif name == "GLOBAL":
            if value not in NAMES:
                raise UnsafePickle(f"the object {str(value).replace(' ', '.')[:80]}")
            stack.append(Name(value))
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif name == "REDUCE":
            arguments = self.require(stack.pop(), tuple)
            stack.append(self.call(self.require(stack.pop(), Name).name, arguments))
        elif name == "BUILD":
            self.build(stack.pop(), stack[-1])
        elif name != "PROTO":
            raise UnsafePickle(f"the pickle instruction {name}")

    def build(self, state: Any, item: Any) -> None:
        """The attributes of an OrderedDict (the versions that a state dict carries), or the details of a NumPy type,
        which must be those of plain numbers: with others NumPy reads memory that is not its own."""
        if type(item) is Number:
            if (
                type(state) is not tuple
                or [state[0], None, *state[2:]] != PLAIN
                or state[1] not in ("<", ">", "|", "=")
            ):
                raise UnsafePickle("a NumPy type of an unknown form")
        else:
            self.require(state, dict)
            self.require(item, dict)

    def pop_mark(self) -> list[Any]:
        at = len(self.stack) - 1 - self.stack[::-1].index(MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    @staticmethod
    def require(value: Any, kind: type) -> Any:
        if type(value) is not kind:
            raise UnsafePickle(f"{type(value).__name__} where {kind.__name__} belongs")
        return value

    @staticmethod
    def require_key(value: Any) -> Any:
        if not isinstance(value, str | int | float | None):
            raise UnsafePickle(f"{type(value).__name__} as a name")
        return value

    def storage(self, entry: Any) -> Storage:
        """From ("storage", type, key, device, elements[, None])."""
        if (
            type(entry) is not tuple
            or len(entry) not in (5, 6)
            or entry[0] != "storage"
            or entry[5:] not in ((), (None,))
        ):
            raise UnsafePickle("a storage of an unknown form")
        kind, key, device, numel = self.require(entry[1], Name).name.removeprefix("torch "), *entry[2:5]
        if kind not in STORAGES or not isinstance(key, str) or not isinstance(device, str) or not is_size(numel):
            raise UnsafePickle("a storage of an unknown form")
        found = Storage(key, numel, STORAGES[kind])
        there = self.stored_bytes(key)
        if self.storages.setdefault(key, found) != found or there not in (None, numel * found.size):
            raise UnsafePickle(f"a storage of {numel * found.size} bytes where the file has {there}")
        return found

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """The result of calling one of NAMES."""
        if name == "collections OrderedDict" and not arguments:
            return {}
        if name == "torch Size" and len(arguments) == 1:
            return tuple(map(self.require_size, arguments[0]))
        if name in NUMPY:
            return self.call_numpy(name, arguments)
        if name == "torch device" and [type(item) for item in arguments] in ([str], [str, int]):
            return arguments[0]
        if name == "torch._utils _rebuild_parameter" and len(arguments) == 3:
            return self.require(arguments[0], Tensor)
        if name == "torch._utils _rebuild_tensor_v2" and len(arguments) in (6, 7):
            storage, offset, shape, steps = self.require(arguments[0], Storage), *arguments[1:4]
            shape, steps = (tuple(map(self.require_size, self.require(item, tuple))) for item in (shape, steps))
            last = sum((side - 1) * step for side, step in zip(shape, steps, strict=True))
            if math.prod(shape) and self.require_size(offset) + last >= storage.numel:
                raise UnsafePickle("a tensor outside its storage")
            if arguments[4] not in (True, False) or arguments[5] != {} or arguments[6:] not in ((), (None,), ({},)):
                raise UnsafePickle("a tensor of an unknown form")
            return Tensor(shape)
        raise UnsafePickle(f"a call of {name.replace(' ', '.')}")

    def call_numpy(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """One number of NumPy's, as other programs keep scores: None. Its parts are a type and bytes, which are written
        as text."""
        if name == "_codecs encode" and len(arguments) == 2 and arguments[1] == "latin1":
            return self.require(arguments[0], str).encode("latin1")
        if name == "numpy dtype" and arguments[1:] == (False, True) and NUMBER.fullmatch(str(arguments[0])):
            return Number(int(arguments[0][1:]))
        if name in SCALARS and [type(item) for item in arguments] == [Number, bytes]:
            kind, value = arguments
            if len(value) == kind.size:
                return None
        raise UnsafePickle(f"a call of {name.replace(' ', '.')}")

    @staticmethod
    def require_size(value: Any) -> int:
        if not is_size(value):
            raise UnsafePickle("a size that is no whole number")
        return int(value)


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def structure(path: Path) -> Any:
    """The tree of a torch checkpoint, with shapes in place of tensors. Raises UnsafePickle for anything that is not
    allowed, StorageError if the file cannot be read."""
    try:
        with open(require_regular(path), "rb") as stream:
            if stream.read(4) == b"PK\x03\x04":
                return _zipped(stream)
            stream.seek(0)
            return _legacy(stream)
    except zipfile.BadZipFile as error:
        raise UnsafePickle(f"a zip file that is damaged ({error})") from error
    except OSError as error:
        raise explain(error, path) from error


def _zipped(stream: BinaryIO) -> Any:
    """torch's format since 1.6: archive/data.pkl and archive/data/<key>."""
    with zipfile.ZipFile(stream) as archive:
        items = {item.filename: item for item in archive.infolist()}
        tops = {name.split("/")[0] for name in items}
        if len(items) != len(archive.infolist()) or len(tops) != 1 or min(i.header_offset for i in items.values()):
            raise UnsafePickle("an archive of an unknown form")
        top = tops.pop()
        if f"{top}/constants.pkl" in items or any(name.startswith(f"{top}/code/") for name in items):
            raise UnsafePickle("a TorchScript program")
        if f"{top}/data.pkl" not in items or any(item.compress_type for item in items.values()):
            raise UnsafePickle("an archive of an unknown form")

        def stored_bytes(key: str) -> int:
            item = items.get(f"{top}/data/{key}")
            return -1 if item is None else item.file_size

        with archive.open(f"{top}/data.pkl") as content:
            return Reader(stored_bytes).read(content)  # type: ignore[arg-type]


def _legacy(stream: BinaryIO) -> Any:
    """torch's format before 1.6: magic number, version, sizes of types, tree, keys, storages."""
    if stream.read(len(LEGACY)) != LEGACY:
        raise UnsafePickle("a pickle that torch did not write")
    plain = [Reader(lambda key: -1).read(stream) for _ in range(2)]
    if plain[0] != 1001:
        raise UnsafePickle("a pickle of an unknown version of torch")
    reader = Reader(lambda key: None)
    tree, keys = reader.read(stream), Reader(lambda key: -1).read(stream)
    if type(keys) is not list or set(keys) != set(reader.storages) or len(keys) != len(reader.storages):
        raise UnsafePickle("other storages than its tensors need")
    for key in keys:
        storage = reader.storages[key]
        there = int.from_bytes(stream.read(8), "little")
        if there != storage.numel or len(stream.read(there * storage.size)) != there * storage.size:
            raise UnsafePickle("a storage of another size than its tensors need")
    if stream.read(1):
        raise UnsafePickle("more than a checkpoint")
    return tree
