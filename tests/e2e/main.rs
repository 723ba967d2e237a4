//! End-to-end tests: the built command against a real engine, on this machine and on VMs behind a real sshd.

mod action;
mod bad_host;
mod bad_input;
mod ci;
mod embed;
mod faults;
mod inside;
mod isolation;
mod killed;
mod lifecycle;
mod locks;
mod log;
mod order;
mod places;
mod queue;
mod rollback;
mod secrets;
mod soak;
mod stack;
mod stacks;
mod sweep;
mod trusted;
