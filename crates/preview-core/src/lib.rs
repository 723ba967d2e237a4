//! Preview environments on a plain Docker host that its team owns, without anything of ours on it.
//!
//! The library decides in pure code and changes things only through traits:
//!
//! ```text
//! Request ─▶ observe ─▶ plan (pure) ─▶ apply (effects, undo) ─▶ Outcome ─▶ report
//!              ▲                          │
//!        engine · runtime · host · lock · dns · secrets · forge   (traits; one file an adapter)
//! ```

pub mod admission;
pub mod capacity;
pub mod checkout;
pub mod config;
pub mod dns;
pub mod doctor;
pub mod engine;
pub mod failure;
pub mod fault;
pub mod fence;
pub mod forge;
pub mod generate;
pub mod history;
pub mod host;
mod http;
pub mod lifecycle;
pub mod lock;
pub mod metrics;
pub mod name;
pub mod ownership;
pub mod plan;
pub mod ports;
pub mod project;
pub mod provision;
pub mod proxy;
pub mod queue;
pub mod registry;
pub mod report;
pub mod route;
pub mod runtime;
pub mod secret;
pub mod secrets;
pub mod setup;
pub mod stack;
pub mod state;
pub mod sweep;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod units;
pub mod window;
