//! End-to-end tests: the built command against a real engine, on this machine and on VMs behind a real sshd.

mod action;
mod bad_host;
mod bad_input;
mod ci;
mod embed;
mod faults;
mod inside;
mod killed;
mod lifecycle;
mod locks;
mod log;
mod places;
mod rollback;
mod secrets;
mod stack;
mod stacks;
