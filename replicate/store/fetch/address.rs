//! Addresses of files: parsing, redirects, proxies, and display without secrets.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::Proxy;

/// A place given by the user: an `http://` or `https://` address, a path, or a `file://` address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    Url(Url),
    File(PathBuf),
    /// The scheme of an unsupported address, such as `ftp`. The rest is dropped, as it may contain
    /// secrets.
    Unread(String),
}

impl Given {
    /// Parses a place in any spelling; what is no address is a path.
    pub fn parse(text: impl AsRef<OsStr>) -> Given {
        let text = text.as_ref();
        let known = text.to_str().map(str::trim);
        if let Some(url) = known.and_then(|text| Url::parse(text).ok()) {
            return Given::Url(url);
        }
        if let Some((scheme, _)) = known.and_then(|text| text.split_once("://"))
            && !["", "file", "http", "https"].contains(&&*scheme.to_ascii_lowercase())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
            && !Path::new(text).exists()
        {
            return Given::Unread(scheme.to_ascii_lowercase());
        }
        match of_file(text.as_encoded_bytes().trim_ascii()) {
            Some(path) => Given::File(path_of(decoded(path))),
            None => Given::File(PathBuf::from(text)),
        }
    }

    pub(super) fn join(&self, name: &str) -> Given {
        match self {
            Given::Url(url) => Given::Url(url.below(name)),
            Given::File(dir) => Given::File(dir.join(name)),
            Given::Unread(scheme) => Given::Unread(scheme.clone()),
        }
    }
}

/// Returns the path, still with its escapes, of a `file:` address.
fn of_file(text: &[u8]) -> Option<&[u8]> {
    let (scheme, path) = text.split_at_checked(5)?;
    let path = path.strip_prefix(b"//").unwrap_or(path);
    scheme.eq_ignore_ascii_case(b"file:").then_some(path.strip_prefix(b"localhost").unwrap_or(path))
}

/// Decodes `%20` and similar codes.
fn decoded(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((&byte, rest)) = text.split_first() {
        let digits = rest.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let code = digits.filter(|digits| byte == b'%' && !digits.starts_with('+'));
        let code = code.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(byte));
        text = if code.is_some() { &rest[2..] } else { rest };
    }
    bytes
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// An address on a server. Its display omits possible secrets: user name, password, and the query,
/// which may have a signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    pub(super) https: bool,
    /// Host and port, after the user name if there is one.
    authority: String,
    /// Path and query, without a fragment.
    path: String,
}

impl Url {
    /// Parses an address. Escapes blanks, control characters and non-ASCII characters, as browsers do.
    ///
    /// # Errors
    /// The reason why it is not an address on a server.
    pub fn parse(text: &str) -> Result<Url, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let https = scheme.eq_ignore_ascii_case("https");
        if !https && !scheme.eq_ignore_ascii_case("http") {
            return Err("no http or https address".into());
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        if authority.rsplit('@').next().is_none_or(str::is_empty) {
            return Err("an address without a host".into());
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Url { https, authority: authority.into(), path: escaped(&format!("{slash}{path}")) })
    }

    /// Returns the target of a redirect.
    ///
    /// # Errors
    /// The reason why it cannot be followed; it begins with "redirects".
    pub(super) fn redirected(&self, location: &str) -> Result<Url, String> {
        let location = location.trim().split('#').next().unwrap_or_default();
        let scheme = location.split(['/', '?']).next().and_then(|start| start.split_once(':'));
        let to = match scheme {
            _ if location.is_empty() => return Err("redirects to nothing".into()),
            Some((scheme, _)) => Url::parse(location).map_err(|why| {
                format!("redirects to {}: {why}", crate::error::shown(&format!("{scheme}:…")))
            })?,
            None if location.starts_with("//") => {
                let scheme = if self.https { "https" } else { "http" };
                Url::parse(&format!("{scheme}:{location}")).map_err(|why| format!("redirects to {why}"))?
            }
            None => {
                let (path, _) = self.path.split_once('?').unwrap_or((&self.path, ""));
                let base = match location.chars().next() {
                    Some('/') => "",
                    Some('?') => path,
                    _ => &path[..=path.rfind('/').unwrap_or(0)],
                };
                Url { path: resolved(&escaped(&format!("{base}{location}"))), ..self.clone() }
            }
        };
        if self.https && !to.https {
            return Err(format!("redirects from https to {to}"));
        }
        // Sends the user name and password to no other host.
        match to.authority == self.host_and_port() {
            true => Ok(Url { authority: self.authority.clone(), ..to }),
            false => Ok(to),
        }
    }

