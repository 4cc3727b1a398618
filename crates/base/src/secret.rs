//! What the nodes of a cluster have in common and nobody else knows.

use std::fmt::{self, Write};
use std::str::FromStr;

/// 32 random bytes. Written as 64 hexadecimal digits by [`reveal`](Self::reveal), and by nothing else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    pub fn reveal(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl FromStr for Secret {
    type Err = ();
    fn from_str(s: &str) -> Result<Secret, ()> {
        let digits: Vec<u8> =
            s.chars().map(|c| c.to_digit(16).map(|d| d as u8).ok_or(())).collect::<Result<_, _>>()?;
        let bytes: Vec<u8> = digits.chunks(2).map(|d| d[0] << 4 | d.get(1).unwrap_or(&0)).collect();
        match digits.len() {
            64 => Ok(Secret(bytes.try_into().map_err(drop)?)),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_revealed_only_when_asked_and_read_back() {
        let secret = Secret(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(secret.reveal().parse(), Ok(secret.clone()));
        assert_eq!((secret.reveal().len(), format!("{secret:?}")), (64, "Secret(..)".into()));
        let long = "0".repeat(65);
        for wrong in ["", "0", &long[..63], &long, &"g".repeat(64)] {
            assert!(wrong.parse::<Secret>().is_err(), "{wrong}");
        }
    }
}
