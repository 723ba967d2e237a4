//! What is read, what is refused, and that what is written means what was read.

use super::*;

/// A text, as it is written again.
fn again(text: &str) -> String {
    write(&read(text).unwrap_or_else(|wrong| panic!("{text}: {wrong:?}"))).trim_end().to_owned()
}

fn wrong(text: &str) -> String {
    let wrong = read(text).map(|documents| write(&documents)).expect_err(text);
    format!("{}: {}", wrong.line, wrong.why)
}

#[test]
fn strings_are_quoted_and_the_rest_stays_as_it_stands() {
    for (text, expected) in [
        ("a: b", r#"{"a": "b"}"#),
        ("a: 'b'\nc: \"d\\te\"", r#"{"a": "b", "c": "d\u0009e"}"#),
        ("- 1\n- 0x1F\n- 1_000\n- -3.5e+7\n- .5\n- 0o17\n- 010", "[1, 0x1F, 1_000, -3.5e+7, .5, 0o17, 010]"),
        ("- yes\n- True\n- null\n- ~\n-\n- .inf\n- -.Inf\n- .NaN", "[yes, True, null, ~, null, .inf, -.Inf, .NaN]"),
        ("- '1'\n- \"true\"\n- 'null'\n- ''", r#"["1", "true", "null", ""]"#),
        ("- 8000:80\n- 1.2.3\n- 10m\n- ~\n- --x\n- 12:30:45", r#"["8000:80", 1.2.3, 10m, ~, "--x", "12:30:45"]"#),
        (
            "- 2001-12-14\n- 2001-12-14t21:59:43.10-05:00\n- 2001-12-14 21:59:43",
            "[2001-12-14, 2001-12-14t21:59:43.10-05:00, 2001-12-14 21:59:43]",
        ),
        (
            "- !!str 1\n- !!int 1\n- !!float 1\n- !!str\n- !!null\n- !!seq []\n- !!map {}",
            r#"["1", 1, !!float 1, "", null, [], {}]"#,
        ),
        ("1: a\ntrue: b\n'2': c", r#"{1: "a", true: "b", "2": "c"}"#),
        ("a: é\u{85}\u{2028}😀\u{feff}x\u{a0}", r#"{"a": "\u00e9\u0085\u2028\U0001f600\ufeffx\u00a0"}"#),
        ("a: |\n  x\n   y\nb: >-\n  x\n  y", r#"{"a": "x\u000a y\u000a", "b": "x y"}"#),
        (
            "a: !reset []\nb: !override [1]\nc: !reset\nd: !<!reset> x",
            r#"{"a": !reset [], "b": !override [1], "c": !reset null, "d": !reset "x"}"#,
        ),
        ("a: 1\n---\nb: 2\n", "{\"a\": 1}\n---\n{\"b\": 2}"),
        ("# nothing", ""),
        ("\u{feff}a: <<\n", r#"{"a": "<<"}"#),
        ("a: x # c\u{85}    env_file: /any/file", r#"{"a": "x"}"#),
    ] {
        assert_eq!(again(text), expected, "{text}");
        if !expected.is_empty() {
            assert_eq!(again(expected), expected, "what is written is read alike");
        }
    }
    let key = "k".repeat(2000);
    assert_eq!(again(&format!("? {key}\n: 1")), format!("{{? \"{key}\": 1}}"));
}

#[test]
fn aliases_and_merge_keys_are_written_out() {
    for (text, expected) in [
        ("a: &x [1]\nb: *x", r#"{"a": [1], "b": [1]}"#),
        ("a: &x {p: 1, q: 2}\nb: {q: 3, <<: *x, r: 4}", r#"{"a": {"p": 1, "q": 2}, "b": {"q": 3, "r": 4, "p": 1}}"#),
        ("- &x {p: 1}\n- &y {p: 2, q: 3}\n- {<<: [*x, *y]}", r#"[{"p": 1}, {"p": 2, "q": 3}, {"p": 1, "q": 3}]"#),
        ("- &x {p: 1}\n- &y {<<: *x, q: 2}\n- {<<: *y}", r#"[{"p": 1}, {"q": 2, "p": 1}, {"q": 2, "p": 1}]"#),
        ("- &l [{p: 1}]\n- {<<: *l}", r#"[[{"p": 1}], {"p": 1}]"#),
        ("a: &x !reset []\nb: *x", r#"{"a": !reset [], "b": !reset []}"#),
        ("&k a: 1\nb: *k", r#"{"a": 1, "b": "a"}"#),
        // An anchor may be given again.
        ("- &x 1\n- *x\n- &x 2\n- *x", "[1, 1, 2, 2]"),
    ] {
        assert_eq!(again(text), expected, "{text}");
    }
}

#[test]
fn what_parsers_may_read_differently_is_refused_with_its_line() {
    for (text, expected) in [
        ("a:\n  b: 1\n  b: 2", "3: the key `b` stands in line 2 already, and YAML keeps only one of them"),
        ("a: 1\n\"a\": 2", "2: the key `a` stands in line 1 already"),
        ("x: &x {a: 1}\nb:\n  ! <<: *x", "3: write the merge key `<<` without quotes and tags"),
        ("x: &x {a: 1}\nb:\n  \"<<\": *x", "3: write the merge key `<<`"),
        ("x: &x {a: 1}\nb:\n  !!merge <<: *x", "3: write the merge key `<<`"),
        ("a:\n- ! b", "2: the tag `!` means nothing in a Compose file"),
        ("a: !!binary eA==", "1: the tag `!!binary` means nothing"),
        ("%TAG !y! tag:yaml.org,2002:\n---\na: !y!binary eA==", "3: the tag `!y!binary`"),
        ("a: !<tag:yaml.org,2002:bin%61ry> eA==", "1: the tag"),
        ("%TAG ! tag:example.org:\n---\na: !reset []", "3: the tag `!reset` means nothing"),
        ("a: !env x", "1: the tag `!env`"),
        ("a: !!int x", "1: the tag does not fit `x`"),
        ("a: !!int '1'", "1: the tag does not fit `1`"),
        ("a: !!map []", "1: the tag does not fit a list"),
        ("? [a]\n: 1", "1: a key has to be a plain text"),
        ("!reset a: 1", "1: a key has to be a plain text"),
        ("x: 1\nb: {<<: 1}", "2: the merge key `<<` takes a table"),
        ("a: &x [*x]", "1: an alias stands inside of what it means"),
        ("a: *x", "1: it is not valid YAML: "),
        ("a: [1", "1: it is not valid YAML: "),
        ("a: \u{7}", "1: it has the control character U+0007"),
        ("a: 1\nb: \0", "2: it has the control character U+0000"),
    ] {
        assert!(wrong(text).starts_with(expected), "{text:?}: {}", wrong(text));
    }
}

#[test]
fn aliases_are_limited_by_what_they_come_to_and_not_by_their_number() {
    let many = format!("a: &x {{image: busybox}}\nb: [{}]", vec!["*x"; 5000].join(", "));
    assert!(again(&many).len() > 5000 * 20);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(", ")));
    }
    assert!(wrong(&bomb).contains("with its aliases (`*name`) written out"), "{}", wrong(&bomb));
    let mut deep = "a0: &a0 [x]\n".to_owned();
    for level in 1..200 {
        deep.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(wrong(&deep).contains("nested more than 100 levels"), "{}", wrong(&deep));
    assert!(wrong(&format!("{}{}", "[".repeat(120), "]".repeat(120))).contains("nested more than 100 levels"));
    let text = format!("a: &x {}\nb: [{}]", "y".repeat(100_000), vec!["*x"; 100].join(", "));
    assert!(wrong(&text).contains("8 MB of text"), "{}", wrong(&text));
}