    fn below(&self, name: &str) -> Url {
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (self.path.as_str(), String::new()),
        };
        Url { path: format!("{}/{name}{query}", path.trim_end_matches('/')), ..self.clone() }
    }

    fn host_and_port(&self) -> &str {
        self.authority.rsplit('@').next().expect("split gives a part")
    }

    fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// Returns scheme, host and port.
    pub(super) fn origin(&self) -> String {
        format!("{}://{}", self.scheme(), self.host_and_port())
    }

    /// Returns the address without user name and password, for the server. The query stays, which may
    /// be secret.
    pub(super) fn address(&self) -> String {
        format!("{}{}", self.origin(), self.path)
    }

    /// Returns the header `Authorization` for user name and password. They stand in the address with
    /// escapes, which the server does not expect.
    pub(super) fn authorization(&self) -> Option<String> {
        let (user, _) = self.authority.rsplit_once('@')?;
        // Escapes may hide a colon.
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let parts = [decoded(name.as_bytes()), decoded(password.as_bytes())];
        Some(format!("Basic {}", STANDARD.encode(parts.join(&b':'))))
    }

    /// Returns the proxy for this address from the environment: `HTTPS_PROXY` or `HTTP_PROXY` by its
    /// scheme, or `ALL_PROXY`, unless `NO_PROXY` contains the host.
    ///
    /// # Errors
    /// The reason why that proxy cannot be used. The address must not be asked without it.
    pub(super) fn proxy(&self) -> Result<Option<Proxy>, String> {
        let variable = |name: &str| {
            let value = |name: String| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
            value(name.to_string()).or_else(|| value(name.to_uppercase()))
        };
        if variable("no_proxy").is_some_and(|list| is_exempt(self.host_and_port(), &list)) {
            return Ok(None);
        }
        let own = if self.https { "https_proxy" } else { "http_proxy" };
        let Some((name, address)) =
            [own, "all_proxy"].into_iter().find_map(|name| Some((name, variable(name)?)))
        else {
            return Ok(None);
        };
        let unusable = |_| format!("is not asked: the variable {name} holds no address of a proxy");
        Proxy::new(address.trim()).map(Some).map_err(unusable)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (path, query) = self.path.split_once('?').map_or((&*self.path, ""), |(path, _)| (path, "?…"));
        let path = crate::error::shown(path);
        write!(f, "{}://{}{path}{query}", self.scheme(), crate::error::shown(self.host_and_port()))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn escaped(path: &str) -> String {
    let mut escaped = String::new();
    for byte in path.bytes() {
        match byte {
            0..=b' ' | 0x7f.. | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                escaped += &format!("%{byte:02X}");
            }
            _ => escaped.push(byte as char),
        }
    }
    escaped
}

/// Resolves `.` and `..` in a path.
fn resolved(path: &str) -> String {
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") {
        parts.push("");
    }
    format!("/{}{query}", parts.join("/"))
}

/// True if `list`, in the form of `NO_PROXY`, contains `host`: by name, by the end of its name, by
/// address or network (`10.0.0.0/8`), with or without its port, or by `*`.
fn is_exempt(host: &str, list: &str) -> bool {
    let split = |host: &str| -> (String, Option<String>) {
        let host = host.to_ascii_lowercase();
        match host.rsplit_once(':') {
            // An IPv6 address has more colons; with a port, it is in brackets.
            Some((name, port)) if !name.contains(':') || name.ends_with(']') => {
                (name.trim_matches(['[', ']']).into(), Some(port.into()))
            }
            _ => (host.trim_matches(['[', ']']).into(), None),
        }
    };
    let (name, port) = split(host);
    let address: Option<IpAddr> = name.parse().ok();
    list.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Some((network, bits)) = entry.split_once('/') {
            let network = network.trim_matches(['[', ']']).parse().ok();
            return address
                .zip(network)
                .zip(bits.parse().ok())
                .is_some_and(|((a, n), bits)| within(a, n, bits));
        }
        let (entry, its_port) = split(entry);
        let entry = entry.trim_start_matches("*.").trim_start_matches('.');
        let same_address = address.is_some() && entry.parse().ok() == address;
        let below = address.is_none() && name.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.'));
        (its_port.is_none() || its_port == port) && (name == entry || same_address || below)
    })
}

