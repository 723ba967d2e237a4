//! Memory adapters, and one conformance suite a trait that every adapter passes.

pub mod conformance;
pub mod dns;
pub mod engine;
pub mod forge;
pub mod host;
pub mod lock;
pub mod runtime;
pub mod secrets;
