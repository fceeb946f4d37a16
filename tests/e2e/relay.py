#!/usr/bin/env python3
"""A relay between nodes that can delay, stall, half-open and cut, and never changes a byte.

usage: relay.py    (commands on stdin, one JSON object a line; one answer a line on stdout)

    {"do": "serve", "name": N, "listen": [HOST, PORT] or PATH, "target": [HOST, PORT]}
    {"do": "fault", "name": N, "to": MODE, "from": MODE, "delay_s": S}
        of what goes to the target and what comes from it; MODE:
        pass      the bytes pass
        stall     nobody reads: the sender's buffers fill
        swallow   the bytes are read and lost: the sender notices nothing
    {"do": "cut", "name": N, "how": "fin" or "rst", "after": BYTES}
        each connection ends at once, or when so many bytes more came from the target
    {"do": "refuse", "name": N, "on": true}
        nobody listens: a new connection is refused; those that are there stay
    {"do": "show", "name": N}
        the connections: lane, bytes to and from the target

A node that stands behind a relay tells its peers the port of its data front inside its Hello, and
they look for it at the relay's address: the relay reads that port (and nothing else) out of the
Hello that passes and listens on it too, before it passes the Hello on. With the process that holds
its stdin it ends.
"""
import asyncio
import json
import os
import socket
import struct
import sys

CHUNK_BYTES = 65536
DATA_PORT_FIELD = 6  # of kvist.wire.Hello
HELLO_FIELD = 1      # of kvist.wire.Envelope


def fields(message):
    """The fields of a protobuf message: (number, value)."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    while at < len(message):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
        elif kind == 2:
            length = varint()
            at += length
            yield number, message[at - length:at]
        else:
            width = {1: 8, 5: 4}[kind]
            at += width
            yield number, message[at - width:at]


def data_port(frame):
    """The data front's port in a frame with a Hello, or 0."""
    hello = dict(fields(frame)).get(HELLO_FIELD, b"")
    return dict(fields(hello)).get(DATA_PORT_FIELD, 0)


class Service:
    """One target: its listeners, its connections, its faults."""

    def __init__(self, name, host, target):
        self.name, self.host, self.target = name, host, target
        self.mode = {"to": "pass", "from": "pass"}
        self.delay_s = 0
        self.cut_after = None  # (bytes, how)
        self.changed = asyncio.Event()
        self.servers = {}  # port or path -> server
        self.connections = set()

    async def listen(self, where, lane):
        if where in self.servers:
            return
        target = self.target if lane != "front" else [self.target[0], where]

        async def accepted(reader, writer):
            await Connection(self, lane, reader, writer).run(target)
        if isinstance(where, str):
            server = await asyncio.start_unix_server(accepted, where, limit=CHUNK_BYTES)
        else:
            server = await asyncio.start_server(accepted, self.host, where, limit=CHUNK_BYTES)
        self.servers[where] = server

    async def refuse(self, on):
        for where, server in list(self.servers.items()):
            if on:
                server.close()
            elif not server.is_serving():
                del self.servers[where]
                await self.listen(where, "control" if where == self.target[1] else "front")

    def fault(self, to="pass", delay_s=0, **modes):
        self.mode = {"to": to, "from": modes.get("from", "pass")}
        self.delay_s = delay_s
        self.changed.set()
        self.changed = asyncio.Event()

    def cut(self, how, after=0):
        self.cut_after = None
        if after > 0:
            self.cut_after = (after, how)
            for connection in self.connections:
                connection.cut_left = after
            return
        for connection in list(self.connections):
            connection.cut(how)


class Connection:
    def __init__(self, service, lane, reader, writer):
        self.service, self.lane = service, lane
        self.client = (reader, writer)
        self.server = None
        self.bytes = {"to": 0, "from": 0}
        self.cut_left = service.cut_after[0] if service.cut_after else None
        self.hello = b""
        self.ended = False

    async def run(self, target):
        service = self.service
        service.connections.add(self)
        try:
            self.server = await asyncio.open_connection(*target, limit=CHUNK_BYTES)
            for _, writer in (self.client, self.server):
                sock = writer.get_extra_info("socket")
                if sock.family == socket.AF_INET:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pumps = [asyncio.ensure_future(self.pump("to", self.client[0], self.server[1])),
                     asyncio.ensure_future(self.pump("from", self.server[0], self.client[1]))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            self.cut("rst")  # nobody is at the target
        finally:
            service.connections.discard(self)
            self.cut("fin")

    async def pump(self, direction, reader, writer):
        service = self.service
        while True:
            await self.unless_stalled(direction)
            data = await reader.read(CHUNK_BYTES)
            if not data:
                return
            await self.unless_stalled(direction)
            if service.delay_s > 0:
                await asyncio.sleep(service.delay_s)
            if service.mode[direction] == "swallow":
                continue
            if direction == "from" and self.lane == "control" and self.hello is not None:
                await self.learn(data)
            if direction == "from" and self.cut_left is not None:
                data = data[:self.cut_left]
                self.cut_left -= len(data)
            self.bytes[direction] += len(data)
            writer.write(data)
            await writer.drain()
            if self.cut_left == 0 and direction == "from":
                self.cut(service.cut_after[1])
                return

    async def unless_stalled(self, direction):
        while self.service.mode[direction] == "stall":
            await self.service.changed.wait()

    async def learn(self, data):
        """Collects the target's first frame; its data port gets a listener."""
        self.hello += data
        if len(self.hello) < 4:
            return
        length = struct.unpack("<I", self.hello[:4])[0]
        if len(self.hello) >= 4 + length:
            port = data_port(self.hello[4:4 + length])
            self.hello = None
            if port != 0:
                await self.service.listen(port, "front")

    def cut(self, how):
        if self.ended:
            return
        self.ended = True
        for end in (self.client, self.server):
            if end is None:
                continue
            sock = end[1].get_extra_info("socket")
            if how == "rst":
                if sock is not None and sock.family == socket.AF_INET:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end[1].transport.abort()
            else:
                end[1].close()


async def obey(services, command):
    do, name = command.pop("do"), command.pop("name")
    if do == "serve":
        where, target = command["listen"], command["target"]
        host = None if isinstance(where, str) else where[0]
        services[name] = Service(name, host, target)
        if isinstance(where, str):
            await services[name].listen(where, "unix")
        else:
            await services[name].listen(where[1], "control")
        return {}
    service = services[name]
    if do == "fault":
        service.fault(**command)
    elif do == "cut":
        service.cut(**command)
    elif do == "refuse":
        await service.refuse(**command)
    elif do == "show":
        return {"connections": [{"lane": c.lane, **c.bytes} for c in service.connections]}
    else:
        return {"error": f"unknown command {do}"}
    return {}


async def main():
    services = {}
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        answer = await obey(services, json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)  # connections and all


if __name__ == "__main__":
    asyncio.run(main())
