#!/usr/bin/env python3
"""Seeds for the fuzzers.

    seeds.py DIR                    writes DIR/{uri,handshake,tls,transmission,client,config,objects}: made-up conversations that touch every option and command
    seeds.py --capture [SERVER…]    runs real clients through a recording proxy and keeps what they said in corpus/; SERVER is a command
                                    line with {socket} and {disk} (default: ../.build/release/nbd serve, then qemu-nbd)

The first two bytes of a handshake or transmission input set up the server (see Sources/fuzz); the rest is what the client sends.
"""

import hashlib
import os
import pathlib
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

OPTION, REQUEST, EXTENDED = 0x49484156454F5054, 0x25609513, 0x21E41C71
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED_HEADERS = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << n for n in range(6))


def option(number, data=b""):
    return struct.pack(">QII", OPTION, number, len(data)) + data


def counted(text):
    return struct.pack(">I", len(text)) + text


def info(number, name=b"disk", kinds=(1, 2, 3)):
    return option(number, counted(name) + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds))


def meta(number, name=b"disk", queries=(b"base:allocation",)):
    return option(number, counted(name) + struct.pack(">I", len(queries)) + b"".join(map(counted, queries)))


def request(extended, command, offset=0, length=4096, flags=0, payload=b"", cookie=1):
    if extended:
        flags |= PAYLOAD_LEN if payload else 0
        return struct.pack(">IHHQQQ", EXTENDED, flags, command, cookie, offset, length) + payload
    return struct.pack(">IHHQQI", REQUEST, flags, command, cookie, offset, length & 0xFFFFFFFF) + payload


def upgrades():
    """What is said in clear, and what behind STARTTLS."""
    flags = struct.pack(">I", 3)
    start = option(STARTTLS)
    agreed = option(STRUCTURED) + meta(SET_META)
    for clear in (start, option(LIST) + start, agreed + start, option(EXTENDED_HEADERS) + info(INFO, b"secret") + start,
                  start + option(LIST), option(STARTTLS, b"x") + start, info(GO), option(EXPORT_NAME, b"disk"), option(ABORT)):
        for encrypted in (info(GO, b"secret"), agreed + info(GO), start + option(LIST) + option(ABORT), option(EXPORT_NAME, b"secret")):
            yield flags + clear, encrypted


def handshakes():
    flags = struct.pack(">I", 3)
    yield flags + info(GO)
    yield flags + option(STRUCTURED) + meta(SET_META) + info(GO, kinds=(3,))
    yield flags + option(EXTENDED_HEADERS) + meta(SET_META, queries=(b"base:", b"qemu:", b"base:allocation")) + info(GO)
    yield flags + option(LIST) + info(INFO) + info(INFO, b"") + info(INFO, b"none") + option(ABORT)
    yield flags + meta(LIST_META, queries=()) + meta(LIST_META, queries=(b"base:",)) + option(ABORT, b"bye")
    yield flags + option(STARTTLS) + option(99, b"x" * 100) + option(EXPORT_NAME, b"disk")
    yield flags + option(STRUCTURED, b"!") + option(STRUCTURED) * 2 + option(EXTENDED_HEADERS) * 2 + option(LIST, b"!")
    yield flags + meta(SET_META) + option(STRUCTURED) + meta(SET_META, b"none") + meta(SET_META) + option(EXPORT_NAME, b"")
    yield struct.pack(">I", 0) + option(EXPORT_NAME, b"disk")
    yield struct.pack(">I", 1) + option(EXPORT_NAME, b"small")
    yield flags + info(GO, b"\0disk") + info(GO, b"x" * 5000) + info(GO) + b"\0" * 40
    yield flags + option(GO, b"\0\0\0\5disk\0\0") + option(GO, b"\xff" * 8) + option(SET_META, b"\0\0\0\0\xff\xff\xff\xff")
    yield flags + meta(LIST_META, queries=(b"q" * 5000, b"", b"nocolon", b":", b"x-a:b")) + option(LIST_META, counted(b"disk") + b"\0\0\0\0!")


