//! What is wrong with a project, as data: everything that was found, and which services the rest could do without.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What follows from a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    /// A preview may not have it on a shared host.
    #[default]
    Policy,
    /// It is wrong: a file that does not exist, a service that nobody defines.
    Input,
}

/// One thing that is refused or wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Violation {
    /// The service, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Where: `services.api.privileged`, or a place in the configuration.
    pub key: String,
    /// The value, as the Compose file has it, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Why.
    pub why: String,
    /// What to do instead.
    pub instead: String,
    /// What the base branch's configuration would have to allow; `None` if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowLine>,
    /// Whether it is refused or wrong.
    pub kind: ViolationKind,
}

/// A `[[policy.allow]]` that would allow something.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AllowLine {
    /// The service.
    pub service: String,
    /// The key.
    pub key: String,
    /// The values; empty for keys that are on or off.
    pub values: Vec<String>,
}

impl Violation {
    /// Something that is wrong at this place of the configuration or of the files.
    #[must_use]
    pub fn input(key: impl Into<String>, why: impl Into<String>, instead: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            why: why.into(),
            instead: instead.into(),
            kind: ViolationKind::Input,
            ..Self::default()
        }
    }

    /// The same, about a service.
    #[must_use]
    pub fn of(mut self, service: &str) -> Self {
        self.service = Some(service.to_owned());
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.key)?;
        if let Some(value) = &self.value {
            write!(f, "`{value}`: ")?;
        }
        f.write_str(&self.why)?;
        if self.instead.is_empty() { Ok(()) } else { write!(f, "; {}", self.instead) }
    }
}

/// Everything that was found wrong with a project. Nothing was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// What was found, in order.
    pub violations: Vec<Violation>,
    /// The services without which the rest would deploy, those that are excluded already among them; `None` if there is no such set.
    pub exclude: Option<Vec<String>>,
}

impl Rejection {
    /// Whether anything of it is refused, and not only wrong.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.violations.iter().any(|violation| violation.kind == ViolationKind::Policy)
    }

    /// What would allow all that can be allowed, as lines of TOML; empty if nothing can.
    #[must_use]
    pub fn allow_lines(&self) -> String {
        let mut wanted: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for line in self.violations.iter().filter_map(|violation| violation.allow.as_ref()) {
            let values = wanted.entry((&line.service, &line.key)).or_default();
            for value in &line.values {
                if !values.contains(&value.as_str()) {
                    values.push(value);
                }
            }
        }
        let tables = wanted.into_iter().map(|((service, key), values)| {
            let mut table = format!("[[policy.allow]]\nservice = {}\nkey = {}\n", quoted(service), quoted(key));
            if !values.is_empty() {
                let values: Vec<String> = values.into_iter().map(quoted).collect();
                table.push_str(&format!("values = [{}]\n", values.join(", ")));
            }
            table
        });
        tables.collect::<Vec<_>>().join("\n")
    }

    /// The line of `preview.toml` that leaves the services out; empty if there is no such set.
    #[must_use]
    pub fn exclude_line(&self) -> String {
        let Some(names) = self.exclude.as_ref().filter(|names| !names.is_empty()) else { return String::new() };
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        format!("exclude = [{}]", names.join(", "))
    }
}

/// A string of TOML. A string of JSON is one, but for DEL.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self.is_refused();
        if let ([only], false) = (self.violations.as_slice(), refused) {
            write!(f, "{only}")?;
        } else {
            f.write_str(if refused {
                "the Compose files hold what a preview may not have:"
            } else {
                "the project cannot be deployed:"
            })?;
            for violation in &self.violations {
                write!(f, "\n  {violation}")?;
            }
        }
        let allow = self.allow_lines();
        if !allow.is_empty() {
            f.write_str("\nto allow it, the base branch's configuration (--trusted-config) needs:")?;
            for line in allow.lines().filter(|line| !line.is_empty()) {
                write!(f, "\n  {line}")?;
            }
        }
        let exclude = self.exclude_line();
        if !exclude.is_empty() {
            write!(f, "\nthe other services deploy with this line in preview.toml (or --exclude):\n  {exclude}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(service: &str, key: &str, value: Option<&str>) -> Violation {
        let values: Vec<String> = value.into_iter().map(str::to_owned).collect();
        Violation {
            key: format!("services.{service}.{key}"),
            value: value.map(str::to_owned),
            why: "it is refused".to_owned(),
            instead: "remove it".to_owned(),
            allow: Some(AllowLine { service: service.to_owned(), key: key.to_owned(), values }),
            ..Violation::default()
        }
        .of(service)
    }

    #[test]
    fn what_can_be_allowed_is_lines_to_paste() {
        let rejection = Rejection {
            violations: vec![
                allowed("api", "cap_add", Some("SYS_PTRACE")),
                allowed("api", "cap_add", Some("a \"quoted\" one\u{7f}")),
                allowed("db", "privileged", None),
            ],
            exclude: Some(vec!["api".to_owned(), "db".to_owned()]),
        };
        let lines = rejection.allow_lines();
        let expected = "[[policy.allow]]\nservice = \"api\"\nkey = \"cap_add\"\nvalues = [\"SYS_PTRACE\", \"a \\\"quoted\\\" one\\u007f\"]\n\n\
                        [[policy.allow]]\nservice = \"db\"\nkey = \"privileged\"\n";
        assert_eq!(lines, expected);
        let file = crate::config::ConfigFile::parse(&format!("{}\n{lines}", rejection.exclude_line()), None).unwrap();
        assert_eq!(file.policy.allow.len(), 2, "the lines are valid as they stand");
        let text = rejection.to_string();
        assert!(text.starts_with("the Compose files hold what a preview may not have:\n  services.api.cap_add: `SYS_PTRACE`: it is refused; remove it\n"), "{text}");
        assert!(text.ends_with("exclude = [\"api\", \"db\"]"), "{text}");
    }

    #[test]
    fn one_wrong_thing_is_one_sentence() {
        let rejection =
            Rejection { violations: vec![Violation::input("preview.toml:2:3", "wrong", "")], exclude: None };
        assert_eq!(rejection.to_string(), "preview.toml:2:3: wrong");
        assert!(!rejection.is_refused());
        let two = Rejection { violations: vec![rejection.violations[0].clone(); 2], exclude: None };
        assert_eq!(
            two.to_string(),
            "the project cannot be deployed:\n  preview.toml:2:3: wrong\n  preview.toml:2:3: wrong"
        );
    }
}
