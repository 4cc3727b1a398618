//! A small NBD client: structured or simple replies, one or many requests in flight.

use peristyle_nbd::testing::{go_data, option, request, to_transmission};
use peristyle_nbd::wire::{self, cmd, get_u32, get_u64};
use peristyle_rt::{Addr, Buf, Stream, StreamReader, StreamWriter};

pub struct Client {
    reader: StreamReader,
    writer: StreamWriter,
    arrived: Vec<u8>,
}

impl Client {
    pub async fn connect(addr: &Addr) -> Client {
        let (reader, writer) = Stream::connect(addr).await.unwrap().split();
        let mut client = Client { reader, writer, arrived: Vec::new() };
        assert_eq!(get_u64(&client.take(18).await.unwrap(), 0), wire::INIT_MAGIC);
        client
    }

    /// With an open export and simple replies: its size.
    pub async fn open(addr: &Addr, name: &str) -> (Client, u64) {
        let mut client = Client::connect(addr).await;
        client.send(&to_transmission(name, false)).await;
        let mut bytes = 0;
        loop {
            let (kind, data) = client.option_reply().await;
            match kind {
                wire::rep::INFO if data[..2] == [0, 0] => bytes = get_u64(&data, 2),
                wire::rep::INFO => {}
                wire::rep::ACK => return (client, bytes),
                other => panic!("option reply {other:#x}"),
            }
        }
    }

    /// With an open export and structured replies that tell what is allocated.
    pub async fn open_with_status(addr: &Addr, name: &str) -> Client {
        let mut client = Client::connect(addr).await;
        client.send(&3u32.to_be_bytes()).await;
        assert_eq!(client.say(wire::opt::STRUCTURED_REPLY, &[]).await.0, wire::rep::ACK);
        let words =
            [name, wire::BASE_ALLOCATION].map(|w| [&(w.len() as u32).to_be_bytes(), w.as_bytes()].concat());
        let query = [&words[0][..], &1u32.to_be_bytes(), &words[1]].concat();
        assert_eq!(client.say(wire::opt::SET_META_CONTEXT, &query).await.0, wire::rep::META_CONTEXT);
        assert_eq!(client.option_reply().await.0, wire::rep::ACK);
        let (mut kind, _) = client.say(wire::opt::GO, &go_data(name, &[])).await;
        while kind == wire::rep::INFO {
            kind = client.option_reply().await.0;
        }
        assert_eq!(kind, wire::rep::ACK);
        client
    }

    /// Lengths and flags of the extents from `offset` on, or the error.
    pub async fn status(&mut self, flags: u16, offset: u64, len: u32) -> Result<Vec<(u32, u32)>, u32> {
        self.send(&request(cmd::BLOCK_STATUS, flags, 5, offset, len)).await;
        let header = self.take(20).await.unwrap();
        assert_eq!((get_u32(&header, 0), get_u64(&header, 8)), (wire::STRUCTURED_REPLY_MAGIC, 5));
        let body = self.take(get_u32(&header, 16) as usize).await.unwrap();
        if get_u32(&header, 4) & 0xffff != u32::from(wire::chunk::BLOCK_STATUS) {
            return Err(get_u32(&body, 0));
        }
        assert_eq!(get_u32(&body, 0), wire::BASE_ALLOCATION_ID);
        Ok(body[4..].chunks(8).map(|e| (get_u32(e, 0), get_u32(e, 4))).collect())
    }

    pub async fn say(&mut self, kind: u32, data: &[u8]) -> (u32, Vec<u8>) {
        self.send(&option(kind, data)).await;
        self.option_reply().await
    }

    pub async fn option_reply(&mut self) -> (u32, Vec<u8>) {
        let header = self.take(20).await.unwrap();
        assert_eq!(get_u64(&header, 0), wire::OPTION_REPLY_MAGIC);
        let data = self.take(get_u32(&header, 16) as usize).await.unwrap();
        (get_u32(&header, 12), data)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(64 * 1024) {
            let mut buf = Buf::alloc(piece.len()).await;
            buf.copy_from_slice(piece);
            // The server may have closed; then the answers are missed.
            let _ = self.writer.send(buf.freeze().into()).await;
        }
    }

    /// `None` when the server closes before.
    pub async fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        while self.arrived.len() < bytes {
            let view = self.reader.recv().await.ok().filter(|view| !view.is_empty())?;
            self.arrived.extend_from_slice(&view);
        }
        Some(self.arrived.drain(..bytes).collect())
    }

    /// Cookie and error of the next simple reply, without its data.
    pub async fn reply(&mut self) -> Option<(u64, u32)> {
        let header = self.take(16).await?;
        assert_eq!(get_u32(&header, 0), wire::SIMPLE_REPLY_MAGIC);
        Some((get_u64(&header, 8), get_u32(&header, 4)))
    }

    pub async fn ask(&mut self, kind: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) {
        self.send(&request(kind, 0, cookie, offset, len)).await;
        self.send(data).await;
    }

    /// One request and its error, 0 for none.
    pub async fn run(&mut self, kind: u16, offset: u64, len: u32, data: &[u8]) -> u32 {
        self.ask(kind, 77, offset, len, data).await;
        let (cookie, error) = self.reply().await.unwrap();
        assert_eq!(cookie, 77);
        error
    }

    pub async fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.run(cmd::WRITE, offset, data.len() as u32, data).await
    }

    pub async fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        match self.run(cmd::READ, offset, len, &[]).await {
            0 => Ok(self.take(len as usize).await.unwrap()),
            error => Err(error),
        }
    }
}
