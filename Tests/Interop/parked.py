"""Clients that stop in the middle: a function for each point of the conversation, which takes a new connection there and leaves it.

`park(link, state)` does so in clear. Under TLS, `park_encrypted(uri, directory, state)` knows the same points but those before the greeting is
over, and those of the TLS handshake itself.
"""

import ssl
import struct

import wire
from encrypted import client_context, start_tls, tls_wire
from images import MIB
from wire import Wire


# Before the greeting is over


def silent(link):
    pass


def half_its_flags(link):
    link.receive(18)
    link.send(b"\0\0")


# Once it is over: among options, then in transmission


def greeted(link):
    pass


def half_an_option(link):
    link.option(wire.GO, b"half", length=100)


def a_listing(link):
    link.ask(wire.LIST)


def not_reading_a_listing(link):
    link.send(struct.pack(">QII", wire.IHAVEOPT, wire.LIST, 0) * 60)


def idle(link):
    link.choose()


def a_read(link):
    link.choose()
    assert link.read(0, 4096)[0] == 0


def half_a_header(link):
    link.choose()
    link.send(Wire.header(wire.WRITE, 0, 4096)[:13])


def half_a_payload(link):
    link.choose()
    link.send(Wire.header(wire.WRITE, 0, MIB) + bytes(1000))


def not_reading(link):
    """Asks for 128 MiB."""
    link.choose()
    for cookie in range(16):
        link.request(wire.READ, 0, 8 * MIB, cookie=cookie)


# In the TLS handshake


def before_the_hello(uri, directory):
    return start_tls(uri)


def half_a_hello(uri, directory):
    link = start_tls(uri)
    link.send(hello(directory)[:100])
    return link


def a_hello(uri, directory):
    """Gets the server's half of the handshake, and says nothing to it."""
    link = start_tls(uri)
    link.send(hello(directory))
    assert link.receive(5)[0] == 0x16  # a record of the handshake
    return link


def hello(directory):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client_context(directory).wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


def table(*functions):
    return {function.__name__: function for function in functions}


UNGREETED = table(silent, half_its_flags)
GREETED = table(greeted, half_an_option, a_listing, not_reading_a_listing, idle, a_read, half_a_header, half_a_payload, not_reading)
IN_TLS_HANDSHAKE = table(before_the_hello, half_a_hello, a_hello)

STATES = [*UNGREETED, *GREETED]
STATES_OF_TLS = [*IN_TLS_HANDSHAKE, *GREETED]


def park(link, state):
    if state in UNGREETED:
        UNGREETED[state](link)
    else:
        link.greet()
        GREETED[state](link)


def park_encrypted(uri, directory, state):
    """A new connection, left there; it is the caller's to close."""
    if state in IN_TLS_HANDSHAKE:
        return IN_TLS_HANDSHAKE[state](uri, directory)
    link = tls_wire(uri, directory)
    GREETED[state](link)
    return link
