//! What a stack may not have, key by key.

use serde_json::json;

use super::*;

fn refused(service: Value) -> Vec<String> {
    let model = json!({"services": {"api": service}});
    keys(&model)
}

fn keys(model: &Value) -> Vec<String> {
    violations(model, Path::new("/repo"), Some("preview-proxy"), &[]).into_iter().map(|v| v.key).collect()
}

#[test]
fn an_ordinary_service_passes() {
    let service = json!({
        "image": "x", "command": null, "privileged": false, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"],
        "build": {"context": "/repo/api", "dockerfile": "Dockerfile", "additional_contexts": {"base": "docker-image://debian"}},
        "volumes": [{"type": "bind", "source": "/repo/conf"}, {"type": "volume", "source": "data"}, {"type": "tmpfs"}],
        "network_mode": "service:db", "ipc": "private", "labels": {"app": "x"}, "x-more": 1
    });
    assert_eq!(refused(service), Vec::<String>::new());
}

#[test]
fn each_way_to_the_host_is_refused_by_name() {
    for (key, value) in [
        ("privileged", json!(true)),
        ("devices", json!([{"source": "/dev/kvm"}])),
        ("cap_add", json!(["SYS_ADMIN"])),
        ("pid", json!("host")),
        ("ipc", json!("host")),
        ("ipc", json!("container:other")),
        ("uts", json!("host")),
        ("userns_mode", json!("host")),
        ("cgroup", json!("host")),
        ("cgroup_parent", json!("/")),
        ("network_mode", json!("host")),
        ("network_mode", json!("bridge")),
        ("network_mode", json!("container:other")),
        ("security_opt", json!(["seccomp:unconfined"])),
        ("volumes_from", json!(["container:other"])),
        ("provider", json!({"type": "x"})),
        ("use_api_socket", json!(true)),
        ("runtime", json!("runc2")),
        ("gpus", json!([{"count": -1}])),
        ("external_links", json!(["other"])),
        ("oom_score_adj", json!(-500)),
        ("post_start", json!([{"command": "x", "privileged": true}])),
        ("annotations", json!({"org.systemd.property.SuccessAction": "'reboot-force'"})),
        ("a_key_of_tomorrow", json!(1)),
    ] {
        assert_eq!(refused(json!({ key: value })), vec![format!("services.api.{key}")]);
    }
}

#[test]
fn mounts_from_outside_and_the_docker_socket_are_refused() {
    for source in ["/etc", "/", "/repository", "/var/run/docker.sock", "/repo/docker.sock"] {
        assert_eq!(
            refused(json!({"volumes": [{"type": "bind", "source": source}]})),
            ["services.api.volumes"],
            "{source}"
        );
    }
    let shared = json!({"volumes": [{"type": "bind", "source": "/repo/x", "bind": {"propagation": "rshared"}}]});
    assert_eq!(refused(shared), ["services.api.volumes"]);
}

#[test]
fn remote_contexts_are_the_base_branchs_to_allow() {
    let service = json!({"build": {
        "context": "https://example.com/x.git", "additional_contexts": {"y": "git@example.com:y.git", "z": "oci-layout:///etc"}
    }});
    let [context, y, z] =
        ["context", "additional_contexts.y", "additional_contexts.z"].map(|key| format!("services.api.build.{key}"));
    assert_eq!(refused(service.clone()), [y, z.clone(), context]);
    let allowed = [
        allow("build.context", &["https://example.com/x.git"]),
        allow("build.additional_contexts", &["git@example.com:y.git"]),
    ];
    assert_eq!(refused_with(&service, &allowed), [z]);
}

#[test]
fn texts_that_the_build_would_fill_in_are_refused() {
    for (build, key) in [
        (json!({"target": "$${x}"}), Some("target")),
        (json!({"labels": {"a": "%{ if true }x%{ endif }"}}), Some("labels")),
        (json!({"labels": {"$${x}": "y"}}), Some("labels")),
        (json!({"args": {"A": "%{x}"}}), Some("args")),
        (json!({"args": {"$${x}": "y"}}), Some("args")),
        (json!({"args": {"A": "$$$${x}"}}), Some("args")),
        (json!({"dockerfile_inline": "%{x}"}), Some("dockerfile_inline")),
        (json!({"platforms": ["$${x}"]}), Some("platforms")),
        (json!({"a_key_of_tomorrow": 1}), Some("a_key_of_tomorrow")),
        (
            json!({"args": {"A": "$${x}", "B": "5$$"}, "dockerfile_inline": "RUN echo $${x}", "labels": {"a": "$$x"}}),
            None,
        ),
    ] {
        let key: Vec<String> = key.iter().map(|key| format!("services.api.build.{key}")).collect();
        assert_eq!(refused(json!({"build": build.clone()})), key, "{build}");
    }
}

