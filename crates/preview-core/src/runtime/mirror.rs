//! A private copy of what Compose may read of a project: the checked files, at the paths that they have, below a directory of ours.
//!
//! Compose opens nothing of the checkout then: links and files that change meanwhile cannot matter, and what nobody has checked is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Resolved, Runtime, Source, Variables};
use crate::fault::{Fault, FaultKind};

const OPERATION: &str = "copy the Compose files for Compose";

/// The copy. It goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Mirror {
    directory: tempfile::TempDir,
    /// What stands for `/`.
    root: PathBuf,
    /// The project as Compose is to see it.
    source: Source,
}

impl Mirror {
    /// An empty copy, below this directory, or that for temporary files.
    pub(super) fn new(source: &Source, repository: &Path, scratch: Option<&Path>) -> Result<Self, Fault> {
        let mut own = tempfile::Builder::new();
        own.prefix("preview-");
        let directory = scratch.map_or_else(|| own.tempdir(), |scratch| own.tempdir_in(scratch)).map_err(failed)?;
        // Compose follows links in some paths: the directory's own must be none, or its name would not be found in the model.
        let root = std::fs::canonicalize(directory.path()).map_err(failed)?.join("root");
        // Files outside of the repository were named by the pipeline. Those with variables are not copied: they may hold secrets.
        let env_files = source
            .env_files
            .iter()
            .map(|file| if file.starts_with(repository) { below(&root, file) } else { file.clone() });
        let source = Source {
            files: source.files.iter().map(|file| below(&root, file)).collect(),
            directory: below(&root, &source.directory),
            env_files: env_files.collect(),
            readable: vec![root.clone()],
            ..source.clone()
        };
        Ok(Self { directory, root, source })
    }

    /// What stands for `/`.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Writes these files and directories.
    pub(super) fn put(&self, files: &BTreeMap<PathBuf, Vec<u8>>, directories: &BTreeSet<PathBuf>) -> Result<(), Fault> {
        for directory in directories {
            std::fs::create_dir_all(below(&self.root, directory)).map_err(failed)?;
        }
        for (file, content) in files {
            let file = below(&self.root, file);
            let parent = file.parent().unwrap_or(&self.root);
            std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&file, content)).map_err(failed)?;
        }
        Ok(())
    }

    /// The model of a text in the project's environment, and nothing else.
    pub(super) async fn ask(&self, runtime: &dyn Runtime, text: &str) -> Result<Value, Fault> {
        let file = self.directory.path().join("question.yml");
        std::fs::write(&file, text).map_err(failed)?;
        let asked = Source { files: vec![file], profiles: Vec::new(), ..self.source.clone() };
        let resolved = runtime.resolve(&asked).await.map_err(|fault| self.translated(fault))?;
        Ok(resolved.model)
    }

    /// The project's model, with the paths that it has outside of the copy.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) async fn resolve(&self, runtime: &dyn Runtime) -> Result<Resolved, Fault> {
        self.resolved(runtime, &self.source).await
    }

    /// The same with these profiles.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) async fn resolve_with(&self, runtime: &dyn Runtime, profiles: &[&str]) -> Result<Resolved, Fault> {
        let profiles = profiles.iter().map(|profile| (*profile).to_owned()).collect();
        self.resolved(runtime, &Source { profiles, ..self.source.clone() }).await
    }

    /// The variables that the project is resolved with, without those of its files.
    pub(crate) fn variables(&self) -> &Variables {
        &self.source.variables
    }

    async fn resolved(&self, runtime: &dyn Runtime, source: &Source) -> Result<Resolved, Fault> {
        let mut resolved = runtime.resolve(source).await.map_err(|fault| self.translated(fault))?;
        self.translate_all(&mut resolved.model);
        for warning in &mut resolved.warnings {
            *warning = self.translate(warning);
        }
        Ok(resolved)
    }

    fn translated(&self, mut fault: Fault) -> Fault {
        fault.context = self.translate(&fault.context);
        for line in &mut fault.output {
            *line = self.translate(line);
        }
        fault
    }

    /// A text with the paths that are outside of the copy.
    fn translate(&self, text: &str) -> String {
        let root = self.root.to_string_lossy();
        // A path that climbs above `/` ends there, and here one directory higher.
        let above = self.root.parent().map(Path::to_string_lossy).unwrap_or_default();
        if text == root || text == above {
            return "/".to_owned();
        }
        text.replace(&format!("{root}/"), "/").replace(&format!("{above}/"), "/")
    }

    /// A value of the model, outside of the copy. Compose knows no home directory here and takes `~` for the name of a directory: that is undone.
    fn translate_value(&self, text: &str) -> String {
        let translated = self.translate(text);
        match translated.split_once("/~") {
            Some((_, rest)) if translated != text && (rest.is_empty() || rest.starts_with('/')) => format!("~{rest}"),
            _ => translated,
        }
    }

    fn translate_all(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.translate_value(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.translate_all(item)),
            Value::Object(table) => table.iter_mut().for_each(|(_, item)| self.translate_all(item)),
            _ => {}
        }
    }
}

fn failed(error: std::io::Error) -> Fault {
    Fault::new(FaultKind::Failed, OPERATION, "the directory for temporary files cannot be used").caused_by(error)
}

/// An absolute path below another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
