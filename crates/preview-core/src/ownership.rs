//! The labels that mark what is ours; objects without them are never touched.

use std::collections::BTreeMap;

/// On every object that we made, with the value `true`.
pub const MANAGED: &str = "preview.managed";
/// The application that the object belongs to.
pub const APP: &str = "preview.app";
/// The preview that the object belongs to.
pub const NAME: &str = "preview.name";

/// The base directory in which the preview's state is: two of them may share an engine.
pub const BASE: &str = "preview.base";

/// On the container that holds on to the volume with a preview's files, and on its image; the value does not matter.
pub const FILES: &str = "preview.files";

/// Compose's own label that names the service of a container.
pub const COMPOSE_SERVICE: &str = "com.docker.compose.service";
/// Compose's own label that names the project of an object.
pub const COMPOSE_PROJECT: &str = "com.docker.compose.project";

/// Whether a container with these labels only holds on to a volume of files. One of a service does not, although its image may have the label.
#[must_use]
pub fn is_holder(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(FILES) && !labels.contains_key(COMPOSE_SERVICE)
}

/// Which objects are meant: those of one preview, of one application, or all of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// Everything that carries our labels.
    Managed,
    /// Everything of one application.
    App(String),
    /// Everything of one preview.
    Preview {
        /// The application.
        app: String,
        /// The preview's name within the application.
        name: String,
        /// The base directory that its objects are labelled with; `None`: whichever. Objects without that label are meant too:
        /// older versions did not set it.
        base: Option<String>,
    },
}

impl Selector {
    /// The objects of one preview, whichever base directory they belong to.
    pub fn preview(app: impl Into<String>, name: impl Into<String>) -> Self {
        Self::Preview { app: app.into(), name: name.into(), base: None }
    }

    /// The same selection, without the objects of another base directory: two of them may share an engine.
    #[must_use]
    pub fn below(self, base: impl Into<String>) -> Self {
        match self {
            Self::Preview { app, name, .. } => Self::Preview { app, name, base: Some(base.into()) },
            other => other,
        }
    }

    /// The labels of a new object of this selection, whose state is below this base directory.
    #[must_use]
    pub fn labels_below(&self, base: &str) -> BTreeMap<String, String> {
        let mut labels = self.labels();
        labels.insert(BASE.to_owned(), base.to_owned());
        labels
    }

    /// The labels that an object must carry, with these values, to be meant. Always includes [`MANAGED`].
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([(MANAGED.to_owned(), "true".to_owned())]);
        match self {
            Self::Managed => {}
            Self::App(app) => {
                labels.insert(APP.to_owned(), app.clone());
            }
            Self::Preview { app, name, .. } => {
                labels.insert(APP.to_owned(), app.clone());
                labels.insert(NAME.to_owned(), name.clone());
            }
        }
        labels
    }

    /// Whether an object with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let elsewhere = match (self, labels.get(BASE)) {
            (Self::Preview { base: Some(base), .. }, Some(of)) => base != of,
            _ => false,
        };
        !elsewhere && self.labels().iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_does_not_make_a_service_a_holder_of_files() {
        let labels = |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), "x".to_owned())).collect();
        assert!(is_holder(&labels(&[FILES, MANAGED])));
        assert!(!is_holder(&labels(&[FILES, COMPOSE_SERVICE])) && !is_holder(&labels(&[MANAGED])));
    }

    #[test]
    fn objects_of_another_base_directory_are_not_meant() {
        let selector = Selector::preview("shop", "pr-7");
        let labels = selector.labels_below("/opt/previews");
        assert!(selector.matches(&labels), "whichever base directory");
        assert!(selector.clone().below("/opt/previews").matches(&labels));
        assert!(!selector.clone().below("/srv/previews").matches(&labels));
        assert!(selector.clone().below("/srv/previews").matches(&selector.labels()), "labels of an older version");
        assert!(!Selector::preview("shop", "pr-8").below("/opt/previews").matches(&labels));
    }
}
