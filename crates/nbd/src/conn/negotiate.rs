//! Haggling: from the greeting to an open export. Everything a client says here is bounded in length, number
//! and time, and no back end is touched but to look an export up.

use super::{CloseReason, Connection, Fatal, Pending, Phase, State};
use crate::wire::{self, Get, export_flags, handshake, info, opt, rep};

/// Longest option that is read to its end. The longest that makes sense is a list of a few names.
pub(super) const OPTION_BYTES_MAX: u32 = 64 * 1024;
/// Most bytes that the answer to LIST takes.
const LIST_BYTES_MAX: usize = 256 * 1024;

/// What a client opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Export {
    pub bytes: u64,
    /// Every offset and length is a multiple of it: a power of two up to 4096. Clients that know nothing of block
    /// sizes (a loop device on `nbdfuse`) write 512 bytes.
    pub block_bytes: u32,
    pub read_only: bool,
}

/// The answer to [`Lookup::Export`].
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    pub export: Export,
    /// The export's own name, which may differ from what the client asked for (`""` is the default export).
    pub name: &'a str,
    pub description: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The export called [`Connection::lookup_name`]; `""` is the default one.
    Export,
    /// All exports that this client may see.
    List,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    ExportName,
    List,
    /// INFO or GO, and which informations were asked for by name.
    Info {
        name: bool,
        description: bool,
    },
    /// LIST_META_CONTEXT or SET_META_CONTEXT, and whether a query meant `base:allocation`.
    Meta {
        matches: bool,
    },
}

/// What is known of a client before it has opened an export.
#[derive(Default)]
pub(super) struct Negotiation {
    /// The client speaks fixed newstyle: other options than EXPORT_NAME have answers.
    fixed: bool,
    no_zeroes: bool,
    options: u32,
    option: u32,
    pub(super) left: u32,
    pub(super) data: Vec<u8>,
    purpose: Option<Purpose>,
    name: String,
    /// The export for which `base:allocation` was selected.
    meta: Option<String>,
}

