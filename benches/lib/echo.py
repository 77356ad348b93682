"""The raw echo moves as many bytes as keyward and decides nothing: the cost of the socket."""

from .server import Server


class Echo(Server):
    label, target = "raw echo", "echo"
    # Bytes of an answer.
    answer_size = 80
    extra_options = []

    def command(self):
        return [
            self.workdir.loadgen,
            "--serve-echo",
            "--socket",
            self.socket,
            "--answer-size",
            str(self.answer_size),
            *self.extra_options,
        ]


class SpinningEcho(Echo):
    extra_options = ["--busy-poll"]
