//! Calls to the members of an etcd cluster: which member is asked, for how long, and what a failure says about what happened.

use super::EtcdConfig;
use super::messages::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use crate::meta::MetaError;
use http::uri::PathAndQuery;
use peristyle_base::Duration;
use prost::Message;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::{Instant, timeout_at};
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// A member that does not take the connection within this is left for the next.
const CONNECT: Duration = Duration::from_millis(500);
/// Members are asked for a sign of life while something is awaited of them. etcd ends connections that ask more often than
/// every 5 s.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_WITHIN: Duration = Duration::from_secs(3);
/// What a range or a message of a watch may bring. More than a control store has.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Of one cluster. What can be sent again is sent to another member when one fails; what may have happened is not.
pub struct Client {
    members: Vec<Member>,
    /// The one to ask first: the last that answered.
    first: AtomicUsize,
    deadline: Duration,
}

#[derive(Clone)]
struct Member {
    name: Arc<str>,
    channel: Channel,
}

/// Why a call has no answer.
pub enum Failure {
    /// No member took the connection: nothing happened.
    NotSent(String),
    /// The member's word, or that of the connection to it.
    Status(Status),
    /// There was none in time.
    Late,
}

impl Client {
    /// Connects with the first call. Called within the client's runtime.
    pub fn new(config: &EtcdConfig) -> Result<Client, String> {
        let members = config.endpoints.iter().map(|name| Member::new(name)).collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            return Err("no endpoint of etcd is named".into());
        }
        Ok(Client { members, first: AtomicUsize::new(0), deadline: config.deadline })
    }

    /// A call that may be sent again: one that changes nothing, or the same however often it happens.
    pub async fn ask<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.repeat(|member| member.unary(path, request.clone())).await
    }

    /// The seconds that the lease has now: keeping alive is a stream in etcd, of one request and one answer here.
    pub async fn keep_alive(&self, id: i64) -> Result<i64, Failure> {
        Ok(self.repeat(|member| member.keep_alive(id)).await?.ttl)
    }

    /// Asks one member after the other, until one answers or the time is over. What may have happened at one of them is not
    /// called "not sent" because another one could not be reached.
    async fn repeat<T, C>(&self, call: impl Fn(Member) -> C) -> Result<T, Failure>
    where
        C: Future<Output = Result<T, Failure>>,
    {
        let deadline = Instant::now() + self.deadline;
        let mut failure = None;
        for turn in 0..self.members.len() {
            // A member that hangs leaves time for the others.
            let rest = deadline.saturating_duration_since(Instant::now());
            let until = Instant::now() + rest / (self.members.len() - turn) as u32;
            let at = self.first.load(Ordering::Relaxed);
            match within(until, call(self.members[at].clone())).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Status(status)) if is_final(&status) => return Err(Failure::Status(status)),
                Err(Failure::NotSent(why)) => failure = failure.or(Some(Failure::NotSent(why))),
                Err(why) => failure = Some(why),
            }
            self.leave(at);
        }
        Err(failure.expect("there is a member"))
    }

    /// A call that is sent once: when it is not known whether it reached a member, no other is asked.
    pub async fn tell<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let until = Instant::now() + self.deadline;
        let mut failure = Failure::Late;
        for _ in 0..self.members.len() {
            let at = self.first.load(Ordering::Relaxed);
            match within(until, self.members[at].clone().unary(path, request.clone())).await {
                Err(Failure::NotSent(why)) => failure = Failure::NotSent(why),
                Err(Failure::Status(status)) if is_final(&status) => return Err(Failure::Status(status)),
                Err(why) => {
                    self.leave(at);
                    return Err(why);
                }
                Ok(answer) => return Ok(answer),
            }
            self.leave(at);
        }
        Err(failure)
    }

    /// A stream of answers from the member to ask first, and which one that is.
    pub async fn open<Q, A>(
        &self,
        path: &'static str,
        requests: impl tokio_stream::Stream<Item = Q> + Send + 'static,
    ) -> Result<(Streaming<A>, usize), Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let until = Instant::now() + self.deadline;
        let at = self.first.load(Ordering::Relaxed);
        match within(until, self.members[at].clone().streaming(path, requests)).await {
            Ok(stream) => Ok((stream, at)),
            Err(why) => {
                self.leave(at);
                Err(why)
            }
        }
    }

    /// The next call goes to the member after this one, unless another call has seen to it.
    pub fn leave(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        let _ = self.first.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Failure {
    /// What a call that changes nothing says to its caller.
    pub fn of_read(self) -> MetaError {
        MetaError::Unavailable(self.in_words())
    }

    /// The same of one that may have changed something. Only what is certain is called so: a member answers `Unavailable` also
    /// when it has lost sight of a proposal that goes its way all the same, and "no space" also after it has applied one.
    pub fn of_write(self) -> MetaError {
        let words = self.in_words();
        match self {
            Failure::NotSent(_) => MetaError::Unavailable(words),
            Failure::Late => MetaError::Unknown(words),
            Failure::Status(status) => match status.code() {
                Code::NotFound if status.message().contains("lease") => MetaError::NoLease,
                Code::InvalidArgument if status.message().contains("too") => MetaError::TooLarge,
                Code::InvalidArgument
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented => MetaError::Unavailable(words),
                _ => MetaError::Unknown(words),
            },
        }
    }

    fn in_words(&self) -> String {
        match self {
            Failure::NotSent(why) => why.clone(),
            Failure::Late => "no answer in time".into(),
            Failure::Status(status) => format!("{}: {}", status.code(), status.message()),
        }
    }
}

/// Another member would say the same.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::NotFound
            | Code::InvalidArgument
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}