def transmissions(extended):
    r = lambda *a, **k: request(extended, *a, **k)
    yield r(READ) + r(READ, 4096, 65536, cookie=2) + r(FLUSH, length=0, cookie=3) + r(DISC)
    yield r(WRITE, 512, 512, payload=b"w" * 512) + r(READ, 0, 2048, cookie=2) + r(READ, 0, 2048, DF, cookie=3)
    yield r(ZEROES, 0, 1 << 16, NO_HOLE) + r(ZEROES, 0, 1 << 16, FAST_ZERO | FUA, cookie=2) + r(TRIM, 0, 1 << 16, FUA, cookie=3)
    yield r(STATUS, 0, 1 << 20) + r(STATUS, 0, 1 << 20, REQ_ONE, cookie=2) + r(CACHE, 0, 4096, cookie=3)
    yield r(READ, 1 << 20, 1) + r(WRITE, (1 << 20) - 1, 2, payload=b"xx", cookie=2) + r(READ, (1 << 64) - 1, 4096, cookie=3)
    yield r(8) + r(READ, flags=0xFFFF, cookie=2) + r(FLUSH, 77, 99, cookie=3) + r(READ, length=0, cookie=4) + r(STATUS, length=0, cookie=5)
    yield r(READ, 0, 1 << 25) + r(TRIM, 0, (1 << 32) - 1, cookie=2) + b"garbage that is no request at all"
    yield b"".join(r(READ, 512 * i, 512, cookie=i) for i in range(40)) + r(DISC)
    if extended:
        ids = struct.pack(">QI", 1 << 20, 0)
        yield r(STATUS, 0, len(ids), payload=ids) + r(STATUS, 0, 8, payload=ids[:8], cookie=2) + r(STATUS, 0, 16, payload=ids + b"\0\0\0\7", cookie=3)
        yield request(True, WRITE, 0, 4, 0, cookie=9) + b"abcd" + r(READ, 0, 3, payload=b"xyz", cookie=2) + r(ZEROES, 0, 1 << 40, cookie=3)


def option_reply(number, kind, data=b""):
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data


def chunk(extended, kind, payload=b"", cookie=0, done=True, offset=0):
    head = struct.pack(">IHHQ", 0x6E8A278C if extended else 0x668E33EF, done, kind, cookie)
    return head + (struct.pack(">QQ", offset, len(payload)) if extended else struct.pack(">I", len(payload))) + payload


def servers():
    """(setup, what a server says)"""
    greeting = struct.pack(">QQH", 0x4E42444D41474943, OPTION, 3)
    export = struct.pack(">HQH", 0, 1 << 20, 0x0FED)
    go = (option_reply(GO, 3, struct.pack(">HIII", 3, 1, 4096, 1 << 25)) + option_reply(GO, 3, export) + option_reply(GO, 3, b"\0\1disk")
          + option_reply(GO, 3, b"\0\2text") + option_reply(GO, 1))
    simple = b"".join(struct.pack(">IIQ", 0x67446698, error, cookie) for cookie, error in ((1, 0), (2, 5), (3, 22), (4, 0), (5, 95)))
    lists = option_reply(LIST, 2, counted(b"disk") + b"text") + option_reply(LIST, 2, counted(b"b")) + option_reply(LIST, 1)
    contexts = option_reply(LIST_META, 4, struct.pack(">I", 0) + b"base:allocation") + option_reply(LIST_META, 1)
    chosen = option_reply(SET_META, 4, struct.pack(">I", 3) + b"base:allocation") + option_reply(SET_META, 1)
    yield 0, greeting + go + simple + struct.pack(">IIQ", 0x67446698, 0, 0) + b"d" * 4096
    yield 0x20, greeting + lists + go + simple
    yield 0x10, greeting + struct.pack(">QH", 1 << 20, 0x0D6D) + simple
    yield 0x14, greeting + struct.pack(">QH", 1 << 20, 0x0D6D) + bytes(124) + simple
    yield 0, struct.pack(">QQQI", 0x4E42444D41474943, 0x420281861253, 1 << 20, 3) + bytes(124) + simple
    yield 1, greeting + option_reply(STRUCTURED, 0x80000001) + go + simple
    for mode, extended in ((1, False), (2, True)):
        agree = option_reply(EXTENDED_HEADERS if extended else STRUCTURED, 1)
        status = (struct.pack(">IIQQQQ", 3, 2, 1024, 0, 3072, 3) if extended else struct.pack(">IIIII", 3, 1024, 0, 3072, 3))
        replies = (chunk(extended, 1, struct.pack(">Q", 0) + b"x" * 1024, done=False) + chunk(extended, 2, struct.pack(">QI", 1024, 3072))
                   + chunk(extended, 6 if extended else 5, status, 6, offset=6 * 4096)
                   + chunk(extended, 0x8001, struct.pack(">IH", 5, 3) + b"bad", 3, offset=3 * 4096)
                   + chunk(extended, 0x8002, struct.pack(">IH", 5, 3) + b"bad" + struct.pack(">Q", 7 * 4096), 7, offset=7 * 4096)
                   + chunk(extended, 0, b"", 2, offset=2 * 4096))
        yield mode, greeting + agree + go + replies
        yield mode | 0x60, greeting + agree + lists + contexts + chosen + go + replies
    yield 2, greeting + option_reply(EXTENDED_HEADERS, 0x80000001) + option_reply(STRUCTURED, 1) + go + chunk(False, 0)
    yield 0x20, greeting + option_reply(LIST, 0x80000002, b"not here") + option_reply(GO, 0x80000006) + struct.pack(">QH", 1 << 20, 1)


