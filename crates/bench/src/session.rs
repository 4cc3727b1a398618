//! A host's association with one subsystem, found by its address: discovery, limits, namespaces, I/O queues.

use peristyle_nvme::host::setup::{CNTLID_ANY, property_get};
use peristyle_nvme::wire::opcode::{admin, nvm};
use peristyle_nvme::wire::{Cid, Sqe, get_u32, get_u64, identify};
use peristyle_rt::Addr;
use std::net::SocketAddr;

use crate::host::{HostError, HostOptions, Payload, Queue};

/// The NQN that every discovery service answers to. Base 3.1.2.3.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Log page 70h, and the size of its header and of each record. Base 5.1.12.3.1.
const DISCOVERY_LOG: u8 = 0x70;
const DISCOVERY_RECORD_BYTES: usize = 1024;
/// Records that one look at the log reads.
const DISCOVERY_RECORDS: usize = 3;
const SUBTYPE_NVM: u8 = 2;
const TRTYPE_TCP: u8 = 3;
/// Feature identifier of Number of Queues. Base 5.1.25.2.1.
const FEATURE_QUEUES: u32 = 0x07;
const CAP: u32 = 0;
/// A namespace without the limits of MDTS may be asked for this much at once.
const TRANSFER_BYTES_MAX: u64 = 1 << 20;

/// Where a subsystem is: `tcp://ADDR:PORT` or `tcp://ADDR:PORT/NQN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub addr: SocketAddr,
    /// Found by discovery when it is not given.
    pub nqn: Option<String>,
}

impl std::str::FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Target, String> {
        let rest = text.strip_prefix("tcp://").unwrap_or(text);
        let (addr, nqn) = match rest.split_once('/') {
            Some((addr, nqn)) => (addr, (!nqn.is_empty()).then(|| nqn.to_owned())),
            None => (rest, None),
        };
        let addr = addr.parse().map_err(|_| format!("`{text}`: write tcp://IP:PORT or tcp://IP:PORT/NQN"))?;
        Ok(Target { addr, nqn })
    }
}

/// Why a session could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionError {
    Host(HostError),
    /// An answer that makes no sense, or a target that has nothing for us.
    Answer(&'static str),
}

impl From<HostError> for SessionError {
    fn from(error: HostError) -> SessionError {
        SessionError::Host(error)
    }
}
impl std::fmt::Display for SessionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SessionError::Host(error) => error.fmt(f),
            SessionError::Answer(what) => f.write_str(what),
        }
    }
}
impl std::error::Error for SessionError {}

/// A namespace as Identify tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub nsid: u32,
    pub lba_bytes: u32,
    pub bytes: u64,
}

impl Namespace {
    /// From the page of Identify Namespace.
    pub fn of_page(nsid: u32, page: &[u8]) -> Result<Namespace, SessionError> {
        // FLBAS 3:0 chooses the LBA format at 128 + 4 n; LBADS is its byte 2. NVM 4.1.5.1.
        let format = usize::from(page[26] & 0xf);
        let shift = page[128 + 4 * format + 2];
        if !(9..=16).contains(&shift) {
            return Err(SessionError::Answer("a namespace with blocks of no sensible size"));
        }
        match get_u64(page, 0).checked_mul(1 << shift) {
            Some(bytes) if bytes > 0 => Ok(Namespace { nsid, lba_bytes: 1 << shift, bytes }),
            _ => Err(SessionError::Answer("a namespace of no sensible size")),
        }
    }
    fn rw(&self, opcode: u8, offset: u64, len: u32) -> Sqe {
        let mut sqe = Sqe::new(opcode, Cid(0));
        sqe.set_nsid(self.nsid);
        sqe.set_lbas(offset / u64::from(self.lba_bytes), len / self.lba_bytes);
        sqe
    }
    /// Offset and length are bytes, multiples of the LBA's size, the length not zero.
    pub fn read(&self, offset: u64, len: u32) -> Sqe {
        self.rw(nvm::READ, offset, len)
    }
    pub fn write(&self, offset: u64, len: u32) -> Sqe {
        self.rw(nvm::WRITE, offset, len)
    }
}

