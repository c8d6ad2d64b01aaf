//! Downloads one file over HTTP, with resumption, retries, and a limit of its length.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body, Proxy, ProxyProtocol};

use super::address::Url;
use super::inputs::Place;
use super::{Attempt, Failure, Progress, Report, proxy, refuse};
use crate::error::Error;
use crate::store::formats::foreign_text;

const POLL: Duration = Duration::from_millis(200);
const BUFFER: usize = 64 * 1024;
const MAX_REDIRECTS: usize = 5;
const CONNECT: Duration = Duration::from_secs(20);
/// Bytes a second below which a connection counts as stalled.
const SLOWEST: f64 = 1024.0;

/// Time limits and retries of a download.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// Time after which a stalled connection is closed.
    pub stall: Duration,
    /// Number of attempts in a row without progress after which an address is given up.
    pub attempts: u32,
    /// Pause after the first of them; each further pause is twice as long.
    pub pause: Duration,
    /// Upper limit of every pause, including that of a server's `Retry-After`.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            stall: Duration::from_secs(30),
            attempts: 5,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
        }
    }
}

impl Patience {
    /// Returns the least number of bytes of a connection in the time [`Patience::stall`].
    fn least(&self) -> u64 {
        (SLOWEST * self.stall.as_secs_f64()) as u64
    }
}

/// End of one connection.
enum End {
    Complete,
    /// Another attempt may help, after the server's pause if it gave one.
    Again(String, Option<Duration>),
}

/// A file to download.
pub(super) struct Download<'a> {
    pub url: &'a Url,
    pub place: &'a Place,
    /// Size of the file, if it is known.
    pub bytes: Option<u64>,
    /// Upper limit of its size.
    pub most: u64,
    /// True if the hash is known, so that a mixture of different files would be detected. Then any
    /// server may continue what another one began; otherwise every attempt starts over.
    pub hash_known: bool,
    pub patience: &'a Patience,
}

