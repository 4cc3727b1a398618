//! What a command failed with, and its exit code.

use peristyle_control::ControlError;
use peristyle_control::api::{ApiError, Code};
use std::fmt;

/// One line for people; the kind is the exit code for scripts (documented in `peristyle --help`).
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    kind: Kind,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Failed = 1,
    /// Also clap's code for a wrong command line.
    Usage = 2,
    NoNode = 3,
    NotFound = 4,
    Exists = 5,
    /// Whether it happened is not known.
    Unknown = 6,
    /// A check has found what must not be.
    Damage = 7,
}

impl Failure {
    pub fn new(kind: Kind, message: impl fmt::Display) -> Failure {
        Failure { kind, message: message.to_string() }
    }
    pub fn failed(message: impl fmt::Display) -> Failure {
        Failure::new(Kind::Failed, message)
    }
    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure::new(Kind::Usage, message)
    }
    pub fn exit_code(&self) -> u8 {
        self.kind as u8
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ApiError> for Failure {
    fn from(e: ApiError) -> Failure {
        let kind = match e.code {
            Code::NotFound => Kind::NotFound,
            Code::Exists => Kind::Exists,
            Code::Unknown => Kind::Unknown,
            Code::Invalid => Kind::Usage,
            Code::BadRequest | Code::LimitReached | Code::NotAllowed | Code::Busy | Code::Internal => {
                Kind::Failed
            }
        };
        Failure::new(kind, e.message)
    }
}

impl From<ControlError> for Failure {
    fn from(e: ControlError) -> Failure {
        ApiError::from(e).into()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Failure {
        Failure::failed(format!("{e:#}"))
    }
}
