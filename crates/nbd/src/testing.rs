//! A driver over memory, for tests and fuzzing: exports are vectors of bytes, the socket is two of them.

use crate::wire::{self, allocation};
use crate::{
    Action, CloseReason, Command, Connection, Errno, Export, Extent, Found, Input, Limits, Lookup,
    TRANSMIT_BYTES_MIN, Tag,
};
use peristyle_base::Instant;

pub struct MemoryExport {
    pub name: &'static str,
    pub description: &'static str,
    pub export: Export,
    pub bytes: Vec<u8>,
}

pub struct Driver {
    pub connection: Connection,
    pub exports: Vec<MemoryExport>,
    /// Bytes that the client sent and the machine did not take yet.
    pub inbox: Vec<u8>,
    /// Bytes that the client got.
    pub sent: Vec<u8>,
    pub closed: Option<CloseReason>,
    /// Parts are kept in `held` instead of being executed.
    pub hold: bool,
    pub held: Vec<(Tag, Command)>,
    /// Buffers are not given.
    pub no_buffers: bool,
    pub waiting: Vec<(Tag, u32)>,
    /// Answers of the layers below, by command, in place of doing it.
    pub fault: fn(&Command) -> Option<Errno>,
    pub executed: Vec<Command>,
    pub released: usize,
    buffers: Vec<Option<Vec<u8>>>,
}

impl Driver {
    pub fn new(limits: Limits, exports: Vec<MemoryExport>) -> Driver {
        Driver {
            connection: Connection::new(Instant::ZERO, limits),
            exports,
            inbox: Vec::new(),
            sent: Vec::new(),
            closed: None,
            hold: false,
            held: Vec::new(),
            no_buffers: false,
            waiting: Vec::new(),
            fault: |_| None,
            executed: Vec::new(),
            released: 0,
            buffers: (0..limits.parts_max).map(|_| None).collect(),
        }
    }

    /// The client sends these bytes; everything that can happen then happens.
    pub fn push(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        self.run();
    }

    pub fn eof(&mut self) {
        self.connection.handle_eof(Instant::ZERO);
        self.run();
    }

    /// Until nothing more happens.
    pub fn run(&mut self) {
        loop {
            let moved = self.act() | self.send() | self.receive();
            if !moved {
                return;
            }
        }
    }

    fn receive(&mut self) -> bool {
        let taken = match self.connection.next_input() {
            Input::Wait => 0,
            Input::Closed => self.inbox.len(),
            Input::Bytes { .. } if self.inbox.is_empty() => 0,
            // An error is told by the Close that follows.
            Input::Bytes { max } => match self.connection.handle_bytes(Instant::ZERO, &self.inbox) {
                Ok(taken) => {
                    assert!(taken > 0 && max > 0, "the machine wanted bytes and took none");
                    taken
                }
                Err(_) => self.inbox.len(),
            },
            Input::Payload { tag, offset, len } => {
                let (offset, len) = (offset as usize, (len as usize).min(self.inbox.len()));
                let buffer = self.buffers[tag.index()].as_mut().expect("a buffer was given");
                buffer[offset..offset + len].copy_from_slice(&self.inbox[..len]);
                self.connection.handle_payload(Instant::ZERO, len as u32);
                len
            }
        };
        self.inbox.drain(..taken);
        taken > 0
    }

    fn act(&mut self) -> bool {
        let mut moved = false;
        while let Some(action) = self.connection.poll_action() {
            moved = true;
            match action {
                Action::Lookup(Lookup::List) => {
                    self.connection.list_done(self.exports.iter().map(|e| (e.name, e.description)));
                }
                Action::Lookup(Lookup::Export) => {
                    let name = self.connection.lookup_name().to_owned();
                    let export = self.exports.iter().find(|e| name.is_empty() || e.name == name);
                    let found =
                        export.map(|e| Found { export: e.export, name: e.name, description: e.description });
                    self.connection.lookup_done(found);
                }
                Action::Buffer(buffer) if self.no_buffers => self.waiting.push((buffer.tag, buffer.len)),
                Action::Buffer(buffer) => self.give(buffer.tag, buffer.len),
                Action::Execute { tag, command } if self.hold => self.held.push((tag, command)),
                Action::Execute { tag, command } => self.execute(tag, command),
                Action::Release { tag } => {
                    self.buffers[tag.index()].take().expect("a completed read has a buffer");
                    self.released += 1;
                }
                Action::Close(reason) => {
                    assert!(self.closed.replace(reason).is_none(), "closed twice");
                    self.held.clear();
                }
            }
        }
        moved
    }

    pub fn give(&mut self, tag: Tag, len: u32) {
        self.buffers[tag.index()] = Some(vec![0; len as usize]);
        self.connection.buffer_ready(tag).expect("the part waits for its buffer");
    }

    /// Executes what was held, the last first if `reversed`.
    pub fn release_held(&mut self, reversed: bool) {
        let mut held = std::mem::take(&mut self.held);
        if reversed {
            held.reverse();
        }
        held.into_iter().for_each(|(tag, command)| self.execute(tag, command));
        self.run();
    }

