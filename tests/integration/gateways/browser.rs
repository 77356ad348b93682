//! A page in a browser, with a key that may be used from its origin only.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use super::stack::Stack;
use super::{cases, nginx};
use crate::support::{Export, row, wait_until};

/// A key that pages show to everybody.
const KEY: &str = "publishable-key";

/// A page that asks an API of another origin, and shows what came of it.
const PAGE: &str = r#"<!doctype html>
<title>page</title>
<p id="result">none</p>
<script>
  const [port, path] = location.hash.slice(1).split(",");
  fetch(`http://127.0.0.1:${port}${path}`, {method: "POST", headers: {Authorization: "Bearer KEY"}})
    .then(async response => `status ${response.status}: ${await response.text()}`)
    .catch(error => `no response: ${error.name}`)
    .then(text => document.getElementById("result").textContent = text);
</script>
"#;

/// Serves the page on a port of this host. Its threads end with the process.
fn serve_page() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A browser may open a connection that it does not use.
            thread::spawn(|| send_page(stream));
        }
    });
    port
}

fn send_page(stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
        line.clear();
    }
    let page = PAGE.replace("KEY", KEY);
    let head = format!("Content-Type: text/html\r\nContent-Length: {}\r\nConnection: close", page.len());
    // A browser may have left.
    let _ = write!(reader.get_mut(), "HTTP/1.1 200 OK\r\n{head}\r\n\r\n{page}");
}

/// What the page of the origin with this port shows, once it has asked for a path of the API.
fn shown(stack: &Stack, origin: u16, path: &str) -> String {
    let program = ["chromium-headless-shell", "chromium"].into_iter().find(|program| {
        let version =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    });
    let output = Command::new("timeout")
        .args(["60", program.expect("Chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args(["--disable-dev-shm-usage", "--virtual-time-budget=10000"])
        .arg(format!("--user-data-dir={}", stack.path("chromium").display()))
        .arg(format!("http://127.0.0.1:{origin}/#{},{path}", stack.port))
        .env("HOME", stack.path(""))
        .output()
        .expect("runs");
    let document = String::from_utf8_lossy(&output.stdout).into_owned();
    let result = document.split_once("<p id=\"result\">").and_then(|(_, rest)| rest.split_once("</p>"));
    let (result, _) = result.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    result.to_owned()
}

#[test]
#[ignore = "needs nginx and Chromium"]
fn key_of_a_page_is_accepted_from_its_origin_only() {
    let (own, other) = (serve_page(), serve_page());
    let origin = format!("http://127.0.0.1:{own}");
    let stack =
        nginx::start(Export::new([row(KEY).id("page").set("allowed_origins", origin)]), cases::ROUTES);
    let before = stack.upstream.requests();
    let allowed = shown(&stack, own, "/browser");
    assert!(allowed.starts_with("status 200: POST /browser HTTP/1."), "{allowed}");
    assert!(allowed.to_lowercase().contains("x-keyward-key-id: page") && !allowed.contains(KEY), "{allowed}");
    assert_eq!(stack.upstream.requests(), before + 2, "the preflight request, and the request");
    // The preflight request names no key, so it is let through. The answer to the other request is not for
    // the page: the gateway has not allowed its origin.
    assert_eq!(shown(&stack, other, "/browser"), "no response: TypeError");
    assert_eq!(stack.upstream.requests(), before + 3, "the preflight request");
    // Without `cors_preflight`, not even that is let through.
    assert_eq!(shown(&stack, own, "/other"), "no response: TypeError");
    assert_eq!(stack.upstream.requests(), before + 3);
    let lines = [
        "POST /browser\" 200 ALLOWED page",
        "POST /browser\" 403 ORIGIN_NOT_ALLOWED",
        "OPTIONS /other\" 401 NO_KEY",
    ];
    wait_until("the log to name the verdicts", || {
        let logs = stack.logs();
        lines.iter().all(|line| logs.contains(line))
    });
}
