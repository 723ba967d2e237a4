//! The hash of a password for basic authentication.

use sha2::{Digest as _, Sha256};

/// The work of one hash: 2^10 rounds, about 50 ms, asked for by each request that comes in.
const COST: u32 = 10;
/// bcrypt looks at no more.
const LONGEST: usize = 72;

/// The bcrypt hash of a password, in the form that htpasswd files have.
///
/// The same preview, user and password have the same hash: another one at each deploy would recreate the containers that have it in a label.
/// So the salt is made from the names of the preview and the user, never from the password.
///
/// # Errors
/// What is wrong with the password, in words.
pub fn hash(project: &str, user: &str, password: &str) -> Result<String, String> {
    if password.is_empty() {
        return Err("the password is empty".to_owned());
    }
    if password.len() > LONGEST {
        return Err(format!("the password has more than {LONGEST} bytes: bcrypt would not look at the rest"));
    }
    let seed = Sha256::digest(format!("{project}\0{user}"));
    let mut salt = [0; 16];
    salt.copy_from_slice(&seed[..16]);
    let parts = bcrypt::hash_with_salt(password, COST, salt).map_err(|error| error.to_string())?;
    Ok(parts.format_for_version(bcrypt::Version::TwoY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_stable_and_belongs_to_one_preview() {
        let one = hash("shop_pr-7", "team", "correct horse").unwrap();
        assert!(one.starts_with("$2y$10$"), "{one}");
        assert!(bcrypt::verify("correct horse", &one).unwrap());
        assert!(!bcrypt::verify("wrong horse", &one).unwrap());
        assert_eq!(one, hash("shop_pr-7", "team", "correct horse").unwrap());
        assert_ne!(one, hash("shop_pr-8", "team", "correct horse").unwrap());
        let salt = |hash: &str| hash[7..29].to_owned();
        assert_eq!(
            salt(&one),
            salt(&hash("shop_pr-7", "team", "other").unwrap()),
            "nothing of the password is in the salt"
        );
    }

    #[test]
    fn what_bcrypt_would_cut_is_refused() {
        assert!(hash("p", "u", &"x".repeat(73)).unwrap_err().contains("72"));
        assert!(hash("p", "u", "").is_err());
    }
}