#[test]
fn builds_that_reach_outside_are_refused() {
    for (key, value) in [
        ("context", json!("/etc")),
        ("dockerfile", json!("../../etc/passwd")),
        ("dockerfile", json!("/etc/passwd")),
        ("secrets", json!([{"source": "x"}])),
        ("ssh", json!(["default"])),
        ("entitlements", json!(["network.host"])),
        ("network", json!("host")),
        ("privileged", json!(true)),
        ("cache_to", json!(["type=local,dest=/x"])),
    ] {
        let mut build = json!({"context": "/repo/api"});
        build[key] = value;
        assert_eq!(refused(json!({ "build": build })), vec![format!("services.api.build.{key}")]);
    }
    let named = json!({"build": {"context": "/repo", "additional_contexts": {"x": "/root"}}});
    assert_eq!(refused(named), ["services.api.build.additional_contexts.x"]);
}

#[test]
fn what_belongs_to_others_is_refused_except_the_proxys_network() {
    let model = json!({
        "networks": {
            "proxy": {"name": "preview-proxy", "external": true},
            "other": {"name": "prod", "external": true},
            "lan": {"driver": "macvlan"},
        },
        "volumes": {
            "prod": {"name": "prod", "external": true},
            "etc": {"driver": "local", "driver_opts": {"type": "none", "o": "bind", "device": "/etc"}},
            "fast": {"driver_opts": {"type": "tmpfs", "device": "tmpfs"}},
            "small": {"driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": "size=10m,mode=1777,nodev"}},
            "root": {"driver_opts": {"type": "tmpfs", "device": "/", "o": "bind"}},
            "bound": {"driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,rbind"}},
            "again": {"driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": "remount"}},
            "device": {"driver_opts": {"type": "tmpfs", "device": "/dev/sda1"}},
        },
        "secrets": {"s": {"file": "/root/.ssh/id_rsa"}, "ext": {"external": true, "name": "s"}},
    });
    assert_eq!(
        keys(&model),
        [
            "networks.lan.driver",
            "networks.other.external",
            "secrets.ext.external",
            "secrets.s.file",
            "volumes.again.driver_opts",
            "volumes.bound.driver_opts",
            "volumes.device.driver_opts",
            "volumes.etc.driver_opts",
            "volumes.prod.external",
            "volumes.root.driver_opts"
        ]
    );
}

/// Compose 5 knows `jobs`: containers like those of services.
#[test]
fn what_stands_beside_services_is_known_or_refused() {
    let job = json!({"a": {"image": "x", "privileged": true, "triggers": {"manual": true}}});
    assert_eq!(keys(&json!({"name": "p", "x-a": {"b": 1}, "services": {}, "jobs": job})), ["jobs"]);
    assert_eq!(
        keys(&json!({"name": "p", "services": {}, "jobs": {}, "a_key_of_tomorrow": null})),
        Vec::<String>::new()
    );
}

#[test]
fn ownership_labels_of_the_file_are_refused() {
    assert_eq!(refused(json!({"labels": {"preview.managed": "true"}})), ["services.api.labels.preview.managed"]);
    assert_eq!(keys(&json!({"volumes": {"v": {"labels": {"preview.app": "x"}}}})), ["volumes.v.labels.preview.app"]);
    let build = json!({"build": {"context": "/repo", "labels": {"preview.files": "true", "team": "shop"}}});
    assert_eq!(refused(build), ["services.api.build.labels.preview.files"]);
}

