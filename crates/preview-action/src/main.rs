//! The command `preview`.
fn main() {}
