//! One file over HTTP: resumed, retried, and never longer than it should be.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, StatusCode, header};
use ureq::{Agent, Body};

use super::inputs::Place;
use super::{Attempt, POLL, Progress, Report, refuse};
use crate::error::Error;

const BUFFER: usize = 64 * 1024;
const MAX_REDIRECTS: u32 = 5;
const CONNECT: Duration = Duration::from_secs(20);

/// How long to put up with a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// Without a byte for so long, a connection is given up.
    pub stall: Duration,
    /// So many attempts in a row without a new byte, and the address is given up.
    pub attempts: u32,
    /// The pause after the first of them; each further one is twice as long.
    pub pause: Duration,
    /// Bounds every pause, that which a server asks for with `Retry-After` too.
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

/// How one connection ended.
enum End {
    Complete,
    /// Trying again may help, after the pause that the server asked for.
    Again {
        why: String,
        after: Option<Duration>,
    },
}

/// Downloads `address` into the partial file of `place`, going on where an
/// earlier attempt ended. `bytes` is the size that the file must have, if it is
/// known; `hash_known` says that a wrong mixture of two attempts would be found
/// out, so that any server may go on with what another one began. Without it,
/// every attempt starts over.
///
/// Returns whether the file was put together from more than one response.
///
/// A server that ignores ranges starts over. `Retry-After` is understood in
/// seconds.
pub(super) fn download(
    address: &str,
    place: &Place,
    bytes: Option<u64>,
    hash_known: bool,
    patience: &Patience,
    report: &mut Report,
) -> Attempt<bool> {
    let download = Download { agent: agent(address, patience), address, place, bytes, hash_known };
    let mut joined = place.partial_bytes() > 0;
    let mut furthest = place.partial_bytes();
    let mut fruitless = 0;
    loop {
        let (why, after) = match download.once(&mut joined, report)? {
            End::Complete => return Ok(joined),
            End::Again { why, after } => (why, after),
        };
        // Not compared with this attempt's start: a server may begin again and again.
        let have = place.partial_bytes();
        if have > furthest {
            (furthest, fruitless) = (have, 0);
        }
        fruitless += 1;
        if fruitless >= patience.attempts {
            return refuse(format!("{why}; {fruitless} attempts in a row brought nothing new"));
        }
        let pause = after.unwrap_or(patience.pause * 2u32.saturating_pow(fruitless - 1));
        wait(pause.min(patience.longest_pause), &why, report)?;
    }
}

fn agent(address: &str, patience: &Patience) -> Agent {
    Agent::config_builder()
        .user_agent(concat!("replicate/", env!("CARGO_PKG_VERSION")))
        // The hash is that of the file itself, and ranges count its bytes.
        .accept_encoding("identity")
        .http_status_as_error(false)
        .https_only(address.starts_with("https:"))
        .max_redirects(MAX_REDIRECTS)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT.min(patience.stall)))
        .timeout_per_read(Some(patience.stall))
        .build()
        .into()
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

struct Download<'a> {
    agent: Agent,
    address: &'a str,
    place: &'a Place,
    bytes: Option<u64>,
    hash_known: bool,
}

