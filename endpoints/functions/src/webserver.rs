//! A small web server, for the end of a chain: fixed pages, GET and HEAD, and a log of who asked.
//!
//! A path is looked up, and never run. A client that is slow, long-winded or one too many costs its own connection.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A web server that serves. Dropping it ends it.
#[derive(Debug)]
pub struct Webserver {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Who asked, as the server sees it.
    pub client: SocketAddr,
    /// The first line, or as much of it as there was.
    pub request: String,
    /// How it was answered.
    pub status: u16,
}

#[derive(Debug)]
struct Shared {
    pages: BTreeMap<String, String>,
    stop: AtomicBool,
    open: AtomicUsize,
    /// The last ones.
    served: Mutex<Vec<Served>>,
}

impl Webserver {
    /// Serves pages by their paths on a socket that listens, whichever namespace that is in.
    pub fn start(listener: TcpListener, pages: impl IntoIterator<Item = (String, String)>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            pages: pages.into_iter().collect(),
            stop: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            served: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("webserver".to_owned()).spawn(move || accept(&listener, &accepting))?;
        Ok(Self { shared, address, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests that were answered last, in their order.
    pub fn served(&self) -> Vec<Served> {
        self.shared.served().clone()
    }
}

impl Drop for Webserver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn served(&self) -> MutexGuard<'_, Vec<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, served: Served) {
        let mut all = self.served();
        if all.len() == SERVED_MAX {
            all.remove(0);
        }
        all.push(served);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Relaxed) {
        let Ok((stream, client)) = listener.accept() else {
            // Nobody is there, or nothing is left to take them with.
            thread::sleep(NAP);
            continue;
        };
        if shared.open.fetch_add(1, Relaxed) >= OPEN_MAX {
            shared.open.fetch_sub(1, Relaxed);
            continue;
        }
        let serving = Arc::clone(shared);
        let serve = move || {
            // One that leaves is no loss of ours.
            let _ = serve(stream, client, &serving);
            serving.open.fetch_sub(1, Relaxed);
        };
        if thread::Builder::new().name("web-client".to_owned()).spawn(serve).is_err() {
            shared.open.fetch_sub(1, Relaxed);
        }
    }
}

fn serve(mut stream: TcpStream, client: SocketAddr, shared: &Shared) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = read_request(&mut stream)?;
    let Answer { status, reason, body, more } = answer(&request, &shared.pages);
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/html\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n",
        body.len()
    );
    let body = if request.starts_with("HEAD ") { "" } else { body };
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let request = request.lines().next().unwrap_or_default().to_owned();
    shared.note(Served { client, request, status });
    Ok(())
}

/// Up to the empty line, the end, or as much as anybody needs.
fn read_request(stream: &mut TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|window| window == b"\r\n\r\n") && request.len() < REQUEST_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => break,
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

struct Answer<'a> {
    status: u16,
    reason: &'static str,
    body: &'a str,
    more: &'static str,
}

fn answer<'a>(request: &str, pages: &'a BTreeMap<String, String>) -> Answer<'a> {
    let bad = Answer { status: 400, reason: "Bad Request", body: "", more: "" };
    if !request.contains("\r\n\r\n") {
        return bad;
    }
    let mut words = request.lines().next().unwrap_or_default().split(' ');
    let (Some(method), Some(path), Some("HTTP/1.0" | "HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return bad;
    };
    match (method, pages.get(path)) {
        ("GET" | "HEAD", Some(page)) => Answer { status: 200, reason: "OK", body: page, more: "" },
        ("GET" | "HEAD", None) => Answer { status: 404, reason: "Not Found", body: "", more: "" },
        _ => Answer { status: 405, reason: "Method Not Allowed", body: "", more: "Allow: GET, HEAD\r\n" },
    }
}

/// Clients at a time.
const OPEN_MAX: usize = 64;
const SERVED_MAX: usize = 1000;
const REQUEST_MAX: usize = 8192;
/// What a client may take to ask, and to read.
const PATIENCE: Duration = Duration::from_secs(5);
const NAP: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Webserver {
        let pages =
            [("/", "the page"), ("/show/version", "vpp v0")].map(|(path, page)| (path.to_owned(), page.to_owned()));
        Webserver::start(TcpListener::bind("127.0.0.1:0").unwrap(), pages).unwrap()
    }

    fn ask(server: &Webserver, request: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn pages_are_served_and_nothing_else() {
        let server = server();
        let get = ask(&server, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(get.starts_with("HTTP/1.1 200 OK\r\n") && get.ends_with("\r\n\r\nthe page"), "{get}");
        let head = ask(&server, "HEAD / HTTP/1.1\r\n\r\n");
        assert!(head.contains("Content-Length: 8\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(ask(&server, "GET /show/version HTTP/1.0\r\n\r\n").ends_with("vpp v0"));
        for (request, status) in [
            ("GET /show/interface HTTP/1.1\r\n\r\n", "404"),
            ("GET /../etc/passwd HTTP/1.1\r\n\r\n", "404"),
            ("POST / HTTP/1.1\r\n\r\n", "405"),
            ("GET / HTTP/2\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\n", "400"),
            ("\0", "400"),
        ] {
            let answer = ask(&server, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        }
        let served = server.served();
        assert_eq!((served[0].status, served[0].request.as_str()), (200, "GET / HTTP/1.1"));
        assert!(served[0].client.ip().is_loopback() && served.len() == 9);
    }

    #[test]
    fn clients_that_say_nothing_do_not_keep_others_out_for_ever() {
        let server = server();
        let silent: Vec<_> = (0..OPEN_MAX).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        let answered = || {
            let mut stream = TcpStream::connect(server.address())?;
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer.contains("200 OK"))
        };
        while !matches!(answered(), Ok(true)) {
            assert!(Instant::now() < deadline, "nobody is let in");
        }
        drop(silent);
    }
}
