"""Pieces: a scatter list over memory of the caller's.

A list of pieces is built once, outside Python's objects, and given to the store as it is: no byte
of KV passes through Python. It keeps what the memory belongs to alive.
"""
from __future__ import annotations

import array
from typing import Any, Iterable, Sequence, Union

from kvist.convert import integers
from kvist.errors import invalid
from kvist.native import ffi

PIECES_MAX = 1 << 24


class Pieces:
    """Pieces of memory that are filled, or read, one after the other.

    bases: an address for each piece: a numpy array of uint64, or any integers.
    sizes: as many numbers of bytes, or one for all pieces.
    keep: what the memory belongs to; it is kept alive as long as the pieces are.
    writable: whether loads may fill them.

    The addresses are believed: memory that is not there ends the process.
    Threads: not changed after it was made; any thread may share it.
    """

    __slots__ = ("count", "bytes", "writable", "_array", "_keep")

    count: int  # of pieces
    bytes: int  # of all together
    writable: bool

    def __init__(
        self,
        bases: Union[Iterable[int], Any],
        sizes: Union[int, Iterable[int], Any],
        keep: Any = None,
        writable: bool = True,
    ) -> None:
        addresses = _numbers("bases", bases)
        count = len(addresses)
        if isinstance(sizes, int):
            if not 0 <= sizes < 1 << 63:
                raise invalid(f"sizes is {sizes}: it must be 0 to 2^63 - 1")
            lengths, total = array.array("Q", (sizes,)) * count, sizes * count
        else:
            lengths = _numbers("sizes", sizes)
            total = sum(lengths)
        if len(lengths) != count:
            raise invalid(f"there are {count} bases and {len(lengths)} sizes: they go together")
        if count > PIECES_MAX:
            raise invalid(f"{count} pieces: at most {PIECES_MAX} are possible")
        if 0 in addresses:
            raise invalid("bases has an address of 0", "give the memory's addresses")
        pairs = array.array("Q", bytes(16 * count))
        pairs[0::2], pairs[1::2] = addresses, lengths
        self.count, self.bytes, self.writable = count, total, writable
        self._array = ffi.from_buffer("kvist_piece_t[]", pairs)
        self._keep = keep

    @classmethod
    def of(cls, *memories: Any) -> Pieces:
        """Pieces that cover the given memories one after the other, in C's order of elements.

        Each is a numpy array, a torch tensor on the CPU, anything with a buffer (bytearray, mmap,
        memoryview, array.array), other Pieces, or (address, bytes). An array or tensor may be
        strided: it becomes one piece for each stretch that lies together.
        """
        bases, sizes, keep, writable = array.array("Q"), array.array("Q"), [], True
        for memory in memories:
            stretches = _stretches(memory)
            bases.extend(stretches.bases)
            sizes.extend(stretches.sizes)
            keep.append(stretches.keep)
            writable = writable and stretches.writable
        return cls(bases, sizes, keep, writable)

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"<kvist.Pieces count {self.count} bytes {self.bytes}>"

    @property
    def c(self) -> Any:
        """The kvist_piece_t[], alive as long as the pieces."""
        return self._array


class _Stretches:
    """What one memory consists of."""

    __slots__ = ("bases", "sizes", "keep", "writable")

    def __init__(
        self, bases: array.array[int], sizes: array.array[int], keep: Any, writable: bool
    ) -> None:
        self.bases, self.sizes, self.keep, self.writable = bases, sizes, keep, writable


def _numbers(field: str, values: Any) -> array.array[int]:
    """Unsigned 64-bit integers, from an array of them without a loop."""
    if isinstance(values, array.array) and values.typecode == "Q":
        return values
    try:
        view = memoryview(values)
        if view.format in ("Q", "L", "=Q", "<Q") and view.itemsize == 8:
            numbers = array.array("Q")
            numbers.frombytes(view.tobytes())
            return numbers
    except TypeError:
        pass
    try:
        return array.array("Q", integers(values))
    except (TypeError, OverflowError, ValueError) as error:
        raise invalid(
            f"{field} are not what they should be: {error}",
            "give integers of 0 and more, at best a numpy array of uint64 in one dimension",
        ) from error


