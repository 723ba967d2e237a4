//! What the contracts promise, as suites that every adapter is run through.

pub mod engine;
pub mod secrets;
