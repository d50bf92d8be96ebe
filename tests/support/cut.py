"""A connection whose host is cut off: what is sent to it is lost, in silence. That needs no privilege."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

import psycopg

#: Linux's SO_ATTACH_FILTER, and the program of a packet filter that lets nothing pass: return 0.
_ATTACH_FILTER, _NOTHING = 26, struct.pack("HBBI", 0x06, 0, 0, 0)


def cut_off(connection: psycopg.Connection[object]) -> None:
    """Have the kernel drop what comes for a connection, unacknowledged. What it sends still arrives."""
    program = ctypes.create_string_buffer(_NOTHING)
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))
