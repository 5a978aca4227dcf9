//! [`StripHeaders`]: further headers that clients must not send to the upstream.

use http::HeaderName;

use super::InvalidSetting;

/// Names of headers that are removed from the requests of clients, and prefixes of such names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StripHeaders {
    names: Vec<String>,
    prefixes: Vec<String>,
}

impl StripHeaders {
    /// Reads names; one that ends in `*` is a prefix.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if one can't be the name of a header.
    pub fn read(names: &[String]) -> Result<Self, InvalidSetting> {
        let mut strip = Self::default();
        for name in names.iter().map(|name| name.trim()) {
            let (stem, list) = match name.strip_suffix('*') {
                Some(stem) => (stem, &mut strip.prefixes),
                None => (name, &mut strip.names),
            };
            if HeaderName::from_bytes(stem.as_bytes()).is_err() || stem.contains('*') {
                let reason = format!("{name:?} is neither the name of a header nor a prefix and *");
                return Err(InvalidSetting::of("--strip-header", reason));
            }
            list.push(Self::normalized(stem));
        }
        Ok(strip)
    }

    /// Returns a name in lower case, with `-` for every other character than letters and digits.
    pub(crate) fn normalized(name: &str) -> String {
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
    }

    /// Checks if the header of this [normalized](Self::normalized) name is removed.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.names.iter().any(|other| other == name) || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_prefixes_are_read() {
        let read =
            |names: &[&str]| StripHeaders::read(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let strip = read(&["X-Tenant", " x_acme_* "]).unwrap();
        for (name, stripped) in
            [("x-tenant", true), ("x-tenant-id", false), ("x-acme-user", true), ("x-acme-", true), ("x-acm", false)]
        {
            assert_eq!(strip.contains(name), stripped, "{name}");
        }
        for invalid in ["", "*", "x*y", "a b", "x-y:", "é", "**"] {
            let refused = read(&[invalid]).unwrap_err().to_string();
            assert!(refused.starts_with("--strip-header: "), "{refused}");
        }
    }
}
