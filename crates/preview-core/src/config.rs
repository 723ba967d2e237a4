//! The schema of `preview.toml`, its defaults and its errors.
