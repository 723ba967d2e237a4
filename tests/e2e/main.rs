//! End-to-end tests: the built command against a real engine, on this machine and on VMs behind a real sshd.

mod action;
mod bad_host;
mod bad_input;
mod ci;
mod crowd;
mod embed;
mod faults;
mod history;
mod inside;
mod isolation;
mod killed;
mod lifecycle;
mod locks;
mod log;
mod neighbours;
mod metrics;
mod order;
mod places;
mod queue;
mod reliability;
mod rollback;
mod secrets;
mod stack;
mod stacks;
mod sweep;
mod trusted;