URIS = ["nbd://localhost", "nbd://localhost:10809/disk", "nbds://user@[::1]:1/a%20b?tls-type=psk&tls-verify-peer=1", "nbd:///", "nbd://h//x",
        "nbd+unix:///disk?socket=/tmp/s", "nbds+unix://u@/?socket=%00abstract&tls-hostname=h", "nbd+vsock://2:10809/", "nbd://h/%C3%A9",
        "nbd://h?x-mine=1", "nbd+unix:///?socket=", "nbd://[::1", "nbd://h:99999/", "http://h", "nbd://h/%zz", "nbd://h/%00", "nbd://h/#f"]


CONFIGURATIONS = ['''default-export = "disk"
pid-file = "/run/nbd.pid"
poll = 50
user = "nbd"
sandbox = "on"
[tls]
directory = "/x"
mode = "optional"
[limits]
connections = 100
connections-per-peer = 75
handshake = 10
memory = "1G"
[[listeners]]
host = "127.0.0.1"
port = 10809
[[listeners]]
unix = "@abstract"
oldstyle = "disk"
[[exports]]
name = "disk"
memory = "10G"
offset = 0x1000
read-only = true
[[allow]]
from = ["10.0.0.0/8", "unix"]
uid = [0, 1000]
may = ["list", "read"]
[[deny]]
tls-dn = 'CN=bad,*'
''', '''{"exports": [{"name": "a", "null": 1048576, "discard": "ignore"}], "allow": [{"may": "all", "from": "::1"}], "limits": {"drain": 1}}''',
    'a.b."c" = { d = [1, 2.5e3, true], e = \'\'\'\nx\ny\'\'\' }\n[a."b c"]\n']

# The first letter says which option it is.
VALUES = [
    "otls-creds-x509,id=a,dir=/a,,b,endpoint=server,verify-peer=on", "otls-creds-psk,id=a,dir=/x,username=u", "oauthz-simple,id=a,identity=CN=x,,O=y",
    "oauthz-list,id=a,policy=deny,rules.0.match=CN=*,rules.0.policy=allow,rules.0.format=glob\nauthz-list-file,id=b,filename=/x,refresh=off",
    "ename=a,file=/x,,y,description=d,readonly=on,offset=1M,size=0x1000,format=raw,cache=none,discard=unmap,locking=off", "ename=,memory=7E",
    "idriver=raw,file.driver=file,file.filename=/x,offset=512,size=1K,read-only=on", "idriver=file,filename=/x,aio=native",
    '''j{"rules": [{"match": "CN=*", "policy": "allow", "format": "glob"}], "policy": "deny"}''', "tenable=-nbd_*,events=/x,file=/y",
    "n10.0.0.0/8", "n2001:db8::/32", "n::ffff:192.0.2.0/120", "aexport=backup-*,from=10.0.0.0/8+::1+unix,may=read+contexts",
    "auid=0+1,gid=5,pid=7,tls=off,may=all", "atls=on,tls-dn=CN=a,,O=*,may=list+trim",
]