    pub fn execute(&mut self, tag: Tag, command: Command) {
        self.executed.push(command);
        if let Some(errno) = (self.fault)(&command) {
            self.buffers[tag.index()] = None;
            return self.connection.complete(tag, Err(errno)).expect("the part is executing");
        }
        let name = self.connection.export().map(|e| e.bytes).expect("an export is open");
        let memory = self.exports.iter_mut().find(|e| e.export.bytes == name).expect("the open export");
        let range = |offset: u64, len: u32| offset as usize..offset as usize + len as usize;
        match command {
            Command::Read { offset, len } => {
                self.buffers[tag.index()] = Some(memory.bytes[range(offset, len)].to_vec());
            }
            Command::Write { offset, len, .. } => {
                let data = self.buffers[tag.index()].take().expect("the data of a write");
                memory.bytes[range(offset, len)].copy_from_slice(&data);
            }
            Command::WriteZeroes { offset, len, .. } => memory.bytes[range(offset, len)].fill(0),
            Command::Trim { .. } | Command::Flush => {}
            Command::BlockStatus { offset, len, .. } => {
                let extents = extents(&memory.bytes[range(offset, len)]);
                self.connection.complete_block_status(tag, &extents).expect("the part is executing");
                return;
            }
        }
        self.connection.complete(tag, Ok(())).expect("the part is executing");
    }

    fn send(&mut self) -> bool {
        let mut moved = false;
        let mut header = [0; TRANSMIT_BYTES_MIN];
        while let Some(transmit) = self.connection.poll_transmit(&mut header) {
            moved = true;
            self.sent.extend_from_slice(&header[..transmit.header]);
            if let Some(payload) = transmit.payload {
                let buffer = self.buffers[payload.tag.index()].take().expect("a completed read has a buffer");
                self.sent.extend_from_slice(&buffer[..payload.len as usize]);
            }
        }
        moved
    }
}

/// Blocks of zeros are holes.
fn extents(bytes: &[u8]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for block in bytes.chunks(512) {
        let zero = block.iter().all(|&b| b == 0);
        let flags = if zero { allocation::HOLE | allocation::ZERO } else { 0 };
        match extents.last_mut() {
            Some(last) if last.flags == flags => last.len += block.len() as u32,
            _ => extents.push(Extent { len: block.len() as u32, flags }),
        }
    }
    extents
}

/// Small limits, so that few bytes reach them.
pub fn small_limits() -> Limits {
    Limits { parts_max: 8, part_bytes_max: 4096, payload_bytes_max: 16 * 1024, ..Limits::default() }
}

/// A writable export with 4 KiB blocks (the default one) and a read-only one with 512-byte blocks.
pub fn small_exports() -> Vec<MemoryExport> {
    let memory = |name, description, bytes: usize, block_bytes, read_only| MemoryExport {
        name,
        description,
        export: Export { bytes: bytes as u64, block_bytes, read_only },
        bytes: (0..bytes).map(|i| (i / 512) as u8).collect(),
    };
    vec![memory("demo", "a volume", 256 * 1024, 4096, false), memory("frozen", "", 64 * 1024, 512, true)]
}

/// What a client sends before it sends requests, for inputs that shall get further than the greeting.
pub fn to_transmission(name: &str, structured: bool) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    if structured {
        bytes.extend(option(wire::opt::STRUCTURED_REPLY, &[]));
        let mut meta = (name.len() as u32).to_be_bytes().to_vec();
        meta.extend(name.as_bytes());
        meta.extend(1u32.to_be_bytes());
        meta.extend((wire::BASE_ALLOCATION.len() as u32).to_be_bytes());
        meta.extend(wire::BASE_ALLOCATION.as_bytes());
        bytes.extend(option(wire::opt::SET_META_CONTEXT, &meta));
    }
    bytes.extend(option(wire::opt::GO, &go_data(name, &[])));
    bytes
}

pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn go_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| bytes.extend(info.to_be_bytes()));
    bytes
}

pub fn request(kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = wire::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// Entry of the fuzz target: the first byte chooses how far the connection has got and how the driver behaves,
/// the rest is what the client sends. It must not panic, keep more than its limits, or stop making progress.
pub fn fuzz(input: &[u8]) {
    let Some((&mode, rest)) = input.split_first() else { return };
    let mut driver = Driver::new(small_limits(), small_exports());
    driver.hold = mode & 1 != 0;
    if mode & 2 != 0 {
        driver.fault = |command| matches!(command, Command::Read { .. }).then_some(Errno::Io);
    }
    if mode & 4 != 0 {
        let name = if mode & 8 != 0 { "frozen" } else { "demo" };
        driver.push(&to_transmission(name, mode & 16 != 0));
    }
    let segment = usize::from(mode >> 5) * 7 + 1;
    for bytes in rest.chunks(segment) {
        driver.push(bytes);
        assert!(driver.connection.in_flight() <= small_limits().parts_max);
        if driver.inbox.len() > 64 && driver.hold {
            driver.release_held(mode & 32 != 0);
        }
    }
    driver.release_held(false);
    assert!(driver.closed.is_some() || driver.inbox.is_empty() || !driver.held.is_empty(), "it hangs");
    driver.eof();
    assert!(driver.closed.is_some(), "the end of the stream ends the connection");
}
