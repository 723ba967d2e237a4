//! The adapters of `Dns`: against real servers where the protocol is RFC 2136, against a fake of the documented API for Cloudflare.

mod cloudflare;
mod fake;
mod rfc2136;
mod server;
mod tunnel;