impl Download<'_> {
    /// One request. Sets `joined` when it goes on with bytes of an earlier one,
    /// and clears it when it starts over.
    fn once(&self, joined: &mut bool, report: &mut Report) -> Attempt<End> {
        let mut have = self.place.partial_bytes();
        match self.bytes {
            // The last process was stopped between the last byte and the check of the hash.
            Some(bytes) if have == bytes && self.hash_known => return Ok(End::Complete),
            Some(bytes) if have > bytes => have = self.start_over(joined)?,
            _ if !self.hash_known => have = self.start_over(joined)?,
            _ => {}
        }
        let mut request = self.agent.get(self.address);
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(error) => return self.failed(error),
        };
        let (status, headers) = (response.status(), response.headers());
        let total = match status {
            StatusCode::OK => number(headers, header::CONTENT_LENGTH),
            StatusCode::PARTIAL_CONTENT => match content_range(headers) {
                Some((from, total)) if from == have => total,
                _ => {
                    self.start_over(joined)?;
                    return again("answers with another range than was asked for");
                }
            },
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
                self.start_over(joined)?;
                return again("says that there is nothing after what is here");
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                return Ok(End::Again { why: format!("answers {status}"), after: retry_after(headers) });
            }
            status if status.is_server_error() => {
                return Ok(End::Again { why: format!("answers {status}"), after: retry_after(headers) });
            }
            status => return refuse(format!("answers {status}")),
        };
        let encoding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
        if let Some(encoding @ ("gzip" | "br" | "deflate")) = encoding {
            return refuse(format!("sends the file as {encoding} although it was asked not to"));
        }
        // Before anything that is here is given up: the answer may be an error page.
        match (self.bytes, total) {
            (Some(bytes), Some(total)) if bytes != total => {
                return refuse(format!("announces {total} bytes instead of {bytes}"));
            }
            (None, None) if !headers.contains_key(header::TRANSFER_ENCODING) => {
                let why = "does not say how many bytes it will send: a lost connection would pass as the end";
                return refuse(why.into());
            }
            _ => {}
        }
        if status == StatusCode::OK && have > 0 {
            report(Progress::Note(&format!("{} starts over: it ignores ranges", self.address)))?;
            have = self.start_over(joined)?;
        }
        *joined |= have > 0;
        self.receive(response.into_body(), have, total.or(self.bytes), report)
    }

    /// Appends the body to what is here.
    fn receive(&self, body: Body, mut have: u64, total: Option<u64>, report: &mut Report) -> Attempt<End> {
        let path = self.place.partial();
        let mut file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("write", &path))?;
        let mut body = body.into_reader();
        let mut buffer = vec![0; BUFFER];
        report(Progress::Bytes { have, of: total })?;
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.failed(error.into()),
            };
            have += read as u64;
            if total.is_some_and(|total| have > total) {
                drop(file);
                self.place.clear_partial()?;
                return refuse(format!("sends more than {} bytes", total.unwrap_or(0)));
            }
            file.write_all(&buffer[..read]).map_err(Error::io("write", &path))?;
            report(Progress::Bytes { have, of: total })?;
        }
        match total {
            Some(total) if have < total => {
                again(&format!("ends the connection after {have} of {total} bytes"))
            }
            _ => Ok(End::Complete),
        }
    }

    fn start_over(&self, joined: &mut bool) -> Result<u64, Error> {
        *joined = false;
        self.place.clear_partial()?;
        Ok(0)
    }

    /// What an error of the connection means for the next attempt.
    fn failed(&self, error: ureq::Error) -> Attempt<End> {
        use ureq::Error as E;
        match error {
            E::Timeout(_) => again("sends nothing any more"),
            E::HostNotFound => refuse("no such host, or no network".into()),
            E::TooManyRedirects => refuse(format!("redirects more than {MAX_REDIRECTS} times")),
            E::RequireHttpsOnly(to) => refuse(format!("redirects from https to {to}")),
            E::Io(error) if is_lasting(&error) => refuse(error.to_string()),
            E::Io(error) => again(&format!("breaks the connection ({error})")),
            E::Protocol(error) => again(&format!("breaks the protocol ({error})")),
            error => refuse(error.to_string()),
        }
    }
}

/// Whether the next attempt would end the same way.
fn is_lasting(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionRefused, HostUnreachable, InvalidData, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | InvalidData)
}

fn again(why: &str) -> Attempt<End> {
    Ok(End::Again { why: why.to_string(), after: None })
}

fn number(headers: &HeaderMap, name: header::HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Date forms are not understood: our own pauses are used for them.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    number(headers, header::RETRY_AFTER).map(Duration::from_secs)
}

/// First byte and total of `bytes 100-199/1000`; the total may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (from, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((from.parse().ok()?, total))
}
