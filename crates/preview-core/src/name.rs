//! Names: branch to slug, DNS labels, project names, URLs.