fn allow(key: &str, values: &[&str]) -> Allowance {
    Allowance {
        service: "api".to_owned(),
        key: key.to_owned(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    }
}

fn refused_with(service: &Value, allowed: &[Allowance]) -> Vec<String> {
    let model = json!({"services": {"api": service}});
    violations(&model, Path::new("/repo"), None, allowed).into_iter().map(|v| v.key).collect()
}

#[test]
fn what_the_base_branch_allows_passes_and_nothing_else() {
    for (key, values, value) in [
        ("privileged", &[][..], json!(true)),
        ("use_api_socket", &[], json!(true)),
        ("gpus", &[], json!([{"count": -1}])),
        ("annotations", &["a.b"], json!({"a.b": "x"})),
        ("post_start", &[], json!([{"command": "x", "privileged": true}])),
        ("cap_add", &["SYS_PTRACE"], json!(["SYS_PTRACE"])),
        ("devices", &["/dev/kvm"], json!([{"source": "/dev/kvm", "target": "/dev/kvm", "permissions": "rwm"}])),
        ("security_opt", &["seccomp:unconfined"], json!(["seccomp:unconfined", "no-new-privileges"])),
        ("network_mode", &["host"], json!("host")),
        ("pid", &["host"], json!("host")),
        ("oom_score_adj", &["-500"], json!(-500)),
        ("runtime", &["runsc"], json!("runsc")),
        ("volumes", &["/srv/models"], json!([{"type": "bind", "source": "/srv/models"}])),
        ("volumes", &["/var/run/docker.sock"], json!([{"type": "bind", "source": "/var/run/docker.sock"}])),
    ] {
        let service = json!({ key: value });
        assert_eq!(refused_with(&service, &[allow(key, values)]), Vec::<String>::new(), "{key}");
        assert_eq!(refused_with(&service, &[]), [format!("services.api.{key}")], "{key}");
        // Another service, another value.
        let other = Allowance { service: "db".to_owned(), ..allow(key, values) };
        assert_eq!(refused_with(&service, &[other]), [format!("services.api.{key}")], "{key}");
        if !values.is_empty() {
            assert_eq!(refused_with(&service, &[allow(key, &["other"])]), [format!("services.api.{key}")], "{key}");
            assert_eq!(refused_with(&service, &[allow(key, &[])]), [format!("services.api.{key}")], "{key}");
        }
    }
}

#[test]
fn values_are_compared_exactly_and_one_by_one() {
    let service = json!({"cap_add": ["SYS_PTRACE", "SYS_ADMIN"], "volumes": [
        {"type": "bind", "source": "/srv/models"}, {"type": "bind", "source": "/srv/models/../secret"}, {"type": "bind", "source": "/srv"},
    ]});
    let allowed = [allow("cap_add", &["SYS_PTRACE"]), allow("volumes", &["/srv/models"])];
    let model = json!({"services": {"api": service}});
    let found = violations(&model, Path::new("/repo"), None, &allowed);
    let keys: Vec<&str> = found.iter().map(|violation| violation.key.as_str()).collect();
    assert_eq!(keys, ["services.api.cap_add", "services.api.volumes", "services.api.volumes"]);
    let line = found[0].allow.as_ref().unwrap();
    assert_eq!(
        (line.service.as_str(), line.key.as_str(), line.values.as_slice()),
        ("api", "cap_add", &["SYS_ADMIN".to_owned()][..])
    );
    // What changes the host's mounts is refused for allowed paths too.
    let shared = json!({"volumes": [{"type": "bind", "source": "/srv/models", "bind": {"propagation": "rshared"}}]});
    assert_eq!(refused_with(&shared, &allowed), ["services.api.volumes"]);
}

#[test]
fn some_things_nobody_can_allow() {
    for (key, value) in [
        ("labels", json!({"preview.managed": "true"})),
        ("a_key_of_tomorrow", json!(true)),
        ("provider", json!({"type": "x"})),
        ("build", json!({"context": "/etc"})),
        ("build", json!({"context": "/repo", "dockerfile": "../../etc/passwd"})),
    ] {
        let service = json!({ key: value });
        let place = refused_with(&service, &[]).remove(0);
        let key = place.strip_prefix("services.api.").unwrap();
        assert_eq!(refused_with(&service, &[allow(key, &["true", "/etc", "x"])]), [place.as_str()]);
        // A context can be allowed that is fetched, and no directory of this machine.
        assert_eq!(allowing(key), (key == "build.context").then_some(Allowing::Values), "{key}");
    }
}

#[test]
fn capabilities_that_docker_gives_anyway_are_no_addition() {
    assert_eq!(refused(json!({"cap_add": ["NET_BIND_SERVICE", "cap_chown", "Setuid"]})), Vec::<String>::new());
    let model = json!({"services": {"api": {"cap_add": ["CHOWN", "net_admin", "ALL"]}}});
    let found = violations(&model, Path::new("/repo"), None, &[]);
    let values: Vec<_> = found.iter().filter_map(|violation| violation.value.as_deref()).collect();
    assert_eq!(values, ["ALL", "net_admin"]);
}

#[test]
fn devices_that_hold_nothing_may_be_mounted_read_only() {
    let null = |read_only: bool| json!({"volumes": [{"type": "bind", "source": "/dev/null", "read_only": read_only}]});
    assert_eq!(refused(null(true)), Vec::<String>::new());
    assert_eq!(refused(null(false)), ["services.api.volumes"], "the container could change the host's device");
}

#[test]
fn names_on_the_proxys_network_are_not_for_the_taking() {
    let model = |name: &str, service: Value| json!({"services": { name: service }});
    for name in ["preview-socket-proxy", "Preview-Traefik", "api.pr-8.shop.PREVIEW", "api.openai.com"] {
        assert_eq!(keys(&model(name, json!({}))), [format!("services.{name}")]);
        assert_eq!(keys(&model("api", json!({"hostname": name}))), ["services.api.hostname"]);
        // Nobody shares a network where there is no proxy.
        let alone = model(name, json!({"hostname": name}));
        assert_eq!(violations(&alone, Path::new("/repo"), None, &[]), []);
    }
    assert_eq!(keys(&model("api", json!({"hostname": "rabbit", "domainname": "example.com"}))), Vec::<String>::new());
}

#[test]
fn networks_that_previews_get_cannot_be_declared() {
    for key in ["preview_proxy", "Preview_outside_web", "preview_"] {
        let model = json!({"services": {}, "networks": { key: {} }});
        assert_eq!(keys(&model), [format!("networks.{key}")]);
        assert_eq!(violations(&model, Path::new("/repo"), None, &[]).len(), 1);
    }
    assert_eq!(keys(&json!({"services": {}, "networks": {"previews": {}}})), Vec::<String>::new());
}
