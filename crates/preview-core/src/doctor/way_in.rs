//! Judges the way from the world to a preview. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;

use super::tls::Trouble;
use super::{Check, Finding};
use crate::fault::Fault;

const DAY: i64 = 86_400;
/// Renewals begin a month before the end: what has less than this left is not renewed.
const SOON: i64 = 14 * DAY;
const TOO_SOON: i64 = 2 * DAY;

/// The check of a DNS provider's rights, if one is configured.
pub(super) fn provider(checked: Option<Result<String, Fault>>) -> Finding {
    const ID: Check = Check::DnsProvider;
    match checked {
        None => Finding::skipped(ID, "no DNS provider is configured; a wildcard record leads to the VM, or should"),
        Some(Ok(found)) => Finding::ok(ID, found),
        Some(Err(fault)) => Finding::failed(
            ID,
            super::vm::without_operation(&fault),
            "give this command the token, with the rights that docs/configuration.md lists under `[dns]`, for this zone",
        ),
    }
}

/// The ways to the VM: what `[vm] host` leads to, then other addresses that the VM has, each once.
pub(super) fn of_vm(host: BTreeSet<IpAddr>, own: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = host.into_iter().collect();
    for address in own {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// `name` stands for a preview that is not there; `each`: each preview has a name of its own, so a wildcard record is wanted.
pub(super) fn dns(name: &str, each: bool, resolved: Result<&[IpAddr], &str>, vm: &[IpAddr]) -> Finding {
    const ID: Check = Check::Dns;
    let zone = name.split_once('.').filter(|_| each).map(|(_, zone)| zone);
    let record = zone.map_or(name.to_owned(), |zone| format!("*.{zone}"));
    let list = |addresses: &mut dyn Iterator<Item = &IpAddr>| {
        addresses.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let to = if vm.is_empty() {
        "the VM's address".to_owned()
    } else {
        // The first is where `[vm] host` leads.
        list(&mut vm.iter().filter(|address| !address.is_loopback()).take(1))
    };
    let to = if to.is_empty() { "the VM's address".to_owned() } else { to };
    let finding = match resolved {
        Err(why) => Finding::failed(
            ID,
            format!("{name} leads nowhere: {why}"),
            format!("make a record `{record}` that leads to {to}"),
        ),
        Ok(addresses) => {
            let found = format!("{name} leads to {}", list(&mut addresses.iter()));
            if vm.is_empty() || addresses.iter().any(|address| vm.contains(address)) {
                Finding::ok(ID, found)
            } else {
                Finding::warning(
                    ID,
                    format!("{found}, which is none of the VM's addresses"),
                    format!(
                        "behind a tunnel or a proxying DNS provider that is right; else let `{record}` lead to {to}"
                    ),
                )
            }
        }
    };
    finding.about(name)
}

/// Where records come with the previews: the probe has none, and that is right.
pub(super) fn no_record_yet(name: &str) -> Finding {
    Finding::skipped(Check::Dns, "each preview gets a record of its own when it is deployed (`[dns]`)").about(name)
}

/// Behind a tunnel a name leads to the provider's addresses, which are none of the VM's.
pub(super) fn dns_of_tunnel(name: &str, addresses: &[IpAddr]) -> Finding {
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    Finding::ok(Check::Dns, format!("{name} leads to {}, for the tunnel", list.join(", "))).about(name)
}

/// What the tunnel's provider has at its end, and the VM has not.
pub(super) fn through_tunnel(id: Check, name: &str) -> Finding {
    Finding::skipped(id, "requests come through a tunnel (`[tunnel]`): its provider has the ports and ends TLS")
        .about(name)
}

/// Ports, each with what became of connecting.
pub(super) fn ports(name: &str, https: bool, tried: &[(u16, Result<(), String>)]) -> Finding {
    const ID: Check = Check::Ports;
    let closed: Vec<&(u16, Result<(), String>)> = tried.iter().filter(|(_, tried)| tried.is_err()).collect();
    let open: Vec<String> = tried.iter().filter(|(_, tried)| tried.is_ok()).map(|(port, _)| port.to_string()).collect();
    let next = "open it in the VM's firewall (`preview vm setup --only firewall --open-port PORT`; with ufw `sudo ufw allow PORT/tcp`) and in the provider's, and see that the proxy publishes it";
    let finding = match closed.as_slice() {
        [] => Finding::ok(ID, format!("open: {}", open.join(", "))),
        [(80, Err(why))] if https && tried.len() > 1 => Finding::warning(
            ID,
            format!("port 80 cannot be reached ({why}): who leaves out `https://` finds nothing"),
            next.replace("PORT", "80"),
        ),
        [(port, tried), ..] => {
            let why = tried.as_ref().err().map(String::as_str).unwrap_or_default();
            Finding::failed(
                ID,
                format!("port {port} cannot be reached from here: {why}"),
                next.replace("PORT", &port.to_string()),
            )
        }
    };
    finding.about(name)
}

/// What the certificate is like: until when it and its chain hold, or what is wrong with it.
pub(super) fn certificate(name: &str, seen: Result<Timestamp, &Trouble>, now: Timestamp) -> Finding {
    const ID: Check = Check::Certificate;
    let renew = "renew it, and see why the proxy did not: its log names the certificate authority's answer";
    let finding = match seen {
        Ok(end) => {
            let left = end.as_second().saturating_sub(now.as_second());
            let found = format!("valid for this name until {} ({} days)", end.strftime("%Y-%m-%d"), left / DAY);
            if left < TOO_SOON {
                Finding::failed(ID, found, renew)
            } else if left < SOON {
                Finding::warning(ID, found, renew)
            } else {
                Finding::ok(ID, found)
            }
        }
        Err(Trouble::Expired(end)) => {
            let when = end.map_or_else(String::new, |end| format!(" on {}", end.strftime("%Y-%m-%d %H:%M UTC")));
            Finding::failed(ID, format!("it expired{when}"), renew)
        }
        Err(Trouble::NotYet) => Finding::failed(
            ID,
            "it is not valid yet",
            "are both clocks right? else wait, or put the right one in place",
        ),
        Err(Trouble::Name(names)) => Finding::failed(
            ID,
            format!("it is for other names: {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") }),
            "give the proxy a wildcard certificate for the domain of the previews; those are issued by DNS-01 alone",
        ),
        Err(Trouble::Issuer) => Finding::failed(
            ID,
            "its issuer is not trusted by this machine, or a certificate in between is missing",
            "serve the whole chain; is it a private authority's, give that with `--ca FILE`; a proxy that has none of its own shows one of this kind",
        ),
        Err(Trouble::Roots(why)) => {
            Finding::failed(ID, why, "install ca-certificates on this machine, or give a file with `--ca`")
        }
        Err(Trouble::Handshake(why)) => Finding::failed(
            ID,
            format!("no TLS connection: {why}"),
            "does the proxy speak TLS on that port? its log says more",
        ),
        Err(Trouble::Other(why)) => Finding::failed(ID, why, renew),
    };
    finding.about(name)
}

/// What port 80 answers: a status, and where it leads.
pub(super) fn redirect(name: &str, answer: Result<(u16, Option<&str>), &str>) -> Finding {
    const ID: Check = Check::Redirect;
    let next = "let the proxy redirect HTTP to HTTPS: passwords and cookies would go in clear text";
    let finding = match answer {
        Ok((301 | 302 | 303 | 307 | 308, Some(to))) if to.starts_with("https://") => {
            Finding::ok(ID, "HTTP leads to HTTPS")
        }
        Ok((status, Some(to))) => Finding::warning(ID, format!("HTTP answers {status} and leads to {to}"), next),
        Ok((status, None)) => Finding::warning(ID, format!("HTTP answers {status} and does not lead to HTTPS"), next),
        Err(why) => Finding::warning(ID, format!("HTTP gives no answer: {why}"), next),
    };
    finding.about(name)
}

/// What a preview that is there answers to the world.
pub(super) fn answer(preview: &str, url: &str, answer: Result<u16, &str>) -> Finding {
    const ID: Check = Check::Answer;
    let logs = format!("`preview status` and `preview logs` of {preview}, then the proxy's log");
    let finding = match answer {
        Ok(status @ (502..=504)) => {
            Finding::failed(ID, format!("{url} answers {status}: the proxy does not reach the preview"), logs)
        }
        Ok(404) => Finding::warning(
            ID,
            format!("{url} answers 404: the application's word, or the proxy's who knows no such route"),
            logs,
        ),
        Ok(status @ 500..) => Finding::warning(ID, format!("{url} answers {status}"), logs),
        Ok(status) => Finding::ok(ID, format!("{url} answers {status}")),
        Err(why) => Finding::failed(ID, format!("{url} gives no answer: {why}"), logs),
    };
    finding.about(preview)
}
