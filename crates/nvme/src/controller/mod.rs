//! The controller behind the queue pairs.
