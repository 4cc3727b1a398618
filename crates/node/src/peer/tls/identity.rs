//! The cluster's certificate authority, this process's certificate, and what is asked of those of others.

use super::session::Session;
use peristyle_base::{NodeId, Secret, Uuid};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Certificates are of their process, and are over with it: that they are valid does not depend on a clock.
const ALWAYS: Duration = Duration::from_secs(1_735_689_600);
/// PKCS #8 of an Ed25519 key, up to its 32 bytes (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// What the authority's key is derived for.
const PURPOSE: &[u8] = b"peristyle: the authority of connections between nodes, 1";

/// Why there is no TLS.
#[derive(Debug)]
pub struct TlsError(String);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS between nodes: {}", self.0)
    }
}
impl std::error::Error for TlsError {}

fn failed(error: impl fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// What one process needs to speak TLS with the other nodes of its cluster.
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    cluster: Uuid,
}

#[derive(Debug)]
struct NoClock;

impl TimeProvider for NoClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(ALWAYS))
    }
}

/// What a node is called in its certificate.
fn name_of(cluster: Uuid, node: NodeId) -> String {
    format!("node-{}.{cluster}.peristyle", node.0)
}

/// What the authority says of itself.
fn authority_params(cluster: Uuid) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, format!("Peristyle cluster {cluster}"));
    params
}

/// The authority's key: the same for all who have the secret. HMAC-SHA-256 is a pseudo-random function of its key (RFC 2104).
fn authority(secret: &Secret, cluster: Uuid) -> Result<Issuer<'static, KeyPair>, TlsError> {
    let key = ::ring::hmac::Key::new(::ring::hmac::HMAC_SHA256, &secret.0);
    let seed = ::ring::hmac::sign(&key, &[PURPOSE, cluster.to_string().as_bytes()].concat());
    let pkcs8 = [&PKCS8_ED25519[..], seed.as_ref()].concat();
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ED25519);
    Ok(Issuer::new(authority_params(cluster), key.map_err(failed)?))
}

/// The authority's own certificate, as an anchor of trust.
fn anchor(authority: &Issuer<'static, KeyPair>, cluster: Uuid) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let own = authority_params(cluster).self_signed(authority.key()).map_err(failed)?;
    roots.add(own.der().clone()).map_err(failed)?;
    Ok(roots)
}

impl Tls {
    /// Makes a key and a certificate for this process.
    pub fn new(secret: &Secret, cluster: Uuid, me: NodeId) -> Result<Tls, TlsError> {
        let authority = authority(secret, cluster)?;
        let roots = Arc::new(anchor(&authority, cluster)?);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(failed)?;
        let mut params = CertificateParams::new([name_of(cluster, me)]).map_err(failed)?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::CommonName, name_of(cluster, me));
        let chain = vec![params.signed_by(&key, &authority).map_err(failed)?.der().clone()];
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());

        let provider = Arc::new(CryptoProvider { cipher_suites: suites(), ..ring::default_provider() });
        let only = &[&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_details(provider.clone(), Arc::new(NoClock))
            .with_protocol_versions(only)
            .map_err(failed)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key.clone_key().into())
            .map_err(failed)?;
        client.resumption = Resumption::disabled();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
        let mut server = ServerConfig::builder_with_details(provider, Arc::new(NoClock))
            .with_protocol_versions(only)
            .map_err(failed)?
            .with_client_cert_verifier(verifier.map_err(failed)?)
            .with_single_cert(chain, key.into())
            .map_err(failed)?;
        server.send_tls13_tickets = 0;
        Ok(Tls { client: Arc::new(client), server: Arc::new(server), cluster })
    }

    /// The asking end; only that node will do at the other one.
    pub(super) fn client(&self, to: NodeId) -> Session {
        let name = ServerName::try_from(name_of(self.cluster, to)).expect("letters, digits, dots");
        let conn = UnbufferedClientConnection::new(self.client.clone(), name);
        Session::client(conn.expect("rules that make a connection"), self.cluster)
    }

    /// The asked end.
    pub(super) fn server(&self) -> Session {
        let conn = UnbufferedServerConnection::new(self.server.clone());
        Session::server(conn.expect("rules that make a connection"), self.cluster)
    }
}

/// AES first: every machine that this runs on has instructions for it.
fn suites() -> Vec<rustls::SupportedCipherSuite> {
    use ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
    vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384]
}

/// The certificate of the other end, which the authority has signed.
pub struct PeerName {
    certificate: CertificateDer<'static>,
    cluster: Uuid,
}

impl PeerName {
    pub(super) fn new(certificate: CertificateDer<'static>, cluster: Uuid) -> PeerName {
        PeerName { certificate, cluster }
    }

    /// Whether it is that node's.
    pub fn is(&self, node: NodeId) -> bool {
        let name = ServerName::try_from(name_of(self.cluster, node)).expect("letters, digits, dots");
        let parsed = webpki::EndEntityCert::try_from(&self.certificate);
        parsed.is_ok_and(|certificate| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    }
}
