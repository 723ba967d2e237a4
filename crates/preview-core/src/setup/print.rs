//! Steps as one script, or as cloud-init user data: for a machine that sets itself up when it starts, without us. Pure.

use std::fmt::Write as _;
use std::io::Write as _;

use base64::Engine as _;

use super::script::{self, FILE, PRELUDE};
use super::{Facts, Options, Wish, facts, steps};
use crate::host::quote;

/// Bytes that cloud providers take as user data: Hetzner's limit, and that of others.
const ROOM: usize = 32 * 1024;

/// Looks at one step, and does what differs. What a step does is asked for by nothing else, or its shell would go on after a failure.
pub(super) const RUN: &str = r#"run() {
  said=$(step check </dev/null 2>&1)
  case $? in
    0) echo "$1: as wanted" ;;
    77) echo "$1: left out: $said" ;;
    *)
      echo "$1: $2"
      step apply </dev/null 9>&-
      [ $? = 0 ] || fail "$1 failed"
      said=$(step check </dev/null 2>&1)
      case $? in
        0) echo "$1: done" ;;
        77) echo "$1: left out: $said" ;;
        *) fail "$1 was done, and is still not as wanted: $said" ;;
      esac
      ;;
  esac
}
"#;

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
    whole(wish, options, true)
}

fn whole(wish: &Wish, options: &Options, comments: bool) -> Result<String, String> {
    let all = steps(wish, &Facts::default())?;
    let meant: Vec<_> = all.into_iter().filter(|step| options.wants(step.id)).collect();
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
    text.push_str(&if comments { PRELUDE.to_owned() } else { script::uncommented(PRELUDE) });
    text.push_str(FILE);
    text.push_str(RUN);
    let systems = facts::SYSTEMS.map(|system| format!("'{system}'")).join("|");
    let _ = write!(
        text,
        "[ \"$(id -u)\" = 0 ] || fail 'this is for root'\n\
         system=$(. /etc/os-release && echo \"$ID ${{VERSION_ID:-}}\")\n\
         case $system in {systems}) ;; *) fail \"this is not for $system\" ;; esac\nalone\n\n"
    );
    for step in &meant {
        if comments {
            let _ = writeln!(text, "# {}: {}.\n# {}.", step.id, step.title, step.why);
        }
        let both = script::either(step, comments);
        let _ = write!(text, "step() (\nmode=$1\n{both}\n)\nrun {} {}\n\n", step.id, quote(&step.title));
    }
    text.push_str("echo 'ready for previews'\n");
    Ok(text)
}

/// The same as cloud-init user data: one file that is written, and one command. There is little room: without comments, and packed where it is
/// too large all the same.
///
/// # Errors
/// As for [`script`].
pub fn cloud_init(wish: &Wish, options: &Options, host_key: Option<&HostKey>) -> Result<String, String> {
    let plain = user_data(&whole(wish, options, false)?, host_key, false)?;
    if plain.len() <= ROOM { Ok(plain) } else { user_data(&whole(wish, options, true)?, host_key, true) }
}

fn user_data(script: &str, host_key: Option<&HostKey>, packed: bool) -> Result<String, String> {
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
    text.push_str("write_files:\n- path: /usr/local/lib/preview/setup\n  permissions: '0755'\n");
    let _ = if packed {
        write!(
            text,
            "  # Packed, since it is long; `--print script` shows it.\n  encoding: gz+b64\n  content: {}\n",
            pack(script)?
        )
    } else {
        write!(text, "  content: |\n{}", block(script, "   "))
    };
    text.push_str("runcmd:\n- [sh, -c, '/usr/local/lib/preview/setup >/var/log/preview-setup.log 2>&1']\n");
    Ok(text)
}

/// As gzip in base64, which cloud-init unpacks.
fn pack(text: &str) -> Result<String, String> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let packed = packer.write_all(text.as_bytes()).and_then(|()| packer.finish());
    packed.map(|packed| base64::engine::general_purpose::STANDARD.encode(packed)).map_err(|error| error.to_string())
}

/// Why this cannot be the user data of a server, and what to do; `None` if it is small enough.
#[must_use]
pub fn too_large(user_data: &str) -> Option<String> {
    let size = user_data.len();
    (size > ROOM).then(|| {
        format!(
            "the user data has {size} bytes, and a provider takes {ROOM} (Hetzner; others less): leave out what is large (--skip proxy, fewer --deploy-key), and run `preview vm setup --host …` when the server is up"
        )
    })
}