/// The admin queue of one controller and what it told. The connections close when this is dropped.
pub struct Session {
    addr: Addr,
    options: HostOptions,
    admin: Queue,
    /// Largest transfer of one command, bytes.
    pub transfer_bytes_max: u32,
    /// Entries that an I/O queue can have.
    pub entries_max: u32,
}

impl Session {
    /// Connects to a subsystem; without an NQN to the first that the discovery log names.
    pub async fn connect(target: &Target, digests: Digests) -> Result<Session, SessionError> {
        let addr = Addr::Tcp(target.addr);
        let mut options = HostOptions::new(&host_nqn(), DISCOVERY_NQN);
        (options.header_digest, options.data_digest) = (digests.header, digests.data);
        options.subsystem_nqn = match &target.nqn {
            Some(nqn) => nqn.clone(),
            None => discover(&addr, &options).await?,
        };
        let admin = Queue::connect(&addr, &options, 0, CNTLID_ANY).await?;
        let cap = admin.command(property_get(CAP, true), Payload::None).await?.cqe;
        let cap = get_u64(&cap.0, 0);
        let page = admin.identify(identify::cns::CONTROLLER, 0).await?;
        // IOCCSZ counts 16 bytes, the SQE's 64 included. Base 5.1.13.2.1.
        options.in_capsule_bytes = get_u32(&page, 1792).saturating_mul(16).saturating_sub(64);
        // MDTS is a power of two of the smallest page, CAP.MPSMIN. Base 5.1.13.2.1, 3.1.4.1.
        let page_bytes = 1u64 << (12 + (cap >> 48 & 0xf));
        let transfer_bytes_max = match page[77] {
            0 => TRANSFER_BYTES_MAX,
            mdts => (page_bytes << mdts.min(16)).min(TRANSFER_BYTES_MAX),
        } as u32;
        Ok(Session { addr, options, admin, transfer_bytes_max, entries_max: (cap & 0xffff) as u32 + 1 })
    }

    pub fn nqn(&self) -> &str {
        &self.options.subsystem_nqn
    }

    /// What other reactors need to open I/O queues of this controller.
    pub fn ticket(&self) -> Ticket {
        Ticket { addr: self.addr.clone(), options: self.options.clone(), cntlid: self.admin.cntlid() }
    }

    /// Asks for `count` I/O queues, as a host does before it connects them. Fails when there are fewer.
    pub async fn request_queues(&self, count: u16) -> Result<(), SessionError> {
        let mut sqe = Sqe::new(admin::SET_FEATURES, Cid(0));
        let n = u32::from(count.max(1) - 1);
        sqe.set_cdw(10, FEATURE_QUEUES);
        sqe.set_cdw(11, n | n << 16);
        let cqe = self.admin.command(sqe, Payload::None).await?.cqe;
        if !cqe.status().is_success() {
            return Err(HostError::Status(cqe.status()).into());
        }
        if cqe.dw0() & 0xffff < n || cqe.dw0() >> 16 < n {
            return Err(SessionError::Answer("the target grants fewer I/O queues"));
        }
        Ok(())
    }

    pub async fn namespace(&self, nsid: u32) -> Result<Namespace, SessionError> {
        let page = self.admin.identify(identify::cns::NAMESPACE, nsid).await?;
        Namespace::of_page(nsid, &page)
    }

    /// The lowest active namespace.
    pub async fn first_namespace(&self) -> Result<Namespace, SessionError> {
        let list = self.admin.identify(identify::cns::ACTIVE_NAMESPACES, 0).await?;
        match get_u32(&list, 0) {
            0 => Err(SessionError::Answer("there is no namespace")),
            nsid => self.namespace(nsid).await,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.admin.close();
    }
}

/// Digests that a host asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    pub header: bool,
    pub data: bool,
}

