//! The Compose CLI keeps the contract of a runtime, on a real engine.

use std::path::PathBuf;

use preview_core::engine::Engine as _;
use preview_core::engine::docker::DockerEngine;
use preview_core::fault::FaultKind;
use preview_core::ownership::Selector;
use preview_core::runtime::compose::{Compose, ComposeOptions};
use preview_core::runtime::{Runtime as _, Source, Variables};
use preview_core::secret::Secret;
use preview_core::testkit::conformance;

fn socket() -> PathBuf {
    let of_docker = std::env::var("DOCKER_HOST").ok();
    PathBuf::from(of_docker.as_deref().and_then(|host| host.strip_prefix("unix://")).unwrap_or("/var/run/docker.sock"))
}

fn compose() -> Compose {
    let docker_config = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    Compose::new(ComposeOptions {
        docker: "docker".into(),
        path: std::env::var_os("PATH").unwrap_or_default(),
        docker_config: docker_config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"))),
        socket: None,
        guardian: None,
    })
}

fn source(directory: &std::path::Path, project: &str) -> Source {
    Source {
        files: vec![directory.join("compose.yml")],
        directory: directory.to_owned(),
        env_files: vec![],
        profiles: vec![],
        project: project.to_owned(),
        variables: Variables::from([("IMAGE".to_owned(), Secret::new("busybox:1.36".to_owned()))]),
        readable: vec![],
    }
}

#[tokio::test]
async fn compose_keeps_the_contract() {
    let engine = DockerEngine::connect(&socket()).expect("a socket");
    if let Err(fault) = engine.info().await {
        assert!(std::env::var_os("PREVIEW_LAB").is_none(), "the lab has no engine: {}", fault.chain());
        eprintln!("NOT TESTED: no engine answers ({})", fault.chain());
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("compose.yml"), "services: {a: {image: '${IMAGE}'}}\n").expect("written");
    let app = format!("rt{}", std::process::id());
    let project = format!("{app}_pr-1");
    let compose = compose();
    let runtime = compose.with_socket(socket(), None);
    let project_files = source(directory.path(), &project);
    let found = std::panic::AssertUnwindSafe(conformance::runtime::suite(
        &runtime,
        &engine,
        &project_files,
        &app,
        "busybox:1.36",
        &["sleep", "100000"],
    ));
    let done = futures_util::FutureExt::catch_unwind(found).await;
    // A suite that failed half-way leaves its containers; the network has Compose's labels alone.
    let _ = engine.remove(&Selector::preview(&app, "pr-1"), &[]).await;
    let network = format!("{project}_default");
    let removed = std::process::Command::new("docker").args(["network", "rm", &network]).output().expect("docker runs");
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
}

#[tokio::test]
async fn wrong_files_are_invalid_with_composes_own_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("compose.yml");
    let compose = compose();
    std::fs::write(&file, "services: {a: {image: x, colour: red}}\n").expect("written");
    let fault = compose.resolve(&source(directory.path(), "p")).await.expect_err("refused");
    assert_eq!(fault.kind, FaultKind::Invalid, "{}", fault.chain());
    assert!(fault.context.contains("colour"), "{}", fault.chain());
    std::fs::write(&file, "services: {a: {image: 'x:${TAG:?say which}'}}\n").expect("written");
    let fault = compose.resolve(&source(directory.path(), "p")).await.expect_err("refused");
    assert_eq!(fault.kind, FaultKind::Invalid, "{}", fault.chain());
    assert!(fault.context.contains("TAG") && fault.context.contains("say which"), "{}", fault.chain());
    std::fs::write(&file, "services: {a: {image: 'x:${TAG}', command: '${HOME}${GITHUB_TOKEN}'}}\n").expect("written");
    let resolved = compose.resolve(&source(directory.path(), "p")).await.expect("resolves");
    assert!(resolved.warnings.iter().any(|warning| warning.contains("TAG")), "{:?}", resolved.warnings);
    assert_eq!(resolved.model["services"]["a"]["image"], "x:");
    assert!(!resolved.model.to_string().contains("/root"), "nothing of this machine's environment: {}", resolved.model);
}

