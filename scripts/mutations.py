"""Files that are nearly right: JSON trees, the text that they become, and safetensors files, each changed in a few places
by a random.Random. For fuzz_files.py."""

import copy
import json
import math
import re
import struct

VALUES = (
    *(
        None,
        True,
        False,
        [],
        {},
        [[]],
        "",
        "x",
        "x" * 5000,
        "\0",
        "\ud800",
        "ÿé\n",
        "1",
        "null",
        math.nan,
        math.inf,
        -0.0,
    ),
    *(0, 1, 2, -1, 7, 127, 128, 255, 256, 257, 65536, 0.5, 1e-300, 1e308, 1e30),
    *(sign * 2**power + more for sign in (1, -1) for power in (31, 32, 53, 63, 64) for more in (-1, 0, 1)),
)
BYTES = (b"\x00", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"1e999", b"\n")
NUMBERS = {"F64": ("<d", 8), "F32": ("<f", 4), "I32": ("<i", 4), "I64": ("<q", 8)}


def places(tree) -> list[tuple]:
    """(container, key) of every value below `tree`."""
    found = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += [(tree, key), *places(value)]
    return found


def changed_value(rng, value, everything: list[tuple]):
    """Another value that may stand for this one."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(VALUES)
    if kind == 1:
        container, key = rng.choice(everything)
        return copy.deepcopy(container[key])
    if isinstance(value, bool) or value is None:
        return rng.choice(VALUES)
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, value - 1, -value, 2 * value, value // 2, 10 * value, float(value), str(value)))
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        middle = rng.choice(("", value[at:], rng.choice("\0\x7f aZ09.*+?()[]{}|^$\\é\ud800"), value[:at] * 3))
        return value[:at] + middle + value[at + rng.randrange(2) :]
    if isinstance(value, list) and value:
        return rng.choice((value[1:], value[::-1], value * rng.choice((2, 50)), [value], value[0]))
    return [value]


def change_tree(rng, tree) -> None:
    """Changes one value below `tree`, removes it, moves it under another name, or adds one."""
    everything = places(tree)
    if not everything:
        return
    container, key = rng.choice(everything)
    kind = rng.randrange(10)
    if kind == 0:
        del container[key]
    elif kind == 1:
        other, other_key = rng.choice(everything)
        other[other_key], container[key] = copy.deepcopy(container[key]), copy.deepcopy(other[other_key])
    elif kind == 2 and isinstance(container, dict):
        container[rng.choice((key + "_", key.upper(), key[:-1], "", "__metadata__"))] = container.pop(key)
    elif kind == 3 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(container[key]))
    else:
        container[key] = changed_value(rng, container[key], everything)


def change_bytes(rng, data: bytes) -> bytes:
    """Cut, repeated in a part, or with other bytes somewhere."""
    at = rng.randrange(len(data) + 1)
    length = rng.choice((1, 2, 8, len(data) // 3))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[:at] + data[at : at + length] + data[at:]
    return data[:at] + rng.choice(BYTES) + data[at + rng.randrange(2) :]


def repeat_member(rng, text: bytes) -> bytes:
    """Twice the same name in an object, or the name in an object where it does not belong."""
    names = re.findall(rb'"\w+":', text)
    objects = [match.end() for match in re.finditer(rb"\{(?=\s*\")", text)]
    if not names or not objects:
        return text
    at = rng.choice(objects)
    return text[:at] + rng.choice(names) + rng.choice((b"null", b"1", b'"x"')) + b"," + text[at:]


def nest(rng, text: bytes) -> bytes:
    """A number that lies very deep."""
    numbers = list(re.finditer(rb"(?<=[:,\[])\d+(?=[,\]}])", text))
    if not numbers:
        return text
    number, depth = rng.choice(numbers), rng.choice((10, 600, 100_000))
    return text[: number.start()] + b"[" * depth + number.group() + b"]" * depth + text[number.end() :]


def text_of(rng, tree) -> bytes:
    """As JSON, now and then not quite."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    kind = rng.randrange(12)
    if kind == 0:
        return change_bytes(rng, text)
    if kind == 1:
        return repeat_member(rng, text)
    if kind == 2:
        return nest(rng, text)
    return text


def change_json(rng, data: bytes) -> bytes:
    tree = json.loads(data)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
        change_tree(rng, tree)
    return text_of(rng, tree)


def change_json_lines(rng, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        return change_bytes(rng, data)
    if kind == 1:
        lines.insert(at, rng.choice((b"5\n", b"\n", b"null\n", b"[]\n", b"{}\n", lines[-1])))
    else:
        lines[at] = change_json(rng, lines[at]) + b"\n"
    return b"".join(lines)


def read_safetensors(data: bytes) -> tuple[dict, bytearray]:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])


def safetensors(header: bytes, data: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


def safetensors_of(tensors: dict) -> bytes:
    """of {name: (dtype, shape, numbers)}."""
    header, data = {}, b""
    for name, (dtype, shape, numbers) in tensors.items():
        stored = b"".join(struct.pack(NUMBERS[dtype][0], number) for number in numbers)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    return safetensors(json.dumps(header).encode(), data)


def change_numbers(rng, header: dict, data: bytearray) -> None:
    """One tensor's: not a number, infinite, huge, or any bits."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    begin, end = header[name]["data_offsets"]
    form, size = NUMBERS.get(header[name]["dtype"], ("B", 1))
    if end - begin < size:
        return
    if form in ("<d", "<f"):
        bits = struct.pack(form, rng.choice((math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-40)))
    else:
        bits = struct.pack(form, rng.choice((-1, 0, 1, 7, 1000, 2**31 - 1, -(2**31)))) if size > 1 else b"\xff"
    first = begin + size * rng.randrange((end - begin) // size)
    count = rng.choice((1, (end - first) // size))
    data[first : first + count * size] = bits * count


def change_safetensors(rng, file: bytes) -> bytes:
    header, data = read_safetensors(file)
    kind = rng.randrange(10)
    if kind == 0:
        return change_bytes(rng, file)
    if kind == 1:
        length = rng.choice((0, 1, 8, len(file) - 8, len(file), 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + file[8:]
    if kind <= 4:
        change_numbers(rng, header, data)
        return safetensors(json.dumps(header).encode(), data)
    metadata = header.get("__metadata__", {})
    names = [name for name, value in metadata.items() if value[:1] == "{"]
    if names and rng.random() < 0.7:  # JSON in a string
        name = rng.choice(names)
        metadata[name] = change_json(rng, metadata[name].encode()).decode(errors="replace")
        return safetensors(json.dumps(header).encode(), data)
    return safetensors(change_json(rng, json.dumps(header).encode()), data)
