//! Steps as one script, or as cloud-init user data: for a machine that sets itself up when it starts, without us. Pure.

use std::fmt::Write as _;

use super::script::{self, PRELUDE};
use super::{Facts, Options, Wish, facts, steps};
use crate::host::quote;

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A script for root's shell.
    Script,
    /// A cloud-init configuration.
    CloudInit,
}

/// The host key that a new machine is given, so that it is known before the first contact.
#[derive(Clone, Debug)]
pub struct HostKey {
    /// The private key, as OpenSSH writes it.
    pub private: crate::secret::Secret<String>,
    /// The public key.
    pub public: String,
}

/// The script that makes a new machine as wished; it may run again, and changes nothing then.
///
/// # Errors
/// If the wish is wrong or holds secrets: user data can be read by every process of a machine.
pub fn script(wish: &Wish, options: &Options) -> Result<String, String> {
    let all = steps(wish, &Facts::default())?;
    let meant: Vec<_> = all.into_iter().filter(|step| options.wants(step)).collect();
    if let Some(step) = meant.iter().find(|step| step.files.iter().any(|file| file.secret)) {
        return Err(format!(
            "the step {} holds a secret, and what is printed is often kept where others can read it (user data: by every process of the machine): \
             leave it out with --skip {}, and run `preview vm setup --host …` when the machine is up",
            step.id, step.id
        ));
    }
    let mut text =
        "#!/bin/sh\n# Makes a server ready for previews. For root; may run again, and changes nothing then.\nset -u\n"
            .to_owned();
    text.push_str(PRELUDE);
    let systems = facts::SYSTEMS.map(|system| format!("'{system}'")).join("|");
    let _ = write!(
        text,
        "[ \"$(id -u)\" = 0 ] || fail 'this is for root'\n\
         system=$(. /etc/os-release && echo \"$ID ${{VERSION_ID:-}}\")\n\
         case $system in {systems}) ;; *) fail \"this is not for $system\" ;; esac\nalone\n\n"
    );
    for step in &meant {
        let _ = write!(
            text,
            "# {id}: {title}.\n# {why}.\n\
             step() (\nmode=$1\n{both}\n)\n\
             said=$(step check </dev/null 2>&1); status=$?\n\
             case $status in\n  0) echo {ok} ;;\n  77) echo {skip}\"$said\" ;;\n  *)\n    echo {begin}\n    step apply </dev/null 9>&-\n    \
             [ $? = 0 ] || fail {failed}\n    \
             said=$(step check </dev/null 2>&1) || fail {still}\"$said\"\n    echo {changed}\n    ;;\nesac\n\n",
            both = script::either(step),
            id = step.id,
            title = step.title,
            why = step.why,
            ok = quote(&format!("{}: as wanted", step.id)),
            skip = quote(&format!("{}: left out: ", step.id)),
            begin = quote(&format!("{}: {}", step.id, step.title)),
            failed = quote(&format!("{} failed", step.id)),
            still = quote(&format!("{} was done, and is still not as wanted: ", step.id)),
            changed = quote(&format!("{}: done", step.id)),
        );
    }
    text.push_str("echo 'ready for previews'\n");
    Ok(text)
}

/// The same as cloud-init user data: one file that is written, and one command.
///
/// # Errors
/// As for [`script`].
pub fn cloud_init(wish: &Wish, options: &Options, host_key: Option<&HostKey>) -> Result<String, String> {
    let script = script(wish, options)?;
    let block = |text: &str, indent: &str| {
        text.lines().fold(String::new(), |mut block, line| {
            let _ = if line.is_empty() { writeln!(block) } else { writeln!(block, "{indent}{line}") };
            block
        })
    };
    let mut text =
        "#cloud-config\n# Made by `preview vm setup --print cloud-init`. What it did: /var/log/preview-setup.log\n"
            .to_owned();
    if let Some(HostKey { private, public }) = host_key {
        let _ = write!(
            text,
            "ssh_deletekeys: true\nssh_genkeytypes: []\nssh_keys:\n  ed25519_private: |\n{}  ed25519_public: {}\n",
            block(private.expose().trim(), "    "),
            serde_json::Value::from(public.trim())
        );
    }
    let _ = write!(
        text,
        "write_files:\n  - path: /usr/local/lib/preview/setup\n    permissions: '0755'\n    content: |\n{}",
        block(&script, "      ")
    );
    text.push_str("runcmd:\n  - [sh, -c, '/usr/local/lib/preview/setup >/var/log/preview-setup.log 2>&1']\n");
    Ok(text)
}
