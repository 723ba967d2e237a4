//! What the end-to-end tests and `cargo xtask` share: the [`lab`], a real engine and real VMs on this machine, and the [`soak`], a
//! load of many runs at once.
//!
//! The tests depend on this library, so that `cargo test` by hand finds the same lab as `cargo xtask test` does.

pub mod lab;
pub mod sh;
pub mod soak;
