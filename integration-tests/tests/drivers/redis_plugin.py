"""Sends redis-py's own tests, which know only TCP, to the socket of an instance."""

import os
import socket

import redis.connection


def connect_to_socket(self):
    there = socket.socket(socket.AF_UNIX)
    there.settimeout(self.socket_connect_timeout)
    there.connect(os.environ["REDIS_URL"][len("unix://"):].split("?")[0])
    there.settimeout(self.socket_timeout)
    return there


redis.connection.Connection._connect = connect_to_socket