def _stretches(memory: Any) -> _Stretches:
    if isinstance(memory, Pieces):
        pairs = array.array("Q")
        pairs.frombytes(bytes(ffi.buffer(memory.c)))
        return _Stretches(pairs[0::2], pairs[1::2], memory, memory.writable)
    if isinstance(memory, tuple) and len(memory) == 2:
        bases, sizes = _numbers("address", memory[:1]), _numbers("bytes", memory[1:])
        return _Stretches(bases, sizes, None, True)
    if hasattr(memory, "data_ptr"):
        return _of_tensor(memory)
    interface = getattr(memory, "__array_interface__", None)
    if interface is not None and isinstance(interface.get("data"), tuple):
        address, read_only = interface["data"]
        element = memory.itemsize
        if memory.dtype.hasobject:
            raise invalid("an array of Python objects is no memory that can be loaded into")
        strides = interface.get("strides") or _packed(memory.shape, element)
        bases, size = _runs(address, memory.shape, strides, element)
        return _Stretches(bases, array.array("Q", (size,)) * len(bases), memory, not read_only)
    return _of_buffer(memory)


def _of_tensor(tensor: Any) -> _Stretches:
    if tensor.device.type != "cpu":
        raise invalid(
            f"the tensor is on device {tensor.device}: its memory cannot be reached from here",
            "copy it to a tensor on the CPU (at best a pinned one) and give that",
        )
    try:
        element, address = tensor.element_size(), tensor.data_ptr()
        strides = [stride * element for stride in tensor.stride()]
    except (RuntimeError, NotImplementedError) as error:  # a sparse one, say
        raise invalid(f"the tensor has no memory of its own: {error}", "make it dense") from error
    bases, size = _runs(address, tensor.shape, strides, element)
    return _Stretches(bases, array.array("Q", (size,)) * len(bases), tensor, True)


def _of_buffer(memory: Any) -> _Stretches:
    try:
        view = memoryview(memory)
        if "O" in (view.format or ""):
            raise TypeError("it has Python objects in it")
        writable = not view.readonly
        held = ffi.from_buffer("char[]", memory, require_writable=writable)
    except (TypeError, BufferError, ValueError) as error:
        raise invalid(
            f"a {type(memory).__name__} is no memory that can be loaded into or stored from: "
            f"{error}",
            "give a numpy array, a CPU tensor, a contiguous buffer or (address, bytes)",
        ) from error
    address = int(ffi.cast("uintptr_t", held))
    return _Stretches(array.array("Q", (address,)), array.array("Q", (len(held),)), held, writable)


def _packed(shape: Sequence[int], element: int) -> list[int]:
    """Strides of an array without gaps, in bytes."""
    strides, step = [0] * len(shape), element
    for axis in range(len(shape) - 1, -1, -1):
        strides[axis], step = step, step * shape[axis]
    return strides


def _runs(
    address: int, shape: Sequence[int], strides: Sequence[int], element: int
) -> tuple[array.array[int], int]:
    """Addresses of the stretches that lie together, and the bytes of each."""
    if 0 in shape:
        return array.array("Q"), 0
    together, axis = element, len(shape)
    while axis > 0 and (shape[axis - 1] == 1 or strides[axis - 1] == together):
        together *= shape[axis - 1]
        axis -= 1
    bases = [address]
    for size, stride in zip(shape[:axis], strides[:axis]):
        if len(bases) * size > PIECES_MAX:
            raise invalid(
                f"an array of shape {tuple(shape)} and strides {tuple(strides)} is more than "
                f"{PIECES_MAX} pieces",
                "give memory whose inner dimensions lie together",
            )
        bases = [base + index * stride for base in bases for index in range(size)]
    return array.array("Q", bases), together


def pieces_of(pieces: Any) -> Pieces:
    """What a load or store was given, as pieces."""
    return pieces if isinstance(pieces, Pieces) else Pieces.of(pieces)
