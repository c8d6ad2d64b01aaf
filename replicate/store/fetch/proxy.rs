//! Plain addresses through a proxy. Ureq asks every proxy for a tunnel, which many allow to port 443
//! alone. For `http://` addresses, proxies are asked for the whole address instead, as by other
//! programs (RFC 9112, section 3.2.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport,
};
use ureq::{Agent, Error, Proxy};

/// Makes an agent that asks `proxy` for addresses of the server `origin`: its scheme, host and port.
pub(super) fn agent(config: Config, proxy: &Proxy, origin: String) -> Agent {
    Agent::with_parts(config, Asking { origin }, OfProxy(proxy.uri().clone()))
}

/// Returns the header `Proxy-Authorization` for the user name and password of a proxy.
pub(super) fn authorization(proxy: &Proxy) -> Option<String> {
    let part = |part: Option<&str>| part.unwrap_or_default().to_string();
    let user = format!("{}:{}", part(proxy.username()), part(proxy.password()));
    (user != ":").then(|| format!("Basic {}", STANDARD.encode(user)))
}

/// Finds the proxy in place of the server, which may have no address here.
#[derive(Debug)]
struct OfProxy(Uri);

impl Resolver for OfProxy {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        DefaultResolver::default().resolve(&self.0, config, timeout)
    }
}

#[derive(Debug)]
struct Asking {
    origin: String,
}

impl Connector for Asking {
    type Out = Asked;

    fn connect(&self, details: &ConnectionDetails, chained: Option<()>) -> Result<Option<Asked>, Error> {
        let connection = TcpConnector::default().connect(details, chained)?;
        let asked =
            |connection| Asked { connection: Box::new(connection), origin: Some(self.origin.clone()) };
        Ok(connection.map(asked))
    }
}

/// A connection whose first bytes are a request.
#[derive(Debug)]
struct Asked {
    connection: Box<dyn Transport>,
    /// What is missing in the first line, until that is sent.
    origin: Option<String>,
}

impl Transport for Asked {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.connection.buffers()
    }

    fn transmit_output(&mut self, mut amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if let Some(origin) = self.origin.take() {
            let output = self.connection.buffers().output();
            let path = output[..amount].iter().position(|byte| *byte == b' ').map_or(0, |blank| blank + 1);
            if output.len() < amount + origin.len() {
                return Err(Error::LargeResponseHeader(amount + origin.len(), output.len()));
            }
            output.copy_within(path..amount, path + origin.len());
            output[path..path + origin.len()].copy_from_slice(origin.as_bytes());
            amount += origin.len();
        }
        self.connection.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.connection.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.connection.is_open()
    }
}
