//! One end of a TLS connection, without I/O: `rustls` with the buffers that it works on.

use super::identity::PeerName;
use peristyle_base::Uuid;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};

/// What is kept of the other end's before it makes a whole record, and of our own handshake, at most.
const PENDING_MAX: usize = 128 << 10;
/// One that goes on with this many states without any byte goes in circles.
const STATES_MAX: usize = 4096;

/// It is of no use any more: broken, or closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Over;

enum Conn {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

pub(super) struct Session {
    conn: Conn,
    cluster: Uuid,
    /// Bytes that have come and were not opened yet.
    sealed: Vec<u8>,
    /// Bytes that were opened and not read yet.
    plain: Vec<u8>,
    /// Bytes of TLS's own, to be sent before anything else.
    outgoing: Vec<u8>,
    /// It has failed: `rustls` is not asked any more.
    over: bool,
}

/// What follows from a state.
enum Next {
    Again,
    /// It needs what has not come yet.
    Wait,
    /// This many bytes of what was to be sealed lie in its place.
    Sealed(usize),
}

/// What is to be sealed, and where.
type Seal<'a> = Option<(&'a [u8], &'a mut [u8])>;

impl Session {
    pub fn client(conn: UnbufferedClientConnection, cluster: Uuid) -> Session {
        Session::new(Conn::Client(Box::new(conn)), cluster)
    }
    pub fn server(conn: UnbufferedServerConnection, cluster: Uuid) -> Session {
        Session::new(Conn::Server(Box::new(conn)), cluster)
    }
    fn new(conn: Conn, cluster: Uuid) -> Session {
        Session { conn, cluster, sealed: Vec::new(), plain: Vec::new(), outgoing: Vec::new(), over: false }
    }

    pub fn is_handshaking(&self) -> bool {
        match &self.conn {
            Conn::Client(conn) => conn.is_handshaking(),
            Conn::Server(conn) => conn.is_handshaking(),
        }
    }

    /// Who is at the other end, once the handshake is done.
    pub fn peer(&self) -> Option<PeerName> {
        let certificates = match &self.conn {
            Conn::Client(conn) => conn.peer_certificates(),
            Conn::Server(conn) => conn.peer_certificates(),
        };
        Some(PeerName::new(certificates?.first()?.clone().into_owned(), self.cluster))
    }

    /// Takes bytes that have come.
    pub fn received(&mut self, bytes: &[u8]) {
        self.sealed.extend_from_slice(bytes);
    }

    /// Goes on with what has come. Also when it fails something may have to be sent: why.
    pub fn advance(&mut self) -> Result<(), Over> {
        self.run(None).map(drop)
    }

    /// Swaps what was opened for an empty buffer.
    pub fn take_plain(&mut self, into: &mut Vec<u8>) {
        std::mem::swap(&mut self.plain, into);
    }

    /// Bytes to send before anything else; the caller clears them.
    pub fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Seals some bytes, at most what a record holds, and says how many they have become. Only at once behind
    /// [`advance`](Self::advance) with nothing outgoing.
    pub fn seal(&mut self, bytes: &[u8], into: &mut [u8]) -> Result<usize, Over> {
        self.run(Some((bytes, into)))
    }

    fn run(&mut self, seal: Seal<'_>) -> Result<usize, Over> {
        if self.over {
            return Err(Over);
        }
        let result = self.run_on(seal);
        self.over = result.is_err();
        result
    }

    /// What tells the other end why. What has come is not looked at any more.
    fn take_alerts(&mut self) {
        self.sealed.clear();
        while self.conn.has_alerts() {
            let (plain, outgoing) = (&mut self.plain, &mut self.outgoing);
            let (_, next) = self.conn.step(&mut [], plain, outgoing, &mut None);
            if next.is_err() {
                return;
            }
        }
    }

