"""The raw echo: reads as many bytes as keyward's requests have, answers as many as its answers, and decides nothing."""

from .server import Server


class Echo(Server):
    label, target = "raw echo", "echo"
    answer_size = 80
    manners = []

    def command(self):
        return [
            self.place.binary,
            "bench",
            "--serve-echo",
            "--socket",
            self.socket,
            "--answer-size",
            str(self.answer_size),
            *self.manners,
        ]


class SpinningEcho(Echo):
    manners = ["--busy-poll"]
