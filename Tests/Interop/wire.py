"""The protocol by hand, for what no honest client would send. Layouts: the NBD specification, `proto.md`."""

import socket
import struct
from urllib.parse import parse_qs, unquote, urlsplit

IHAVEOPT = 0x49484156454F5054
OPTION_REPLY = 0x0003E889045565A9
REQUEST, SIMPLE, CHUNK = 0x25609513, 0x67446698, 0x668E33EF

EXPORT_NAME, ABORT, LIST, PEEK, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = range(1, 11)
ACK, SERVER, INFO_REPLY, META_REPLY = 1, 2, 3, 4
ERROR_BIT = 0x80000000
UNSUP, POLICY, INVALID, PLATFORM, TLS_REQD, UNKNOWN, SHUTDOWN, BLOCK_SIZE_REQD, TOO_BIG = (
    ERROR_BIT + n for n in range(1, 10))

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108

NONE, DATA, HOLE, BLOCK_STATUS, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 0x8001, 0x8002


class Closed(Exception):
    """The server hung up."""


def dial(uri, timeout=20):
    """A socket to the server behind a URI, and the export's name."""
    parts = urlsplit(uri)
    if "socket" in parse_qs(parts.query):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(timeout)
        link.connect(parse_qs(parts.query)["socket"][0])
    else:
        link = socket.create_connection((parts.hostname, parts.port or 10809), timeout)
    return link, unquote(parts.path[1:])


class Wire:
    """One connection. Methods are named after the messages; nothing is checked that a test may want to break."""

    def __init__(self, uri, timeout=20):
        self.link, self.export = dial(uri, timeout)

    @classmethod
    def over(cls, link):
        """A connection on a socket that is connected already, to the default export."""
        wire = cls.__new__(cls)
        wire.link, wire.export = link, ""
        return wire

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.link.close()

    # Bytes

    def send(self, data):
        try:
            self.link.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def receive(self, count):
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self.link.recv(min(count - len(parts), 1 << 20))
            except ConnectionResetError:
                raise Closed from None
            if not part:
                raise Closed(f"after {len(parts)} of {count} bytes")
            parts += part
        return bytes(parts)

    def unpack(self, layout):
        return struct.unpack(layout, self.receive(struct.calcsize(layout)))

    def is_closed(self):
        """Whether the server hangs up without another byte (waits for it, up to the timeout)."""
        try:
            data = self.link.recv(1)
        except ConnectionResetError:
            return True
        except (TimeoutError, socket.timeout):
            return False
        assert data == b"", f"a byte instead of the end: {data!r}"
        return True

    # Handshake

    def greet(self, flags=3):
        magic, have_option, server_flags = self.unpack(">8sQH")
        assert magic == b"NBDMAGIC" and have_option == IHAVEOPT
        self.send(struct.pack(">I", flags))
        return server_flags

    def option(self, number, data=b"", length=None):
        self.send(struct.pack(">QII", IHAVEOPT, number, len(data) if length is None else length) + data)

    def reply(self):
        """(option, type, data) of the next option reply."""
        magic, option, kind, length = self.unpack(">QIII")
        assert magic == OPTION_REPLY
        return option, kind, self.receive(length)

    def replies(self, option):
        """All replies to one option; the last is the final one."""
        answers = []
        while True:
            echoed, kind, data = self.reply()
            assert echoed == option
            answers.append((kind, data))
            if kind == ACK or kind & ERROR_BIT:
                return answers

    def ask(self, number, data=b""):
        self.option(number, data)
        return self.replies(number)

    @staticmethod
    def info_data(name, *infos):
        name = name.encode() if isinstance(name, str) else name
        return struct.pack(f">I{len(name)}sH{len(infos)}H", len(name), name, len(infos), *infos)

    @staticmethod
    def meta_data(name, *queries):
        name = name.encode()
        data = struct.pack(f">I{len(name)}sI", len(name), name, len(queries))
        for query in queries:
            query = query.encode() if isinstance(query, str) else query
            data += struct.pack(f">I{len(query)}s", len(query), query)
        return data

    def go(self, **options):
        """The whole handshake, into transmission."""
        self.greet()
        return self.choose(**options)

    def choose(self, *, structured=False, contexts=(), name=None):
        """Into transmission from where the greeting is over. `size` and `flags` of the export are kept."""
        name = self.export if name is None else name
        if structured:
            assert self.ask(STRUCTURED)[-1][0] == ACK
        self.contexts = {}
        if contexts:
            answers = self.ask(SET_META, self.meta_data(name, *contexts))
            assert answers[-1][0] == ACK
            for _, data in answers[:-1]:
                self.contexts[struct.unpack(">I", data[:4])[0]] = data[4:].decode()
        answers = self.ask(GO, self.info_data(name))
        assert answers[-1][0] == ACK, answers
        for kind, data in answers:
            if kind == INFO_REPLY and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])
        return self

    # Transmission

    @staticmethod
    def header(command, offset=0, length=0, flags=0, cookie=1, magic=REQUEST):
        return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length)

    def request(self, command, offset=0, length=0, flags=0, cookie=1, data=b""):
        self.send(self.header(command, offset, length, flags, cookie) + data)

    def simple(self):
        """(error, cookie) of the next simple reply; the data of a READ is the caller's to receive."""
        magic, error, cookie = self.unpack(">IIQ")
        assert magic == SIMPLE, hex(magic)
        return error, cookie

    def chunk(self):
        """(flags, type, cookie, payload) of the next structured chunk."""
        magic, flags, kind, cookie, length = self.unpack(">IHHQI")
        assert magic == CHUNK, hex(magic)
        return flags, kind, cookie, self.receive(length)

    def answer(self):
        """The next reply in whichever form it comes, up to DONE: (error, cookie, chunks)."""
        magic, = self.unpack(">I")
        if magic == SIMPLE:
            error, cookie = self.unpack(">IQ")
            return error, cookie, []
        assert magic == CHUNK, hex(magic)
        chunks, error = [], 0
        while True:
            flags, kind, cookie, length = self.unpack(">HHQI")
            payload = self.receive(length)
            chunks.append((kind, payload))
            if kind & 0x8000:
                error = struct.unpack(">I", payload[:4])[0]
            if flags & 1:
                return error, cookie, chunks
            assert self.unpack(">I")[0] == CHUNK

    def call(self, command, offset=0, length=0, flags=0, cookie=7, data=b""):
        """One request and its error number (0 is success); simple replies or chunks alike. Not for simple READs."""
        self.request(command, offset, length, flags, cookie, data)
        error, echoed, _ = self.answer()
        assert echoed == cookie
        return error

    def read(self, offset, length, cookie=7):
        """A READ over simple replies: (error, data)."""
        self.request(READ, offset, length, 0, cookie)
        error, echoed = self.simple()
        assert echoed == cookie
        return error, b"" if error else self.receive(length)