    fn run_on(&mut self, mut seal: Seal<'_>) -> Result<usize, Over> {
        for _ in 0..STATES_MAX {
            if self.sealed.len().max(self.outgoing.len()) > PENDING_MAX {
                return Err(Over);
            }
            let (plain, outgoing) = (&mut self.plain, &mut self.outgoing);
            let (used, next) = self.conn.step(&mut self.sealed, plain, outgoing, &mut seal);
            self.sealed.drain(..used);
            if next.is_err() {
                self.take_alerts();
            }
            match next? {
                Next::Again => {}
                Next::Wait => return if seal.is_some() { Err(Over) } else { Ok(0) },
                Next::Sealed(bytes) if self.outgoing.is_empty() => return Ok(bytes),
                Next::Sealed(_) => return Err(Over), // out of order
            }
        }
        Err(Over)
    }
}

impl Conn {
    fn step(
        &mut self,
        sealed: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
        seal: &mut Seal<'_>,
    ) -> (usize, Result<Next, Over>) {
        match self {
            Conn::Client(conn) => step(conn.process_tls_records(sealed), plain, outgoing, seal),
            Conn::Server(conn) => step(conn.process_tls_records(sealed), plain, outgoing, seal),
        }
    }

    fn has_alerts(&self) -> bool {
        match self {
            Conn::Client(conn) => conn.wants_write(),
            Conn::Server(conn) => conn.wants_write(),
        }
    }
}

/// Handles one state. Returns how many of the bytes that have come are done with.
fn step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    plain: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
    seal: &mut Seal<'_>,
) -> (usize, Result<Next, Over>) {
    let UnbufferedStatus { mut discard, state } = status;
    let next = match state {
        Err(_) => Err(Over),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
                Some(Err(_)) => break Err(Over),
                None => break Ok(Next::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = outgoing.len();
            match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(size)) => {
                    outgoing.resize(at + size.required_size, 0);
                    data.encode(&mut outgoing[at..]).map(|_| Next::Again).map_err(|_| Over)
                }
                Ok(_) => Ok(Next::Again),
                Err(_) => Err(Over),
            }
        }
        // It is sent before anything else is.
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Next::Again)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match seal {
            Some((bytes, into)) => traffic.encrypt(bytes, into).map(Next::Sealed).map_err(|_| Over),
            None => Ok(Next::Wait),
        },
        Ok(ConnectionState::BlockedHandshake) => Ok(Next::Wait),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Err(Over),
        Ok(_) => Err(Over), // nothing is sent early
    };
    (discard, next)
}

#[cfg(test)]
mod tests {
    use super::super::Tls;
    use super::*;
    use peristyle_base::{NodeId, Secret};

    fn tls(secret: u8, node: u32) -> Tls {
        Tls::new(&Secret([secret; 32]), Uuid::from_random([7; 16]), NodeId(node)).unwrap()
    }

    /// Hands over what TLS itself has to say, some bytes at a time. False: one end was not content.
    fn carry(from: &mut Session, to: &mut Session, some: usize) -> bool {
        let ok = from.advance().is_ok();
        let bytes = std::mem::take(from.outgoing());
        bytes.chunks(some).all(|bytes| {
            to.received(bytes);
            to.advance().is_ok()
        }) && ok
    }

    fn shake(client: &mut Session, server: &mut Session, some: usize) -> bool {
        for _ in 0..4 {
            if !carry(client, server, some) || !carry(server, client, some) {
                return false;
            }
        }
        !client.is_handshaking() && !server.is_handshaking()
    }

    fn pair(some: usize) -> (Session, Session) {
        let (mut client, mut server) = (tls(1, 1).client(NodeId(2)), tls(1, 2).server());
        assert!(shake(&mut client, &mut server, some));
        (client, server)
    }

    fn sealed(from: &mut Session, bytes: &[u8]) -> Vec<u8> {
        from.advance().unwrap();
        let mut all = std::mem::take(from.outgoing());
        let mut out = vec![0; bytes.len() + 1024];
        let used = from.seal(bytes, &mut out).unwrap();
        all.extend(&out[..used]);
        all
    }

