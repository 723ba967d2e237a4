//! End-to-end tests: the built command against a real engine, on this machine and on VMs behind a real sshd.

mod lifecycle;