/// Opens I/O queues of a controller, on any reactor.
#[derive(Clone, Debug)]
pub struct Ticket {
    addr: Addr,
    options: HostOptions,
    cntlid: u16,
}

impl Ticket {
    /// I/O queue `qid` (from 1) that holds `depth` commands.
    pub async fn queue(&self, qid: u16, depth: u32) -> Result<Queue, HostError> {
        let options = HostOptions { entries: depth + 1, ..self.options.clone() };
        Queue::connect(&self.addr, &options, qid, self.cntlid).await
    }
}

/// A host of its own: nobody else has this name.
pub fn host_nqn() -> String {
    let mut id = [0; 16];
    peristyle_rt::fill_random(&mut id);
    // A UUID of version 4.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let hex: Vec<String> = id.iter().map(|b| format!("{b:02x}")).collect();
    let [a, b, c, d, e] =
        [&hex[..4], &hex[4..6], &hex[6..8], &hex[8..10], &hex[10..]].map(<[String]>::concat);
    format!("nqn.2014-08.org.nvmexpress:uuid:{a}-{b}-{c}-{d}-{e}")
}

/// The NQN of the first NVM subsystem over TCP that the discovery service at this address names.
async fn discover(addr: &Addr, options: &HostOptions) -> Result<String, SessionError> {
    let admin = Queue::connect(addr, options, 0, CNTLID_ANY).await?;
    let bytes = (1 + DISCOVERY_RECORDS) * DISCOVERY_RECORD_BYTES;
    let page = admin.log_page(DISCOVERY_LOG, bytes as u32).await;
    admin.close();
    let page = page?;
    let records = get_u64(&page, 8).min(DISCOVERY_RECORDS as u64) as usize;
    first_subsystem(&page[DISCOVERY_RECORD_BYTES..][..records * DISCOVERY_RECORD_BYTES])
        .ok_or(SessionError::Answer("the discovery log names no subsystem over TCP"))
}

fn first_subsystem(records: &[u8]) -> Option<String> {
    let mut records = records.chunks_exact(DISCOVERY_RECORD_BYTES);
    let record = records.find(|r| r[0] == TRTYPE_TCP && r[2] == SUBTYPE_NVM)?;
    let name = record[256..512].split(|&b| b == 0).next()?;
    let name = std::str::from_utf8(name).ok()?.trim_end();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_written_as_urls() {
        let t: Target = "tcp://127.0.0.1:4420/nqn.2026-01.example:a".parse().unwrap();
        assert_eq!((t.addr.port(), t.nqn.as_deref()), (4420, Some("nqn.2026-01.example:a")));
        for without in ["tcp://[::1]:4420", "[::1]:4420", "tcp://[::1]:4420/"] {
            assert_eq!(without.parse::<Target>().unwrap().nqn, None, "{without}");
        }
        assert!("tcp://localhost".parse::<Target>().is_err());
    }

    #[test]
    fn discovery_takes_the_first_subsystem_that_is_no_referral() {
        let mut records = vec![0; 3 * DISCOVERY_RECORD_BYTES];
        for (n, (subtype, name)) in [(3, "discovery"), (2, "nqn.a"), (2, "nqn.b")].into_iter().enumerate() {
            let record = &mut records[n * DISCOVERY_RECORD_BYTES..][..DISCOVERY_RECORD_BYTES];
            (record[0], record[2]) = (TRTYPE_TCP, subtype);
            record[256..256 + name.len()].copy_from_slice(name.as_bytes());
        }
        assert_eq!(first_subsystem(&records).as_deref(), Some("nqn.a"));
        assert_eq!(first_subsystem(&records[..DISCOVERY_RECORD_BYTES]), None);
        assert_eq!(first_subsystem(&[]), None);
    }
}
