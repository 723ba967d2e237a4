//! Private keys as text: in the form that `ssh` reads, and whether one has a passphrase. Pure.

/// What to do about a passphrase.
pub(super) const WITH_PASSPHRASE: &str = "the private key has a passphrase, and nobody is here to type it: make a key without one for this \
     (`ssh-keygen -t ed25519 -N '' -f preview_key`), or take the passphrase off a copy (`ssh-keygen -p -N '' -f COPY`), or load the key into an agent";

/// Variables and editors lose the last line's end or add carriage returns, and `ssh` then calls the key invalid.
pub(super) fn tidy(key: &str) -> String {
    format!("{}\n", key.replace('\r', "").trim())
}

/// Whether it looks like a private key at all: the file may hold a certificate or a public key.
pub(super) fn is_private(key: &str) -> bool {
    key.starts_with("-----BEGIN ") && key.lines().next().is_some_and(|line| line.ends_with("PRIVATE KEY-----"))
}

/// Whether a key is of no use without its passphrase.
pub(super) fn has_passphrase(key: &str) -> bool {
    let key = tidy(key);
    if !is_private(&key) {
        return false;
    }
    if key.contains("Proc-Type: 4,ENCRYPTED") || key.starts_with("-----BEGIN ENCRYPTED") {
        return true;
    }
    // OpenSSH's own form: a magic word, then the length and name of the cipher.
    let body: String = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let mut bytes = decode(body.as_bytes());
    let magic: Vec<u8> = bytes.by_ref().take(15).collect();
    if magic != b"openssh-key-v1\0" {
        return false;
    }
    let length = bytes.by_ref().take(4).fold(0_usize, |length, byte| length << 8 | usize::from(byte));
    bytes.take(length.min(64)).collect::<Vec<u8>>() != b"none"
}

/// Base64, up to the first character that is none.
fn decode(text: &[u8]) -> impl Iterator<Item = u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let value = |byte: &u8| ALPHABET.iter().position(|known| known == byte).and_then(|at| u32::try_from(at).ok());
    let values: Vec<u32> = text.iter().map_while(value).collect();
    let bytes: Vec<u8> = values
        .chunks(4)
        .flat_map(|four| {
            let bits = (0..4).fold(0, |bits, at| bits << 6 | four.get(at).copied().unwrap_or(0));
            bits.to_be_bytes()[1..four.len().max(1)].to_vec()
        })
        .collect();
    bytes.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn openssh(cipher: &str) -> String {
        // As `ssh-keygen` begins each of its keys; what follows is cut off.
        let body = match cipher {
            "none" => "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW",
            _ => "b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABA",
        };
        format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n")
    }

    #[test]
    fn a_passphrase_is_seen_in_every_form() {
        assert!(!has_passphrase(&openssh("none")));
        assert!(has_passphrase(&openssh("aes256-ctr")));
        assert!(has_passphrase(&openssh("aes256-ctr").replace('\n', "\r\n")));
        assert!(has_passphrase("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nabc\n"));
        assert!(has_passphrase("-----BEGIN ENCRYPTED PRIVATE KEY-----\nabc\n"));
        for plain in
            ["-----BEGIN RSA PRIVATE KEY-----\nabc\n", "ssh-ed25519 AAAA me", "", "-----BEGIN PRIVATE KEY-----"]
        {
            assert!(!has_passphrase(plain), "{plain}");
        }
    }

    #[test]
    fn carriage_returns_and_a_lost_line_end_are_mended() {
        let key = openssh("none");
        assert_eq!(tidy(&key), key);
        assert_eq!(tidy(key.trim_end()), key);
        assert_eq!(tidy(&key.replace('\n', "\r\n")), key);
        assert!(is_private(&key) && !is_private("ssh-ed25519 AAAA me"));
    }
}
