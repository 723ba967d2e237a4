//! What every adapter of a trait must do, as suites of small checks that panic where one does not.

pub mod host;
pub mod lock;
