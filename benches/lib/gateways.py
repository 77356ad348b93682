"""Gateways with the configurations of systemd/gateways, and the checkers that they ask.

All of them are pinned to one processor, so that a rate is that of everything a request needs.
"""

import hashlib, os, re, socket, subprocess

from .server import Server
from .tools import ROOT, ToolMissingError, find_tool, run, target_directory

PAGES = ROOT / "systemd" / "gateways"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def block(page, language, replaced):
    """The first block of a language in a page, with texts replaced. Each has to be there."""
    text = re.search(rf"```{language}\n(.*?)```\n", (PAGES / f"{page}.md").read_text(), re.S).group(1)
    for old, new in replaced.items():
        if old not in text:
            raise RuntimeError(f"{page}.md has no {old!r}")
        text = text.replace(old, str(new))
    return text


def key(number):
    return f"bench-key-{number:06}"


def write_export(path, count):
    """Writes keys with one limit each that no load reaches."""
    with open(path, "w") as file:
        file.write("key_hash,key_id,owner,limits\n")
        for number in range(count):
            digest = hashlib.sha256(key(number).encode()).hexdigest()
            file.write(f"{digest},key_{number:06},owner_{number:06},10000000/s burst 1000000000\n")


class Companion(Server):
    """`keyward http` with the table of a gateway's page. The daemon is started before it."""

    label = "keyward"

    def __init__(self, workdir, page, daemon):
        super().__init__(workdir, f"http-{page}")
        self.page, self.daemon = page, daemon

    def command(self):
        replaced = {f"/run/keyward-http/{self.page}.sock": self.socket}
        table = re.sub(r"(?m)^socket_group = .*$", 'socket_mode = "0666"', block(self.page, "toml", replaced))
        config = self.directory / "http.toml"
        config.write_text(f'[server]\nkeyward = "{self.daemon.socket}"\n\n{table}\n[log]\nlevel = "error"\n')
        return [self.workdir.binary, "http", "--config", config]


class Checker(Server):
    """A minimal server of hyper that lets every request through: one reply, no decision."""

    label = "a hyper server that decides nothing"
    options = []

    def __init__(self, workdir, name, status):
        super().__init__(workdir, name)
        self.status = status

    def command(self):
        return [self.workdir.loadgen, "--serve-checks", str(self.status), "--socket", self.socket, *self.options]

    def wait_until_ready(self):
        super().wait_until_ready()
        # nginx does not run as root.
        os.chmod(self.socket, 0o666)


class GrpcChecker(Checker):
    """The same over gRPC."""

    label = "a hyper server that decides nothing, over gRPC"
    options = ["--grpc"]


class RedisChecker(Checker):
    """The same server; it charges a token bucket in Redis by a Lua script."""

    label = "a hyper server that asks Redis by Lua"

    def __init__(self, workdir, name, status, redis):
        super().__init__(workdir, name, status)
        self.options = ["--redis", redis.socket]


class Application(Checker):
    """What a gateway protects: the same server, on TCP."""

    def __init__(self, workdir):
        super().__init__(workdir, "application", 200)
        self.port = free_port()
        self.options = ["--checks-address", f"127.0.0.1:{self.port}"]


class Gateway(Server):
    """A gateway that asks `checker`."""

    # The page with its configuration, the status that allows a request, and the checker that decides
    # nothing.
    page, allows, idle_checker = None, None, Checker

    def __init__(self, workdir, checker, application):
        super().__init__(workdir, f"{self.page}-{checker.name}")
        self.checker, self.application = checker, application
        self.port = free_port()

    def is_listening(self):
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True


class Nginx(Gateway):
    page, allows, packages = "nginx", 204, {"nginx": "nginx-light"}

    def command(self):
        config = self.directory / "nginx.conf"
        replaced = {
            "/run/keyward-http/nginx.sock": self.checker.socket,
            "127.0.0.1:8080": f"127.0.0.1:{self.application.port}",
            "listen 80;": f"listen 127.0.0.1:{self.port};",
            "/var/log/nginx/access.log": self.directory / "access.log",
        }
        config.write_text(block(self.page, "nginx", replaced))
        directives = f"daemon off; pid {self.directory}/nginx.pid;"
        log = self.directory / "error.log"
        return [find_tool("nginx"), "-c", config, "-p", self.directory, "-e", log, "-g", directives]

    def version(self):
        # It writes its version to standard error.
        version = subprocess.run([find_tool("nginx"), "-v"], capture_output=True, text=True).stderr
        return re.sub(r".*/(\S+)\s*", r"nginx \1", version)


class Envoy(Gateway):
    page, allows = "envoy", 200

    def command(self):
        config = self.directory / "envoy.yaml"
        replaced = {
            f"/run/keyward-http/{self.page}.sock": self.checker.socket,
            "port_value: 8080": f"port_value: {self.application.port}",
            "address: 0.0.0.0, port_value: 80 ": f"address: 127.0.0.1, port_value: {self.port} ",
            "/var/log/envoy/access.log": self.directory / "access.log",
        }
        config.write_text(block(self.page, "yaml", replaced))
        options = ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]
        return [find_envoy(), *options, "-c", config]

    def version(self):
        version = run([find_envoy(), "--version"])
        return f"Envoy {re.search(r'/([0-9.]+)/', version).group(1)}"


class EnvoyGrpc(Envoy):
    page, idle_checker = "envoy-grpc", GrpcChecker


def find_envoy():
    """Envoy is not in Debian: `tests/run` installs it into the target directory."""
    installed = target_directory() / "gateways" / "bin" / "envoy"
    if installed.exists():
        return str(installed)
    try:
        return find_tool("envoy")
    except ToolMissingError:
        raise ToolMissingError("envoy is not installed; tests/run installs it") from None
