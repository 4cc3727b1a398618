//! What a node needs to know to join a cluster, as one word: `NAME@etcd:HOST:PORT,HOST:PORT#UUID.SECRET`.
//!
//! It tells where the shared state is and which cluster that must be; the secret, which is nowhere but in tokens, makes it a node of it
//! to the other nodes.

use crate::desired::check_name;
use peristyle_base::{Secret, Uuid};
use std::fmt;
use std::str::FromStr;

/// Endpoints of a store at most.
const ENDPOINTS_MAX: usize = 16;

/// Where a cluster's shared state is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreAt {
    /// Its members' client addresses, `HOST:PORT`.
    Etcd(Vec<String>),
    /// One process that serves its embedded store: for development.
    Served(std::net::SocketAddr),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// Keys in etcd begin with `/peristyle/NAME/`.
    pub name: String,
    pub store: StoreAt,
    pub cluster: Uuid,
    /// From which nodes make their certificates; `None` in tokens without: there is no TLS then.
    pub secret: Option<Secret>,
}

impl fmt::Display for StoreAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAt::Etcd(endpoints) => write!(f, "etcd:{}", endpoints.join(",")),
            StoreAt::Served(addr) => write!(f, "store:{addr}"),
        }
    }
}

impl FromStr for StoreAt {
    type Err = String;
    fn from_str(s: &str) -> Result<StoreAt, String> {
        let wrong = || format!("`{s}` is no store: write etcd:HOST:PORT,HOST:PORT");
        match s.split_once(':') {
            Some(("etcd", list)) => {
                let endpoints: Vec<String> = list.split(',').map(str::to_owned).collect();
                let good = |e: &String| {
                    let port = e.rsplit_once(':').filter(|(host, _)| !host.is_empty());
                    port.is_some_and(|(_, port)| port.parse::<u16>().is_ok())
                        && e.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '#' | '@' | '/'))
                };
                match endpoints.len() <= ENDPOINTS_MAX && endpoints.iter().all(good) {
                    true => Ok(StoreAt::Etcd(endpoints)),
                    false => Err(wrong()),
                }
            }
            Some(("store", addr)) => addr.parse().map(StoreAt::Served).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.name, self.store, self.cluster)?;
        self.secret.as_ref().map_or(Ok(()), |secret| write!(f, ".{}", secret.reveal()))
    }
}

impl FromStr for Token {
    type Err = String;
    fn from_str(s: &str) -> Result<Token, String> {
        // The secret stays where it is.
        let shown = s.split_once('#').map_or("", |(open, _)| open);
        let wrong = || format!("`{shown}#…` is no token: it is what `peristyle cluster create` prints");
        let (name, rest) = s.split_once('@').ok_or_else(wrong)?;
        let (store, cluster) = rest.rsplit_once('#').ok_or_else(wrong)?;
        check_name(name).map_err(|e| e.to_string())?;
        let (cluster, secret) =
            cluster.split_once('.').map_or((cluster, None), |(c, secret)| (c, Some(secret)));
        let cluster = cluster.parse().map_err(|()| wrong())?;
        let secret = secret.map(Secret::from_str).transpose().map_err(|()| wrong())?;
        Ok(Token { name: name.into(), store: store.parse()?, cluster, secret })
    }
}

/// A text in which somebody may read a secret, or most of one: hexadecimal digits are hidden where more of them stand together than
/// in a UUID.
pub(crate) fn hide_secrets(text: &str) -> String {
    const SHOWN_MAX: usize = 12;
    let is_digit = u8::is_ascii_hexdigit;
    let runs = text.as_bytes().chunk_by(|a, b| is_digit(a) == is_digit(b));
    let shown = runs.flat_map(|run| match is_digit(&run[0]) && run.len() > SHOWN_MAX {
        true => vec![b'*'; run.len()],
        false => run.to_vec(),
    });
    String::from_utf8(shown.collect()).expect("only ASCII was replaced")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_it_was_written_and_anything_else_is_refused_in_words() {
        let (uuid, secret) = ("00112233-4455-6677-8899-aabbccddeeff", "5a".repeat(32));
        for token in [
            format!("main@etcd:10.0.0.1:2379#{uuid}"),
            format!("a.b@etcd:10.0.0.1:2379,etcd.example:2379,[fd00::1]:2379#{uuid}"),
            format!("dev@store:127.0.0.1:7300#{uuid}"),
            format!("main@etcd:10.0.0.1:2379#{uuid}.{secret}"),
        ] {
            let read: Token = token.parse().unwrap();
            assert_eq!(read.to_string(), token);
            assert!(!format!("{read:?}").contains(&secret), "{read:?}");
        }
        for wrong in [
            String::new(),
            format!("main@etcd:#{uuid}"),
            format!("main@etcd:10.0.0.1#{uuid}"),
            format!("main@etcd::2379#{uuid}"),
            format!("ma in@etcd:10.0.0.1:2379#{uuid}"),
            format!("main@zookeeper:10.0.0.1:2379#{uuid}"),
            format!("main@store:10.0.0.1#{uuid}"),
            "main@etcd:10.0.0.1:2379#1234".into(),
            "main@etcd:10.0.0.1:2379".into(),
            format!("main@etcd:10.0.0.1:2379#{uuid}."),
            format!("main@etcd:10.0.0.1:2379#{uuid}.{secret}0"),
            format!("main@etcd:10.0.0.1:2379#1234.{secret}"),
        ] {
            let error = wrong.parse::<Token>().unwrap_err();
            assert!(!error.contains(&secret), "{error}");
        }
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown_and_the_rest_is() {
        let uuid = "00112233-4455-6677-8899-aabbccddeeff";
        let line = |secret: &str| format!("3 | token = \"main@etcd:10.0.0.1:2379#{uuid}.{secret}\" # beef");
        for length in [13, 63, 64, 65] {
            let shown = hide_secrets(&line(&"5a".repeat(40)[..length]));
            assert_eq!(shown, line(&"*".repeat(length)));
        }
        assert_eq!(hide_secrets(uuid), uuid);
        assert_eq!(hide_secrets("é 5a"), "é 5a");
    }
}
