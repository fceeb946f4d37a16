"""What a node says of itself on its admin socket, read without any program of ours.

The fields' names and numbers are read from proto/admin.proto, as is what a field holds.
"""
import os
import re
import socket
import struct

from relay import fields

PROTO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../proto/admin.proto")


def read_proto(path):
    """{message: {number: (name, type, repeated)}}."""
    messages, current = {}, None
    with open(path, encoding="utf-8") as file:
        for line in file:
            if opened := re.match(r"message (\w+) \{(\})?", line):
                current = messages.setdefault(opened.group(1), {})
            elif field := re.match(r"\s+(repeated )?(\w+) (\w+) = (\d+);", line):
                current[int(field.group(4))] = (field.group(3), field.group(2),
                                                field.group(1) is not None)
    return messages


MESSAGES = read_proto(PROTO)


def number_of(message, name):
    return next(number for number, field in MESSAGES[message].items() if field[0] == name)


def unpack(message, data):
    """A message as a dict; what was not sent has its default."""
    known = MESSAGES[message]
    out = {name: [] if repeated else {} if kind in MESSAGES else "" if kind == "string" else 0
           for name, kind, repeated in known.values()}
    for number, value in fields(data):
        if number not in known:
            continue
        name, kind, repeated = known[number]
        value = unpack(kind, value) if kind in MESSAGES else \
            value.decode() if kind == "string" else value
        if repeated:
            out[name].append(value)
        else:
            out[name] = value
    return out


def pack_varint(value):
    out = b""
    while value >= 128:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def pack_string(message, field, text):
    data = text.encode()
    return pack_varint(number_of(message, field) << 3 | 2) + pack_varint(len(data)) + data


def ask(path, question, body=b"", limit_s=1.0):
    """The answer to a question of Request, or None where the node does not answer in time."""
    request = pack_varint(number_of("Request", question) << 3 | 2) + pack_varint(len(body)) + body
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(limit_s)
        try:
            connection.connect(path)
            connection.sendall(struct.pack("<I", len(request)) + request)
            answer = b""
            while len(answer) < 4 or len(answer) < 4 + struct.unpack("<I", answer[:4])[0]:
                piece = connection.recv(65536)
                if not piece:
                    return None
                answer += piece
        except OSError:
            return None
    reply = unpack("Reply", answer[4:])
    assert reply["code"] == 0, f"{path}: {question}: {reply['error']}"
    return reply


def status(path, limit_s=1.0):
    reply = ask(path, "status", limit_s=limit_s)
    return reply["status"] if reply is not None else None


def drop_all(path):
    """Everything that the node has stored goes."""
    while contexts := ask(path, "list", limit_s=10)["list"]["contexts"]:
        key = contexts[0]["key"]
        while True:
            block = ask(path, "show", pack_string("ShowRequest", "key", key))["object"]
            if block["position"] == 0:
                break
            key = block["parent"]
        ask(path, "drop", pack_string("DropRequest", "key", key), limit_s=10)
