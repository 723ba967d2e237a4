//! Two repositories on one VM, pull request 42 of both, beside a stack that is not ours: each is apart from the others.

use preview_tests::{Site, VmEngine, Where};

use crate::stacks::{nothing, serving, stack, standing, still};

const LIMITS: &str =
    "[limits]\nmax_previews = 2\nmax_per_app = 1\nmin_free_disk = \"1MB\"\nmin_free_memory = \"1MB\"\n";

/// What the engine has of an application, or of the stranger: names of containers, networks and volumes, with their ids.
fn objects(site: &Site, filter: &str) -> Vec<String> {
    let text = site.shell(&format!(
        "docker ps -a --no-trunc --filter {filter} --format 'container {{{{.ID}}}} {{{{.Names}}}}'; \
         docker network ls --no-trunc --filter {filter} --format 'network {{{{.ID}}}} {{{{.Name}}}}'; \
         docker volume ls --filter {filter} --format 'volume {{{{.Name}}}}'"
    ));
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn pull_request_42_of_two_repositories() {
    let Some(mut site) = Site::new(Where::Vm(VmEngine::V28), &stack(&serving("shop"))) else { return };
    site.write("preview.toml", LIMITS);
    let (shop, blog) = (site.app.clone(), format!("{}-blog", site.app));
    let stranger = format!("stranger-{}", std::process::id());
    let label = format!("label=stranger={stranger}");
    site.shell(&format!(
        "set -e; docker network create --label stranger={stranger} --subnet 10.215.0.0/28 {stranger}; \
         docker volume create --label stranger={stranger} {stranger}; \
         docker run -d --label stranger={stranger} --name {stranger} --network {stranger} -v {stranger}:/data busybox:1.36 sleep 100000"
    ));
    let strange = objects(&site, &label);
    assert_eq!(strange.len(), 3, "{strange:?}");

    let (url, _) = standing(&site, "pr-42", "42");
    let ours = objects(&site, &format!("label=preview.app={shop}"));
    site.set("PREVIEW_APP", &blog);
    site.set("GITHUB_REPOSITORY", "acme/blog");
    site.write("compose.yml", &stack(&serving("blog")));
    let (other, _) = standing(&site, "pr-42", "42");
    let theirs = objects(&site, &format!("label=preview.app={blog}"));
    assert_eq!((ours.len(), theirs.len()), (4, 4), "{ours:?} {theirs:?}");
    assert!(ours.iter().all(|object| !theirs.contains(object)) && url != other);
    assert!(theirs.iter().all(|object| object.contains(&format!("{blog}_pr-42")) || object.starts_with("container")));
    still(&site, &other, "42", "blog");
    assert!(site.get(&url).trim_end().ends_with("shop"));

    // Counted apart, and together.
    let ran = site.run(&["deploy", "--pr", "43"]).expect(3);
    assert!(ran.err.contains("1 of 1 places of this application are taken"), "{}", ran.err);
    site.write("preview.toml", &LIMITS.replace("max_per_app = 1\n", ""));
    let ran = site.run(&["deploy", "--pr", "43"]).expect(3);
    assert!(ran.err.contains(&format!("{shop} pr-42")) && ran.err.contains(&format!("{blog} pr-42")), "{}", ran.err);
    let listed = site.run(&["list", "--format", "json"]).expect(0).json();
    assert_eq!(listed["previews"].as_array().map(Vec::len), Some(1), "{listed}");
    let listed = site.run(&["list", "--all", "--format", "json"]).expect(0).json();
    assert_eq!(listed["previews"].as_array().map(Vec::len), Some(2), "{listed}");

    // A list of open pull requests is about one application; a destroy, too.
    site.write("open", "1\n");
    site.set("PREVIEW_APP", &shop);
    site.run(&["sweep", "--open-prs", "open", "--grace", "0s", "--dry-run"]).expect(0);
    site.run(&["destroy", "--pr", "42"]).expect(0);
    assert_eq!(objects(&site, &format!("label=preview.app={blog}")), theirs);
    assert_eq!(objects(&site, &label), strange);
    site.set("PREVIEW_APP", &blog);
    still(&site, &other, "42", "blog");
    let ran = site.run(&["sweep", "--open-prs", "open", "--grace", "0s"]).expect(0);
    assert!(ran.out.contains(&format!("{blog} pr-42: pull request 42 is not open any more: removed")), "{}", ran.out);
    assert_eq!(objects(&site, &label), strange);
    nothing(&site);
    site.shell(&format!("docker rm -f {stranger}; docker network rm {stranger}; docker volume rm {stranger}"));
}