/// True if the first `bits` of two addresses are equal.
fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => ((address.to_bits() as u128) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let ((a, width), (n, network_width)) = (number(address), number(network));
    width == network_width && bits <= width && (a ^ n).checked_shr(128 - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(url: &Url) -> String {
        format!("{}://{}{}", url.scheme(), url.authority, url.path)
    }

    #[test]
    fn user_names_and_passwords_are_sent_without_their_escapes() {
        for (address, header) in [
            ("http://h/a@b", None),
            ("http://u:p@h/", Some("Basic dTpw")),
            // me@x.org with the password p:/%
            ("http://me%40x.org:p%3A%2f%25@h/", Some("Basic bWVAeC5vcmc6cDovJQ==")),
            ("http://token@h/", Some("Basic dG9rZW46")),
            ("http://token:@h/", Some("Basic dG9rZW46")),
        ] {
            assert_eq!(Url::parse(address).unwrap().authorization().as_deref(), header, "{address}");
        }
    }

    #[test]
    fn places_are_known_in_every_spelling() {
        for (text, path) in [
            ("file:///a/b%20c", "/a/b c"),
            ("FILE://localhost/a", "/a"),
            ("file:/a", "/a"),
            ("file:///50%25/%zz%+1%", "/50%/%zz%+1%"),
            ("a/b", "a/b"),
            ("C:x", "C:x"),
            ("http:/x", "http:/x"),
        ] {
            assert_eq!(Given::parse(text), Given::File(path.into()), "{text}");
        }
        for text in ["ftp://user:SECRET@h/a", "S3://h/a?sig=SECRET"] {
            let given = Given::parse(text);
            assert!(matches!(given, Given::Unread(_)) && !format!("{given:?}").contains("SECRET"), "{text}");
        }
        for text in ["http://h/a", "HTTP://h/a", " https://h:1/a b?q#f "] {
            assert!(matches!(Given::parse(text), Given::Url(_)), "{text}");
        }
        let url = Url::parse("http://u:p@h:80/ä b?sig=s#f").unwrap();
        assert_eq!(secret(&url), "http://u:p@h:80/%C3%A4%20b?sig=s");
        assert_eq!(url.address(), "http://h:80/%C3%A4%20b?sig=s");
        assert_eq!(
            (format!("{url}"), format!("{url:?}")),
            ("http://h:80/%C3%A4%20b?…".into(), url.to_string())
        );
    }

    #[test]
    fn redirects_lead_where_a_browser_goes() {
        let url = Url::parse("http://u@h/a/b?q").unwrap();
        for (location, to) in [
            ("c d", "http://u@h/a/c%20d"),
            ("../c?r", "http://u@h/c?r"),
            ("/x/./y/..", "http://u@h/x/"),
            ("?r", "http://u@h/a/b?r"),
            ("//i/c", "http://i/c"),
            ("https://h/c", "https://u@h/c"),
            ("http://h:1/c#f", "http://h:1/c"),
        ] {
            assert_eq!(secret(&url.redirected(location).unwrap()), to);
        }
        for location in ["", " ", "file:///etc/passwd", "ftp://h/a", "http://", "//"] {
            assert!(url.redirected(location).unwrap_err().starts_with("redirects to "), "{location}");
        }
        let safe = Url::parse("https://h/a").unwrap();
        assert_eq!(safe.redirected("http://h/b").unwrap_err(), "redirects from https to http://h/b");
    }

    #[test]
    fn exceptions_from_the_proxy_are_as_curl_and_python_read_them() {
        for (host, list) in [
            ("a.org", "*"),
            ("a.org", "b.org, a.org"),
            ("x.a.org:80", "A.org"),
            ("x.a.org", ".a.org"),
            ("x.a.org", "*.a.org"),
            ("a.org:81", "a.org:81"),
            ("127.0.0.1:9", "localhost, 127.0.0.1"),
            ("127.3.2.1", "10.0.0.0/8 127.0.0.0/8"),
            ("[::1]:80", "::1"),
            ("[fd00::1]", "fd00::/8"),
        ] {
            assert!(is_exempt(host, list), "{host} in {list}");
        }
        for (host, list) in [
            ("a.org", ""),
            ("ba.org", "a.org"),
            ("a.org:80", "a.org:81"),
            ("128.0.0.1", "127.0.0.0/8"),
            ("127.0.0.1", "127.0.0.0/33"),
            ("10.1.127.0.0.1", "127.0.0.1x"),
            ("[::1]", "0.0.0.0/0"),
        ] {
            assert!(!is_exempt(host, list), "{host} in {list}");
        }
    }
}