/// Values of YAML in many spellings. Infinity is not among them: Compose cannot print it as JSON.
fn values() -> impl proptest::strategy::Strategy<Value = Vec<String>> {
    use proptest::prelude::*;
    let plain = proptest::sample::select(vec![
        "1",
        "-7",
        "0x1F",
        "0o17",
        "017",
        "1_000",
        "0b11",
        "+3",
        "1.5",
        "-.5e3",
        "1e3",
        "true",
        "False",
        "yes",
        "No",
        "on",
        "y",
        "~",
        "null",
        "Null",
        "",
        "2001-12-14",
        "2001-12-14t21:59:43.10-05:00",
        "2001-12-14 21:59:43",
        "12:30:45",
        "80:80",
        "1.2.3",
        "10m",
        "-x",
        "--",
        "a b",
        "é",
        "a#b",
        "a: b".trim_end_matches(": b"),
        "<<",
        "=",
        "!!str 12",
        "!!float 1",
        "!!int 5",
        "0.0.0.0:80",
        "1e",
        "0x",
        "+",
        ".",
        "..",
        "08",
        "1__0",
        "_1",
        "1_",
        "nan",
        "inf",
        "0x1G",
        "9223372036854775808",
        "0.1e-7",
        "1.",
        "12e03",
        "NULL",
        "TRUE",
    ]);
    let plain = plain.prop_map(str::to_owned);
    let quoted = "[ -~é€😀\t]{0,12}";
    let double = quoted.prop_map(|text| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")));
    let single = quoted.prop_map(|text| format!("'{}'", text.replace('\'', "''").replace('\t', " ")));
    let escapes = proptest::sample::select(vec![
        r#""\x41\u00e9\U0001F600""#,
        r#""a\
   b""#,
        r#""\0\a\b\t\n\v\f\r\e\N\_\L\P""#,
        "\"a\n   b\n\n   c\"",
        "'a\n   b'",
        "a\n   b",
    ])
    .prop_map(str::to_owned);
    let block = ("[|>]", "[-+]?", proptest::collection::vec("[a-z#:'\"{ ]{0,6}[a-z]", 1..4)).prop_map(
        |(kind, chomp, lines)| {
            format!(
                "{kind}{chomp}\n{}",
                lines.iter().map(|line| format!("  {}\n", line.trim_start())).collect::<String>()
            )
        },
    );
    let flow = proptest::collection::vec(prop_oneof![double.clone(), single.clone(), "[a-z][a-z0-9]{0,4}"], 0..4);
    let flow = prop_oneof![
        flow.clone().prop_map(|items| format!("[{}]", items.join(", "))),
        flow.prop_map(|items| format!(
            "{{{}}}",
            items.iter().enumerate().map(|(n, item)| format!("k{n}: {item}")).collect::<Vec<_>>().join(", ")
        )),
    ];
    let one = prop_oneof![6 => plain, 2 => double, 2 => single, 1 => escapes, 1 => block, 2 => flow];
    proptest::collection::vec(one, 40)
}

/// Whatever form a value has, Compose takes what we write for the same as what stood in the file.
#[test]
fn compose_reads_what_we_read() {
    use proptest::strategy::{Strategy as _, ValueTree as _};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut runner = proptest::test_runner::TestRunner::default();
    for _ in 0..6 {
        let values = values().new_tree(&mut runner).expect("values").current();
        let mut text = String::from(
            "services: {a: {image: x}}\nx-m: &m {p: 1, q: two}\nx-n: {<<: *m, q: 3, r: &r [1, 'b']}\nx-l: {<<: [{p: 0}, *m], s: *r}\n",
        );
        for (number, value) in values.iter().enumerate() {
            let tail = if value.contains('\n') && value.starts_with(['|', '>']) { "" } else { "\n" };
            text.push_str(&format!("x-{number}: {}{tail}", value.replace('$', "S")));
        }
        let written = preview_core::runtime::rewritten(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let directory = tempfile::tempdir().expect("a directory");
        let mut models = [text.clone(), written.clone()].map(|content| {
            std::fs::write(directory.path().join("compose.yml"), content).expect("written");
            let resolved = runtime.block_on(compose().resolve(&source(directory.path(), "p")));
            resolved.unwrap_or_else(|fault| panic!("{}\n{text}\n{written}", fault.chain())).model
        });
        let [theirs, ours] = &mut models;
        for (key, value) in theirs.as_object_mut().expect("a table") {
            assert_eq!(Some(&*value), ours.get(key), "{key}\n{text}\n{written}");
        }
        assert_eq!(theirs, ours);
    }
}