impl Member {
    fn new(name: &str) -> Result<Member, String> {
        let url = if name.contains("://") { name.to_owned() } else { format!("http://{name}") };
        let endpoint = Endpoint::from_shared(url).map_err(|_| format!("`{name}` is no address of etcd"))?;
        if endpoint.uri().scheme_str() != Some("http") {
            return Err(format!("`{name}`: etcd is spoken to without TLS only, as http://"));
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN);
        Ok(Member { name: name.into(), channel: endpoint.connect_lazy() })
    }

    async fn grpc(&self) -> Result<Grpc<Channel>, Failure> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        grpc.ready().await.map_err(|e| Failure::NotSent(format!("{}: {e}", self.name)))?;
        Ok(grpc)
    }

    async fn unary<Q, A>(self, path: &'static str, request: Q) -> Result<A, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        let answer = self.grpc().await?.unary(Request::new(request), path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.failure(status))
    }

    async fn streaming<Q, A>(
        self,
        path: &'static str,
        requests: impl tokio_stream::Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let codec = ProstCodec::<Q, A>::default();
        let mut request = Request::new(requests);
        // A member that has no leader ends the stream instead of keeping silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let path = PathAndQuery::from_static(path);
        let answer = self.grpc().await?.streaming(request, path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.failure(status))
    }

    async fn keep_alive(self, id: i64) -> Result<LeaseKeepAliveResponse, Failure> {
        let request = tokio_stream::once(LeaseKeepAliveRequest { id });
        let mut answers = self.streaming("/etcdserverpb.Lease/LeaseKeepAlive", request).await?;
        let answer = answers.message().await.map_err(Failure::Status)?;
        answer.ok_or_else(|| Failure::Status(Status::unavailable("the stream ended without an answer")))
    }

    /// A connection that was not made carries no request.
    fn failure(&self, status: Status) -> Failure {
        let mut cause = status.source();
        while let Some(error) = cause {
            if error.is::<ConnectError>() {
                return Failure::NotSent(format!("{}: {}", self.name, status.message()));
            }
            cause = error.source();
        }
        Failure::Status(status)
    }
}

async fn within<T>(until: Instant, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout_at(until, call).await.unwrap_or(Err(Failure::Late))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_did_not_happen_is_called_so() {
        let of = |code, message: &str| Failure::Status(Status::new(code, message)).of_write();
        let unknown = [
            of(Code::Unavailable, "etcdserver: request timed out"),
            of(Code::Unavailable, "etcdserver: leader changed"),
            of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            of(Code::Cancelled, "the connection was lost"),
            of(Code::DeadlineExceeded, "context deadline exceeded"),
            of(Code::Internal, "h2 protocol error"),
            of(Code::Unknown, "transport error"),
            of(Code::NotFound, "something else"),
            Failure::Late.of_write(),
        ];
        assert!(unknown.iter().all(|e| matches!(e, MetaError::Unknown(_))), "{unknown:?}");
        let nothing = [
            of(Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            of(Code::PermissionDenied, "etcdserver: permission denied"),
            Failure::NotSent("connection refused".into()).of_write(),
        ];
        assert!(nothing.iter().all(|e| matches!(e, MetaError::Unavailable(_))), "{nothing:?}");
        assert_eq!(of(Code::NotFound, "etcdserver: requested lease not found"), MetaError::NoLease);
        assert_eq!(of(Code::InvalidArgument, "etcdserver: request is too large"), MetaError::TooLarge);
        assert_eq!(
            of(Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            MetaError::TooLarge
        );
    }
}
