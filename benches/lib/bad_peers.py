#!/usr/bin/env python3
"""bad_peers.py SOCKET CONNECTIONS SECONDS

Clients that a daemon must tolerate, a quarter of the connections each. Every connection acts twice
a second, and is replaced when the daemon closes it. Prints the number of actions of each kind.

    slow          sends a request byte by byte
    half-closed   sends requests, closes its sending side, and reads the answers to the end
    not reading   sends requests and never reads an answer
    descriptors   passes a descriptor with each request, and reads the answer
"""

import array, json, os, socket, sys, time

import probe

# Pause between two actions of a connection, in seconds.
INTERVAL = 0.5
# Parts into which the connections are divided, so that they do not act all at once.
PARTS = 50
REQUESTS = 64


class Peer:
    def __init__(self, path, request):
        self.path, self.request, self.actions = path, request, 0
        self.socket = None

    def act(self):
        try:
            if self.socket is None:
                self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.socket.setblocking(False)
                self.socket.connect(self.path)
            self.misbehave()
            self.actions += 1
        except BlockingIOError:
            # The daemon does not read, or its backlog is full.
            self.actions += 1
        except OSError:
            self.reconnect()

    def reconnect(self):
        self.socket.close()
        self.socket = None

    def drain(self):
        """Reads what has arrived. Returns False at the end of the stream."""
        try:
            while data := self.socket.recv(65536):
                if len(data) < 65536:
                    return True
            return False
        except BlockingIOError:
            return True


class Slow(Peer):
    def misbehave(self):
        at = self.actions % len(self.request)
        self.socket.send(self.request[at : at + 1])
        if not self.drain():
            self.reconnect()


class HalfClosed(Peer):
    def misbehave(self):
        self.socket.send(self.request * REQUESTS)
        self.socket.shutdown(socket.SHUT_WR)
        self.socket.setblocking(True)
        self.socket.settimeout(5)
        while self.socket.recv(65536):
            pass
        self.reconnect()


class NotReading(Peer):
    def misbehave(self):
        while True:
            self.socket.send(self.request * REQUESTS)


class Descriptors(Peer):
    def misbehave(self):
        descriptor = array.array("i", [NULL])
        self.socket.sendmsg([self.request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
        if not self.drain():
            self.reconnect()


NULL = os.open(os.devnull, os.O_RDONLY)
KINDS = {"slow": Slow, "half-closed": HalfClosed, "not reading": NotReading, "descriptors": Descriptors}


def main():
    path, connections, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    kinds = list(KINDS.values())
    request = probe.PREFIX + bytes(probe.HASH)
    peers = [kinds[number % len(kinds)](path, request) for number in range(connections)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for part in range(PARTS):
            started = time.monotonic()
            for peer in peers[part::PARTS]:
                peer.act()
            time.sleep(max(0, INTERVAL / PARTS - (time.monotonic() - started)))
    by_kind = {name: sum(peer.actions for peer in peers if type(peer) is kind) for name, kind in KINDS.items()}
    print(json.dumps(by_kind))


if __name__ == "__main__":
    main()
