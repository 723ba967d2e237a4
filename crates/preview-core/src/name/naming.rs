//! From a key to a name, a project and addresses.

use std::collections::BTreeSet;

use super::template::{Hole, NameTemplate, Piece};
use super::url::{Url, UrlTemplate};
use super::{AppName, Key, MAX_HOST, MAX_LABEL, MIN_SLUG, NameError, PreviewName, label, slug};

/// Digits that a template has to leave room for; longer numbers are refused when they come.
const DIGITS: usize = 10;

const LABEL_LIMIT: &str = "a DNS label has at most 63";
const HOST_LIMIT: &str = "a host name has at most 253";
const PROJECT_LIMIT: &str = "the application, `_` and the name have at most 63 together";

/// How the previews of one application are named. Checked as a whole when it is made, so that [`resolve`](Self::resolve) can only
/// fail for what a single key brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    app: AppName,
    pulls: NameTemplate,
    branches: NameTemplate,
    urls: Vec<UrlTemplate>,
    slug_limit: usize,
}

/// What one preview is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name within the application.
    pub name: PreviewName,
    /// Its Compose project.
    pub project: String,
    /// Its addresses, in the order of the templates.
    pub urls: Vec<Url>,
    /// The hosts of its addresses that no other preview of the application has.
    pub hosts: BTreeSet<String>,
}

impl Naming {
    /// Checks templates together.
    ///
    /// A name template with `{number}` names pull requests, one with `{slug}` names branches; the other kind keeps its default
    /// ([`NameTemplate::PULLS`], [`NameTemplate::BRANCHES`]). `{service}` in an address has to be filled in before
    /// ([`UrlTemplate::with_service`]).
    pub fn new(app: &AppName, name: Option<&NameTemplate>, urls: &[UrlTemplate]) -> Result<Self, NameError> {
        let (mut pulls, mut branches) =
            (NameTemplate::parse(NameTemplate::PULLS)?, NameTemplate::parse(NameTemplate::BRANCHES)?);
        match name {
            Some(template) if template.for_pulls() => pulls = template.clone(),
            Some(template) => branches = template.clone(),
            None => {}
        }
        for (index, url) in urls.iter().enumerate() {
            if url.holds(Hole::Service) {
                let reason = "{service} stands for the service of a route, and there is none".to_owned();
                return Err(NameError::Template { template: url.to_string(), reason });
            }
            if urls[..index].iter().any(|other| other.to_string() == url.to_string()) {
                return Err(NameError::SameUrl { template: url.to_string() });
            }
        }
        let mut naming = Self { app: app.clone(), pulls, branches, urls: urls.to_vec(), slug_limit: MAX_LABEL };
        naming.room(Hole::Number, DIGITS)?;
        naming.slug_limit = naming.room(Hole::Slug, MIN_SLUG)?.min(MAX_LABEL);
        Ok(naming)
    }

    /// What the preview of this key is called: always the same.
    pub fn resolve(&self, key: &Key) -> Result<Named, NameError> {
        let (hole, missing, value) = match key {
            Key::Pull(number) => (Hole::Number, Hole::Slug, number.to_string()),
            Key::Branch(branch) => (Hole::Slug, Hole::Number, self.slug(branch.as_str())),
        };
        if hole == Hole::Number {
            self.room(hole, value.len())?;
        }
        let name = self.fill(&self.template(hole).pieces, hole, &value);
        let name = PreviewName::parse(&name)?;
        let mut urls = Vec::with_capacity(self.urls.len());
        let mut hosts = BTreeSet::new();
        for template in &self.urls {
            if template.holds(missing) {
                let placeholder = if missing == Hole::Slug { "slug" } else { "number" };
                return Err(NameError::WrongKind { template: template.to_string(), key: key.to_string(), placeholder });
            }
            let labels: Vec<_> = template.labels.iter().map(|label| self.fill(label, hole, &value)).collect();
            let host = labels.join(".");
            if template.has_own_host() {
                hosts.insert(host.clone());
            }
            urls.push(Url {
                scheme: template.scheme,
                host,
                port: template.port,
                path: self.fill(&template.path, hole, &value),
            });
        }
        Ok(Named { project: label::project_name(&self.app, &name), name, urls, hosts })
    }

    /// The application.
    #[must_use]
    pub const fn app(&self) -> &AppName {
        &self.app
    }

    /// The branch's slug, which also fits: the name of a branch is never one that a pull request could have.
    fn slug(&self, branch: &str) -> String {
        let slug = slug::slug(branch, self.slug_limit);
        let name = self.fill(&self.branches.pieces, Hole::Slug, &slug);
        // `pr-7` as a branch, where branches are named `{slug}`, would take the place of pull request 7.
        if self.could_be_pull(&name) { slug::slug_marked(branch, self.slug_limit) } else { slug }
    }

    fn could_be_pull(&self, name: &str) -> bool {
        // A number that cannot occur in the template's text: the name up to it and after it is fixed.
        let pattern = self.fill(&self.pulls.pieces, Hole::Number, "#");
        let mut fixed = pattern.split('#');
        let (Some(before), Some(after)) = (fixed.next(), fixed.next_back()) else { return false };
        name.strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    }

    const fn template(&self, hole: Hole) -> &NameTemplate {
        if matches!(hole, Hole::Number) { &self.pulls } else { &self.branches }
    }

    fn fill(&self, pieces: &[Piece], hole: Hole, value: &str) -> String {
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Hole(Hole::App) => self.app.to_string(),
                Piece::Hole(Hole::Name) => self.fill(&self.template(hole).pieces, hole, value),
                Piece::Hole(found) if *found == hole => value.to_owned(),
                Piece::Hole(_) => String::new(),
            })
            .collect()
    }

    /// How often a placeholder occurs, and the length of everything else.
    fn measure(&self, pieces: &[Piece], hole: Hole) -> (usize, usize) {
        let (fixed, filled) = (self.fill(pieces, hole, ""), self.fill(pieces, hole, "x"));
        (filled.len() - fixed.len(), fixed.len())
    }

    /// The most characters that may stand for a placeholder; an error if that is less than `need`.
    fn room(&self, hole: Hole, need: usize) -> Result<usize, NameError> {
        let what = if hole == Hole::Slug { "the branch" } else { "the number" };
        let mut least = usize::MAX;
        let mut check = |template: String, (count, fixed): (usize, usize), max: usize, limit: &'static str| {
            // Where the placeholder does not occur, the fixed text still has to fit.
            if fixed > max {
                return Err(NameError::TooLong { template, limit });
            }
            let Some(room) = (max - fixed).checked_div(count) else { return Ok(()) };
            if room < need {
                return Err(NameError::NoRoom { template, room, what, need, limit });
            }
            least = least.min(room);
            Ok(())
        };
        let name = self.template(hole);
        let (count, fixed) = self.measure(&name.pieces, hole);
        check(name.to_string(), (count, fixed), MAX_LABEL, LABEL_LIMIT)?;
        check(name.to_string(), (count, fixed + self.app.as_str().len() + 1), MAX_LABEL, PROJECT_LIMIT)?;
        let missing = if hole == Hole::Slug { Hole::Number } else { Hole::Slug };
        for url in self.urls.iter().filter(|url| !url.holds(missing)) {
            let mut host = (0, url.labels.len() - 1);
            for label in &url.labels {
                let (count, fixed) = self.measure(label, hole);
                check(url.to_string(), (count, fixed), MAX_LABEL, LABEL_LIMIT)?;
                host = (host.0 + count, host.1 + fixed);
            }
            check(url.to_string(), host, MAX_HOST, HOST_LIMIT)?;
        }
        Ok(least)
    }
}