impl Download<'_> {
    /// Downloads into the partial file of the place and continues an earlier attempt. Starts over if
    /// the server ignores ranges.
    pub fn run(&self, report: &mut Report) -> Attempt<()> {
        let mut furthest = self.place.partial_bytes();
        let mut fruitless = 0;
        loop {
            let (why, after) = match self.once(report)? {
                End::Complete => return Ok(()),
                End::Again(why, after) => (why, after),
            };
            // Compares with the furthest attempt, because a server may start over again and again.
            let have = self.place.partial_bytes();
            if have > furthest + self.patience.least() {
                fruitless = 0;
            }
            furthest = furthest.max(have);
            fruitless += 1;
            if fruitless >= self.patience.attempts {
                return refuse(format!("{why} (gave up after {fruitless} attempts without progress)"));
            }
            let pause = after.unwrap_or(self.patience.pause * 2u32.saturating_pow(fruitless - 1));
            wait(pause.min(self.patience.longest_pause), &why, report)?;
        }
    }

    /// Sends one request and follows its redirects.
    fn once(&self, report: &mut Report) -> Attempt<End> {
        let mut have = self.place.partial_bytes();
        match self.bytes {
            // An earlier process was stopped before it checked the hash.
            Some(bytes) if have == bytes && self.hash_known => return Ok(End::Complete),
            Some(bytes) if have > bytes => have = self.start_over()?,
            _ if !self.hash_known => have = self.start_over()?,
            _ => {}
        }
        let mut url = self.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let proxy = match url.proxy() {
                Ok(proxy) => proxy,
                Err(why) => return refuse(why),
            };
            let ended = match self.request(&url, proxy, have) {
                Ok(response) if response.status().is_redirection() => {
                    let location = response.headers().get(header::LOCATION);
                    let location =
                        location.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
                    url = match url.redirected(&location.unwrap_or_default()) {
                        Ok(url) => url,
                        Err(why) => return refuse(why),
                    };
                    continue;
                }
                Ok(response) => self.answered(response, have, report),
                Err(error) => self.failed(&url, error, true),
            };
            let told = |why| if url == *self.url { why } else { format!("redirects to {url}: {why}") };
            return match ended {
                Err(Failure::Source(why)) => refuse(told(why)),
                Ok(End::Again(why, after)) => Ok(End::Again(told(why), after)),
                ended => ended,
            };
        }
        refuse(format!("redirects more than {MAX_REDIRECTS} times"))
    }

    /// Requests the file from byte `from` on.
    fn request(&self, url: &Url, proxy: Option<Proxy>, from: u64) -> Result<Response<Body>, ureq::Error> {
        // No time limit for the resolver: it would need a thread, which the system may refuse.
        let config = Agent::config_builder()
            .user_agent(concat!("replicate/", env!("CARGO_PKG_VERSION")))
            // Hash and ranges refer to the uncompressed file.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT.min(self.patience.stall)))
            .timeout_per_read(Some(self.patience.stall));
        let asked = proxy.as_ref().filter(|proxy| !url.https && proxy.protocol() == ProxyProtocol::Http);
        let agent = match asked {
            // Else ureq would take one from the environment.
            Some(asked) => proxy::agent(config.proxy(None).build(), asked, url.origin()),
            None => config.proxy(proxy.clone()).build().into(),
        };
        let request = agent.get(url.address());
        let request = match asked.and_then(proxy::authorization) {
            Some(credentials) => request.header(header::PROXY_AUTHORIZATION, credentials),
            None => request,
        };
        let request = match url.authorization() {
            Some(credentials) => request.header(header::AUTHORIZATION, credentials),
            None => request,
        };
        match from {
            0 => request.call(),
            from => request.header(header::RANGE, format!("bytes={from}-")).call(),
        }
    }

    /// Receives the body if the answer is the file, or its missing part.
    fn answered(&self, response: Response<Body>, have: u64, report: &mut Report) -> Attempt<End> {
        let (status, headers) = (response.status(), response.headers());
        let total = match status {
            StatusCode::OK => number(headers, header::CONTENT_LENGTH),
            StatusCode::PARTIAL_CONTENT => match content_range(headers) {
                Some((from, total)) if from == have => total,
                _ => {
                    self.start_over()?;
                    return again("answers with another range than was asked for");
                }
            },
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
                self.start_over()?;
                return again("says that there is nothing after what is here");
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                return Ok(End::Again(format!("answers {status}"), retry_after(headers)));
            }
            status if status.is_server_error() => {
                return Ok(End::Again(format!("answers {status}"), retry_after(headers)));
            }
            status => return refuse(format!("answers {status}")),
        };
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_lowercase);
        if let Some(encoding) = header(header::CONTENT_ENCODING).filter(|encoding| encoding != "identity") {
            let encoding = crate::error::shown(&encoding);
            return refuse(format!("sends the file as {encoding} although it was asked not to"));
        }
        let chunked = || header(header::TRANSFER_ENCODING).is_some_and(|coding| coding.contains("chunked"));
        // Checks the size before it deletes earlier bytes: the answer may be an error page.
        match (self.bytes, total) {
            (Some(bytes), Some(total)) if bytes != total => {
                return refuse(format!("announces {total} bytes instead of {bytes}"));
            }
            (None, Some(total)) if total > self.most => {
                return refuse(format!("announces {total} bytes, where {} are too many", self.most));
            }
            (None, None) if !chunked() => {
                let why = "does not say how many bytes it will send: a lost connection would pass as the end";
                return refuse(why.into());
            }
            _ => {}
        }
        self.receive(response.into_body(), status == StatusCode::OK, have, total.or(self.bytes), report)
    }

    /// Appends the body to the partial file, which a body from the first byte on replaces.
    fn receive(
        &self,
        body: Body,
        from_start: bool,
        mut have: u64,
        total: Option<u64>,
        report: &mut Report,
    ) -> Attempt<End> {
        let mut body = body.into_reader();
        let mut buffer = vec![0; BUFFER];
        let mut next = |buffer: &mut [u8]| loop {
            match body.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        };
        let mut read = match next(&mut buffer) {
            Ok(read) => read,
            Err(error) => return self.failed(self.url, error.into(), false),
        };
        if from_start {
            // A page to log in must not replace what arrived before.
            if let Some(what) = foreign_text(&buffer[..read]) {
                return refuse(format!("sends {what} in place of the file"));
            }
            if have > 0 {
                report(Progress::Note(&format!("{} starts over: it ignores ranges", self.url)))?;
                have = self.start_over()?;
            }
        }
        let path = self.place.partial();
        let mut file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("write", &path))?;
        let most = total.unwrap_or(self.most);
        let (mut since, mut had) = (Instant::now(), have);
        report(Progress::Bytes { have, of: total })?;
        while read > 0 {
            have += read as u64;
            if have > most {
                drop(file);
                self.place.clear_partial()?;
                return refuse(format!("sends more than {most} bytes"));
            }
            file.write_all(&buffer[..read]).map_err(Error::io("write", &path))?;
            report(Progress::Bytes { have, of: total })?;
            if since.elapsed() > self.patience.stall {
                if have - had < self.patience.least() {
                    return again("sends less than a kilobyte a second");
                }
                (since, had) = (Instant::now(), have);
            }
            read = match next(&mut buffer) {
                Ok(read) => read,
                Err(error) => return self.failed(self.url, error.into(), false),
            };
        }
        match total {
            Some(total) if have < total => {
                again(&format!("ends the connection after {have} of {total} bytes"))
            }
            _ => Ok(End::Complete),
        }
    }

    fn start_over(&self) -> Result<u64, Error> {
        self.place.clear_partial()?;
        Ok(0)
    }

    /// Decides whether to try again after an error of the connection. `head` is true before the
    /// answer's header was read.
    fn failed(&self, url: &Url, error: ureq::Error, head: bool) -> Attempt<End> {
        use ureq::Error as E;
        let proxied = matches!(url.proxy(), Ok(Some(_)));
        let through = if proxied { "through the environment's proxy: " } else { "" };
        let text = |error: &dyn std::fmt::Display| {
            let error = error.to_string().replace(&url.address(), &url.to_string());
            crate::error::shown(&format!("{through}{error}"))
        };
        match error {
            E::Timeout(_) => again("does not respond"),
            E::HostNotFound => refuse(format!("{through}no such host, or no network")),
            E::Io(error) if is_unresolved(&error) => {
                refuse(format!("{through}no such host, or no network ({error})"))
            }
            E::Io(error) if url.https && error.kind() == ErrorKind::InvalidData => {
                refuse(format!("fails in TLS ({})", text(&error)))
            }
            E::Io(error) if is_lasting(&error) => refuse(text(&error)),
            E::Io(error) => again(&format!("breaks the connection ({})", text(&error))),
            E::Protocol(error) if !head => again(&format!("breaks the protocol ({})", text(&error))),
            E::Protocol(error) => refuse(format!("answers with a broken header ({})", text(&error))),
            error => refuse(text(&error)),
        }
    }
}

fn wait(pause: Duration, why: &str, report: &mut Report) -> Result<(), Error> {
    let begun = Instant::now();
    let mut left = pause;
    while !left.is_zero() {
        report(Progress::Waiting { why, left: Some(left) })?;
        std::thread::sleep(left.min(POLL));
        left = pause.saturating_sub(begun.elapsed());
    }
    Ok(())
}

/// True for an error of the resolver, which has no kind of its own.
fn is_unresolved(error: &io::Error) -> bool {
    error.to_string().starts_with("failed to lookup address")
}

/// True if the next attempt would fail in the same way.
fn is_lasting(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionRefused, HostUnreachable, InvalidData, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | InvalidData)
}

fn again(why: &str) -> Attempt<End> {
    Ok(End::Again(why.to_string(), None))
}

fn number(headers: &HeaderMap, name: header::HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Returns the pause that the server asks for, if it gives it in seconds rather than as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    number(headers, header::RETRY_AFTER).map(Duration::from_secs)
}

/// Parses first byte and total of `bytes 100-199/1000`; the total may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (from, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((from.parse().ok()?, total))
}