impl Connection {
    pub(super) fn greet(&mut self) {
        self.talk.extend(wire::INIT_MAGIC.to_be_bytes());
        self.talk.extend(wire::OPTION_MAGIC.to_be_bytes());
        self.talk.extend((handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
    }

    fn negotiation(&mut self) -> &mut Negotiation {
        self.negotiation.as_mut().expect("only called while negotiating")
    }

    pub(super) fn client_flags(&mut self) -> Result<(), Fatal> {
        let flags = wire::get_u32(&self.header, 0);
        let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        if flags & !known != 0 {
            return Err(Fatal::ClientFlags);
        }
        let negotiation = self.negotiation();
        negotiation.fixed = flags & u32::from(handshake::FIXED_NEWSTYLE) != 0;
        negotiation.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        self.expect(State::OptionHeader);
        Ok(())
    }

    /// The 16 bytes before an option's data. What they say is bounded before any more is read.
    pub(super) fn option_header(&mut self) -> Result<(), Fatal> {
        let (magic, option, length) =
            (wire::get_u64(&self.header, 0), wire::get_u32(&self.header, 8), wire::get_u32(&self.header, 12));
        let options_max = self.limits.options_max;
        let negotiation = self.negotiation();
        (negotiation.option, negotiation.left) = (option, length);
        negotiation.data.clear();
        negotiation.options += 1;
        if magic != wire::OPTION_MAGIC {
            return Err(Fatal::OptionMagic);
        }
        if negotiation.options > options_max {
            return Err(Fatal::TooManyOptions);
        }
        if option == opt::EXPORT_NAME && length as usize > wire::STRING_BYTES_MAX {
            return Err(Fatal::ExportName);
        }
        if option != opt::EXPORT_NAME && !negotiation.fixed {
            return Err(Fatal::ClientFlags); // it could not read our answer
        }
        if length > OPTION_BYTES_MAX {
            self.reply(rep::ERR_TOO_BIG, &[]);
            return Err(Fatal::OptionTooLong);
        }
        let skip = |reply| State::OptionSkip { left: length, reply };
        match option {
            opt::EXPORT_NAME
            | opt::INFO
            | opt::GO
            | opt::LIST_META_CONTEXT
            | opt::SET_META_CONTEXT
            | opt::ABORT => self.expect(State::OptionData),
            opt::LIST | opt::STRUCTURED_REPLY if length > 0 => self.expect(skip(rep::ERR_INVALID)),
            opt::LIST | opt::STRUCTURED_REPLY => self.expect(State::OptionData),
            // TLS is not offered on this port; nor are extended headers. What follows is still plain text.
            _ => self.expect(skip(rep::ERR_UNSUP)),
        }
        Ok(())
    }

    pub(super) fn option_skipped(&mut self, reply: u32) {
        self.reply(reply, &[]);
        self.expect(State::OptionHeader);
    }

    /// An option with all its data.
    pub(super) fn option(&mut self) -> Result<(), Fatal> {
        self.expect(State::OptionHeader);
        let option = self.negotiation().option;
        match option {
            opt::ABORT => {
                self.reply(rep::ACK, &[]);
                self.drain(CloseReason::Disconnected);
            }
            opt::STRUCTURED_REPLY => match std::mem::replace(&mut self.structured, true) {
                true => self.reply(rep::ERR_INVALID, &[]),
                false => self.reply(rep::ACK, &[]),
            },
            opt::LIST => self.look_up(Purpose::List),
            opt::EXPORT_NAME => {
                let data = std::mem::take(&mut self.negotiation().data);
                let name = wire::check_string(&data).ok_or(Fatal::ExportName)?;
                self.negotiation().name = name.to_owned();
                self.look_up(Purpose::ExportName);
            }
            opt::INFO | opt::GO => self.parse(parse_info),
            _ if !self.structured => self.meta_refused(rep::ERR_INVALID),
            _ => self.parse(parse_meta),
        }
        Ok(())
    }

    fn parse(&mut self, parser: fn(Get<'_>, bool) -> Option<(&str, Purpose)>) {
        let data = std::mem::take(&mut self.negotiation().data);
        let list = self.negotiation().option == opt::LIST_META_CONTEXT;
        match parser(Get(&data), list) {
            Some((name, purpose)) => {
                self.negotiation().name = name.to_owned();
                self.look_up(purpose);
            }
            None => self.meta_refused(rep::ERR_INVALID),
        }
    }

    /// A failed SET_META_CONTEXT selects nothing, not what was selected before.
    fn meta_refused(&mut self, error: u32) {
        if self.negotiation().option == opt::SET_META_CONTEXT {
            self.negotiation().meta = None;
        }
        self.reply(error, &[]);
    }

    fn look_up(&mut self, purpose: Purpose) {
        self.negotiation().purpose = Some(purpose);
        self.expect(State::LookupWait);
        self.actions.push_back(Pending::Lookup);
    }

    pub(super) fn lookup(&self) -> Lookup {
        match self.negotiation.as_ref().and_then(|n| n.purpose) {
            Some(Purpose::List) => Lookup::List,
            _ => Lookup::Export,
        }
    }

    /// Which export `Action::Lookup` is about.
    pub fn lookup_name(&self) -> &str {
        self.negotiation.as_ref().map_or("", |n| &n.name)
    }

    fn take_purpose(&mut self) -> Option<Purpose> {
        if self.phase != Phase::Negotiating || self.state != State::LookupWait {
            return None; // the connection ended meanwhile
        }
        self.expect(State::OptionHeader);
        self.negotiation().purpose.take()
    }

    /// The answer to [`Lookup::List`]: names and descriptions.
    pub fn list_done<'a>(&mut self, exports: impl Iterator<Item = (&'a str, &'a str)>) {
        if self.take_purpose() != Some(Purpose::List) {
            return;
        }
        let before = self.talk.len();
        for (name, description) in exports {
            let length = name.len() as u32;
            self.reply(rep::SERVER, &[&length.to_be_bytes(), name.as_bytes(), description.as_bytes()]);
            if self.talk.len() - before > LIST_BYTES_MAX {
                self.talk.truncate(before);
                return self.reply(rep::ERR_TOO_BIG, &[]);
            }
        }
        self.reply(rep::ACK, &[]);
    }

    /// The answer to [`Lookup::Export`]; `None` when there is no such export for this client.
    /// # Panics — when the export's block is not a power of two up to 4096.
    pub fn lookup_done(&mut self, found: Option<Found<'_>>) {
        let Some(purpose) = self.take_purpose() else { return };
        let Some(found) = found else {
            match purpose {
                Purpose::ExportName => self.shut(CloseReason::Fatal(Fatal::ExportName)),
                _ => self.meta_refused(rep::ERR_UNKNOWN),
            }
            return;
        };
        let block = found.export.block_bytes;
        assert!(block.is_power_of_two() && block <= 4096, "blocks are powers of two up to 4096");
        match purpose {
            Purpose::ExportName => self.open_silently(found.export),
            Purpose::Info { name, description } => self.inform(found, name, description),
            Purpose::Meta { matches } => self.tell_contexts(matches),
            Purpose::List => unreachable!("lists are answered by list_done"),
        }
    }

    /// Size and flags, without a header. Protocol, NBD_OPT_EXPORT_NAME.
    fn open_silently(&mut self, export: Export) {
        let no_zeroes = self.negotiation().no_zeroes;
        self.talk.extend(export.bytes.to_be_bytes());
        self.talk.extend(self.export_flags(export).to_be_bytes());
        if !no_zeroes {
            self.talk.extend([0; wire::EXPORT_NAME_ZEROES]);
        }
        self.open(export);
    }

    /// INFO and GO. The block size is told whether asked for or not: clients skip what they do not know.
    fn inform(&mut self, found: Found<'_>, name: bool, description: bool) {
        let Found { export, name: own_name, description: text } = found;
        let flags = self.export_flags(export);
        self.inform_of(info::EXPORT, &[&export.bytes.to_be_bytes(), &flags.to_be_bytes()]);
        if name {
            self.inform_of(info::NAME, &[own_name.as_bytes()]);
        }
        if description && !text.is_empty() {
            self.inform_of(info::DESCRIPTION, &[text.as_bytes()]);
        }
        let sizes = [export.block_bytes, 4096, self.limits.payload_bytes_max].map(u32::to_be_bytes);
        self.inform_of(info::BLOCK_SIZE, &[sizes.as_flattened()]);
        self.reply(rep::ACK, &[]);
        if self.negotiation().option == opt::GO {
            self.open(export);
        }
    }

    fn inform_of(&mut self, kind: u16, fields: &[&[u8]]) {
        let kind = kind.to_be_bytes();
        match fields {
            [one] => self.reply(rep::INFO, &[&kind, one]),
            [one, two] => self.reply(rep::INFO, &[&kind, one, two]),
            _ => unreachable!("an information has one or two fields here"),
        }
    }

    fn tell_contexts(&mut self, matches: bool) {
        let set = self.negotiation().option == opt::SET_META_CONTEXT;
        if matches {
            // The identifier of a listed context has no meaning.
            let id = if set { wire::BASE_ALLOCATION_ID } else { 0 };
            self.reply(rep::META_CONTEXT, &[&id.to_be_bytes(), wire::BASE_ALLOCATION.as_bytes()]);
        }
        if set {
            let negotiation = self.negotiation();
            negotiation.meta = matches.then(|| negotiation.name.clone());
        }
        self.reply(rep::ACK, &[]);
    }

    fn export_flags(&self, export: Export) -> u16 {
        use export_flags::*;
        // Several connections see each other's acknowledged writes, flushed or not: CAN_MULTI_CONN.
        let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
        let writable = SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
        always
            | if export.read_only { READ_ONLY } else { writable }
            | if self.structured { SEND_DF } else { 0 }
    }

    /// The end of negotiation. A context that was selected for another export is not selected.
    fn open(&mut self, export: Export) {
        let negotiation = self.negotiation.take().expect("only called while negotiating");
        self.block_status = negotiation.meta.as_ref() == Some(&negotiation.name);
        self.export = Some(export);
        self.reserve();
        self.phase = Phase::Live;
        self.deadline = None;
        self.expect(State::Request);
    }

    fn reply(&mut self, kind: u32, fields: &[&[u8]]) {
        let option = self.negotiation().option;
        let length: usize = fields.iter().map(|field| field.len()).sum();
        self.talk.extend(wire::OPTION_REPLY_MAGIC.to_be_bytes());
        self.talk.extend(option.to_be_bytes());
        self.talk.extend(kind.to_be_bytes());
        self.talk.extend((length as u32).to_be_bytes());
        fields.iter().for_each(|field| self.talk.extend(*field));
    }
}

/// INFO and GO: name, count, that many information types, and nothing else.
fn parse_info(mut get: Get<'_>, _list: bool) -> Option<(&str, Purpose)> {
    let name = get.string()?;
    let count = usize::from(get.u16()?);
    if get.0.len() != count * 2 {
        return None;
    }
    let (mut wants_name, mut wants_description) = (false, false);
    while let Some(kind) = get.u16() {
        wants_name |= kind == info::NAME;
        wants_description |= kind == info::DESCRIPTION;
    }
    Some((name, Purpose::Info { name: wants_name, description: wants_description }))
}

/// LIST_META_CONTEXT and SET_META_CONTEXT: name, count, that many queries, and nothing else.
fn parse_meta(mut get: Get<'_>, list: bool) -> Option<(&str, Purpose)> {
    let name = get.string()?;
    let count = get.u32()?;
    // No queries list everything, and select nothing.
    let mut matches = list && count == 0;
    for _ in 0..count {
        let query = get.string()?;
        matches |= query == wire::BASE_ALLOCATION || list && query == "base:";
    }
    get.0.is_empty().then_some((name, Purpose::Meta { matches }))
}
