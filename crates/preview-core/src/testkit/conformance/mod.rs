//! What the contracts promise, as suites that every adapter is run through. They panic where one does not keep it.

pub mod dns;
pub mod engine;
pub mod forge;
pub mod host;
pub mod lock;
pub mod runtime;
pub mod secrets;
