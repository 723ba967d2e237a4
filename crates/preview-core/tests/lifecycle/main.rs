//! The lifecycle on memory adapters: what may fail, fails at every place in turn, and what is left is looked at.

mod failures;
mod notes;
mod order;
mod queue;
mod records;
mod rolling;
mod routes;
mod runs;
mod sweep;
mod world;