    fn opened(to: &mut Session, sealed: &[u8], some: usize) -> Result<Vec<u8>, Over> {
        let (mut all, mut plain) = (Vec::new(), Vec::new());
        for bytes in sealed.chunks(some) {
            to.received(bytes);
            let result = to.advance();
            to.take_plain(&mut plain);
            all.append(&mut plain);
            result?;
        }
        Ok(all)
    }

    #[test]
    fn each_end_knows_which_node_the_other_is_however_the_bytes_come() {
        for some in [1, 7, 4096, 1 << 20] {
            let (client, server) = pair(some);
            let (of_client, of_server) = (server.peer().unwrap(), client.peer().unwrap());
            assert!(of_client.is(NodeId(1)) && !of_client.is(NodeId(2)));
            assert!(of_server.is(NodeId(2)) && !of_server.is(NodeId(1)) && !of_server.is(NodeId(12)));
        }
    }

    #[test]
    fn another_secret_another_cluster_and_another_node_are_refused() {
        let client = || tls(1, 1).client(NodeId(2));
        let other_cluster = Tls::new(&Secret([1; 32]), Uuid::from_random([8; 16]), NodeId(2)).unwrap();
        for server in [tls(2, 2), tls(1, 3), other_cluster] {
            assert!(!shake(&mut client(), &mut server.server(), 4096));
        }
        // The server refuses who is signed by somebody else, though the client were content.
        let mut impostor = tls(2, 1).client(NodeId(2));
        assert!(!shake(&mut impostor, &mut tls(1, 2).server(), 4096));
    }

    #[test]
    fn what_is_sealed_is_opened_in_order_also_across_new_keys() {
        let (mut client, mut server) = pair(4096);
        for round in 0..40usize {
            let bytes: Vec<u8> = (0..round * 419).map(|i| (i * 7 + round) as u8).collect();
            if round % 5 == 0 {
                let ends = if round % 2 == 0 { &mut client } else { &mut server };
                new_keys(ends);
            }
            let asked = sealed(&mut client, &bytes);
            assert_eq!(opened(&mut server, &asked, 1 + round * 13).unwrap(), bytes, "round {round}");
            let answer = sealed(&mut server, &bytes);
            assert_eq!(opened(&mut client, &answer, 1500).unwrap(), bytes, "answer {round}");
        }
    }

    fn new_keys(session: &mut Session) {
        let done = match &mut session.conn {
            Conn::Client(conn) => match conn.process_tls_records(&mut []).state.unwrap() {
                ConnectionState::WriteTraffic(traffic) => traffic.refresh_traffic_keys(),
                other => panic!("{other:?}"),
            },
            Conn::Server(conn) => match conn.process_tls_records(&mut []).state.unwrap() {
                ConnectionState::WriteTraffic(traffic) => traffic.refresh_traffic_keys(),
                other => panic!("{other:?}"),
            },
        };
        done.unwrap();
    }

    #[test]
    fn a_changed_byte_or_a_record_that_comes_twice_ends_the_connection_and_nothing_of_it_is_used() {
        for at in [0, 3, 5, 40, 1040] {
            let (mut client, mut server) = pair(4096);
            let mut bytes = sealed(&mut client, &[9; 1024]);
            bytes[at] ^= 0x40;
            assert_eq!(opened(&mut server, &bytes, 4096).unwrap_or_default(), [], "byte {at}");
        }
        let (mut client, mut server) = pair(4096);
        let bytes = sealed(&mut client, &[9; 1024]);
        assert_eq!(opened(&mut server, &bytes, 4096).unwrap().len(), 1024);
        assert_eq!(opened(&mut server, &bytes, 4096), Err(Over));
    }

    #[test]
    fn bytes_that_are_no_tls_are_refused_and_not_kept_without_bound() {
        for bytes in [&b"\x01\x00\x48\x00"[..], &[22, 3, 1, 0xff, 0xff], &[22; 300], &[0; 4096]] {
            let mut server = tls(1, 2).server();
            let mut refused = false;
            for _ in 0..1000 {
                server.received(bytes);
                refused |= server.advance().is_err();
            }
            assert!(refused && server.sealed.len() <= PENDING_MAX + 1000 * bytes.len());
        }
    }
}
