//! An HTTP server on the loopback interface that answers as a test says, and
//! remembers what it was asked.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How long a stalled connection stays open: longer than any test waits.
const STALL: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// First and, if given, last byte asked for.
    pub range: Option<(usize, Option<usize>)>,
    /// How many requests this server had before, on any path.
    pub before: usize,
}

/// What a server says, and how it misbehaves.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Without it the end of the connection ends the body.
    length: bool,
    /// Send so many bytes of the body, then close or stall.
    stop_after: Option<usize>,
    stall: bool,
    chunked: bool,
    /// Send byte by byte, with this pause.
    drip: Option<Duration>,
}

pub struct Server {
    /// `http://127.0.0.1:<port>`
    pub url: String,
    log: Arc<Mutex<Vec<(Request, usize)>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log: Arc<Mutex<Vec<(Request, usize)>>> = Arc::default();
        let (answer, shared) = (Arc::new(answer), log.clone());
        // It ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, log) = (answer.clone(), shared.clone());
                thread::spawn(move || serve(stream.unwrap(), &*answer, &log));
            }
        });
        Server { url, log }
    }

    /// Serves each content at `<url>/<name>`, whole or in ranges, and nothing
    /// else: what `REPLICATE_MIRROR` expects of `url`.
    pub fn of_files(files: BTreeMap<String, Vec<u8>>) -> Server {
        Server::start(move |request| match files.get(request.path.trim_start_matches('/')) {
            Some(content) => Answer::file(content, request),
            None => Answer::status(404),
        })
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().iter().map(|(request, _)| request.clone()).collect()
    }

    /// Bytes of the bodies that were sent for each request.
    pub fn sent(&self) -> Vec<usize> {
        self.log.lock().unwrap().iter().map(|(_, sent)| *sent).collect()
    }
}

impl Answer {
    pub fn status(status: u16) -> Answer {
        let body = format!("status {status}\n").into_bytes();
        Answer {
            status,
            headers: Vec::new(),
            body,
            length: true,
            stop_after: None,
            stall: false,
            chunked: false,
            drip: None,
        }
    }

    /// All of `content`, whatever was asked for.
    pub fn whole(content: &[u8]) -> Answer {
        Answer { body: content.to_vec(), ..Answer::status(200) }
    }

    /// `content` as a good server sends it: the range that was asked for.
    pub fn file(content: &[u8], request: &Request) -> Answer {
        match request.range {
            Some((from, _)) if from >= content.len() => {
                Answer::status(416).header("Content-Range", &format!("bytes */{}", content.len()))
            }
            Some((from, to)) => {
                let to = to.unwrap_or(usize::MAX).min(content.len() - 1);
                let range = format!("bytes {from}-{to}/{}", content.len());
                let part = Answer { body: content[from..=to].to_vec(), ..Answer::status(206) };
                part.header("Content-Range", &range)
            }
            None => Answer::whole(content),
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Closes the connection after `bytes` of the body.
    pub fn cut(self, bytes: usize) -> Answer {
        Answer { stop_after: Some(bytes), ..self }
    }

    /// Goes silent after `bytes` of the body.
    pub fn stall(self, bytes: usize) -> Answer {
        Answer { stop_after: Some(bytes), stall: true, ..self }
    }

    /// As `Transfer-Encoding: chunked` has it.
    pub fn in_chunks(self) -> Answer {
        Answer { chunked: true, ..self }
    }

    pub fn drip(self, pause: Duration) -> Answer {
        Answer { drip: Some(pause), ..self }
    }

    pub fn without_length(self) -> Answer {
        Answer { length: false, ..self }
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&Request) -> Answer, log: &Mutex<Vec<(Request, usize)>>) {
    let Some(mut request) = read_request(&stream) else { return };
    let index = {
        let mut log = log.lock().unwrap();
        request.before = log.len();
        log.push((request.clone(), 0));
        log.len() - 1
    };
    let answer = answer(&request);
    let mut head = format!("HTTP/1.1 {} As Told\r\nConnection: close\r\n", answer.status);
    if answer.length {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut stream = stream;
    if stream.write_all(format!("{head}\r\n").as_bytes()).is_err() {
        return;
    }
    let end = answer.stop_after.unwrap_or(answer.body.len()).min(answer.body.len());
    for chunk in answer.body[..end].chunks(if answer.drip.is_some() { 1 } else { 16 * 1024 }) {
        let chunk = match answer.chunked {
            true => [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat(),
            false => chunk.to_vec(),
        };
        // A client may leave when it pleases.
        if stream.write_all(&chunk).is_err() {
            return;
        }
        thread::sleep(answer.drip.unwrap_or_default());
        log.lock().unwrap()[index].1 += chunk.len();
    }
    _ = stream.flush();
    if answer.stall {
        thread::sleep(STALL);
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_string();
    let mut request = Request { path, range: None, before: 0 };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("range") {
            let (from, to) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
            request.range = Some((from.parse().ok()?, to.parse().ok()));
        }
    }
    Some(request)
}
