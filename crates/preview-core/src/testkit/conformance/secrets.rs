//! What the contract of [`SecretSource`] promises. [`suite`] panics at the first promise that an adapter does not keep.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fault::FaultKind;
use crate::secret::Secret;
use crate::secrets::SecretSource;

/// Runs every check. `make` gives a source that holds these values and is asked for these names.
pub async fn suite(make: impl Fn(&BTreeMap<String, Secret<String>>, &[&str]) -> Arc<dyn SecretSource>) {
    let held: BTreeMap<_, _> = [("TOKEN", "hunter22"), ("KEY", "a=b \"c\"\n$d é"), ("OTHER", "unasked-for")]
        .map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned())))
        .into();

    // Exactly what was asked for, byte by byte.
    let source = make(&held, &["KEY", "TOKEN"]);
    let first = source.fetch().await.expect("what is there is fetched");
    assert_eq!(first.keys().collect::<Vec<_>>(), ["KEY", "TOKEN"], "nothing but what was asked for");
    for (name, value) in &first {
        assert_eq!(Some(value), held.get(name), "the value of {name} is unchanged");
    }

    // No effects: again is the same.
    let again = source.fetch().await.expect("a second fetch works");
    assert_eq!(first, again, "fetching twice gives the same");

    // People can be told about it.
    let described = source.describe();
    assert!(!described.is_empty(), "it has a description");
    assert!(!described.contains("hunter22"), "the description holds no value");

    // Absence: all missing names at once, and no value.
    let fault =
        make(&held, &["TOKEN", "MISSING_ONE", "MISSING_TWO"]).fetch().await.expect_err("missing names are an error");
    assert_eq!(fault.kind, FaultKind::NotFound, "missing names are NotFound");
    assert!(!fault.transient, "waiting does not make a name exist");
    let said = fault.chain();
    assert!(said.contains("MISSING_ONE") && said.contains("MISSING_TWO"), "all missing names are named: {said}");
    assert!(!said.contains("TOKEN"), "names that exist are not blamed: {said}");
    assert!(!said.contains("hunter22"), "no value is in the message");
}