def write(directory, kind, data):
    directory = directory / kind
    directory.mkdir(parents=True, exist_ok=True)
    (directory / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


def generate(directory):
    for uri in URIS:
        write(directory, "uri", uri.encode())
    for clear, encrypted in upgrades():
        for setup in range(4):
            write(directory, "tls", bytes([setup, 0]) + struct.pack(">H", len(clear)) + clear + encrypted)
    for i, data in enumerate(handshakes()):
        for setup in (b"\0\0", bytes([i % 4, 1 + i])):
            write(directory, "handshake", setup + data)
    for mode in range(3):
        for i, data in enumerate(transmissions(mode == 2)):
            for setup in (bytes([mode, 0]), bytes([mode | 4 * (i % 2), 7 * i + 1])):
                write(directory, "transmission", setup + data)


    for setup, data in servers():
        for cut in (0, 1 + setup):
            write(directory, "client", bytes([setup, cut]) + data)
    for text in CONFIGURATIONS:
        write(directory, "config", text.encode())
    for text in VALUES:
        write(directory, "objects", text.encode())


# --- capture ------------------------------------------------------------------------------------------------------------------------

def record(listener, upstream, heard):
    """Passes each connection on to `upstream` and keeps what the client said."""
    def pump(source, sink, kept):
        try:
            while data := source.recv(1 << 16):
                if kept is not None:
                    kept.extend(data)
                sink.sendall(data)
        except OSError:
            pass
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX)
        server.connect(upstream)
        kept = bytearray()
        heard.append(kept)
        threading.Thread(target=pump, args=(client, server, kept), daemon=True).start()
        threading.Thread(target=pump, args=(server, client, None), daemon=True).start()


def split(data):
    """(handshake, mode, transmission) of what a client said."""
    at, mode = 4, 0
    while len(data) >= at + 16:
        magic, number, length = struct.unpack_from(">QII", data, at)
        if magic != OPTION:
            return None
        at += 16 + length
        mode = {STRUCTURED: 1, EXTENDED_HEADERS: 2}.get(number, mode)
        if number in (GO, EXPORT_NAME, ABORT):
            break
    return data[:at], mode, data[at:]


def clients(uri):
    path = uri.split("socket=")[1]
    qemu = f"nbd:unix:{path}:exportname="
    yield ["nbdinfo", uri]
    yield ["nbdinfo", "--list", uri]
    yield ["nbdinfo", "--map", uri]
    yield ["nbdcopy", uri, "null:"]
    yield ["qemu-img", "info", uri]
    yield ["qemu-img", "map", "--output=json", "-f", "raw", qemu]
    yield ["qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "write -z -u 64k 64k", "-c", "discard 0 64k", "-c", "read 0 128k", "-c", "flush", uri]
    yield ["qemu-io", "-f", "raw", "-t", "writethrough", "-c", "write -f 512 1024", uri]
    yield ["nbd-client", "-l", "-u", path]
    script = ("h.set_strict_mode(0); h.add_meta_context('base:allocation'); h.connect_uri(%r); h.pread(512, 0); h.pwrite(b'x' * 512, 512, 1);"
              "h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE); h.trim(4096, 0); h.cache(4096, 0); h.flush(); h.block_status(65536, 0, lambda *a: 0);"
              "h.shutdown()") % uri
    yield ["nbdsh", "-c", script]


def capture(servers):
    corpus = pathlib.Path(__file__).parent / "corpus"
    for command in servers:
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            disk = directory / "disk"
            with open(disk, "wb") as file:
                file.truncate(1 << 20)
                file.seek(1 << 16)
                file.write(b"data" * 1024)
            upstream, front = str(directory / "up"), str(directory / "front")
            server = subprocess.Popen(shlex.split(command.format(socket=upstream, disk=disk)))
            heard = []
            try:
                for _ in range(100):
                    if os.path.exists(upstream):
                        break
                    time.sleep(0.05)
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(front)
                listener.listen()
                threading.Thread(target=record, args=(listener, upstream, heard), daemon=True).start()
                for client in clients(f"nbd+unix:///?socket={front}"):
                    if shutil.which(client[0]):
                        subprocess.run(client, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30)
                time.sleep(0.3)
            finally:
                server.terminate()
                server.wait()
            for kept in heard:
                if len(kept) > 4 and (parts := split(bytes(kept))):
                    handshake, mode, rest = parts
                    write(corpus, "handshake", b"\0\0" + handshake)
                    if rest:
                        write(corpus, "transmission", bytes([mode, 0]) + rest[:16384])
            print(f"{command.split()[0]}: {len(heard)} conversations")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--capture"]:
        ours = str(pathlib.Path(__file__).resolve().parent.parent / ".build/release/nbd")
        defaults = [f"{ours} serve --socket={{socket}} {{disk}}"] if os.path.exists(ours) else []
        capture(sys.argv[2:] or defaults + ["qemu-nbd -t -e 0 --discard=unmap -f raw -k {socket} {disk}"])
    elif len(sys.argv) == 2:
        generate(pathlib.Path(sys.argv[1]))
    else:
        sys.exit(__doc__)
